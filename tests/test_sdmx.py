"""SDMX features: their definition by quadrature, scaling, rotation, the uniform gas, transposes."""

import dataclasses
import functools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from pyscf import dft, gto
from scipy.integrate import quad
from scipy.special import spherical_jn

from cider.features.sdmx import FAMILIES, Sdmx, SdmxRadii
from cider.plugins.pyscf.smoothed_density_matrix import (
    sdmx_features,
    sdmx_potential_matrices,
    smoothed_orbitals,
    smoothed_shells,
)

pytestmark = pytest.mark.usefixtures("x64")

ALL = Sdmx(tuple((family, j) for family in FAMILIES for j in (0, 1, 2)))
FINE = Sdmx(ALL.terms, SdmxRadii(54, per_octave=3))
RADII = ALL.radii.values
RADIAL_ERROR = {"0": 1e-5, "0d": 1.5e-5, "1": 2e-5, "1d": 2e-4, "1rd": 4e-4}
"""Relative, of the quadrature over R, by family."""

NORMALISATION = (2 / math.pi) ** 1.5 * 4 / (4 - math.sqrt(2))

MOLECULES = {
    "helium": dict(atom="He 0 0 0"),
    "water": dict(atom="O 0 0 0; H 0 1.43 1.11; H 0 -1.43 1.11"),
    "silane without two hydrogens": dict(atom="Si 0 0 0; H 0 2 2; H 0 -2 2", basis="cc-pvdz"),
}


@functools.cache
def molecule(name):
    """A molecule and a density matrix without any symmetry."""
    mol = gto.M(**{"basis": "def2-svp", "unit": "bohr", "verbose": 0, **MOLECULES[name]})
    dm = dft.RKS(mol).get_init_guess(key="minao")
    random = np.random.default_rng(1).normal(size=dm.shape)
    return mol, dm + 0.02 * (random + random.T)


def points(mol, count=12, reach=1.0):
    """Some points around the atoms."""
    random = np.random.default_rng(3)
    return mol.atom_coords()[random.integers(mol.natm, size=count)] + random.normal(
        scale=reach / math.sqrt(3), size=(count, 3)
    )


class PointsAsGrid:
    """What is read of PySCF's grids."""

    def __init__(self, mol, coords):
        self.mol, self.coords, self.weights = mol, coords, np.ones(len(coords))
        self.non0tab = None

    def make_mask(self, mol, coords):
        return dft.gen_grid.make_mask(mol, coords)


def features(mol, dm, coords, sdmx=ALL):
    return sdmx_features(mol, PointsAsGrid(mol, coords), sdmx, dm[None, None], 2000)[0, 0]


def fields(mol, dm, coords, sdmx=ALL):
    smoothed = smoothed_orbitals(mol, smoothed_shells(mol, sdmx), coords)
    return smoothed.apply(dm @ dft.numint.eval_ao(mol, coords).T)


def values_and_slopes(fields):
    """The smoothed density matrix and its gradient, and their derivatives by ln R."""
    return fields[:, :4], -2 * fields[:, 4:]


def kernel(u, radius):
    """The function h of the definition."""
    gaussian = np.exp(-2 * u**2 / radius**2)
    return NORMALISATION * gaussian * (1 - gaussian) / radius**3


@pytest.mark.parametrize("name", ["helium", "water"])
def test_fields_are_the_integrals_of_their_definition(name):
    """On a fine grid of PySCF, which resolves the wider ones of the kernels."""
    mol, dm = molecule(name)
    grids = dft.gen_grid.Grids(mol)
    grids.level, grids.prune = 5, None
    grids.build()
    coords = points(mol, 6)
    ao = dft.numint.eval_ao(mol, coords)
    density_matrix = dft.numint.eval_ao(mol, grids.coords) @ dm @ ao.T  # r', r
    offsets = grids.coords[:, None] - coords
    u = np.linalg.norm(offsets, axis=2)
    values, slopes = values_and_slopes(fields(mol, dm, coords))
    for k in (2, 4, 7):
        radius, step = RADII[k], 1e-4

        def integral(radius, direction=None):
            by_point = kernel(u, radius)
            if direction is not None:
                gaussian = np.exp(-2 * u**2 / radius**2)
                by_point = NORMALISATION / radius**5 * 4 * gaussian * (2 * gaussian - 1)
                # Ours is the gradient of what is smoothed: minus that of the kernel.
                by_point = -by_point * offsets[..., direction]
            return grids.weights @ (by_point * density_matrix)

        for component, direction in enumerate((None, 0, 1, 2)):
            expected = integral(radius, direction)
            scale = abs(expected).max()
            np.testing.assert_allclose(values[:, component, k], expected, atol=1e-6 * scale)
            high, low = (integral(radius * math.exp(d), direction) for d in (step, -step))
            slope = (high - low) / (2 * step)
            np.testing.assert_allclose(slopes[:, component, k], slope, atol=1e-6 * abs(slope).max())


