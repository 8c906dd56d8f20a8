"""Values of a periodic grid between its points."""

import numpy as np
import pytest

from cider.features.grid_interpolation import grid_interpolation

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
    found = grid_interpolation(LATTICE, MESH, POINTS).apply(on_grid(np.array(numbers)))
    expected = wave(np.array(numbers), POINTS @ np.linalg.inv(LATTICE))
    assert np.max(np.abs(found - expected)) < bound


def test_transpose_and_gradients():
    random = np.random.default_rng(1)
    values, by_points = on_grid(np.array([2, 1, -3])), random.normal(size=(50, 2))
    interpolation = grid_interpolation(LATTICE, MESH, POINTS)
    forward = np.vdot(by_points, interpolation.apply(values))
    assert np.vdot(interpolation.transpose(by_points), values) == pytest.approx(forward, rel=1e-12)
    step = 1e-4 * random.normal(size=(50, 3))
    ends = (
        np.vdot(by_points, grid_interpolation(LATTICE, MESH, POINTS + sign * step).apply(values))
        for sign in (1, -1)
    )
    difference = next(ends) - next(ends)
    gradients = interpolation.gradients(values, by_points)
    assert np.vdot(gradients, step) == pytest.approx(difference / 2, rel=1e-4)
