"""What a functional file says of each class, and how the class is built again.

Arrays of float64 of each energy term, by kind of transform and of model::

    transform/semilocal_mean    InputTransform
    transform/semilocal_scale
    transform/regression
    transform/whitening

    transform/ratios            FractionTransform
    transform/scales
    transform/offsets

    model/quadratic_form        QuadraticGaussianProcess
    model/anchor

    model/constant              AdditiveSpline
    model/coefficients_0        one array for each term
    ...

    model/control_points        RadialBasis
    model/weights
    model/exponents
"""

from typing import Any

import jax
import numpy as np

from cider.additive_spline import AdditiveSpline, UniformKnots, spline_shapes
from cider.correlation import CorrelationTerm
from cider.descriptors import Descriptors
from cider.exchange import ExchangeTerm
from cider.features.nldf import Nldf, NldfExponent
from cider.features.sdmx import LARGEST_RADIUS, NUM_RADII, Sdmx
from cider.gaussian_process import QuadraticGaussianProcess
from cider.input_transform import FractionTransform, InputTransform, quadratic_monomials
from cider.learned_functional import LearnedFunctional
from cider.radial_basis import RadialBasis

Header = dict[str, Any]
Arrays = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]


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
        f"terms/{index}/{name}": np.asarray(values, dtype=np.float64)
        for index, term in enumerate(functional.terms)
        for name, values in (_transform_arrays(term.transform) | _model_arrays(term.model)).items()
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
    return {
        **own,
        "baseline": term.baseline,
        "transform": _transform_specification(term.transform),
        "model": _model_specification(term.model),
    }


def _term_shapes(specification: Header, descriptors: Descriptors) -> Shapes:
    inputs = sum(len(values) for values in descriptors.ueg)
    if specification["kind"] == _CORRELATION:
        inputs += 1  # the density itself
    transform, model = specification["transform"], specification["model"]
    return _transform_shapes(transform, descriptors) | _model_shapes(model, inputs)


def _build_term(specification: Header, arrays: Arrays) -> ExchangeTerm | CorrelationTerm:
    baseline = specification["baseline"]
    transform = _build_transform(specification["transform"], arrays)
    model = _build_model(specification["model"], arrays)
    if specification["kind"] == _EXCHANGE:
        return ExchangeTerm(baseline, transform, model)
    if specification["kind"] != _CORRELATION:
        raise TypeError(f"an energy term of kind {specification['kind']!r}")
    return CorrelationTerm(baseline, specification["density_scale"], transform, model)


# Descriptors.


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
        sdmx = Sdmx(tuple((family, j) for family, j in specification["sdmx"]["features"]))
    return Descriptors(specification["level"], nldf, specification["kinetic"], sdmx)


def _descriptors_specification(descriptors: Descriptors) -> Header:
    specification = {
        "level": descriptors.level,
        "kinetic": descriptors.kinetic,
        "nldf": None if descriptors.nldf is None else _nldf_specification(descriptors.nldf),
    }
    if descriptors.sdmx is not None:
        # The quadrature is kept for the same reason as the bounds of exponents.
        specification["sdmx"] = {
            "features": [list(term) for term in descriptors.sdmx.terms],
            "largest_radius": LARGEST_RADIUS,
            "radii": NUM_RADII,
        }
    return specification


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


def _transform_arrays(transform: InputTransform | FractionTransform) -> Arrays:
    if isinstance(transform, FractionTransform):
        return {
            "transform/ratios": transform.ratios,
            "transform/scales": transform.scales,
            "transform/offsets": transform.offsets,
        }
    return {
        "transform/semilocal_mean": transform.semilocal_mean,
        "transform/semilocal_scale": transform.semilocal_scale,
        "transform/regression": transform.regression,
        "transform/whitening": transform.whitening,
    }