@pytest.mark.parametrize("name", MOLECULES)
def test_features_are_the_integrals_over_all_radii(name):
    mol, dm = molecule(name)
    coords = points(mol)
    ours, expected = features(mol, dm, coords), integrals_over_all_radii(mol, dm, coords)
    for (family, _), own, exact in zip(ALL.terms, ours, expected, strict=True):
        np.testing.assert_allclose(own, exact, rtol=RADIAL_ERROR[family])


def test_more_radii():
    """Near silicon's nucleus, where 27 radii leave errors of 1e-2."""
    mol, dm = molecule("silane without two hydrogens")
    near = np.array([[0.0, 0.0, 0.003], [0.0, 0.01, 0.0], [0.02, 0.0, 0.0]])
    coords = np.concatenate([points(mol, 9), near])
    expected = integrals_over_all_radii(mol, dm, coords)
    few = Sdmx(ALL.terms, SdmxRadii(27))
    coarse, ours, fine = (features(mol, dm, coords, sdmx) for sdmx in (few, ALL, FINE))
    np.testing.assert_allclose(fine, expected, rtol=2e-5)
    np.testing.assert_allclose(ours, expected, rtol=3e-4)
    assert np.max(abs(coarse / expected - 1)) > 5e-3


def integrals_over_all_radii(mol, dm, coords):
    """Features by a rule four times finer, from 1e-9 to 1e4 bohr."""
    expected = np.zeros((len(ALL.terms), len(coords)))
    coefficients = dm @ dft.numint.eval_ao(mol, coords).T
    step = math.log(2) / 8
    for log_radius in np.arange(math.log(1e-9), math.log(1e4), step):
        pair = math.exp(-2 * log_radius) * np.array([2.0, 4.0])
        kernels = np.array([[1.0], [-(2**-1.5)]]) / (1 - 2**-1.5)
        shells = dataclasses.replace(smoothed_shells(mol, ALL), exponents=pair, kernels=kernels)
        smoothed = smoothed_orbitals(mol, shells, coords).apply(coefficients)
        value, slope = (x[..., 0] for x in values_and_slopes(smoothed))
        parts = {"0": value[:, :1], "0d": slope[:, :1], "1": value[:, 1:], "1d": slope[:, 1:]}
        parts["1rd"] = parts["1"] + parts["1d"]
        for i, (family, j) in enumerate(ALL.terms):
            power = (3 if family[0] == "0" else 5) - j
            weight = 4 * math.pi * step * math.exp(power * log_radius)
            expected[i] += weight * np.sum(parts[family] ** 2, axis=1)
    return expected


def test_two_electrons_in_one_orbital():
    r"""There :math:`n_1` is a product, and of a Gaussian the smoothed one is in closed form."""
    exponent, r = 0.7, np.linspace(0, 2.5, 6)
    mol = gto.M(atom="He 0 0 0", basis={"He": [[0, [exponent, 1.0]]]}, unit="bohr", verbose=0)
    coords = r[:, None] * np.array([[1.0, 2.0, -2.0]]) / 3
    orbital = (2 * exponent / math.pi) ** 0.75 * np.exp(-exponent * r**2)
    sdmx = Sdmx((("0", 0), ("0", 1), ("0", 2)))
    found = features(mol, np.array([[2.0]]), coords, sdmx)
    for j in range(3):
        for point, value in zip(r, found[j], strict=True):

            def integrand(log_radius, point=point, j=j):
                smoothed = 0.0
                for factor, beta in ((1.0, 2.0), (-(2**-1.5), 4.0)):
                    width = beta / (beta + exponent * math.exp(2 * log_radius))
                    decay = exponent * width * point**2
                    smoothed += factor / (1 - 2**-1.5) * width**1.5 * math.exp(-decay)
                return math.exp((3 - j) * log_radius) * smoothed**2

            integral = 4 * math.pi * quad(integrand, -25, 10, limit=500, epsrel=1e-10)[0]
            density = 2 * orbital[r == point][0] ** 2
            normalisation = 2 * (2 * exponent / math.pi) ** 1.5
            assert value == pytest.approx(density * normalisation * integral, rel=1e-5)


