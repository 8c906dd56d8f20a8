r"""The published CIDER functionals as functionals of ours.

The models CIDER23X are, for each spin-scaled density,

.. math:: e_x = e_x^{LDA} \left[F_{base}(p) + g(x)\right]

with g a sum of cubic splines. Ref: Bystrom, Kozinsky, Phys. Rev. B 110, 075130 (2024). Those of
CIDER24X are the same of other features, of the smoothed density matrix, with a neural network for
g. Ref: Bystrom, Falletta, Kozinsky, J. Chem. Theory Comput. 20, 7516 (2024). The models CIDER26XC
add :math:`e_c = e_c^{PBE} \left[1 + g(x)\right]`, with a sum over control points for both g.
"""

import hashlib
import importlib.util
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from cider.additive_spline import AdditiveSpline, UniformKnots
from cider.ciderpress_features import (
    PublishedFeatures,
    feature_maps,
    published_features,
    published_transform,
)
from cider.ciderpress_file import (
    CiderpressFileError,
    Record,
    is_tuple_of,
    read_ciderpress_file,
)
from cider.correlation import CorrelationTerm
from cider.exchange import ExchangeTerm
from cider.files import save_functional
from cider.learned_functional import LearnedFunctional
from cider.modulated_network import ModulatedNetwork
from cider.radial_basis import RadialBasis

_BASELINES = {
    "ciderpress.dft.baselines.lda_x": "LDA_X",
    "ciderpress.dft.baselines.gga_x_pbe": "GGA_X_PBE",
    "ciderpress.dft.baselines.gga_x_chachiyo": "GGA_X_CHACHIYO",
}
"""Names of the models CIDER23X, whose baselines are functions; later ones have those of libxc."""

_THEORY = "Bystrom, Kozinsky, Phys. Rev. B 110, 075130 (2024)"
_SDMX_THEORY = "Bystrom, Falletta, Kozinsky, J. Chem. Theory Comput. 20, 7516 (2024)"


def load_ciderpress(path: str | os.PathLike[str]) -> LearnedFunctional:
    """The functional of a ciderpress model file, named as the file.

    It evaluates the published formulas to rounding, but for densities so low that the smooth
    bounds of our nonlocal exponents stand in place of the published cutoff at 1e-10 bohr^-3: that
    moved exchange energies of H2O and O2 by 1e-8 Ha, and exchange-correlation energies (of
    CIDER26XCCHEM) by 3e-9 Ha. Points below that cutoff, whose learned part the published code
    leaves out, held 2e-10 Ha. Features of the density matrix are integrals over R by another rule
    than the published code's: exchange energies of CIDER24X are within 2e-6 Ha of those of
    converged integrals, the published ones within 7e-5 (H2O, O2, SO2).

    Raises:
        CiderpressFileError: The file is damaged, foreign or refused.
        NotImplementedError: The model needs what is not there yet; the message names it.
    """
    model = read_ciderpress_file(path)
    try:
        return _functional(Path(path).stem, model)
    except CiderpressFileError:
        raise
    except ValueError as error:
        raise CiderpressFileError(f"{path}: {error}") from None


def convert_ciderpress(
    path: str | os.PathLike[str], out: str | os.PathLike[str], *, overwrite: bool = False
) -> None:
    """Write a ciderpress model file as a functional file of ours.

    Raises:
        CiderpressFileError, NotImplementedError: As ``load_ciderpress``.
        FileExistsError: There is a file at ``out``, and ``overwrite`` is not set.
        OSError: The functional file cannot be written.
    """
    if not overwrite and Path(out).exists():
        raise FileExistsError(
            f"{out} exists and is kept; overwrite it (--force), or choose another name"
        )
    functional = load_ciderpress(path)
    source = {
        "package": "ciderpress",
        "file": Path(path).name,
        "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
        "theory": _THEORY if functional.descriptors.sdmx is None else _SDMX_THEORY,
    }
    save_functional(out, functional, {"converted_from": source})


def installed_models() -> list[Path]:
    """The model files of the installed package ciderpress, which is neither imported nor run.

    Raises:
        FileNotFoundError: This Python has no ciderpress, or one without model files.
    """
    spec = importlib.util.find_spec("ciderpress")
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    models = sorted(m for f in folders for m in Path(f, "data", "functionals").glob("*.yaml"))
    if not models:
        raise FileNotFoundError(
            f"{sys.prefix} has no ciderpress with model files: install it there (pip install "
            "ciderpress), or name a model file"
        )
    return models


