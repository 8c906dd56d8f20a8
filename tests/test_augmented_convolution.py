"""The convolution on a uniform grid and in spheres against integrals and its own transpose."""

import jax
import numpy as np
import pytest

from cider.features.augmented_convolution import augmented_convolution
from cider.features.spherical import gaussian_radial_kernel
from cider.features.spherical_shells import LMAX, SphericalShells

LATTICE = np.array([(7.0, 0.0, 0.5), (0.0, 6.5, 0.0), (0.3, 0.2, 6.0)])
CENTERS = np.array([(1.0, 2.0, 0.5), (4.1, 3.0, 3.2)])
SOURCES, TARGETS = np.array([0.3, 2.0, 40.0]), np.array([0.2, 1.5, 30.0, 100.0])


def product_sphere(num_shells: int = 60, radius: float = 1.6) -> SphericalShells:
    """Gauss quadrature of the radius and of the polar angle, equal steps of the azimuth."""
    x, wx = np.polynomial.legendre.leggauss(num_shells)
    radii, by_radius = radius * (1 + x) / 2, wx * radius / 2
    cosine, by_cosine = np.polynomial.legendre.leggauss(8)
    azimuth = 2 * np.pi * np.arange(16) / 16
    sine = np.sqrt(1 - cosine**2)
    directions = np.stack(
        [
            np.outer(sine, np.cos(azimuth)),
            np.outer(sine, np.sin(azimuth)),
            np.outer(cosine, np.ones(16)),
        ],
        axis=-1,
    ).reshape(-1, 3)
    by_angle = np.repeat(by_cosine * 2 * np.pi / 16, 16)
    return SphericalShells(radii, directions, np.outer(by_angle, radii**2 * by_radius))


@pytest.fixture(scope="module")
def convolution():
    with jax.enable_x64(True):
        shells = product_sphere()
        yield augmented_convolution(
            LATTICE, (30, 28, 26), CENTERS, [shells, shells], SOURCES, TARGETS
        )


def test_transpose(convolution):
    random = np.random.default_rng(0)
    size = 30 * 28 * 26 + 4 * convolution.species[0].shells.num_points
    x, y = random.normal(size=(size, 3)), random.normal(size=(size, 4))
    forward, backward = np.vdot(y, convolution.apply(x)), np.vdot(convolution.transpose(y), x)
    assert abs(forward - backward) < 1e-10 * np.linalg.norm(x) * np.linalg.norm(
        convolution.apply(x)
    )


def test_functions_of_the_length_of_waves(convolution):
    """All Gaussians, from their values at a few lengths of each run of waves: to rounding."""
    lengths, runs = convolution.waves.lengths, convolution.runs
    assert len(runs.samples) < len(lengths) / 10

    def gaussians(lengths):
        return np.exp(-np.outer(lengths**2, 1 / (4 * convolution.gammas)))

    waves = np.array([1.0, 1j]) * np.ones((len(lengths), 1))
    identity = np.eye(2)[None, :, :, None]
    matrices = (identity * gaussians(runs.samples)[:, None, None]).reshape(len(runs.samples), 2, -1)
    product = runs.matrix_product(waves, matrices).reshape(len(lengths), 2, -1)
    # Lengths are rounded to 1e-12, and the interpolation ends at as much.
    assert np.max(np.abs(product - waves[:, :, None] * gaussians(lengths)[:, None])) < 1e-11


def test_sharp_gaussians_between_shells(convolution):
    """Without what is negligible: as the sum over all shells."""
    species = convolution.species[0]
    sharp = convolution.gammas[convolution.num_smooth :]
    random = np.random.default_rng(0)
    charges = random.normal(size=((LMAX + 1) ** 2, len(species.shells.radii), 2))
    mixing = random.normal(size=(len(sharp), 2, 3))
    radii = species.shells.radii
    expected = np.concatenate(
        [
            np.einsum("xgh,lhc,xcd->lgd", kernel, charges[l * l : (l + 1) ** 2], mixing)
            for l, kernel in enumerate(gaussian_radial_kernel(sharp, radii, radii, LMAX))
        ]
    )
    fields = species.sharp.convolve(charges[:, :, None], mixing)[:, :, 0]
    assert np.max(np.abs(fields - expected)) < 1e-12 * np.max(np.abs(expected))


