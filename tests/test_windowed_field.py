"""A field about a centre, under a window, against Gaussians and differences."""

import numpy as np
import pytest

from cider.features.radial_nodes import RadialNodes
from cider.features.spherical import gaussian_radial_kernel, real_spherical_harmonics
from cider.features.windowed_field import WINDOW, windowed_field

LATTICE = np.array([(5.0, 0.0, 0.5), (0.0, 4.5, 0.0), (0.3, 0.2, 5.5)])
MESH = (20, 18, 24)
CENTER = np.array([0.3, 4.3, 5.2])
NODES = RadialNodes(1.5, 30)
LMAX = 6
EXPONENTS = np.array([0.8, 1.7])
PLACES = np.array([(0.1, 0.05, -0.08), (-0.06, 0.1, 0.02)])


def gaussians_at_nodes():
    """Of two Gaussians near the centre, one channel each: all harmonics up to LMAX."""
    channels = []
    for exponent, place in zip(EXPONENTS, PLACES, strict=True):
        distance = np.linalg.norm(place)
        kernels = gaussian_radial_kernel(
            np.array([exponent]), NODES.radii, np.array([distance]), LMAX
        )
        harmonics = real_spherical_harmonics(place[None] / distance, LMAX)[:, 0]
        ls = np.repeat(np.arange(LMAX + 1), 2 * np.arange(LMAX + 1) + 1)
        channels.append(harmonics[:, None] * kernels[ls, 0, :, 0])
    return np.stack(channels, axis=-1)


def test_gaussians_under_the_window():
    field = windowed_field(LATTICE, MESH, CENTER, NODES, LMAX)
    points = np.stack(np.unravel_index(field.indices, MESH), axis=1) / MESH @ LATTICE
    displacement = (points - CENTER) @ np.linalg.inv(LATTICE)
    displacement = (displacement - np.round(displacement)) @ LATTICE
    assert np.max(np.abs(displacement - field.offsets)) < 1e-12
    radii = np.linalg.norm(field.offsets, axis=1)
    squares = np.sum((field.offsets[:, None] - PLACES) ** 2, axis=-1)
    expected = WINDOW(radii / NODES.radius)[:, None] * np.exp(-EXPONENTS * squares)
    # Harmonics above LMAX are missing.
    assert np.max(np.abs(field.apply(gaussians_at_nodes()) - expected)) < 1e-6
    volume = abs(np.linalg.det(LATTICE)) / np.prod(MESH)
    assert len(radii) * volume == pytest.approx(4 / 3 * np.pi * NODES.radius**3, rel=0.05)


def test_transpose():
    field = windowed_field(LATTICE, MESH, CENTER, NODES, LMAX)
    random = np.random.default_rng(0)
    x = random.normal(size=((LMAX + 1) ** 2, NODES.count, 2))
    y = random.normal(size=(len(field.indices), 2))
    forward, backward = np.vdot(y, field.apply(x)), np.vdot(field.transpose(y), x)
    assert abs(forward - backward) < 1e-11 * np.linalg.norm(y) * np.linalg.norm(field.apply(x))


@pytest.mark.parametrize("center", [CENTER, np.array([7, 5, 9]) / MESH @ LATTICE])
def test_gradients(center):
    """Also with a point of the grid at the centre itself."""
    at_nodes = gaussians_at_nodes()
    by_point = np.random.default_rng(1).normal(size=(np.prod(MESH), 2))

    def pairing(center):
        field = windowed_field(LATTICE, MESH, center, NODES, LMAX)
        return np.vdot(by_point[field.indices], field.apply(at_nodes))

    field = windowed_field(LATTICE, MESH, center, NODES, LMAX)
    gradients = field.gradients(at_nodes, by_point[field.indices])
    step = 1e-4 * np.eye(3)
    numerical = [(pairing(center + d) - pairing(center - d)) / 2e-4 for d in step]
    assert np.max(np.abs(numerical + gradients.sum(axis=0))) < 1e-6 * np.linalg.norm(gradients)


def test_a_point_seen_from_several_sides():
    """In a cell that is smaller than the sphere."""
    field = windowed_field(LATTICE / 2, MESH, CENTER, NODES, LMAX)
    assert len(field.indices) > len(np.unique(field.indices))
    places = np.stack(np.unravel_index(field.indices, MESH), axis=1) / MESH @ LATTICE / 2
    cells = (places - CENTER - field.offsets) @ np.linalg.inv(LATTICE / 2)
    assert np.max(np.abs(cells - np.round(cells))) < 1e-10
    assert np.max(np.linalg.norm(field.offsets, axis=1)) < NODES.radius