def convert_installed(
    folder: str | os.PathLike[str], *, overwrite: bool = False
) -> dict[str, Path | Exception]:
    """Convert every model of the installed ciderpress into a folder, which is made if need be.

    By the name of the model: the file that was written, or the error of ``convert_ciderpress``.

    Raises:
        FileNotFoundError: As ``installed_models``.
        OSError: The folder cannot be made.
    """
    models = installed_models()
    Path(folder).mkdir(parents=True, exist_ok=True)
    outcomes: dict[str, Path | Exception] = {}
    for model in models:
        out = Path(folder, f"{model.stem}.h5")
        try:
            convert_ciderpress(model, out, overwrite=overwrite)
        except (CiderpressFileError, NotImplementedError, OSError) as error:
            outcomes[model.stem] = error
        else:
            outcomes[model.stem] = out
    return outcomes


def _functional(name: str, model: Record) -> LearnedFunctional:
    if model.fields.get("libxc_baseline") is not None:
        raise NotImplementedError(f"{model.where}: the model adds a functional of libxc to its own")
    kernel_name = {"MappedXC": "MappedDFTKernel", "MappedXC2": "MappedDFTKernel2"}[model.name]
    kernels = [model.checked(given, kernel_name) for given in model.get("kernels", list)]
    read = [own.fields.get("i") for kernel in kernels for own in feature_maps(kernel)]
    features = published_features(model.part("settings", "FeatureSettings"), read)
    terms = tuple(_term(kernel, features) for kernel in kernels)
    return LearnedFunctional(name, features.descriptors, terms, _dispersion(model))


def _dispersion(model: Record) -> str | None:
    """The correction beside which the model was trained: D4 with the parameters of a functional."""
    keys = ("vdw_fit_term", "vdw_fit_info", "vdw_eval_mode")
    term, info, mode = given = [model.fields.get(key) for key in keys]
    if given == [None, None, None]:
        return None
    parameters = info.get("params") if isinstance(info, dict) else None
    parameters = dict(parameters) if isinstance(parameters, dict) else {}
    three_bodies = parameters.pop("atm", False)
    method = parameters.pop("xc", None)
    known = isinstance(method, str) and re.fullmatch(r"[A-Za-z0-9_-]+", method)
    if (term, mode) != ("d4", "post_density") or not known or any(parameters.values()):
        raise NotImplementedError(
            f"{model.where}: the model was trained beside a dispersion correction other than D4 "
            f"with the parameters of a functional ({term!r}, {info!r}, {mode!r})"
        )
    return f"d4{'' if three_bodies else '2b'}:{method.lower()}"


def _term(kernel: Record, features: PublishedFeatures) -> ExchangeTerm | CorrelationTerm:
    mode = kernel.get("mode", str)
    is_correlation = mode == "NPOL" and kernel.name == "MappedDFTKernel2"
    if mode != "SEP" and not is_correlation:
        raise NotImplementedError(
            f"{kernel.where}: an energy of mode {mode!r} is neither spin-scaled exchange nor "
            "correlation of the spin-averaged features"
        )
    if kernel.fields.get("omega", 0.0) != 0.0:
        raise NotImplementedError(f"{kernel.where}: a range-separated energy")
    factor, baseline = (_baseline(kernel, key) for key in ("_mul_basefunc", "_add_basefunc"))
    if factor != (baseline if is_correlation else "LDA_X"):
        raise NotImplementedError(
            f"{kernel.where}: the learned part multiplies another energy ({factor}) than "
            "LDA exchange or the baseline of correlation"
        )
    evaluators = kernel.get("fevals", list)
    if len(evaluators) != 1:
        raise NotImplementedError(f"{kernel.where}: the model is a sum of several learned parts")
    maps = feature_maps(kernel)
    positions = [i for i, own in enumerate(maps) if own.name == "SLNMap"]
    others = [i for i in range(len(maps)) if i not in positions]
    transform = published_transform([maps[i] for i in others], features, kernel.where)
    model = _model(evaluators[0], kernel, others + positions)
    if not is_correlation and not positions:
        return ExchangeTerm(baseline, transform, model)
    if not is_correlation or len(positions) != 1:
        raise NotImplementedError(
            f"{kernel.where}: exchange that reads the density itself, or correlation that does not "
            "read it once"
        )
    return CorrelationTerm(baseline, _density_scale(maps[positions[0]]), transform, model)


def _baseline(kernel: Record, field: str) -> str:
    name = kernel.get(field, str)
    if kernel.name == "MappedDFTKernel":
        if name not in _BASELINES:
            raise CiderpressFileError(f"{kernel.where}: {field} is {name!r}, no baseline")
        return _BASELINES[name]
    return name


def _density_scale(own: Record) -> float:
    r"""SLN: :math:`(1 + 3\gamma n/4\pi)^{-1/3}`."""
    if own.fields.get("i") != 0:
        raise CiderpressFileError(f"{own.where}: the map of the density reads another feature")
    return 3 * own.get("gamma", float) / (4 * math.pi)


# Models.


