r"""The published CIDER functionals as functionals of ours.

The models CIDER23X are, for each spin-scaled density,

.. math:: e_x = e_x^{LDA} \left[F_{base}(p) + g(x)\right]

with g a sum of cubic splines. Ref: Bystrom, Kozinsky, Phys. Rev. B 110, 075130 (2024). The models
CIDER26XC add :math:`e_c = e_c^{PBE} \left[1 + g(x)\right]`, with a sum over control points for
both g.
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
from cider.ciderpress_file import CiderpressFileError, Record, read_ciderpress_file
from cider.correlation import CorrelationTerm
from cider.descriptors import Descriptors
from cider.exchange import ExchangeTerm
from cider.features.nldf import Nldf, NldfExponent
from cider.features.semilocal import GRADIENT_SCALE
from cider.files import save_functional
from cider.input_transform import FractionTransform
from cider.learned_functional import LearnedFunctional
from cider.radial_basis import RadialBasis

_BASELINES = {
    "ciderpress.dft.baselines.lda_x": "LDA_X",
    "ciderpress.dft.baselines.gga_x_pbe": "GGA_X_PBE",
    "ciderpress.dft.baselines.gga_x_chachiyo": "GGA_X_CHACHIYO",
}
"""Names of the models CIDER23X, whose baselines are functions; later ones have those of libxc."""

_EXPONENT_FACTOR = 1.2 * (6 * math.pi**2) ** (2 / 3) / math.pi
"""Their multipliers of gradient and tau are in other units than B and C of ``NldfExponent``."""


def load_ciderpress(path: str | os.PathLike[str]) -> LearnedFunctional:
    """The functional of a ciderpress model file, named as the file.

    It evaluates the published formulas to rounding, but for densities so low that the smooth
    bounds of our nonlocal exponents stand in place of the published cutoff at 1e-10 bohr^-3: that
    moved exchange energies of H2O and O2 by 1e-8 Ha, and exchange-correlation energies (of
    CIDER26XCCHEM) by 3e-9 Ha. Points below that cutoff, whose learned part the published code
    leaves out, held 2e-10 Ha.

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
        "theory": "Bystrom, Kozinsky, Phys. Rev. B 110, 075130 (2024)",
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
    kernels = [_record(given, kernel_name, model) for given in model.get("kernels", list)]
    descriptors, references = _descriptors(_part(model, "settings", "FeatureSettings"))
    terms = tuple(_term(kernel, descriptors, references) for kernel in kernels)
    return LearnedFunctional(name, descriptors, terms, _dispersion(model))


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


def _term(
    kernel: Record, descriptors: Descriptors, references: list[float]
) -> ExchangeTerm | CorrelationTerm:
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
    maps = _maps(_part(kernel, "feature_list", "FeatureList"))
    positions = [i for i, own in enumerate(maps) if own.name == "SLNMap"]
    others = [i for i in range(len(maps)) if i not in positions]
    transform = _transform([maps[i] for i in others], references, descriptors, kernel.where)
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


# Descriptors: which, and in what unit the model reads each.


