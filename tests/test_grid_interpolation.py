"""Values of a periodic grid between its points."""

import numpy as np
import pytest

from cider.features.grid_interpolation import grid_interpolation
from cider.features.threads import thread_pool

LATTICE = np.array([(7.0, 0.0, 0.5), (0.0, 6.5, 0.0), (0.3, 0.2, 6.0)])
MESH = (30, 28, 26)
POINTS = 3 * np.random.default_rng(0).normal(size=(50, 3))


def wave(numbers, fractions):
    phases = 2 * np.pi * fractions @ numbers
    return np.stack([np.cos(phases), np.sin(phases)], axis=1)


def on_grid(numbers):
    places = np.stack(np.meshgrid(*map(np.arange, MESH), indexing="ij"), axis=-1)
    return wave(numbers, places.reshape(-1, 3) / MESH)


@pytest.mark.parametrize(
    ("numbers", "bound"),
    [((0, 0, 0), 1e-6), ((1, -2, 3), 1e-6), ((-5, 6, 5), 5e-6), ((10, 0, 0), 5e-3)],
)
def test_waves(numbers, bound):
    """Points lie inside the cell and outside; a wave of 10 is two thirds of the shortest."""
    with thread_pool() as pool:
        found = grid_interpolation(LATTICE, MESH, POINTS).apply(on_grid(np.array(numbers)), pool)
    expected = wave(np.array(numbers), POINTS @ np.linalg.inv(LATTICE))
    assert np.max(np.abs(found - expected)) < bound


def test_transpose_and_gradients():
    random = np.random.default_rng(1)
    values, by_points = on_grid(np.array([2, 1, -3])), random.normal(size=(50, 2))
    step = 1e-4 * random.normal(size=(50, 3))
    with thread_pool() as pool:

        def paired(points):
            return np.vdot(by_points, grid_interpolation(LATTICE, MESH, points).apply(values, pool))

        interpolation = grid_interpolation(LATTICE, MESH, POINTS)
        backward = np.vdot(interpolation.transpose(by_points, pool), values)
        along = np.vdot(interpolation.gradients(values, by_points, pool), step)
        assert backward == pytest.approx(paired(POINTS), rel=1e-12)
        assert along == pytest.approx((paired(POINTS + step) - paired(POINTS - step)) / 2, rel=1e-4)
