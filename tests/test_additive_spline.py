"""Additive splines: the sum of scipy's B-splines between the knots, straight lines beyond."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published_models import b_splines
from scipy.interpolate import BSpline

from cider.additive_spline import AdditiveSpline, UniformKnots

pytestmark = pytest.mark.usefixtures("x64")

KNOTS = UniformKnots(-0.5, 0.7, 8), UniformKnots(0.0, 1.0, 5), UniformKnots(-1.0, 1.0, 2)
TERMS = ((1,), (0, 2), (2, 1, 0))


def spline() -> AdditiveSpline:
    random = np.random.default_rng(3)
    shapes = [tuple(KNOTS[i].num_splines for i in term) for term in TERMS]
    return AdditiveSpline(
        KNOTS, TERMS, tuple(random.normal(size=shape) for shape in shapes), np.array(0.3)
    )


def points(count: int = 200) -> np.ndarray:
    """Between the knots, and on every one of them."""
    random = np.random.default_rng(4)
    rows = []
    for knots in KNOTS:
        on_knots = np.linspace(knots.low, knots.high, knots.count)
        inside = random.uniform(knots.low, knots.high, size=count)
        rows.append(random.permutation(np.concatenate([np.resize(on_knots, 40), inside])))
    return np.array(rows)


def test_is_the_sum_of_scipy_b_splines() -> None:
    own, x = spline(), points()
    a, b, c = (b_splines(row, k.low, k.high, k.count) for row, k in zip(x, KNOTS, strict=True))
    one, two, three = own.coefficients
    expected = 0.3 + b @ one + np.einsum("ac,ga,gc->g", two, a, c)
    expected += np.einsum("cba,ga,gb,gc->g", three, a, b, c)
    np.testing.assert_allclose(own(jnp.asarray(x)), expected, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2])
def test_derivatives_are_those_of_scipy(order: int) -> None:
    knots = KNOTS[0]
    coefficients = np.random.default_rng(1).normal(size=knots.num_splines)
    own = AdditiveSpline((knots,), ((0,),), (coefficients,), np.array(0.0))
    step = (knots.high - knots.low) / (knots.count - 1)
    reference = BSpline(knots.low + step * np.arange(-3, knots.count + 3), coefficients, 3)
    derivative = lambda x: own(x[None, None])[0]  # noqa: E731
    for _ in range(order):
        derivative = jax.grad(derivative)
    x = np.random.default_rng(2).uniform(knots.low, knots.high, size=50)
    np.testing.assert_allclose(
        jax.vmap(derivative)(jnp.asarray(x)), reference.derivative(order)(x), rtol=1e-10, atol=1e-9
    )


def test_first_derivative_on_the_knots() -> None:
    """Including both ends, where the straight lines begin."""
    knots = KNOTS[0]
    coefficients = np.random.default_rng(1).normal(size=knots.num_splines)
    own = AdditiveSpline((knots,), ((0,),), (coefficients,), np.array(0.0))
    step = (knots.high - knots.low) / (knots.count - 1)
    x = np.linspace(knots.low, knots.high, knots.count)
    slopes = jax.vmap(jax.grad(lambda x: own(x[None, None])[0]))(jnp.asarray(x))
    np.testing.assert_allclose(
        slopes, (coefficients[2:] - coefficients[:-2]) / (2 * step), atol=1e-12
    )


def test_straight_lines_beyond_the_knots() -> None:
    own = spline()
    for i, knots in enumerate(KNOTS):
        for end, outwards in ((knots.low, -1.0), (knots.high, 1.0)):
            x = np.tile(np.array([[0.1], [0.4], [0.2]]), 4)
            x[i] = end + outwards * np.array([0.0, 0.3, 0.6, 0.9])
            values = np.asarray(own(jnp.asarray(x)))
            np.testing.assert_allclose(np.diff(values, n=2), 0.0, atol=1e-12)


def test_coefficients_must_fit() -> None:
    with pytest.raises(ValueError, match=r"shape \(9,\), but the knots need \(10,\)"):
        AdditiveSpline(KNOTS, ((0,),), (np.zeros(9),), np.array(0.0))
    with pytest.raises(ValueError, match="as many arrays"):
        AdditiveSpline(KNOTS, ((0,),), (), np.array(0.0))
    for term in ((), (3,), (0, 0), (-1,)):
        with pytest.raises(ValueError, match="a term of the inputs"):
            AdditiveSpline(KNOTS, (term,), (np.zeros((10,) * len(term)),), np.array(0.0))
    for bounds in ((1.0, 0.0, 5), (0.0, float("inf"), 5), (0.0, 1.0, 1)):
        with pytest.raises(ValueError, match="knots need"):
            UniformKnots(*bounds)
