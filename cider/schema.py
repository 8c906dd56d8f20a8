"""What a functional file says of each class, and how the class is built again.

Arrays of float64 of each energy term, by kind of transform and of model::

    transform/semilocal_mean    InputTransform
    transform/semilocal_scale
    transform/regression
    transform/whitening

    transform/ratios            FractionTransform
    transform/scales
    transform/offsets

    model/...                   as ``models`` names them
"""

import jax
import numpy as np

from cider.correlation import CorrelationTerm
from cider.descriptors import Descriptors
from cider.exchange import ExchangeTerm
from cider.features.nldf import Nldf, NldfExponent
from cider.features.sdmx import LARGEST_RADIUS, Sdmx, SdmxRadii
from cider.input_transform import FractionTransform, InputTransform, quadratic_monomials
from cider.learned_functional import LearnedFunctional
from cider.models import (
    Arrays,
    Header,
    Shapes,
    build_model,
    integers,
    model_shapes,
    model_specification,
    named_arrays,
)


def specification_of(functional: LearnedFunctional) -> Header:
    """All of a functional but its arrays, as JSON has it."""
    descriptors = functional.descriptors
    beside = {} if functional.dispersion is None else {"dispersion": functional.dispersion}
    return {
        "name": functional.name,
        **beside,
        "descriptors": _descriptors_specification(descriptors),
        "terms": [_term_specification(term) for term in functional.terms],
    }


def arrays_of(functional: LearnedFunctional) -> Arrays:
    """The arrays of a functional by their names in a file."""
    return {
        f"terms/{index}/{part}/{name}": np.asarray(values, dtype=np.float64)
        for index, term in enumerate(functional.terms)
        for part, module in (("transform", term.transform), ("model", term.model))
        for name, values in named_arrays(module).items()
    }


def build(specification: Header, arrays: Arrays) -> LearnedFunctional:
    """The functional of a specification and its arrays.

    Raises:
        ValueError: Values or shapes that do not fit one another.
        KeyError, TypeError, AttributeError: The specification is incomplete or of another kind.
    """
    name = specification["name"]
    dispersion = specification.get("dispersion")
    if not isinstance(name, str) or not isinstance(dispersion, str | None):
        raise TypeError(f"name {name!r}, dispersion {dispersion!r}")
    descriptors = _build_descriptors(specification["descriptors"])
    terms = specification["terms"]
    shapes = {
        f"terms/{index}/{name}": shape
        for index, term in enumerate(terms)
        for name, shape in _term_shapes(term, descriptors).items()
    }
    _check_shapes(shapes, arrays)
    built = (
        _build_term(term, _without_prefix(arrays, f"terms/{index}/"))
        for index, term in enumerate(terms)
    )
    return LearnedFunctional(name, descriptors, tuple(built), dispersion)


# Energy terms.

_EXCHANGE = "exchange"
_CORRELATION = "correlation"


def _term_specification(term: ExchangeTerm | CorrelationTerm) -> Header:
    own: Header = {"kind": _EXCHANGE}
    if isinstance(term, CorrelationTerm):
        own = {"kind": _CORRELATION, "density_scale": term.density_scale}
    elif term.gradient_cutoff is not None:
        own = {"kind": _EXCHANGE, "gradient_cutoff": term.gradient_cutoff}
    return {
        **own,
        "baseline": term.baseline,
        "transform": _transform_specification(term.transform),
        "model": model_specification(term.model),
    }


def _term_shapes(specification: Header, descriptors: Descriptors) -> Shapes:
    inputs = sum(len(values) for values in descriptors.ueg)
    if specification["kind"] == _CORRELATION:
        inputs += 1  # the density itself
    shapes = {
        "transform": _transform_shapes(specification["transform"], descriptors),
        "model": model_shapes(specification["model"], inputs),
    }
    return {f"{part}/{name}": shape for part in shapes for name, shape in shapes[part].items()}


def _build_term(specification: Header, arrays: Arrays) -> ExchangeTerm | CorrelationTerm:
    baseline = specification["baseline"]
    transform = _build_transform(specification["transform"], _without_prefix(arrays, "transform/"))
    model = build_model(specification["model"], _without_prefix(arrays, "model/"))
    if specification["kind"] == _EXCHANGE:
        return ExchangeTerm(baseline, transform, model, specification.get("gradient_cutoff"))
    if specification["kind"] != _CORRELATION:
        raise TypeError(f"an energy term of kind {specification['kind']!r}")
    return CorrelationTerm(baseline, specification["density_scale"], transform, model)