def _descriptors(settings: Record) -> tuple[Descriptors, list[float]]:
    """The descriptors, and the value of each (as the model reads it) where ours is zero."""
    semilocal = _part(settings, "sl_settings", "SemilocalSettings")
    level, mode = semilocal.get("level", str), semilocal.get("mode", str)
    if (level, mode) not in (("GGA", "np"), ("MGGA", "npa"), ("MGGA", "nst")):
        raise NotImplementedError(
            f"{semilocal.where}: semilocal features {mode!r} at level {level!r}; cider reads p "
            "and alpha, or p and tau"
        )
    references = [1 / GRADIENT_SCALE] + [1.0] * (level == "MGGA")
    normalizers = _part(settings, "normalizers", "FeatNormalizerList").get("_normalizers", list)
    num_semilocal = 1 + len(references)  # the density comes first and is no descriptor
    if any(n is not None for n in normalizers[:num_semilocal]):
        raise NotImplementedError(f"{settings.where}: semilocal features are normalised")
    for kind in ("nlof_settings", "sdmx_settings", "hyb_settings"):
        given = settings.fields.get(kind)
        if isinstance(given, Record) and given.name == "SDMXFullSettings":
            raise NotImplementedError(
                f"{given.where}: the model needs SDMX features, which cider does not have yet"
            )
        if given is not None:  # older files do not know all kinds
            _part(settings, kind, "EmptySettings")
    nldf_settings = settings.get("nldf_settings", Record)
    nldf = None if nldf_settings.name == "EmptySettings" else _nldf(nldf_settings)
    values = [] if nldf is None else list(nldf.ueg)
    if len(normalizers) != num_semilocal + len(values):
        raise CiderpressFileError(f"{settings.where}: as many normalisers as features are needed")
    for value, given in zip(values, normalizers[num_semilocal:], strict=True):
        if isinstance(given, Record) and given.name == "DensityNormalizer":
            raise NotImplementedError(f"{given.where}: NLDF features normalised by the density")
        normalizer = _record(given, "ConstantNormalizer", settings)
        references.append(float(value) * normalizer.get("const", float))
    kinetic = "tau/tau_0" if mode == "nst" else "alpha"
    return Descriptors(level, nldf, kinetic), references


def _nldf(settings: Record) -> Nldf:
    if settings.name != "NLDFSettingsVJ":
        raise CiderpressFileError(f"{settings.where}: {settings.name} holds no NLDF features")
    specs = settings.get("feat_specs", list)
    has_version_i = any(
        settings.fields.get(kind) for kind in ("l0_feat_specs", "l1_feat_specs", "l1_feat_dots")
    )
    is_plain = settings.get("rho_mult", str) == "one" and all(spec == "se" for spec in specs)
    if has_version_i or not is_plain:
        raise NotImplementedError(
            f"{settings.where}: NLDF features of other kernels than squared exponentials"
        )
    parameters = settings.get("feat_params", list)
    if len(parameters) != len(specs):
        raise CiderpressFileError(f"{settings.where}: feat_specs and feat_params differ in length")
    level = settings.fields.get("_sl_level", "MGGA")
    source, *features = (
        _exponent(given, level, settings.where)
        for given in (settings.get("theta_params", list), *parameters)
    )
    return Nldf(source, tuple(features))


def _exponent(given: Any, level: Any, where: str) -> NldfExponent:
    r"""The exponent of parameters [a0, gradient multiplier, tau multiplier].

    .. math:: a = \pi (n/2)^{2/3} \left[a_0 + f m_\nabla \frac{\tau_W}{\tau_0}
              + f m_\tau \left(\frac{\tau}{\tau_0} - 1\right)\right], \qquad
              f = \frac{6}{5\pi} (6\pi^2)^{2/3}

    Those of level GGA have no last term.
    """
    least = {"GGA": 2, "MGGA": 3}.get(level) if isinstance(level, str) else None
    numbers = given if isinstance(given, list) else []
    if (
        least is None
        or not least <= len(numbers) <= 3
        or any(type(number) not in (int, float) for number in numbers)
    ):
        raise CiderpressFileError(
            f"{where}: {given!r} are no parameters of an exponent at level {level!r}"
        )
    by_tau = numbers[2] if level == "MGGA" else 0.0
    return NldfExponent(
        float(numbers[0]), _EXPONENT_FACTOR * numbers[1], float(_EXPONENT_FACTOR * by_tau)
    )


# Input maps and models.


def _maps(features: Record) -> list[Record]:
    maps = features.get("feat_list", list)
    if not all(isinstance(own, Record) for own in maps):
        raise CiderpressFileError(f"{features.where}: the maps of features are incomplete")
    return maps