@pytest.mark.parametrize("name", ["helium", "water"])
def test_potential_matrix_is_the_derivative_of_a_sum_over_features(name):
    """Features are quadratic in the density matrix: central differences are exact."""
    mol, dm = molecule(name)
    random = np.random.default_rng(5)
    coords = points(mol, 300, 2.0)
    dms = np.stack([dm, 0.3 * dm + 0.1 * dm @ dm])[:, None]
    by_features = random.normal(size=(2, 1, len(ALL.terms), len(coords)))
    change = random.normal(size=dms.shape)
    change += change.swapaxes(-1, -2)
    grid = PointsAsGrid(mol, coords)

    def total(step):
        moved = sdmx_features(mol, grid, ALL, dms + step * change, 2000)
        return np.vdot(by_features, moved)

    matrices = sdmx_potential_matrices(mol, grid, ALL, dms, by_features, 2000)
    np.testing.assert_array_equal(matrices, matrices.swapaxes(-1, -2))
    difference = (total(0.5) - total(-0.5)) / 1.0
    assert np.vdot(matrices, change) == pytest.approx(difference, rel=1e-10)


@pytest.mark.parametrize("sdmx", [Sdmx((("0", 1),)), Sdmx((("0d", 1),)), Sdmx((("1", 0),)), ALL])
def test_fields_and_their_transpose(sdmx):
    mol, _ = molecule("water")
    random = np.random.default_rng(6)
    coords = points(mol, 30)
    smoothed = smoothed_orbitals(mol, smoothed_shells(mol, sdmx), coords)
    coefficients = random.normal(size=(mol.nao, len(coords)))
    there = smoothed.apply(coefficients)
    back = random.normal(size=there.shape)
    assert np.vdot(back, there) == pytest.approx(np.vdot(smoothed.transpose(back)[0], coefficients))
    all_of_them = smoothed_orbitals(mol, smoothed_shells(mol, ALL), coords).apply(coefficients)
    read = [slice(start, start + part) for start, part in zip((0, 4), sdmx.parts, strict=False)]
    expected = np.concatenate([all_of_them[:, part] for part in read], axis=1)
    # Of sums in another order.
    np.testing.assert_allclose(there, expected, atol=1e-14 * abs(expected).max())


@pytest.mark.parametrize("sdmx", [Sdmx((("0", 1),)), Sdmx((("0d", 1),)), Sdmx((("1", 0),)), ALL])
@pytest.mark.parametrize("name", MOLECULES)
def test_transpose_where_points_move(name, sdmx):
    mol, _ = molecule(name)
    coords = points(mol, 30)
    shells = smoothed_shells(mol, sdmx, moving=True)
    shape = len(coords), sum(shells.parts), shells.kernels.shape[1]
    fields = np.random.default_rng(6).normal(size=shape)

    def transposed(coords):
        return smoothed_orbitals(mol, shells, coords).transpose(fields)

    gradients = transposed(coords)[1:]
    assert gradients.shape[1] == mol.nao
    for gradient, direction in zip(gradients, np.eye(3), strict=True):
        once, twice = (
            transposed(coords + k * 1e-3 * direction)[0]
            - transposed(coords - k * 1e-3 * direction)[0]
            for k in (1, 2)
        )
        # Of the fourth order; the third derivatives of the interpolation jump.
        scale = abs(gradient).max()
        np.testing.assert_allclose((8 * once - twice) / 12e-3, gradient, atol=1e-7 * scale)


@pytest.mark.parametrize("gamma", [2.0, 1.3])
def test_uniform_scaling(gamma):
    """Of :math:`n_1(r', r)` to :math:`\\gamma^3 n_1(\\gamma r', \\gamma r)`."""
    mol, dm = molecule("water")
    coords = points(mol)
    scaled = mol.copy()
    scaled.basis = {
        element: [
            [l, *((gamma**2 * p[0], *p[1:]) for p in primitives)] for l, *primitives in shells
        ]
        for element, shells in mol._basis.items()
    }
    scaled.set_geom_(mol.atom_coords() / gamma, unit="bohr")
    scaled.build()
    before, after = features(mol, dm, coords), features(scaled, dm, coords / gamma)
    powers = gamma ** np.array(ALL.usp, dtype=float)
    # The error of the quadrature over R, which scaling moves along R, twice.
    for (family, _), own, exact in zip(ALL.terms, after, powers[:, None] * before, strict=True):
        np.testing.assert_allclose(own, exact, rtol=2 * RADIAL_ERROR[family])