def _model(
    given: Any, kernel: Record, order: list[int]
) -> AdditiveSpline | RadialBasis | ModulatedNetwork:
    """The learned part; its input i is the published one ``order[i]``."""
    if isinstance(given, Record) and given.name == "RBFEvaluator":
        return _radial_basis(given, order)
    if order != list(range(len(order))):
        raise NotImplementedError(
            f"{kernel.where}: splines or networks that read the density itself"
        )
    if isinstance(given, Record) and given.name == "NNEvaluator":
        return _network(given.part("model", "XNet"), len(order))
    return _spline(kernel.checked(given, "SplineSetEvaluator"), len(order))


def _radial_basis(evaluator: Record, order: list[int]) -> RadialBasis:
    names = ("_X1ctrl", "_alpha", "_exps", "_indexes")
    points, weights, exponents, indices = (evaluator.get(name, np.ndarray) for name in names)
    if indices.tolist() != list(range(len(order))):
        raise NotImplementedError(f"{evaluator.where}: a kernel that does not read all inputs")
    if points.shape != (len(weights), len(order)) or exponents.shape != (len(order),):
        raise CiderpressFileError(
            f"{evaluator.where}: control points of shape {points.shape} and exponents of shape "
            f"{exponents.shape}, but there are {len(order)} inputs and {weights.size} weights"
        )
    arrays = (points[:, order], weights, exponents[order])
    return RadialBasis(*(np.array(values, dtype=np.float64, order="C") for values in arrays))


def _network(network: Record, num_inputs: int) -> ModulatedNetwork:
    """The layers l0, lls, which the l2s modulate, and last."""
    modules = network.get("_modules", dict)
    network.checked(modules.get("af"), "Tanh")
    layers, modulations = (
        [_linear(given, own) for given in own.get("_modules", dict).values()]
        for own in (network.checked(modules.get(name), "ModuleList") for name in ("lls", "l2s"))
    )
    entry, last = (_linear(modules.get(name), network) for name in ("l0", "last"))
    if len(last[0]) != 1 or entry[0].shape[1] != num_inputs or not layers or not modulations:
        raise CiderpressFileError(
            f"{network.where}: {len(layers)} layers of a network of {entry[0].shape[1]} inputs and "
            f"{len(last[0])} outputs, but there are {num_inputs} inputs and one output"
        )
    return ModulatedNetwork(
        *entry,
        *map(np.stack, zip(*modulations, strict=True)),
        *map(np.stack, zip(*layers, strict=True)),
        *(np.array(values[0]) for values in last),
    )


def _linear(given: Any, parent: Record) -> tuple[np.ndarray, np.ndarray]:
    """Weights and biases of a layer."""
    parameters = parent.checked(given, "Linear").get("_parameters", dict)
    weights, biases = (parameters.get(name) for name in ("weight", "bias"))
    if (
        not (isinstance(weights, np.ndarray) and isinstance(biases, np.ndarray))
        or weights.ndim != 2
        or biases.shape != weights.shape[:1]
    ):
        raise CiderpressFileError(f"{parent.where}: a layer of a network has no weights and biases")
    return np.array(weights, dtype=np.float64), np.array(biases, dtype=np.float64)


def _spline(evaluator: Record, num_inputs: int) -> AdditiveSpline:
    where = evaluator.where
    scales = evaluator.get("scale", np.ndarray)
    tables = [evaluator.get(name, list) for name in ("ind_sets", "spline_grids", "coeff_sets")]
    if scales.ndim != 1 or any(len(table) != len(scales) for table in tables):
        raise CiderpressFileError(f"{where}: the terms of the spline are incomplete")
    knots: dict[int, UniformKnots] = {}
    terms, coefficients = [], []
    for scale, inputs, grids, values in zip(scales, *tables, strict=True):
        if not is_tuple_of(int, inputs) or not is_tuple_of(tuple, grids):
            raise CiderpressFileError(f"{where}: a term is not given by inputs and grids")
        if len(inputs) != len(grids) or not isinstance(values, np.ndarray):
            raise CiderpressFileError(f"{where}: a term has inputs {inputs}, grids {grids}")
        for i, grid in zip(inputs, grids, strict=True):
            if knots.setdefault(i, _knots(grid, where)) != _knots(grid, where):
                raise NotImplementedError(f"{where}: input {i} has two kinds of knots")
        terms.append(inputs)
        coefficients.append(np.asarray(scale * values, dtype=np.float64))
    if set(knots) != set(range(num_inputs)):
        raise CiderpressFileError(
            f"{where}: splines of the inputs {sorted(knots)}, but there are {num_inputs} inputs"
        )
    return AdditiveSpline(
        tuple(knots[i] for i in range(num_inputs)),
        tuple(terms),
        tuple(coefficients),
        np.array(evaluator.get("const", float)),
    )


def _knots(grid: tuple[Any, ...], where: str) -> UniformKnots:
    plain = all(type(value) in (int, float) for value in grid)
    if len(grid) != 3 or not plain or type(grid[2]) is not int:
        raise CiderpressFileError(f"{where}: {grid!r} is no uniform grid")
    return UniformKnots(float(grid[0]), float(grid[1]), grid[2])
