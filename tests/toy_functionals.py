"""Learned functionals with made-up weights: for tests that must not depend on shipped ones."""

import jax
import jax.numpy as jnp
import numpy as np

from cider.additive_spline import AdditiveSpline, UniformKnots
from cider.correlation import CorrelationTerm
from cider.descriptors import Descriptors
from cider.exchange import GRADIENT_CUTOFF, ExchangeTerm
from cider.features.nldf import Nldf, NldfExponent
from cider.features.sdmx import Sdmx
from cider.gaussian_process import QuadraticGaussianProcess
from cider.input_transform import FractionTransform, InputTransform
from cider.learned_functional import LearnedFunctional
from cider.neural_network import NeuralNetworkEnsemble, network_shapes
from cider.radial_basis import RadialBasis


def toy_nldf() -> Nldf:
    return Nldf(
        NldfExponent(0.5, 0.0, 0.5 / 32),
        tuple(NldfExponent(A, 0.0, A / 32) for A in (0.5, 1.0, 2.0)),
    )


def toy_sdmx() -> Sdmx:
    return Sdmx((("0", 0), ("0", 1), ("0d", 1), ("1", 2)))


def toy_exchange(
    level: str = "MGGA",
    nldf: Nldf | None = None,
    size: float = 1e-3,
    name: str = "toy",
    sdmx: Sdmx | None = None,
    gradient_cutoff: float | None = GRADIENT_CUTOFF,
) -> LearnedFunctional:
    """A functional whose learned part is of the given size; exactly its baseline for size zero."""
    descriptors = Descriptors(level, nldf, sdmx=sdmx)
    semilocal, nonlocal_ = (len(values) for values in descriptors.ueg)
    degree, monomials = 4, 1 + semilocal + semilocal * (semilocal + 1) // 2
    random = np.random.default_rng(7)
    half = size * random.normal(size=(1 + (semilocal + nonlocal_) * degree,) * 2)
    transform = InputTransform(
        semilocal_mean=np.full(semilocal, -0.25),
        semilocal_scale=np.full(semilocal, 0.5),
        regression=1e-2 * random.normal(size=(monomials, nonlocal_)),
        whitening=3.0 * np.eye(nonlocal_),
    )
    with jax.enable_x64(True):
        anchor = np.asarray(transform(*map(jnp.asarray, descriptors.ueg)))[:, 0]
    model = QuadraticGaussianProcess(half + half.T, anchor, degree)
    term = ExchangeTerm("GGA_X_PBE", transform, model, gradient_cutoff)
    return LearnedFunctional(name, descriptors, (term,))


def toy_networks(
    anchor: np.ndarray, hidden: tuple[int, ...] = (5, 4), bound: float = 1.0, size: float = 1.0
) -> NeuralNetworkEnsemble:
    """Three networks whose weights are of the given size."""
    random = np.random.default_rng(7)
    shapes = network_shapes(3, (len(anchor), *hidden))
    weights, biases = (
        tuple(size * random.normal(size=shape) for shape in part)
        for part in (shapes[: len(hidden)], shapes[len(hidden) :])
    )
    readout = size * random.normal(size=(3, hidden[-1]))
    return NeuralNetworkEnsemble(weights, biases, readout, anchor, bound)


def toy_network_exchange(level: str = "MGGA", nldf: Nldf | None = None) -> LearnedFunctional:
    """The same descriptors and inputs as ``toy_exchange``, with neural networks."""
    like = toy_exchange(level, nldf, name="toy networks")
    model = toy_networks(like.terms[0].model.anchor, bound=0.2, size=0.4)
    term = ExchangeTerm("GGA_X_PBE", like.terms[0].transform, model)
    return LearnedFunctional(like.name, like.descriptors, (term,))


def toy_spline_exchange(level: str = "MGGA", nldf: Nldf | None = None) -> LearnedFunctional:
    """The same with an additive spline, which is shifted to vanish in the uniform gas.

    Its inputs are linear fractions: of alpha squared, the slope would be rounding where there is
    but one orbital, so that two ways to compute it may differ.
    """
    descriptors = Descriptors(level, nldf)
    semilocal, nonlocal_ = (len(values) for values in descriptors.ueg)
    inputs = semilocal + nonlocal_
    random = np.random.default_rng(7)
    transform = FractionTransform(
        powers=(1,) * inputs,
        ratios=random.uniform(0.5, 2, size=inputs),
        scales=np.ones(inputs),
        offsets=np.zeros(inputs),
    )
    knots = tuple(UniformKnots(-1.0, 1.0, 5 + i) for i in range(inputs))
    terms = ((0,), *((0, i) for i in range(1, inputs)), *((0, 1, i) for i in range(2, inputs)))
    coefficients = tuple(
        1e-3 * random.normal(size=[knots[i].num_splines for i in term]) for term in terms
    )

    def exchange(constant: float) -> ExchangeTerm:
        spline = AdditiveSpline(knots, terms, coefficients, np.array(constant))
        return ExchangeTerm("GGA_X_CHACHIYO", transform, spline)

    shift = exchange(0.0).uniform_gas_correction(descriptors)
    return LearnedFunctional("toy spline", descriptors, (exchange(-shift),))


def toy_xc(
    nldf: Nldf | None = None, size: float = 0.05, sdmx: Sdmx | None = None
) -> LearnedFunctional:
    """Exchange and correlation, with a radial basis in both; exactly PBE for size zero."""
    descriptors = Descriptors("MGGA", nldf, "tau/tau_0", sdmx)
    inputs = sum(len(values) for values in descriptors.ueg)
    random = np.random.default_rng(7)
    transform = FractionTransform(
        powers=(1,) * inputs,
        ratios=random.uniform(0.5, 2, size=inputs),
        scales=np.ones(inputs),
        offsets=np.zeros(inputs),
    )

    def radial_basis(inputs: int) -> RadialBasis:
        control_points = random.uniform(size=(9, inputs))
        exponents = random.uniform(0.5, 5, size=inputs)
        return RadialBasis(control_points, size * random.normal(size=9), exponents)

    exchange = ExchangeTerm("GGA_X_PBE", transform, radial_basis(inputs))
    correlation = CorrelationTerm("GGA_C_PBE", 2.5, transform, radial_basis(inputs + 1))
    return LearnedFunctional("toy xc", descriptors, (exchange, correlation))