def test_rotation():
    mol, dm = molecule("silane without two hydrogens")
    coords = points(mol)
    rotation = np.linalg.qr(np.random.default_rng(8).normal(size=(3, 3)))[0]
    rotation *= np.linalg.det(rotation)
    turned = mol.copy().set_geom_(mol.atom_coords() @ rotation.T, unit="bohr")
    orbitals = dft.numint.eval_ao(mol, np.random.default_rng(9).normal(size=(400, 3)))
    there = dft.numint.eval_ao(turned, np.random.default_rng(9).normal(size=(400, 3)) @ rotation.T)
    # The orbitals there, as combinations of those here.
    matrix = np.linalg.lstsq(there, orbitals, rcond=None)[0]
    np.testing.assert_allclose(
        features(turned, matrix @ dm @ matrix.T, coords @ rotation.T),
        features(mol, dm, coords),
        rtol=1e-8,
    )


def test_the_uniform_gas():
    r"""Where :math:`n_1 = 3 n\, j_1(k_F u)/(k_F u)`: by real space, and by fields on the radii."""
    x = np.geomspace(1e-6, 40, 1500)
    u = np.linspace(1e-9, 6, 1001)

    def of_radius(x):
        y = x * u
        integrand = 4 * math.pi * u**2 * kernel(u, 1.0) * 3 * spherical_jn(1, y) / y
        return np.trapezoid(integrand, u)

    values = np.array([of_radius(x) for x in x])
    slopes = np.gradient(values, np.log(x), edge_order=2)
    log_x, fermi = np.log(x), (3 * math.pi**2) ** (1 / 3)
    for (family, j), expected in zip(ALL.terms, ALL.ueg, strict=True):
        if family in ("0", "0d"):
            square = (values if family == "0" else slopes) ** 2
            integral = np.trapezoid(np.exp((3 - j) * log_x) * square, log_x)
            found = 4 * math.pi * fermi ** (j - 3) * integral
            assert found == pytest.approx(expected, rel=1e-5 if family == "0" else 3e-4)
        else:
            assert expected == 0

    rho = np.array([0.05, 1.0, 20.0])
    fields = np.zeros((3, 8, len(RADII)))
    t = (np.arange(4000) + 0.5) / 4000
    for point, wave in enumerate(fermi * rho ** (1 / 3)):
        y = np.outer(1 / (4 * ALL.exponents), (wave * t) ** 2)
        fields[point, 0] = rho[point] * 3 / 4000 * (np.exp(-y) @ t**2) @ ALL.kernels
        fields[point, 4] = rho[point] * 3 / 4000 * ((y * np.exp(-y)) @ t**2) @ ALL.kernels
    found = ALL.scaled(jnp.asarray(rho), jnp.asarray(ALL.features(fields)))
    # The edge of the Fermi sea is sharp, so that slopes by R are hard on the quadrature.
    tolerance = np.where([family == "0" for family, _ in ALL.terms], 2e-5, 4e-4)
    error = abs(found - ALL.ueg[:, None]) / ALL.reference[:, None]
    assert np.all(error < tolerance[:, None])


def test_what_is_refused():
    for terms, message in (
        ((("2", 0),), "no SDMX feature of family '2'"),
        ((("0", 3),), "j is 0, 1 or 2"),
        ((), "one or more different"),
        ((("0", 1), ("0", 1)), "one or more different"),
    ):
        with pytest.raises(ValueError, match=message):
            Sdmx(terms)
    for radii in (SdmxRadii(1), SdmxRadii(101), SdmxRadii(27, 0), SdmxRadii(27, 11)):
        with pytest.raises(ValueError, match="2 to 100 radii"):
            Sdmx((("0", 1),), radii)
    mol = gto.M(atom="O", basis="def2-svp", cart=True, verbose=0)
    with pytest.raises(NotImplementedError, match=r"Cartesian d.*cart=False"):
        smoothed_shells(mol, ALL)
