"""Derivatives of the Gaussian convolution as atoms and points move, step by step of the map."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cider.features.atomic_shells import partition_of_unity, partition_of_unity_derivative
from cider.features.convolution import DirectConvolution
from cider.features.nested_grids import Reach, nested_grids_convolution
from cider.features.rings import DEGREE, ring_points
from cider.features.uniform_grid import WINDOW, window_slope

STEP = 1e-3  # bohr; fourth order


def slope(function):
    """Derivative of a function of one number at zero."""
    once = function(STEP) - function(-STEP)
    twice = function(2 * STEP) - function(-2 * STEP)
    return (8 * once - twice) / (12 * STEP)


def test_partition_of_unity():
    random = np.random.default_rng(0)
    centers = np.array([[0.0, 0.0, 0.0], [0.0, 0.3, 2.0], [1.5, 0.0, -0.4]])
    offsets, owner = random.normal(size=(60, 3)), random.integers(3, size=60)
    coords = centers[owner] + offsets
    by_shares, direction = random.normal(size=60), random.normal(size=(3, 3))

    def total(step):
        moved = centers + step * direction
        return by_shares @ partition_of_unity(moved[owner] + offsets, moved[owner], moved)

    by_log_shares = by_shares * partition_of_unity(coords, centers[owner], centers)
    derivative = partition_of_unity_derivative(coords, owner, centers, by_log_shares)
    np.testing.assert_allclose(np.sum(derivative * direction), slope(total), atol=1e-9)
    np.testing.assert_allclose(derivative.sum(axis=0), 0, atol=1e-12)


def test_fields_in_rings():
    random = np.random.default_rng(1)
    center = np.array([0.2, -0.1, 0.4])
    coords = center + 2.5 * random.normal(size=(400, 3))
    direction, num_targets = random.normal(size=coords.shape), 3
    by_fields = random.normal(size=(len(coords), num_targets))
    distance = np.linalg.norm(coords - center, axis=1)
    for near in ring_points(distance, np.zeros(len(coords), dtype=bool)):
        shape = near.ring.num_panels, DEGREE * num_targets, (near.ring.lmax + 1) ** 2
        matrices = random.normal(size=shape)

        def fields(step, near=near, matrices=matrices):
            own = near.evaluate(matrices, coords + step * direction, center)
            return np.sum(own * by_fields[near.points], axis=1)

        gradients = near.gradients(matrices, by_fields, coords, center)
        along = np.sum(gradients * direction[near.points], axis=1)
        np.testing.assert_allclose(along, slope(fields), rtol=1e-5, atol=1e-5)


def test_fields_on_nested_uniform_grids():
    random = np.random.default_rng(2)
    coords = random.uniform(0, [6.0, 4.0, 9.0], (300, 3))
    inner, outer = np.array([[0.0, 0, 0], [6.0, 4.0, 5.0]]), np.array([[-1.0] * 3, [10.0] * 3])
    sources, targets = np.array([0.01, 0.07, 0.1, 0.4]), np.array([0.02, 0.4])
    charges, by_fields = random.normal(size=(300, 4)), random.normal(size=(300, 2))
    direction = random.normal(size=coords.shape)

    def convolution(step):
        reaches = Reach(0.08, outer), Reach(0.4, inner)
        return nested_grids_convolution(coords + step * direction, reaches, sources, targets)

    with ThreadPoolExecutor(2) as pool:
        derivative = convolution(0).derivative_by_points(charges, by_fields, pool)

        def total(step):
            return np.sum(convolution(step).apply(charges, pool) * by_fields)

        # Where a point enters another cell or box, fields jump by the accuracy of the window.
        np.testing.assert_allclose(np.sum(derivative * direction), slope(total), rtol=2e-5)


def test_points_that_do_not_know_their_atoms(x64):
    one = np.ones((1, 1))
    direct = DirectConvolution(np.zeros((1, 3)), np.ones(1), np.ones(1), np.ones(1))
    with pytest.raises(NotImplementedError, match="DirectConvolution"):
        direct.derivative(one, one, one)


def test_slope_of_the_window_is_bounded_up_to_its_edge():
    distances = WINDOW / 2 - np.logspace(-16, 0, 200)
    slopes = [window_slope(x) for x in distances]
    # The steepest slope is 0.73; by the formula alone there was one of 16 at the edge.
    assert np.abs(slopes).max() <= 1
