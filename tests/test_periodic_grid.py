"""The convolution of periodic densities, against Gaussians that are known in closed form."""

import numpy as np
import pytest

from cider.features.periodic_grid import periodic_convolution

LATTICE = np.array([[5.0, 0.0, 0.5], [1.0, 6.0, 0.0], [0.0, -1.0, 4.5]])
MESH = (18, 20, 15)
SOURCE_EXPONENTS = np.array([0.02, 0.3, 2.0])
TARGET_EXPONENTS = np.array([0.05, 1.1])


@pytest.fixture
def convolution(x64):
    return periodic_convolution(LATTICE, MESH, SOURCE_EXPONENTS, TARGET_EXPONENTS)


def places():
    fractions = np.meshgrid(*(np.arange(n) / n for n in MESH), indexing="ij")
    return np.stack(fractions, axis=-1).reshape(-1, 3) @ LATTICE


def periodic_gaussian(exponent, center):
    """The sum of a Gaussian over all cells."""
    reach = int(np.ceil(7 / np.sqrt(exponent) / 4.0)) + 1
    steps = np.arange(-reach, reach + 1)
    images = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3) @ LATTICE
    total = np.zeros(len(places()))
    for image in images:
        total += np.exp(-exponent * np.sum((places() - center - image) ** 2, axis=1))
    return total


def test_gaussians_convolved_with_gaussians(convolution):
    width, center = 0.8, np.array([1.0, 2.0, 0.3])
    charge = periodic_gaussian(width, center)
    fields = np.asarray(convolution.apply(np.tile(charge[:, None], 3)))
    for target, beta in enumerate(TARGET_EXPONENTS):
        expected = 0
        for alpha in SOURCE_EXPONENTS:
            gamma = alpha + beta
            product = gamma * width / (gamma + width)
            volume = (np.pi / (gamma + width)) ** 1.5
            expected = expected + volume * periodic_gaussian(product, center)
        np.testing.assert_allclose(fields[:, target], expected, rtol=1e-6)


def test_transpose(convolution):
    rng = np.random.default_rng(0)
    size = np.prod(MESH)
    charges, fields = rng.normal(size=(size, 3)), rng.normal(size=(size, 2))
    forward = np.sum(np.asarray(convolution.apply(charges)) * fields)
    backward = np.sum(np.asarray(convolution.transpose(fields)) * charges)
    assert forward == pytest.approx(backward, rel=1e-12)


def test_translation(convolution):
    """By steps of the mesh, any charge takes its fields along."""
    charges = np.random.default_rng(1).uniform(size=(*MESH, 3))
    moved = np.roll(charges, (3, -4, 7), axis=(0, 1, 2)).reshape(-1, 3)
    fields = np.asarray(convolution.apply(charges.reshape(-1, 3))).reshape(*MESH, 2)
    expected = np.roll(fields, (3, -4, 7), axis=(0, 1, 2)).reshape(-1, 2)
    np.testing.assert_allclose(convolution.apply(moved), expected, rtol=1e-12)


@pytest.mark.parametrize("mesh", [MESH, (7, 6, 8)], ids=str)
def test_strain(x64, mesh):
    """Against finite differences, of sources that keep no symmetry between opposite waves."""
    rng = np.random.default_rng(0)
    charges, by_fields = (rng.normal(size=(np.prod(mesh), n)) for n in (3, 2))
    direction = rng.normal(size=(3, 3))

    def product(step):
        lattice = LATTICE @ (np.eye(3) + step * direction).T
        strained = periodic_convolution(lattice, mesh, SOURCE_EXPONENTS, TARGET_EXPONENTS)
        return np.sum(np.asarray(strained.apply(charges)) * by_fields)

    h = 1e-4
    numeric = (8 * (product(h) - product(-h)) - (product(2 * h) - product(-2 * h))) / (12 * h)
    unstrained = periodic_convolution(LATTICE, mesh, SOURCE_EXPONENTS, TARGET_EXPONENTS)
    analytic = unstrained.strain_derivative(charges, by_fields)
    np.testing.assert_allclose(analytic, analytic.T, rtol=1e-12)
    assert np.sum(analytic * direction) == pytest.approx(numeric, rel=1e-8)
