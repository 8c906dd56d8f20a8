"""The convolution on a uniform grid against the sum over all pairs of points."""

import numpy as np
import pytest

from cider.features.convolution import DirectConvolution
from cider.features.uniform_grid import uniform_grid, uniform_grid_convolution

SOURCE_EXPONENTS = np.array([0.01, 0.1, 0.4])
TARGET_EXPONENTS = np.array([0.02, 0.4])


@pytest.fixture
def points(x64):
    return np.random.default_rng(0).uniform(0, [6.0, 4.0, 9.0], (500, 3))


def convolution_of(points, selected, box=None):
    box = np.array([points.min(axis=0), points.max(axis=0)]) if box is None else box
    grid = uniform_grid(points, box, 0.8)
    return uniform_grid_convolution(grid, SOURCE_EXPONENTS, TARGET_EXPONENTS, selected)


def test_all_pairs_of_exponents(points):
    """With positive charges, as of densities, the window of seven cells has an error of 2e-6."""
    charges = np.random.default_rng(1).uniform(0, 1, (500, 3))
    convolution = convolution_of(points, np.ones((3, 2), bool))
    direct = DirectConvolution(points, np.ones(500), SOURCE_EXPONENTS, TARGET_EXPONENTS)
    relative = np.asarray(convolution.apply(charges)) / np.asarray(direct.apply(charges)) - 1
    assert np.sqrt(np.mean(relative**2, axis=0)).max() < 5e-6


def test_selected_pairs_only(points):
    """A pair left out contributes nothing, whatever its charges are."""
    charges = np.zeros((500, 3))
    charges[:, 0] = 1.0
    selected = np.array([[False, True], [True, True], [True, True]])
    fields = convolution_of(points, selected).apply(charges)
    assert np.abs(fields[:, 0]).max() == 0
    assert np.abs(fields[:, 1]).min() > 0


def test_transpose(points):
    rng = np.random.default_rng(2)
    charges, fields = rng.normal(size=(500, 3)), rng.normal(size=(500, 2))
    convolution = convolution_of(points, np.array([[False, True], [True, True], [True, False]]))
    forward = np.sum(np.asarray(convolution.apply(charges)) * fields)
    backward = np.sum(np.asarray(convolution.transpose(fields)) * charges)
    assert forward == pytest.approx(backward, rel=1e-12)


def test_points_outside_of_the_box(points):
    """They have no fields, and their charges none either."""
    far = points + np.array([100.0, 0.0, 0.0])
    box = np.array([points.min(axis=0), points.max(axis=0)])
    both = convolution_of(np.concatenate([points, far]), np.ones((3, 2), bool), box)
    alone = convolution_of(points, np.ones((3, 2), bool), box)
    charges = np.random.default_rng(3).uniform(0, 1, (1000, 3))
    fields = np.asarray(both.apply(charges))
    np.testing.assert_allclose(fields[:500], alone.apply(charges[:500]), rtol=1e-12)
    assert np.abs(fields[500:]).max() == 0
