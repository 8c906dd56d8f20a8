"""The kinds of models that a learned functional may hold, as functional files describe them.

A kind is added by one entry of ``KINDS``. Arrays of each kind, all of float64::

    quadratic_form    quadratic Gaussian process
    anchor

    constant          additive spline
    coefficients_0    one array for each term
    ...

    control_points    radial basis
    weights
    exponents

    weights_0         neural networks: one array for each hidden layer, members first
    ...
    biases_0
    ...
    readout
    anchor

    entry_weights     modulated network
    entry_biases
    modulations
    shifts
    weights
    biases
    readout
    constant
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from cider.additive_spline import AdditiveSpline, UniformKnots, spline_shapes
from cider.gaussian_process import QuadraticGaussianProcess
from cider.modulated_network import ModulatedNetwork, modulated_network_shapes
from cider.neural_network import NeuralNetworkEnsemble, network_shapes
from cider.radial_basis import RadialBasis

Header = dict[str, Any]
Arrays = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]

Model = (
    QuadraticGaussianProcess
    | AdditiveSpline
    | RadialBasis
    | NeuralNetworkEnsemble
    | ModulatedNetwork
)


class ModelKind(NamedTuple):
    """The class of a kind, and what a file says of a model beside its arrays.

    ``specification`` is JSON, from which and the number of inputs follow the ``shapes`` of the
    arrays; ``build`` makes the model of both again.
    """

    model: type[Any]
    specification: Callable[[Any], Header]
    shapes: Callable[[Header, int], Shapes]
    build: Callable[[Header, Arrays], Model]


def model_specification(model: Model) -> Header:
    """All of a model but its arrays, as JSON has it."""
    name, kind = next(entry for entry in KINDS.items() if isinstance(model, entry[1].model))
    return {"kind": name, **kind.specification(model)}


def model_shapes(specification: Header, inputs: int) -> Shapes:
    """The arrays that a model of so many inputs has; raises as ``build_model``."""
    return KINDS[specification["kind"]].shapes(specification, inputs)


def build_model(specification: Header, arrays: Arrays) -> Model:
    """The model of a specification and its arrays.

    Raises:
        ValueError: Values or shapes that do not fit one another.
        KeyError, TypeError, AttributeError: The specification is incomplete or of another kind.
    """
    return KINDS[specification["kind"]].build(specification, arrays)


def named_arrays(module: Any) -> Arrays:
    """The arrays of a model or transform by their fields, numbered where a field holds several."""

    def name(path: Any) -> str:
        return "_".join(
            key.name if isinstance(key, jax.tree_util.GetAttrKey) else str(key.idx) for key in path
        )

    return {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(module)}


def integers(values: Any) -> tuple[int, ...]:
    """The integers of a list in JSON; raises ``TypeError`` for anything else."""
    if not all(type(value) is int for value in values):
        raise TypeError(f"integers expected: {values!r}")
    return tuple(values)


def _process_shapes(specification: Header, inputs: int) -> Shapes:
    (degree,) = integers([specification["degree"]])
    if degree < 1:
        raise ValueError(f"degree {degree}")
    basis = 1 + inputs * degree
    return {"quadratic_form": (basis, basis), "anchor": (inputs,)}


def _radial_shapes(specification: Header, inputs: int) -> Shapes:
    (count,) = integers([specification["control_points"]])
    return {"control_points": (count, inputs), "weights": (count,), "exponents": (inputs,)}


def _spline_specification(spline: AdditiveSpline) -> Header:
    return {
        "knots": [{"low": k.low, "high": k.high, "count": k.count} for k in spline.knots],
        "terms": [list(inputs) for inputs in spline.terms],
    }


def _knots_and_terms(
    specification: Header,
) -> tuple[tuple[UniformKnots, ...], tuple[tuple[int, ...], ...]]:
    knots = tuple(
        UniformKnots(float(k["low"]), float(k["high"]), *integers([k["count"]]))
        for k in specification["knots"]
    )
    return knots, tuple(integers(inputs) for inputs in specification["terms"])


def _spline_shapes(specification: Header, inputs: int) -> Shapes:
    knots, terms = _knots_and_terms(specification)
    if len(knots) != inputs:
        raise ValueError(f"knots of {len(knots)} inputs, but there are {inputs} of them")
    return {"constant": (), **_numbered("coefficients", spline_shapes(knots, terms))}


def _build_spline(specification: Header, arrays: Arrays) -> AdditiveSpline:
    knots, terms = _knots_and_terms(specification)
    coefficients = _sequence(arrays, "coefficients", len(terms))
    return AdditiveSpline(knots, terms, coefficients, arrays["constant"])


def _networks_specification(networks: NeuralNetworkEnsemble) -> Header:
    return {
        "members": len(networks.readout),
        "hidden": [biases.shape[1] for biases in networks.biases],
        "bound": networks.bound,
    }


def _networks_shapes(specification: Header, inputs: int) -> Shapes:
    (members,), hidden = integers([specification["members"]]), integers(specification["hidden"])
    shapes = network_shapes(members, (inputs, *hidden))
    return {
        **_numbered("weights", shapes[: len(hidden)]),
        **_numbered("biases", shapes[len(hidden) :]),
        "readout": (members, hidden[-1]),
        "anchor": (inputs,),
    }


def _build_networks(specification: Header, arrays: Arrays) -> NeuralNetworkEnsemble:
    weights, biases = (
        _sequence(arrays, name, len(specification["hidden"])) for name in ("weights", "biases")
    )
    bound = specification["bound"]
    if type(bound) is not float:
        raise TypeError(f"bound {bound!r}")
    return NeuralNetworkEnsemble(weights, biases, arrays["readout"], arrays["anchor"], bound)


def _modulated_shapes(specification: Header, inputs: int) -> Shapes:
    sizes = integers([specification["hidden"], specification["layers"]])
    return modulated_network_shapes(inputs, *sizes)


def _numbered(name: str, shapes: tuple[tuple[int, ...], ...]) -> Shapes:
    return {f"{name}_{i}": shape for i, shape in enumerate(shapes)}


def _sequence(arrays: Arrays, name: str, count: int) -> tuple[np.ndarray, ...]:
    return tuple(arrays[f"{name}_{i}"] for i in range(count))


KINDS: dict[str, ModelKind] = {
    "quadratic Gaussian process": ModelKind(
        QuadraticGaussianProcess,
        lambda model: {"degree": model.degree},
        _process_shapes,
        lambda specification, arrays: QuadraticGaussianProcess(
            degree=specification["degree"], **arrays
        ),
    ),
    "additive spline": ModelKind(
        AdditiveSpline, _spline_specification, _spline_shapes, _build_spline
    ),
    "radial basis": ModelKind(
        RadialBasis,
        lambda model: {"control_points": len(model.control_points)},
        _radial_shapes,
        lambda specification, arrays: RadialBasis(**arrays),
    ),
    "neural networks": ModelKind(
        NeuralNetworkEnsemble, _networks_specification, _networks_shapes, _build_networks
    ),
    "modulated network": ModelKind(
        ModulatedNetwork,
        lambda model: {"hidden": len(model.readout), "layers": len(model.weights)},
        _modulated_shapes,
        lambda specification, arrays: ModulatedNetwork(**arrays),
    ),
}
