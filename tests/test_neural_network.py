"""Networks vanish at their anchor, stay within their bound, and are smooth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_functionals import toy_networks

from cider.neural_network import NeuralNetworkEnsemble

pytestmark = pytest.mark.usefixtures("x64")

ANCHOR = np.array([0.1, -0.4, 0.7])


def inputs(count: int) -> jnp.ndarray:
    return jnp.asarray(np.random.default_rng(1).uniform(-1, 1, size=(3, count)))


def test_is_what_the_formula_says() -> None:
    """One point and one member at a time, with numpy."""
    own, x = toy_networks(ANCHOR, bound=0.3), np.asarray(inputs(4))

    def squashed(z):
        return z / np.hypot(1, z)

    def network(member, point):
        for weights, biases in zip(own.weights, own.biases, strict=True):
            point = squashed(weights[member] @ point + biases[member])
        return own.readout[member] @ point

    expected = [
        np.mean([0.3 * squashed((network(m, p) - network(m, ANCHOR)) / 0.3) for m in range(3)])
        for p in x.T
    ]
    np.testing.assert_allclose(own(jnp.asarray(x)), expected, rtol=0, atol=1e-14)
    np.testing.assert_array_equal(own(jnp.asarray(x)), own.members(jnp.asarray(x)).mean(axis=0))


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_vanishes_at_the_anchor_and_is_bounded(size: float) -> None:
    own = toy_networks(ANCHOR, bound=0.3, size=size)
    # The sum over units is rounded as the product of matrices of each number of points does.
    among_others = jnp.concatenate([jnp.asarray(ANCHOR)[:, None], inputs(2000)], axis=1)
    values = own.members(among_others)
    assert float(jnp.abs(values[:, 0]).max()) < 1e-14 * size
    assert float(jnp.abs(values).max()) <= 0.3
    assert np.isfinite(values).all()


def test_second_derivatives() -> None:
    """Against finite differences of the first ones, whose error is of the order of step^2."""
    own, step = toy_networks(ANCHOR), 1e-4
    gradient = jax.jit(jax.grad(lambda point: own(point[:, None])[0]))
    second = jax.jit(jax.jacfwd(gradient))
    for point in inputs(5).T:
        hessian = second(point)
        numeric = [
            (gradient(point + d) - gradient(point - d)) / (2 * step) for d in step * jnp.eye(3)
        ]
        np.testing.assert_allclose(hessian, jnp.stack(numeric), rtol=0, atol=1e-6)


def test_shapes_must_fit() -> None:
    own = toy_networks(ANCHOR)
    with pytest.raises(ValueError, match="3 networks of layers"):
        NeuralNetworkEnsemble(own.weights, own.biases, own.readout, ANCHOR[:2], 1.0)
    with pytest.raises(ValueError, match="a readout of 4"):
        NeuralNetworkEnsemble(own.weights, own.biases, own.readout[:, :3], ANCHOR, 1.0)
    with pytest.raises(ValueError, match="at least one of each"):
        NeuralNetworkEnsemble((), (), own.readout, ANCHOR, 1.0)
    for bound in (0.0, -1.0, float("inf")):
        with pytest.raises(ValueError, match="bound of a network"):
            NeuralNetworkEnsemble(own.weights, own.biases, own.readout, ANCHOR, bound)
