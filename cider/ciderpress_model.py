r"""The published CIDER exchange functionals as functionals of ours.

The models CIDER23X are, for each spin-scaled density,

.. math:: e_x = e_x^{LDA} \left[F_{base}(p) + g(x)\right]

with g a sum of cubic splines. Ref: Bystrom, Kozinsky, Phys. Rev. B 110, 075130 (2024).
"""

import hashlib
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from cider.additive_spline import AdditiveSpline, UniformKnots
from cider.ciderpress_file import CiderpressFileError, Record, read_ciderpress_file
from cider.exchange import Descriptors, LearnedExchange
from cider.features.nldf import Nldf, NldfExponent
from cider.features.semilocal import GRADIENT_SCALE
from cider.files import save_functional
from cider.input_transform import FractionTransform

_BASELINES = {
    "ciderpress.dft.baselines.lda_x": "LDA_X",
    "ciderpress.dft.baselines.gga_x_pbe": "GGA_X_PBE",
    "ciderpress.dft.baselines.gga_x_chachiyo": "GGA_X_CHACHIYO",
}

_EXPONENT_FACTOR = 1.2 * (6 * math.pi**2) ** (2 / 3) / math.pi
"""Their multipliers of gradient and tau are in other units than B and C of ``NldfExponent``."""


def load_ciderpress(path: str | os.PathLike[str]) -> LearnedExchange:
    """The functional of a ciderpress model file, named as the file.

    It evaluates the published formulas to rounding, but for densities so low that the smooth
    bounds of our nonlocal exponents stand in place of the published cutoff at 1e-10 bohr^-3: that
    moved exchange energies of H2O and O2 by 1e-8 Ha.

    Raises:
        CiderpressFileError: The file is damaged, foreign or refused.
        NotImplementedError: The model needs what is not there yet; the message names it.
    """
    model = read_ciderpress_file(path)
    try:
        return _exchange(Path(path).stem, model)
    except CiderpressFileError:
        raise
    except ValueError as error:
        raise CiderpressFileError(f"{path}: {error}") from None


def convert_ciderpress(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Write a ciderpress model file as a functional file of ours.

    Raises:
        CiderpressFileError, NotImplementedError: As ``load_ciderpress``.
        OSError: The functional file cannot be written.
    """
    exchange = load_ciderpress(path)
    source = {
        "package": "ciderpress",
        "file": Path(path).name,
        "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
        "reference": "Bystrom, Kozinsky, Phys. Rev. B 110, 075130 (2024)",
    }
    save_functional(out, exchange, {"converted_from": source})


def _exchange(name: str, model: Record) -> LearnedExchange:
    kernels = model.get("kernels", list)
    if model.fields.get("libxc_baseline") is not None or len(kernels) != 1:
        raise NotImplementedError(
            f"{model.where}: the model is a sum of several energies; cider reads one exchange "
            "energy"
        )
    kernel = _record(kernels[0], "MappedDFTKernel", model)
    if kernel.get("mode", str) != "SEP":
        raise NotImplementedError(f"{kernel.where}: the model is not one of spin-scaled exchange")
    if _baseline(kernel, "_mul_basefunc") != "LDA_X":
        raise NotImplementedError(
            f"{kernel.where}: the learned part multiplies another energy than LDA exchange"
        )
    evaluators = kernel.get("fevals", list)
    if len(evaluators) != 1:
        raise NotImplementedError(f"{kernel.where}: the model is a sum of several learned parts")
    descriptors, references = _descriptors(_part(model, "settings", "FeatureSettings"))
    transform = _transform(_part(kernel, "feature_list", "FeatureList"), references)
    spline = _spline(_record(evaluators[0], "SplineSetEvaluator", kernel), len(references))
    return LearnedExchange(name, _baseline(kernel, "_add_basefunc"), descriptors, transform, spline)


def _baseline(kernel: Record, field: str) -> str:
    name = kernel.get(field, str)
    if name not in _BASELINES:
        raise CiderpressFileError(f"{kernel.where}: {field} is {name!r}, no baseline")
    return _BASELINES[name]


# Descriptors: which, and in what unit the model reads each.


def _descriptors(settings: Record) -> tuple[Descriptors, list[float]]:
    """The descriptors, and the value of each (as the model reads it) where ours is zero."""
    semilocal = _part(settings, "sl_settings", "SemilocalSettings")
    level, mode = semilocal.get("level", str), semilocal.get("mode", str)
    if (level, mode) not in (("GGA", "np"), ("MGGA", "npa")):
        raise NotImplementedError(
            f"{semilocal.where}: semilocal features {mode!r} at level {level!r}; cider reads p "
            "and alpha"
        )
    references = [1 / GRADIENT_SCALE] + [1.0] * (level == "MGGA")
    normalizers = _part(settings, "normalizers", "FeatNormalizerList").get("_normalizers", list)
    num_semilocal = 1 + len(references)  # the density comes first and is no descriptor
    if any(n is not None for n in normalizers[:num_semilocal]):
        raise NotImplementedError(f"{settings.where}: semilocal features are normalised")
    for kind in ("nlof_settings", "sdmx_settings", "hyb_settings"):
        if settings.fields.get(kind) is not None:  # older files do not know all kinds
            _part(settings, kind, "EmptySettings")
    nldf_settings = settings.get("nldf_settings", Record)
    nldf = None if nldf_settings.name == "EmptySettings" else _nldf(nldf_settings)
    values = [] if nldf is None else list(nldf.ueg)
    if len(normalizers) != num_semilocal + len(values):
        raise CiderpressFileError(f"{settings.where}: as many normalisers as features are needed")
    for value, given in zip(values, normalizers[num_semilocal:], strict=True):
        normalizer = _record(given, "ConstantNormalizer", settings)
        references.append(float(value) * normalizer.get("const", float))
    return Descriptors(level, nldf), references


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


# Input maps and splines.


def _transform(features: Record, references: list[float]) -> FractionTransform:
    r"""The maps of single features; ``references`` are the features where our descriptors are 0.

    U: :math:`\gamma q/(1 + \gamma q)`; V: :math:`s` times that, less the centre c; Z:
    :math:`s/(1 + \gamma q^2) - c`.
    """
    maps = features.get("feat_list", list)
    if [m.fields.get("i") for m in maps if isinstance(m, Record)] != [
        i + 1 for i in range(len(references))
    ]:
        raise NotImplementedError(
            f"{features.where}: the model does not read each feature once, in their order"
        )
    powers, ratios, scales, offsets = [], [], [], []
    for own, reference in zip(maps, references, strict=True):
        gamma = own.get("gamma", float)
        scale = 1.0 if own.name == "UMap" else own.get("scale", float)
        center = 0.0 if own.name == "UMap" else own.get("center", float)
        power = 2 if own.name == "ZMap" else 1
        powers.append(power)
        ratios.append(gamma * reference**power)
        scales.append(-scale if own.name == "ZMap" else scale)
        offsets.append(scale - center if own.name == "ZMap" else -center)
    return FractionTransform(tuple(powers), np.array(ratios), np.array(scales), np.array(offsets))


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
