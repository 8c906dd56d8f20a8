"""Laws that every descriptor obeys: scaling, symmetry, the uniform gas, tails, and bad input."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pyscf.dft import gen_grid
from scipy.special import ive
from toy_functionals import toy_exchange, toy_nldf, toy_xc

from cider.conventions import DENSITY_CUTOFF, THOMAS_FERMI_PREFACTOR
from cider.density import Density
from cider.descriptors import Descriptors, safe_ingredients
from cider.exchange import ExchangeTerm
from cider.features import semilocal
from cider.features.convolution import DirectConvolution
from cider.features.gaussian_ladder import GaussianLadder, ladder_exponents
from cider.features.nldf import Nldf, NldfExponent
from cider.features.spherical import (
    gaussian_radial_kernel,
    real_spherical_harmonics,
    scaled_spherical_bessel,
)
from cider.input_transform import bounded_ratio, squash

pytestmark = pytest.mark.usefixtures("x64")

NLDF = Nldf(
    NldfExponent(0.5, 0.1, 0.5 / 32),
    (NldfExponent(0.5, 0.0, 0.5 / 32), NldfExponent(1.0, 0.2), NldfExponent(4.0, 0.1, 0.125)),
)
DESCRIPTORS = {
    "gga": Descriptors("GGA"),
    "mgga": Descriptors("MGGA"),
    "mgga of tau/tau_0": Descriptors("MGGA", kinetic="tau/tau_0"),
    "nldf": Descriptors("MGGA", NLDF),
    "gga and nldf": Descriptors("GGA", Nldf(NldfExponent(0.7), (NldfExponent(1.5, 0.3),))),
}
LADDER_TOLERANCE = 1e-7
"""Relative error of a feature from the expansion of Gaussians in the two ladders."""


def cloud(num_points=150):
    """Any points with any physical ingredients: most laws need no molecule."""
    random = np.random.default_rng(0)
    coords = 0.4 * random.normal(size=(num_points, 3))
    rho = random.uniform(8.0, 50.0, (1, num_points))
    grad_rho = random.normal(size=(1, 3, num_points)) * rho[:, None] ** (4 / 3)
    tau = (grad_rho**2).sum(axis=1) / (8 * rho)
    tau += random.uniform(0, 2, tau.shape) * THOMAS_FERMI_PREFACTOR * rho ** (5 / 3)
    return coords, random.uniform(0.5, 1.5, num_points) / num_points, Density(rho, grad_rho, tau)


def waves(points_per_side=12):
    """A dense lattice with a smooth density.

    Single points would see the expansion error of Gaussians at their very tip, 5e-4, which an
    integral averages away. The density keeps the exponents in the middle of their bounds.
    """
    spacing = 0.8 / points_per_side
    coords = spacing * np.array(list(np.ndindex((points_per_side,) * 3)), dtype=float)
    x, y, z = coords.T
    rho = (20 + 8 * np.sin(3 * x) * np.cos(2 * y) + 5 * np.sin(4 * z))[None]
    slopes = np.stack([np.cos(3 * x), np.sin(2 * y), np.cos(4 * z)])[None]
    grad_rho = slopes * rho[:, None] ** (4 / 3)
    tau = (grad_rho**2).sum(axis=1) / (8 * rho)
    tau += (1 + np.cos(2 * x)) * THOMAS_FERMI_PREFACTOR * rho ** (5 / 3)
    return coords, np.full(len(coords), spacing**3), Density(rho, grad_rho, tau)


def scaled(coords, weights, density, gamma):
    r"""The same for :math:`\rho_\gamma(r) = \gamma^3 \rho(\gamma r)`, point by point."""
    stretched = Density(gamma**3 * density.rho, gamma**4 * density.grad_rho, gamma**5 * density.tau)
    return coords / gamma, weights / gamma**3, stretched


@jax.jit
def arguments(density):
    return tuple(None if x is None else jnp.asarray(x) for x in safe_ingredients(density, 0))


@eqx.filter_jit
def bounded_descriptors(descriptors, coords, weights, density):
    fields = None
    if descriptors.nldf is not None:
        nldf = descriptors.nldf
        convolution = DirectConvolution(
            coords, weights, nldf.source_ladder.exponents, nldf.target_ladder.exponents
        )
        fields = convolution(nldf.sources(*arguments(density)))
    return jnp.concatenate(descriptors(*arguments(density), fields))


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("name", DESCRIPTORS)
def test_uniform_scaling(name, gamma):
    """All descriptors have scaling power zero: exact, but for the ladders of nonlocal ones.

    On this lattice the tips of the expanded Gaussians still count with 1e-5 to 1e-4.
    """
    descriptors, system = DESCRIPTORS[name], waves()
    assert descriptors.nldf is None or set(descriptors.nldf.usp) == {0.0}
    before = bounded_descriptors(descriptors, *system)
    after = bounded_descriptors(descriptors, *scaled(*system, gamma))
    num_semilocal = len(descriptors.ueg[0])
    np.testing.assert_allclose(after[:num_semilocal], before[:num_semilocal], atol=1e-13)
    np.testing.assert_allclose(after, before, atol=1e-4)


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_rotation_translation_permutation(name):
    """Invariant to rounding where the points move along; the order of points is of no account."""
    random = np.random.default_rng(1)
    coords, weights, density = cloud()
    before = bounded_descriptors(DESCRIPTORS[name], coords, weights, density)
    rotation = np.linalg.qr(random.normal(size=(3, 3)))[0]
    rotated = Density(
        density.rho, np.einsum("xy,syg->sxg", rotation, density.grad_rho), density.tau
    )
    order = random.permutation(len(weights))
    permuted = jax.tree.map(lambda x: x[..., order], density)
    for moved, expected in (
        ((coords @ rotation.T, weights, rotated), before),
        ((coords + 3.0, weights, density), before),
        ((coords[order], weights[order], permuted), before[:, order]),
    ):
        np.testing.assert_allclose(
            bounded_descriptors(DESCRIPTORS[name], *moved), expected, atol=1e-11
        )


# The uniform gas


def uniform_gas(rho):
    """rho, sigma, tau of one density, as arrays of one point."""
    return tuple(jnp.full(1, x) for x in (rho, 0.0, THOMAS_FERMI_PREFACTOR * rho ** (5 / 3)))


@pytest.mark.parametrize("rho", [1e-6, 0.3, 1e3])
def test_semilocal_descriptors_of_the_uniform_gas(rho):
    semilocal_values = jnp.concatenate(
        [
            semilocal.bounded_gradient(*uniform_gas(rho)[:2]),
            semilocal.bounded_isoorbital(*uniform_gas(rho)),
        ]
    )
    np.testing.assert_allclose(semilocal_values, DESCRIPTORS["mgga"].ueg[0][:, 0], atol=1e-14)
    np.testing.assert_allclose(semilocal.bounded_kinetic_ratio(*uniform_gas(rho)), 0, atol=1e-14)


@pytest.mark.parametrize("exponent", [*NLDF.exponents, NLDF.source_exponent], ids=str)
def test_exponent_of_the_uniform_gas(exponent):
    r"""It is :math:`\pi (n/2)^{2/3} A`, whatever B and C, in the middle of the bounds."""
    rho = 10.0
    a = exponent(*uniform_gas(rho))[0]
    # The floor adds (0.004/9.2)^2/2 relative.
    assert a == pytest.approx(math.pi * (rho / 2) ** (2 / 3) * exponent.A, rel=2e-7)


@pytest.mark.parametrize("rho", [2.0, 10.0, 50.0])
def test_nldf_of_the_uniform_gas_is_the_integral_of_its_definition(rho):
    """The formula, a radial quadrature of the definition, and the ladders: the same."""
    r, dr = np.linspace(0, 12 / rho ** (1 / 3), 1500, retstep=True)
    volumes = 4 * np.pi * r**2 * dr
    a_0 = NLDF.source_exponent(*uniform_gas(rho))[0]
    quadrature = [
        np.sum(volumes * rho * np.exp(-(a(*uniform_gas(rho))[0] + a_0) * r**2))
        for a in NLDF.exponents
    ]
    # The floors of the exponents: 3 (0.004/a)^2/4 relative, with a/A of 3.1 or more.
    np.testing.assert_allclose(quadrature, NLDF.ueg, rtol=3e-6)

    distances = np.outer(r, [1.0, 0.0, 0.0])
    source, target = NLDF.source_ladder.exponents, NLDF.target_ladder.exponents
    theta = np.asarray(NLDF.sources(*uniform_gas(rho)))[0]
    by_quadrature = DirectConvolution(distances, volumes, source, target)(
        jnp.asarray(np.tile(theta, (len(r), 1)))
    )[:1]
    in_closed_form = jnp.asarray(theta @ (np.pi / np.add.outer(source, target)) ** 1.5)[None]
    features = NLDF.features(*uniform_gas(rho), in_closed_form)[:, 0]
    np.testing.assert_allclose(features, quadrature, rtol=LADDER_TOLERANCE)
    features = NLDF.features(*uniform_gas(rho), by_quadrature)[:, 0]
    # A ladder reaches down to Gaussians wider than the quadrature, with tiny coefficients.
    np.testing.assert_allclose(features, quadrature, rtol=1e-4)


def test_bounded_ratio_is_zero_at_its_reference_and_odd_in_the_logarithm():
    ratio = jnp.geomspace(1e-8, 1e8, 33)
    values = bounded_ratio(ratio, jnp.ones_like(ratio))
    assert values[16] == 0
    np.testing.assert_allclose(values, -values[::-1], atol=1e-15)
    np.testing.assert_allclose(values, np.tanh(np.log(ratio) / 2), atol=1e-14)
    assert bounded_ratio(jnp.zeros(1), jnp.ones(1))[0] == -1


def test_squash_is_odd_monotonic_and_bounded():
    x = jnp.linspace(-1e3, 1e3, 4001)
    y = squash(x, 2.5)
    assert np.all(np.diff(y) > 0) and np.abs(y).max() < 1
    np.testing.assert_allclose(y, -y[::-1], atol=1e-16)
    assert jax.grad(lambda x: squash(x, 2.5))(0.0) == pytest.approx(1 / 2.5)


# Known limits of the semilocal descriptors


def test_one_orbital():
    r"""For :math:`\rho = e^{-2r}/\pi` alpha is zero, and p is that of the exponential."""
    r = jnp.linspace(0.01, 8, 50)
    rho = jnp.exp(-2 * r) / math.pi
    sigma, tau = 4 * rho**2, rho / 2
    alpha = semilocal.isoorbital_indicator(rho, sigma, tau)
    np.testing.assert_allclose(alpha, 0, atol=1e-12 / float(rho[-1]) ** (2 / 3))
    p = semilocal.reduced_gradient_squared(rho, sigma)
    np.testing.assert_allclose(p, 1 / ((3 * np.pi**2) ** (2 / 3) * rho ** (2 / 3)), rtol=1e-13)


def test_alpha_of_a_broken_density_is_clamped():
    """Less than zero comes from no orbitals; rounding alone makes none of less than -0.01."""
    one = jnp.ones(1)
    tau_w = semilocal.weizsaecker_tau(one, 100 * one)
    alpha = semilocal.isoorbital_indicator(one, 100 * one, 0 * tau_w)
    assert alpha[0] == -0.01
    derivative = jax.grad(lambda t: semilocal.bounded_isoorbital(one, 100 * one, t)[0])(0 * one)
    assert derivative[0] == 0
    assert semilocal.bounded_isoorbital(one, 100 * one, 0 * one)[0] == pytest.approx(-1 - 2 / 99)


@pytest.mark.parametrize(
    "descriptor", [semilocal.bounded_isoorbital, semilocal.bounded_kinetic_ratio]
)
def test_kinetic_energy_below_that_of_one_orbital_leaves_potentials_smooth(descriptor):
    """Derivatives neither jump nor bend, from well above zero down to where they vanish."""
    one = jnp.ones(1)
    steps = jnp.linspace(-0.08, 0.04, 2401)[:, None] * semilocal.thomas_fermi_tau(one)[None]
    slope = jax.grad(lambda tau: descriptor(one, 0 * one, tau)[0])
    slopes = jax.vmap(slope)(steps)[:, 0]
    assert slopes[0] < 1e-5 * slopes[-1]
    # A kink would change them by all that they are in one of the steps.
    assert jnp.max(jnp.abs(jnp.diff(slopes))) < 0.01 * jnp.max(slopes)
    assert jnp.max(jnp.abs(jnp.diff(slopes, 2))) < 3e-4 * jnp.max(slopes)


# Exponents


@pytest.mark.parametrize("exponent", [NldfExponent(0.5), NldfExponent(2.0, 0.3, 1.0)], ids=str)
def test_exponent_stays_within_its_bounds_and_rises_with_the_density(exponent):
    rho = jnp.geomspace(DENSITY_CUTOFF, 1e12, 200)
    tau = semilocal.thomas_fermi_tau(rho)
    a = np.asarray(exponent(rho, jnp.zeros_like(rho), tau))
    floor, ceiling = exponent.bounds
    assert np.all(np.diff(a) >= -1e-14 * a[1:])
    assert a[0] == pytest.approx(floor, rel=1e-6) and a[-1] == pytest.approx(ceiling, rel=1e-6)
    assert np.all((a >= floor) & (a <= (1 + 1e-14) * ceiling))


@pytest.mark.parametrize(
    "constants, message",
    [
        ((0.0,), "A > 0"),
        ((-1.0,), "A > 0"),
        ((1.0, -0.1), "B >= 0"),
        ((1.0, 0.0, -0.1), "C >= 0"),
        ((math.inf,), "A > 0"),
        ((math.nan,), "A > 0"),
        ((1.0, 0.0, 1.5), "negative"),
    ],
)
def test_exponents_that_may_be_negative_are_refused(constants, message):
    with pytest.raises(ValueError, match=message):
        NldfExponent(*constants)


def test_nldf_needs_an_exponent():
    with pytest.raises(ValueError, match="at least one exponent"):
        Nldf(NldfExponent(1.0), ())


# Bad input


def test_missing_tau_is_named():
    coords, weights, density = cloud(4)
    without = Density(density.rho, density.grad_rho)
    for name in ("mgga", "nldf"):
        with pytest.raises(ValueError, match=r"need(s)? tau but the density has none"):
            bounded_descriptors(DESCRIPTORS[name], coords, weights, without)
    with pytest.raises(ValueError, match=r"need tau.*meta-GGA density"):
        DESCRIPTORS["mgga"](*arguments(without), None)
    assert not DESCRIPTORS["gga and nldf"].needs_tau
    bounded_descriptors(DESCRIPTORS["gga and nldf"], coords, weights, without)


def test_missing_fields_and_unknown_levels_are_named():
    _, _, density = cloud(4)
    with pytest.raises(ValueError, match="fields of their sources"):
        DESCRIPTORS["nldf"](*arguments(density), None)
    with pytest.raises(ValueError, match="'GGA' or 'MGGA'"):
        Descriptors("LDA")
    with pytest.raises(ValueError, match=r"alpha.*tau/tau_0"):
        Descriptors("MGGA", kinetic="beta")
    exchange = toy_exchange("GGA")
    with pytest.raises(ValueError, match="no sources"):
        exchange.sources(density)
    with pytest.raises(ValueError, match=r"unknown baseline 'B3LYP'.*GGA_X_PBE"):
        ExchangeTerm("B3LYP", exchange.terms[0].transform, exchange.terms[0].model)


def test_shapes_that_do_not_fit_raise():
    """Nothing is broadcast in silence, with or without the type checker of the tests."""
    with pytest.raises((TypeError, ValueError)):
        semilocal.reduced_gradient_squared(jnp.ones((2, 3)), jnp.ones(3))
    with pytest.raises((TypeError, ValueError)):
        semilocal.isoorbital_indicator(jnp.ones(3), jnp.ones(3), jnp.ones(4))
    with pytest.raises((TypeError, ValueError)):
        NLDF.features(*uniform_gas(1.0), jnp.ones((2, len(NLDF.target_ladder.exponents))))


# Tails


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_descriptors_and_derivatives_are_finite_in_tails_and_without_density(name):
    descriptors = DESCRIPTORS[name]
    rho = np.array([[0.0, 1e-300, 1e-30, 1e-12, 1.1e-12, 1e-9, 1e-4, -1e-8]])
    tails = Density(rho, np.stack([2.0 * rho] * 3, axis=1), 10.0 * np.abs(rho))
    coords = np.outer(np.arange(8.0), [1.0, 0, 0])

    def total(density):
        rho, sigma, tau = safe_ingredients(density, 0)
        fields = None
        if descriptors.nldf is not None:
            nldf = descriptors.nldf
            convolution = DirectConvolution(
                coords, np.ones(8), nldf.source_ladder.exponents, nldf.target_ladder.exponents
            )
            fields = convolution(nldf.sources(rho, sigma, tau))
        values = jnp.concatenate(descriptors(rho, sigma, tau, fields))
        # As the energy weighs them: the descriptors alone vary without bound per density.
        return jnp.sum(rho[None] ** (4 / 3) * values), values

    (_, values), derivative = jax.jit(jax.value_and_grad(total, has_aux=True))(tails)
    assert np.isfinite(values).all() and np.abs(values).max() < 3 + 1e-9
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(derivative))
    below = rho[0] <= DENSITY_CUTOFF
    assert not np.any(derivative.rho[0, below])


@pytest.mark.parametrize(
    "learned", [toy_exchange("GGA"), toy_exchange("MGGA"), toy_xc()], ids=["gga", "mgga", "xc"]
)
def test_energy_vanishes_below_the_cutoff_even_beside_nan(learned):
    rho = np.array([[1e-13, 1e-13, 0.5]])
    grad_rho = np.zeros((1, 3, 3))
    grad_rho[0, :, 0], grad_rho[0, :, 1] = np.nan, np.inf

    def total(density):
        energies = learned.energy_density(density, (None,))
        return energies.sum(), energies

    (_, energies), derivative = jax.jit(jax.value_and_grad(total, has_aux=True))(
        Density(rho, grad_rho, rho**2)
    )
    np.testing.assert_array_equal(energies[:2], 0)
    assert np.isfinite(energies).all()
    for values in jax.tree.leaves(derivative):
        assert np.isfinite(values).all() and not np.any(values[..., :2])


# Ladders, harmonics and kernels


def test_ladder_is_absolute():
    """Two ladders share the exponents where they overlap, and enclose what was asked for."""
    a, b = ladder_exponents(0.03, 7.0), ladder_exponents(0.5, 300.0)
    assert a[0] <= 0.03 and a[-1] >= 7.0 and b[0] <= 0.5 and b[-1] >= 300.0
    common = [x for x in a if b[0] <= x]
    np.testing.assert_allclose(common, b[: len(common)], rtol=1e-14)


def test_gaussians_convolved_with_gaussians():
    r"""The ladders reproduce :math:`(\pi/(a + b + \delta))^{3/2}` to 2e-6.

    :math:`\delta` is the sharpness of a Gaussian density, from far wider to far sharper. The bound
    is for exponents that meet in one density, within a factor 100 and 5 off the bounds; a corner
    of the table, such as 0.003 with 10000 bohr^-2, is a small overlap with a larger relative error.
    """
    nldf = toy_nldf()
    source, target = nldf.source_ladder, nldf.target_ladder
    floor, ceiling = nldf.source_exponent.bounds
    a = np.geomspace(5 * floor, ceiling / 5, 41)
    b = np.geomspace(5 * floor, max(x.bounds[1] for x in nldf.exponents) / 5, 41)
    meet = np.abs(np.log(np.outer(a, 1 / b))) < np.log(100)
    p, q = (
        np.asarray(ladder.coefficients(jnp.asarray(x))) for ladder, x in ((source, a), (target, b))
    )
    for width in (0.0, 1e-2, 1.0, 1e2):
        sums = np.add.outer(source.exponents, target.exponents) + width
        found = p @ (np.pi / sums) ** 1.5 @ q.T
        exact = (np.pi / (np.add.outer(a, b) + width)) ** 1.5
        np.testing.assert_allclose(found[meet], exact[meet], rtol=2e-6)
        np.testing.assert_allclose(found, exact, rtol=2e-3)


@pytest.mark.parametrize("sums", ["expand", "coefficients"])
def test_derivatives_of_a_ladder(sums):
    """First and second ones by the exponent, also where it is one of the ladder."""
    ladder = GaussianLadder(ladder_exponents(0.1, 50.0))
    values = jnp.asarray(np.random.default_rng(2).normal(size=len(ladder.exponents)))

    def total(a):
        if sums == "expand":
            return ladder.expand(a[None], values[None])[0]
        return ladder.coefficients(a) @ values

    total, slope, curvature = map(jax.jit, (total, jax.grad(total), jax.grad(jax.grad(total))))
    for a in (ladder.exponents[3], 1.3, 17.0):
        step = 1e-4 * a
        low, high = jnp.asarray(a - step), jnp.asarray(a + step)
        for derivative, function in ((slope, total), (curvature, slope)):
            difference = (function(high) - function(low)) / (2 * step)
            np.testing.assert_allclose(derivative(jnp.asarray(a)), difference, rtol=1e-5)


def test_a_ladder_reproduces_its_own_exponents():
    ladder = GaussianLadder(ladder_exponents(0.1, 50.0))
    coefficients = ladder.coefficients(jnp.asarray(ladder.exponents))
    np.testing.assert_allclose(coefficients, np.eye(len(ladder.exponents)), atol=1e-14)


def test_spherical_harmonics_are_orthonormal():
    grid = gen_grid.MakeAngularGrid(302)  # exact for polynomials of degree 29
    harmonics = real_spherical_harmonics(grid[:, :3], 14)
    overlap = 4 * np.pi * (harmonics * grid[:, 3]) @ harmonics.T
    np.testing.assert_allclose(overlap, np.eye(15**2), atol=1e-10)
    x, y, z = grid[:, :3].T
    np.testing.assert_allclose(harmonics[1:4], np.sqrt(3 / (4 * np.pi)) * np.array([y, z, x]))


@pytest.mark.parametrize("lmax", [1, 6, 12])
def test_bessel_functions(lmax):
    x = np.geomspace(1e-7, 1e6, 300)
    orders = np.arange(lmax + 1)
    exact = np.sqrt(np.pi / (2 * x)) * ive(orders[:, None] + 0.5, x)
    np.testing.assert_allclose(scaled_spherical_bessel(x, lmax), exact, rtol=1e-11, atol=1e-15)
    # Arguments below 1e-8 are taken for 1e-8.
    at_zero = scaled_spherical_bessel(np.array([0.0, 1e-300, 1e-12]), lmax)
    np.testing.assert_allclose(at_zero, np.tile(orders[:, None] == 0, 3), atol=1.1e-8)


def test_gaussian_of_the_distance_is_the_sum_over_its_harmonics():
    random = np.random.default_rng(2)
    r_out, r_in, gamma = np.array([0.0, 0.3, 0.9]), np.array([0.1, 0.6, 1.1]), np.array([0.2, 3.0])
    directions = random.normal(size=(2, 3, 3))
    directions /= np.linalg.norm(directions, axis=2, keepdims=True)
    lmax = 24  # 2 gamma r r' is up to 6: the terms beyond are below 1e-13
    kernel = gaussian_radial_kernel(gamma, r_out, r_in, lmax)
    out, into = (real_spherical_harmonics(d, lmax) for d in directions)
    degree = np.repeat(np.arange(lmax + 1), 2 * np.arange(lmax + 1) + 1)
    found = np.einsum("kgoi,ko,ki->goi", kernel[degree], out, into)
    points_out, points_in = r_out[:, None] * directions[0], r_in[:, None] * directions[1]
    squares = ((points_out[:, None] - points_in) ** 2).sum(axis=2)
    np.testing.assert_allclose(found, np.exp(-gamma[:, None, None] * squares), atol=1e-11)
