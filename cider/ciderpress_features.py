"""Features of published models: which descriptors of ours they are, and how a model reads them."""

import math
from typing import Any, NamedTuple

import numpy as np

from cider.ciderpress_file import CiderpressFileError, Record, is_tuple_of
from cider.descriptors import Descriptors
from cider.features.nldf import Nldf, NldfExponent
from cider.features.sdmx import Sdmx, SdmxRadii
from cider.features.semilocal import GRADIENT_SCALE
from cider.input_transform import FractionTransform

_EXPONENT_FACTOR = 1.2 * (6 * math.pi**2) ** (2 / 3) / math.pi
"""Their multipliers of gradient and tau are in other units than B and C of ``NldfExponent``."""

_SDMX_FACTOR = -0.25
"""Of their features of the density matrix: with it, one is the exchange of the smoothed one."""

_RADII = SdmxRadii(54, per_octave=3)
"""Of the quadrature over R.

Exchange energies of H2O, O2 and SO2 are then within 2e-6 Ha of converged integrals, that of Fe
within 6e-6; with the 27 radii of our own functionals, the first three were off by up to 2e-3.
"""


class PublishedFeatures(NamedTuple):
    """Descriptors, and for each where the file has it: the positions that its map reads.

    ``references`` are the values, as the model reads them, where ours are zero.
    """

    descriptors: Descriptors
    positions: list[tuple[int, ...]]
    references: list[float]


def published_features(settings: Record, read: list[Any]) -> PublishedFeatures:
    """The features of a file; of the density matrix those that are ``read``, in that order.

    Raises:
        CiderpressFileError: The settings are incomplete or do not fit one another.
        NotImplementedError: There are features of other kinds, or with another normalisation.
    """
    semilocal = settings.part("sl_settings", "SemilocalSettings")
    level, mode = semilocal.get("level", str), semilocal.get("mode", str)
    if (level, mode) not in (("GGA", "np"), ("MGGA", "npa"), ("MGGA", "nst")):
        raise NotImplementedError(
            f"{semilocal.where}: semilocal features {mode!r} at level {level!r}; cider reads p "
            "and alpha, or p and tau"
        )
    references = [1 / GRADIENT_SCALE] + [1.0] * (level == "MGGA")
    num_semilocal = 1 + len(references)  # the density comes first and is no descriptor
    positions: list[tuple[int, ...]] = [(i,) for i in range(1, num_semilocal)]
    if mode == "nst":  # maps of ingredients
        positions = [(0, 1), (0, 2)]
    normalizers = settings.part("normalizers", "FeatNormalizerList").get("_normalizers", list)
    if any(normalizer is not None for normalizer in normalizers[:num_semilocal]):
        raise NotImplementedError(f"{settings.where}: semilocal features are normalised")
    for kind in ("nlof_settings", "hyb_settings"):
        if settings.fields.get(kind) is not None:  # older files do not know all kinds
            settings.part(kind, "EmptySettings")
    nldf_settings = settings.get("nldf_settings", Record)
    nldf = None if nldf_settings.name == "EmptySettings" else _nldf(nldf_settings)
    values = [] if nldf is None else list(nldf.ueg)
    terms = _sdmx_terms(settings)
    first = num_semilocal + len(values)
    if len(normalizers) != first + len(terms):
        raise CiderpressFileError(f"{settings.where}: as many normalisers as features are needed")
    # Position, value and power of the density by which the feature is to be normalised.
    columns = [(num_semilocal + i, float(value), 0.0) for i, value in enumerate(values)]
    chosen = [i for i in dict.fromkeys(_integers(read)) if first <= i < len(normalizers)]
    sdmx = Sdmx(tuple(terms[i - first] for i in chosen), _RADII) if chosen else None
    if sdmx is not None:
        scales = _SDMX_FACTOR * sdmx.reference
        powers = [-(1 + j / 3) for _, j in sdmx.terms]
        columns += zip(chosen, map(float, scales), powers, strict=True)
    for position, value, power in columns:
        positions.append((position,))
        references.append(value * _constant(normalizers[position], power, settings))
    kinetic = "tau/tau_0" if mode == "nst" else "alpha"
    return PublishedFeatures(Descriptors(level, nldf, kinetic, sdmx), positions, references)


def _constant(given: Any, power: float, settings: Record) -> float:
    """The factor of a normalisation, which must be by that power of the density."""
    is_constant = isinstance(given, Record) and given.name == "ConstantNormalizer"
    normalizer = given if is_constant else settings.checked(given, "DensityNormalizer")
    own = 0.0 if is_constant else normalizer.get("power", float)
    if abs(own - power) > 1e-12:
        raise NotImplementedError(
            f"{normalizer.where}: a feature normalised by the power {own} of the density, which "
            "leaves it a dimension"
        )
    return normalizer.get("const", float)


def _sdmx_terms(settings: Record) -> list[tuple[str, int]]:
    r"""Family and power of each feature of the density matrix, in the order of the file.

    Their 1d are of the slope of :math:`R \rho^1`: our 1rd.
    """
    sdmx = settings.fields.get("sdmx_settings")
    if sdmx is None or (isinstance(sdmx, Record) and sdmx.name == "EmptySettings"):
        return []
    sdmx = settings.checked(sdmx, "SDMXFullSettings")
    if sdmx.fields.get("_integral_type", "gauss_diff") != "gauss_diff":
        raise NotImplementedError(f"{sdmx.where}: SDMX features of another smoothing")
    terms: list[tuple[str, int]] = []
    for ratio, given in sdmx.get("_settings", dict).items():
        powers, counts = given if is_tuple_of(list, given) and len(given) == 2 else ([], [])
        numbers = [*_integers(powers), *_integers(counts)]
        if len(numbers) != len(powers) + 4 or not all(0 <= n <= len(powers) for n in numbers[-4:]):
            raise CiderpressFileError(
                f"{sdmx.where}: powers and four numbers of SDMX features are needed: {given!r}"
            )
        if sum(counts) > 0 and ratio not in ("1", "1.0"):
            raise NotImplementedError(
                f"{sdmx.where}: SDMX features of density matrices smoothed twice ({ratio})"
            )
        for family, count in zip(("0", "0d", "1", "1rd"), counts, strict=True):
            terms += [(family, j) for j in powers[:count]]
    return terms


def _integers(values: Any) -> list[int]:
    return [value for value in values if type(value) is int]


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


def feature_maps(kernel: Record) -> list[Record]:
    """The maps that make inputs of the features; raises ``CiderpressFileError`` if incomplete."""
    features = kernel.part("feature_list", "FeatureList")
    maps = features.get("feat_list", list)
    if not all(isinstance(own, Record) for own in maps):
        raise CiderpressFileError(f"{features.where}: the maps of features are incomplete")
    return maps


def published_transform(
    maps: list[Record], features: PublishedFeatures, where: str
) -> FractionTransform:
    r"""The maps of single features; raises ``NotImplementedError`` unless these are the features.

    U: :math:`\gamma q/(1 + \gamma q)`; V: :math:`s` times that, less the centre c; Z:
    :math:`s/(1 + \gamma q^2) - c`; SLX: as U, of the density and sigma; SLT:
    :math:`(q - 1)/(q + 1)`, of the density and tau.
    """
    fractions = [_fraction(own) for own in maps]
    if [read for read, *_ in fractions] != features.positions:
        raise NotImplementedError(
            f"{where}: the model does not read each feature once, in their order"
        )
    _, powers, gammas, scales, offsets = zip(*fractions, strict=True)
    ratios = [
        gamma * reference**power
        for gamma, reference, power in zip(gammas, features.references, powers, strict=True)
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
