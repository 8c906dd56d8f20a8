"""Baselines are the libxc functionals of their names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pyscf.dft import libxc

from cider.baselines import BASELINES
from cider.conventions import LDA_EXCHANGE_PREFACTOR, REDUCED_GRADIENT_PREFACTOR

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("name", BASELINES)
def test_energy_and_slope_are_those_of_libxc(name: str) -> None:
    random = np.random.default_rng(0)
    rho = 10 ** random.uniform(-3, 3, size=2000)
    p = 10 ** random.uniform(-3, 4, size=2000)
    sigma = p * rho ** (8 / 3) / REDUCED_GRADIENT_PREFACTOR

    def energy(rho: jax.Array, sigma: jax.Array) -> jax.Array:
        return LDA_EXCHANGE_PREFACTOR * rho ** (4 / 3) * BASELINES[name](rho, sigma)

    slopes = jax.grad(lambda *x: energy(*x).sum(), argnums=(0, 1))(
        jnp.asarray(rho), jnp.asarray(sigma)
    )
    ingredients = np.array([rho, np.sqrt(sigma), 0 * rho, 0 * rho])
    is_lda = name.startswith("LDA")
    eps_x, vx = libxc.eval_xc(name, rho if is_lda else ingredients, deriv=1)[:2]
    np.testing.assert_allclose(
        energy(jnp.asarray(rho), jnp.asarray(sigma)), rho * eps_x, rtol=1e-12
    )
    np.testing.assert_allclose(slopes[0], vx[0], rtol=1e-10)
    if not is_lda:
        np.testing.assert_allclose(slopes[1], vx[1], rtol=1e-10)


def test_chachiyo_at_small_gradients() -> None:
    """The gradient expansion 1 + 8 p / 27, and the series joins the formula smoothly."""

    def enhancement(p: jax.Array) -> jax.Array:
        return BASELINES["GGA_X_CHACHIYO"](jnp.ones(1), p[None] / REDUCED_GRADIENT_PREFACTOR)[0]

    for p in (0.0, 1e-24, 1e-12):
        assert abs(jax.grad(enhancement)(p) - 8 / 27) < 1e-6
    joint = (0.02 * 9 / (4 * np.pi)) ** 2
    below, above = (jax.grad(enhancement)(joint * (1 + shift)) for shift in (-1e-12, 1e-12))
    assert abs(below - above) < 1e-12