# Descriptors.

_PER_OCTAVE = "radii_per_octave"
"""Not said of two, as files from before there were others."""


def _build_descriptors(specification: Header) -> Descriptors:
    given = specification["nldf"]
    nldf = None
    if given is not None:
        nldf = Nldf(
            NldfExponent(**given["source_exponent"]),
            tuple(NldfExponent(**constants) for constants in given["exponents"]),
        )
    sdmx = None
    if "sdmx" in specification:
        sdmx = _build_sdmx(specification["sdmx"])
    return Descriptors(specification["level"], nldf, specification["kinetic"], sdmx)


def _descriptors_specification(descriptors: Descriptors) -> Header:
    specification = {
        "level": descriptors.level,
        "kinetic": descriptors.kinetic,
        "nldf": None if descriptors.nldf is None else _nldf_specification(descriptors.nldf),
    }
    if descriptors.sdmx is not None:
        specification["sdmx"] = _sdmx_specification(descriptors.sdmx)
    return specification


def _build_sdmx(specification: Header) -> Sdmx:
    terms = tuple((family, j) for family, j in specification["features"])
    radii = integers([specification["radii"], specification.get(_PER_OCTAVE, 2)])
    return Sdmx(terms, SdmxRadii(*radii))


def _sdmx_specification(sdmx: Sdmx) -> Header:
    # The largest radius is kept for the same reason as the bounds of exponents below.
    finer = {} if sdmx.radii.per_octave == 2 else {_PER_OCTAVE: sdmx.radii.per_octave}
    return {
        "features": [list(term) for term in sdmx.terms],
        "largest_radius": LARGEST_RADIUS,
        "radii": sdmx.radii.count,
        **finer,
    }


def _nldf_specification(nldf: Nldf) -> Header:
    # Floor and ceiling are constants of the code; the file keeps those it was trained with, so
    # that other ones are noticed instead of giving other energies.
    return {
        "version": "j",
        "source_exponent": _exponent_specification(nldf.source_exponent),
        "exponents": [_exponent_specification(exponent) for exponent in nldf.exponents],
        "floor": NldfExponent.FLOOR,
        "ceiling": NldfExponent.CEILING,
    }


def _exponent_specification(exponent: NldfExponent) -> Header:
    return {"A": float(exponent.A), "B": float(exponent.B), "C": float(exponent.C)}


# Transforms.

_FRACTIONS = "fractions"


def _transform_specification(transform: InputTransform | FractionTransform) -> Header:
    if isinstance(transform, FractionTransform):
        return {"kind": _FRACTIONS, "powers": list(transform.powers)}
    return {"squash_radius": InputTransform.SQUASH_RADIUS}


def _transform_shapes(specification: Header, descriptors: Descriptors) -> Shapes:
    semilocal, nonlocal_ = (len(values) for values in descriptors.ueg)
    if specification.get("kind") == _FRACTIONS:
        inputs = (semilocal + nonlocal_,)
        return dict.fromkeys(("ratios", "scales", "offsets"), inputs)
    monomials = jax.eval_shape(quadratic_monomials, np.zeros((semilocal, 1))).shape[0]
    return {
        "semilocal_mean": (semilocal,),
        "semilocal_scale": (semilocal,),
        "regression": (monomials, nonlocal_),
        "whitening": (nonlocal_, nonlocal_),
    }


def _build_transform(specification: Header, arrays: Arrays) -> InputTransform | FractionTransform:
    if specification.get("kind") == _FRACTIONS:
        return FractionTransform(powers=integers(specification["powers"]), **arrays)
    return InputTransform(**arrays)


def _without_prefix(arrays: Arrays, prefix: str) -> Arrays:
    return {
        name.removeprefix(prefix): values
        for name, values in arrays.items()
        if name.startswith(prefix)
    }


def _check_shapes(expected: Shapes, arrays: Arrays) -> None:
    if arrays.keys() != expected.keys():
        surplus = sorted(arrays.keys() ^ expected.keys())
        raise ValueError(f"arrays that do not fit the functional: {surplus}")
    for name, shape in expected.items():
        if arrays[name].shape != shape:
            raise ValueError(
                f"{name} has shape {arrays[name].shape}, but its descriptors need {shape}"
            )
