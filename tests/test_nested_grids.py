"""The convolution on uniform grids against the sum over all pairs of points."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cider.features.convolution import DirectConvolution
from cider.features.nested_grids import Reach, nested_grids_convolution

SOURCE_EXPONENTS = np.array([0.01, 0.07, 0.1, 0.4])
TARGET_EXPONENTS = np.array([0.02, 0.4])
SMOOTH = np.maximum.outer(SOURCE_EXPONENTS, TARGET_EXPONENTS) <= 0.08
"""Pairs of exponents that the coarser of two grids resolves."""


@pytest.fixture
def points(x64):
    return np.random.default_rng(0).uniform(0, [6.0, 4.0, 9.0], (500, 3))


def reach(points, largest_exponent=0.4):
    return Reach(largest_exponent, np.array([points.min(axis=0), points.max(axis=0)]))


class Convolution:
    """The convolution of some points, and threads for it."""

    def __init__(self, points, *reaches):
        self.convolution = nested_grids_convolution(
            points, reaches or (reach(points),), SOURCE_EXPONENTS, TARGET_EXPONENTS
        )

    def apply(self, charges):
        with ThreadPoolExecutor(2) as pool:
            return self.convolution.apply(charges, pool)

    def transpose(self, fields):
        with ThreadPoolExecutor(2) as pool:
            return self.convolution.transpose(fields, pool)


def direct_sum(points, charges):
    """All pairs of exponents, by the sum over all pairs of points."""
    everywhere = np.ones(len(points))
    direct = DirectConvolution(points, everywhere, SOURCE_EXPONENTS, TARGET_EXPONENTS)
    return np.asarray(direct.apply(charges))


def random_charges(points):
    """Positive charges, as of densities."""
    return np.random.default_rng(1).uniform(0, 1, (len(points), len(SOURCE_EXPONENTS)))


def test_one_grid(points):
    """The window of seven cells has an error of 2e-6."""
    charges = random_charges(points)
    relative = Convolution(points).apply(charges) / direct_sum(points, charges) - 1
    assert np.sqrt(np.mean(relative**2, axis=0)).max() < 5e-6


def test_nested_grids(points):
    """What a finer grid hands on to a coarser one, and back, is what points would have done."""
    charges = random_charges(points)
    wide = np.concatenate([points, [[-9.0, -9.0, -9.0], [15.0, 13.0, 18.0]]])
    nested = Convolution(points, reach(wide, 0.08), reach(points)).apply(charges)
    np.testing.assert_allclose(nested, direct_sum(points, charges), rtol=2e-5)


def test_points_of_the_coarser_grid_alone(points):
    """Outside of the finer box, fields are those of smooth pairs of exponents, from everywhere."""
    outer = points + np.array([7.0, 0.0, 0.0])
    both = np.concatenate([points, outer])
    charges = random_charges(both)
    convolution = Convolution(both, reach(both, 0.08), reach(points))
    smooth = np.zeros((len(outer), len(TARGET_EXPONENTS)))
    for source, target in np.argwhere(SMOOTH):
        alone = np.zeros_like(charges)
        alone[:, source] = charges[:, source]
        smooth[:, target] += direct_sum(both, alone)[500:, target]
    assert smooth[:, 1].max() == 0
    np.testing.assert_allclose(convolution.apply(charges)[500:], smooth, rtol=2e-5)


def test_transpose(points):
    rng = np.random.default_rng(2)
    outer = points + np.array([7.0, 0.0, 0.0])
    both = np.concatenate([points, outer])
    charges, fields = rng.normal(size=(1000, 4)), rng.normal(size=(1000, 2))
    convolution = Convolution(both, reach(both, 0.08), reach(points))
    forward = np.sum(convolution.apply(charges) * fields)
    backward = np.sum(convolution.transpose(fields) * charges)
    assert forward == pytest.approx(backward, rel=1e-12)


def test_points_outside_of_all_boxes(points):
    """They have no fields, and their charges none either."""
    far = points + np.array([100.0, 0.0, 0.0])
    both = Convolution(np.concatenate([points, far]), reach(points))
    charges = random_charges(np.concatenate([points, far]))
    fields = both.apply(charges)
    np.testing.assert_allclose(fields[:500], Convolution(points).apply(charges[:500]), rtol=1e-12)
    assert np.abs(fields[500:]).max() == 0