def test_a_gaussian_source_in_a_sphere(convolution):
    """All-electron less pseudo source, p times a sharp Gaussian, convolved as the formula says."""
    shells = convolution.species[0].shells
    zeta = 12.0
    points = shells.points
    shape = (0.5 + points[:, 0]) * np.exp(-zeta * np.sum(points**2, axis=1))
    grid_size, sphere_size = 30 * 28 * 26, len(points)
    sources = np.zeros((grid_size + 4 * sphere_size, 3))
    sources[grid_size : grid_size + sphere_size] = shape[:, None]
    fields = convolution.apply(sources)

    def exact(displacement, gammas):
        """exp(-gamma u^2) times the source, convolved in closed form."""
        x, squares = displacement[:, :1], np.sum(displacement**2, axis=1)[:, None]
        width = gammas * zeta / (gammas + zeta)
        factor = (np.pi / (gammas + zeta)) ** 1.5 * np.exp(-width * squares)
        return factor * (0.5 + gammas / (gammas + zeta) * x)

    images = [np.array(n) @ LATTICE for n in np.ndindex(3, 3, 3)]

    def periodic(points_from_center):
        total = np.zeros((len(points_from_center), 4))
        for image in images:
            for alpha in SOURCES:
                total += exact(points_from_center + image - LATTICE.sum(axis=0), alpha + TARGETS)
        return total

    own = fields[grid_size : grid_size + sphere_size]
    assert np.max(np.abs(own - periodic(points))) < 5e-5 * np.max(np.abs(own))
    other = fields[grid_size + 2 * sphere_size : grid_size + 3 * sphere_size]
    elsewhere = periodic(points + CENTERS[1] - CENTERS[0])
    # Harmonics above LMAX are missing at the rim.
    assert np.max(np.abs(other - elsewhere)) < 5e-3 * np.max(np.abs(own))
    mesh = np.stack(np.meshgrid(*(np.arange(n) / n for n in (30, 28, 26)), indexing="ij"), axis=-1)
    displacement = mesh.reshape(-1, 3) @ LATTICE - CENTERS[0] + LATTICE.sum(axis=0) / 2
    fractional = displacement @ np.linalg.inv(LATTICE)
    displacement = (fractional % 1 - 0.5) @ LATTICE
    outside = np.linalg.norm(displacement, axis=1) > 1.6
    difference = fields[:grid_size][outside] - periodic(displacement[outside])
    # What sharp Gaussians reach beyond the sphere is left out.
    assert np.max(np.abs(difference)) < 5e-4 * np.max(np.abs(own))


def smooth(mesh, values):
    """The part in the longest waves: strain moves no wave of them across the last shell."""
    waves = np.fft.fftn(values.reshape(*mesh, -1), axes=(0, 1, 2))
    numbers = np.meshgrid(*(np.fft.fftfreq(n, 1 / n) for n in mesh), indexing="ij")
    waves[np.max(np.abs(numbers), axis=0) > 2] = 0.0
    return np.fft.ifftn(waves, axes=(0, 1, 2)).real.reshape(values.shape)


def test_derivatives_by_centers_and_strain(convolution):
    """Against central differences of what the derivative is of, at a smaller size."""
    random = np.random.default_rng(1)
    shells = product_sphere(num_shells=12)
    grid_size, sphere_size = 12 * 10 * 10, shells.num_points
    charges = random.normal(size=(2, 3))
    decay = np.exp(-4 * shells.radii**2)
    shape = (shells.weights > 0) * (1 + 0.4 * shells.directions[:, :1]) * decay
    sources = np.zeros((grid_size + 4 * sphere_size, 3))
    sources[:grid_size] = smooth((12, 10, 10), random.normal(size=(grid_size, 3)))
    by_fields = random.normal(size=(len(sources), 4))
    by_fields[:grid_size] = smooth((12, 10, 10), by_fields[:grid_size])
    for atom in range(2):
        first = grid_size + 2 * atom * sphere_size
        sources[first : first + sphere_size] = shape.reshape(-1, 1) * charges[atom]

    def pairing(lattice, centers):
        built = build(lattice, centers)
        return np.vdot(by_fields, built.apply(sources))

    def build(lattice, centers):
        exponents = SOURCES[:3], TARGETS[:4]
        return augmented_convolution(lattice, (12, 10, 10), centers, [shells] * 2, *exponents)

    own = build(LATTICE, CENTERS)
    by_centers, by_strain = (
        own.derivative(sources, by_fields, own.transpose(by_fields)),
        own.strain_derivative(sources, by_fields),
    )
    step = 1e-4
    for atom, axis in ((0, 0), (1, 2)):
        shift = np.zeros((2, 3))
        shift[atom, axis] = step
        numerical = (pairing(LATTICE, CENTERS + shift) - pairing(LATTICE, CENTERS - shift)) / 2
        assert abs(numerical / step - by_centers[atom, axis]) < 1e-6 * np.max(np.abs(by_centers))
    for row, column in ((0, 0), (0, 1), (2, 1)):
        strain = np.zeros((3, 3))
        strain[row, column] = step

        def strained(sign, strain=strain):
            deformation = np.eye(3) + sign * strain
            return pairing(LATTICE @ deformation.T, CENTERS @ deformation.T)

        numerical = (strained(1) - strained(-1)) / (2 * step)
        assert abs(numerical - by_strain[row, column]) < 1e-5 * np.max(np.abs(by_strain))