def _transform(
    maps: list[Record], references: list[float], descriptors: Descriptors, where: str
) -> FractionTransform:
    r"""The maps of single features; ``references`` are the features where our descriptors are 0.

    U: :math:`\gamma q/(1 + \gamma q)`; V: :math:`s` times that, less the centre c; Z:
    :math:`s/(1 + \gamma q^2) - c`; SLX: as U, of the density and sigma; SLT:
    :math:`(q - 1)/(q + 1)`, of the density and tau.
    """
    fractions = [_fraction(own) for own in maps]
    reads = [read for read, *_ in fractions]
    of_ingredients = descriptors.kinetic == "tau/tau_0"
    expected: list[tuple[int, ...]] = [(0, 1), (0, 2)] if of_ingredients else []
    expected += [(i + 1,) for i in range(len(expected), len(references))]
    if reads != expected:
        raise NotImplementedError(
            f"{where}: the model does not read each feature once, in their order"
        )
    _, powers, gammas, scales, offsets = zip(*fractions, strict=True)
    ratios = [
        gamma * reference**power
        for gamma, reference, power in zip(gammas, references, powers, strict=True)
    ]
    return FractionTransform(powers, np.array(ratios), np.array(scales), np.array(offsets))


def _fraction(own: Record) -> tuple[tuple[Any, ...], int, float, float, float]:
    """What a map reads; and power, gamma, scale and offset of the fraction that it makes."""
    if own.name == "SLTMap":
        return (own.fields.get("i"), own.fields.get("j")), 1, 1.0, 2.0, -1.0
    gamma = own.get("gamma", float)
    if own.name == "SLXMap":
        return (own.fields.get("i"), own.fields.get("j")), 1, gamma, 1.0, 0.0
    read = (own.fields.get("i"),)
    if own.name == "UMap":
        return read, 1, gamma, 1.0, 0.0
    scale, center = own.get("scale", float), own.get("center", float)
    if own.name == "VMap":
        return read, 1, gamma, scale, -center
    if own.name != "ZMap":
        raise CiderpressFileError(f"{own.where}: {own.name} is no map of a feature")
    return read, 2, gamma, -scale, scale - center


def _density_scale(own: Record) -> float:
    r"""SLN: :math:`(1 + 3\gamma n/4\pi)^{-1/3}`."""
    if own.fields.get("i") != 0:
        raise CiderpressFileError(f"{own.where}: the map of the density reads another feature")
    return 3 * own.get("gamma", float) / (4 * math.pi)


def _model(given: Any, kernel: Record, order: list[int]) -> AdditiveSpline | RadialBasis:
    """The learned part; its input i is the published one ``order[i]``."""
    if isinstance(given, Record) and given.name == "RBFEvaluator":
        return _radial_basis(given, order)
    if isinstance(given, Record) and given.name == "NNEvaluator":
        raise NotImplementedError(f"{given.where}: the model is a neural network")
    evaluator = _record(given, "SplineSetEvaluator", kernel)
    if order != list(range(len(order))):
        raise NotImplementedError(f"{kernel.where}: splines that read the density itself")
    return _spline(evaluator, len(order))


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


def _spline(evaluator: Record, num_inputs: int) -> AdditiveSpline:
    where = evaluator.where
    scales = evaluator.get("scale", np.ndarray)
    tables = [evaluator.get(name, list) for name in ("ind_sets", "spline_grids", "coeff_sets")]
    if scales.ndim != 1 or any(len(table) != len(scales) for table in tables):
        raise CiderpressFileError(f"{where}: the terms of the spline are incomplete")
    knots: dict[int, UniformKnots] = {}
    terms, coefficients = [], []
    for scale, inputs, grids, values in zip(scales, *tables, strict=True):
        if not _is_tuple_of(int, inputs) or not _is_tuple_of(tuple, grids):
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


def _is_tuple_of(kind: type, value: Any) -> bool:
    return isinstance(value, tuple) and all(type(entry) is kind for entry in value)


def _part(parent: Record, field: str, name: str) -> Record:
    return _record(parent.fields.get(field), name, parent)


def _record(value: Any, name: str, parent: Record) -> Record:
    if not isinstance(value, Record) or value.name != name:
        found = value.name if isinstance(value, Record) else type(value).__name__
        raise CiderpressFileError(f"{parent.where}: {parent.name} needs {name}, but has {found}")
    return value
