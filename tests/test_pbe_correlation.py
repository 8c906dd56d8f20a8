"""PBE correlation is libxc's, also where a spin has no electron or the density no gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pyscf.dft import libxc

from cider.pbe_correlation import pbe_correlation

pytestmark = pytest.mark.usefixtures("x64")


def reference(rho, grad_rho):
    """Energy per volume and its derivatives by both densities and by sigma, of libxc."""
    ingredients = np.concatenate([rho[:, None], grad_rho], axis=1)
    eps, (vrho, vsigma, *_) = libxc.eval_xc("GGA_C_PBE", ingredients, spin=1, deriv=1)[:2]
    return rho.sum(axis=0) * eps, vrho.T, vsigma[:, 0]


def ours(rho, grad_rho):
    sigma = np.sum(grad_rho.sum(axis=0) ** 2, axis=0)
    arguments = jnp.asarray(rho), jnp.asarray(sigma)
    slopes = jax.grad(lambda *x: pbe_correlation(*x).sum(), argnums=(0, 1))(*arguments)
    return pbe_correlation(*arguments), *slopes


def points(polarisation, exponents=(-6, 3), largest_gradient=2.0, count=2000):
    random = np.random.default_rng(3)
    total = 10 ** random.uniform(*exponents, size=count)
    zeta = np.broadcast_to(polarisation, count)
    rho = np.array([total * (1 + zeta), total * (1 - zeta)]) / 2
    size = 10 ** random.uniform(-3, np.log10(largest_gradient), size=count)
    direction = random.normal(size=(2, 3, count))
    direction /= np.linalg.norm(direction.sum(axis=0), axis=0)
    return rho, size * total ** (4 / 3) * direction


@pytest.mark.parametrize("polarisation", [0.0, -0.3, 0.9, 0.999])
def test_energy_and_slopes_are_those_of_libxc(polarisation):
    rho, grad_rho = points(polarisation)
    for found, expected in zip(ours(rho, grad_rho), reference(rho, grad_rho), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-11)


def test_random_polarisation():
    rho, grad_rho = points(np.random.default_rng(1).uniform(-1, 1, size=2000))
    (e_c, *slopes), (expected, *expected_slopes) = ours(rho, grad_rho), reference(rho, grad_rho)
    np.testing.assert_allclose(e_c, expected, rtol=2e-12)
    for found, slope in zip(slopes, expected_slopes, strict=True):
        np.testing.assert_allclose(found, slope, rtol=1e-11)


def test_large_gradients():
    """Where libxc adds two numbers that cancel, ours do not: equal to rounding of each of them."""
    rho, grad_rho = points(0.4, largest_gradient=1e3)
    uniform = reference(rho, 0 * grad_rho)[0]
    difference = np.abs(np.asarray(ours(rho, grad_rho)[0]) - reference(rho, grad_rho)[0])
    assert np.all(difference < 1e-13 * np.abs(uniform))


@pytest.mark.parametrize("empty", [0, 1])
def test_no_electron_of_one_spin(empty):
    rho, grad_rho = points(1.0, exponents=(-6, 0))
    rho, grad_rho = (x[::-1] if empty == 0 else x for x in (rho, grad_rho))
    assert not rho[empty].any()
    (e_c, by_rho, by_sigma), expected = ours(rho, grad_rho), reference(rho, grad_rho)
    # The cutoff in place of the empty spin has an energy here, of 1e-13 Ha/bohr^3 at most.
    np.testing.assert_allclose(e_c, expected[0], rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(by_rho[1 - empty], expected[1][1 - empty], rtol=1e-11)
    np.testing.assert_allclose(by_sigma, expected[2], rtol=1e-11)
    # libxc has 1 - zeta = 2e-12 as a difference, of which four digits are left.
    np.testing.assert_allclose(by_rho[empty], expected[1][empty], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("polarisation", [0.0, 0.7, 1.0])
def test_low_density_and_no_gradient(polarisation):
    rho, grad_rho = points(polarisation, exponents=(-8, -6))
    for gradient in (grad_rho, 0 * grad_rho):
        for found, expected in zip(ours(rho, gradient), reference(rho, gradient), strict=True):
            # The cutoff in place of an empty spin has an energy here, of 1e-13 Ha/bohr^3 at most.
            np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)


def test_finite_without_density():
    rho = np.array([[0.0, 0, 1e-300, 1e-20, 1e-12], [0.0, 1e-8, 0, 1e-20, 0]])
    for found in ours(rho, np.zeros((2, 3, 5))):
        assert np.isfinite(found).all()


def test_spin_swap():
    rho, grad_rho = points(0.6)
    e_c, by_rho, _ = ours(rho, grad_rho)
    swapped, by_swapped, _ = ours(rho[::-1], grad_rho)
    np.testing.assert_allclose(swapped, e_c, rtol=1e-15)
    np.testing.assert_allclose(by_swapped[::-1], by_rho, rtol=1e-12)
