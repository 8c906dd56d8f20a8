"""Learned functionals with made-up weights: for tests that must not depend on shipped ones."""

import jax
import jax.numpy as jnp
import numpy as np

from cider.additive_spline import AdditiveSpline, UniformKnots
from cider.exchange import Descriptors, LearnedExchange
from cider.features.nldf import Nldf, NldfExponent
from cider.gaussian_process import QuadraticGaussianProcess
from cider.input_transform import FractionTransform, InputTransform


def toy_nldf() -> Nldf:
    return Nldf(
        NldfExponent(0.5, 0.0, 0.5 / 32),
        tuple(NldfExponent(A, 0.0, A / 32) for A in (0.5, 1.0, 2.0)),
    )


def toy_exchange(
    level: str = "MGGA", nldf: Nldf | None = None, size: float = 1e-3, name: str = "toy"
) -> LearnedExchange:
    """A functional whose learned part is of the given size; exactly its baseline for size zero."""
    descriptors = Descriptors(level, nldf)
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
    return LearnedExchange(name, "GGA_X_PBE", descriptors, transform, model)


def toy_spline_exchange(level: str = "MGGA", nldf: Nldf | None = None) -> LearnedExchange:
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
    parts = ("toy spline", "GGA_X_CHACHIYO", descriptors, transform)
    model = AdditiveSpline(knots, terms, coefficients, np.array(0.0))
    shift = LearnedExchange(*parts, model).uniform_gas_correction()
    return LearnedExchange(*parts, AdditiveSpline(knots, terms, coefficients, np.array(-shift)))