def _transform_shapes(specification: Header, descriptors: Descriptors) -> Shapes:
    semilocal, nonlocal_ = (len(values) for values in descriptors.ueg)
    if specification.get("kind") == _FRACTIONS:
        inputs = (semilocal + nonlocal_,)
        return {f"transform/{name}": inputs for name in ("ratios", "scales", "offsets")}
    monomials = jax.eval_shape(quadratic_monomials, np.zeros((semilocal, 1))).shape[0]
    return {
        "transform/semilocal_mean": (semilocal,),
        "transform/semilocal_scale": (semilocal,),
        "transform/regression": (monomials, nonlocal_),
        "transform/whitening": (nonlocal_, nonlocal_),
    }


def _build_transform(specification: Header, arrays: Arrays) -> InputTransform | FractionTransform:
    own = _without_prefix(arrays, "transform/")
    if specification.get("kind") == _FRACTIONS:
        return FractionTransform(powers=_integers(specification["powers"]), **own)
    return InputTransform(**own)


# Models.

_SPLINE = "additive spline"
_GAUSSIAN_PROCESS = "quadratic Gaussian process"
_RADIAL_BASIS = "radial basis"

Model = QuadraticGaussianProcess | AdditiveSpline | RadialBasis


def _model_specification(model: Model) -> Header:
    if isinstance(model, AdditiveSpline):
        return {
            "kind": _SPLINE,
            "knots": [{"low": k.low, "high": k.high, "count": k.count} for k in model.knots],
            "terms": [list(inputs) for inputs in model.terms],
        }
    if isinstance(model, RadialBasis):
        return {"kind": _RADIAL_BASIS, "control_points": len(model.control_points)}
    return {"kind": _GAUSSIAN_PROCESS, "degree": model.degree}


def _model_arrays(model: Model) -> Arrays:
    if isinstance(model, AdditiveSpline):
        coefficients = {f"model/coefficients_{t}": c for t, c in enumerate(model.coefficients)}
        return {"model/constant": model.constant, **coefficients}
    if isinstance(model, RadialBasis):
        return {
            "model/control_points": model.control_points,
            "model/weights": model.weights,
            "model/exponents": model.exponents,
        }
    return {"model/quadratic_form": model.quadratic_form, "model/anchor": model.anchor}


def _model_shapes(specification: Header, inputs: int) -> Shapes:
    if specification["kind"] == _RADIAL_BASIS:
        (count,) = _integers([specification["control_points"]])
        return {
            "model/control_points": (count, inputs),
            "model/weights": (count,),
            "model/exponents": (inputs,),
        }
    if specification["kind"] == _SPLINE:
        knots, terms = _knots_and_terms(specification)
        if len(knots) != inputs:
            raise ValueError(f"knots of {len(knots)} inputs, but there are {inputs} of them")
        shapes: Shapes = {"model/constant": ()}
        for t, shape in enumerate(spline_shapes(knots, terms)):
            shapes[f"model/coefficients_{t}"] = shape
        return shapes
    degree = specification["degree"]
    if not isinstance(degree, int) or degree < 1:
        raise TypeError(f"degree {degree!r}")
    basis = 1 + inputs * degree
    return {"model/quadratic_form": (basis, basis), "model/anchor": (inputs,)}


def _build_model(specification: Header, arrays: Arrays) -> Model:
    own = _without_prefix(arrays, "model/")
    if specification["kind"] == _RADIAL_BASIS:
        return RadialBasis(**own)
    if specification["kind"] == _SPLINE:
        knots, terms = _knots_and_terms(specification)
        coefficients = tuple(own[f"coefficients_{t}"] for t in range(len(terms)))
        return AdditiveSpline(knots, terms, coefficients, own["constant"])
    return QuadraticGaussianProcess(degree=specification["degree"], **own)


def _knots_and_terms(
    specification: Header,
) -> tuple[tuple[UniformKnots, ...], tuple[tuple[int, ...], ...]]:
    knots = tuple(
        UniformKnots(float(k["low"]), float(k["high"]), *_integers([k["count"]]))
        for k in specification["knots"]
    )
    return knots, tuple(_integers(inputs) for inputs in specification["terms"])


def _integers(values: Any) -> tuple[int, ...]:
    if not all(type(value) is int for value in values):
        raise TypeError(f"integers expected: {values!r}")
    return tuple(values)


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
