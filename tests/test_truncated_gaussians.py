"""Transforms of Gaussians that end at a radius, against quadrature."""

import numpy as np
import pytest

from cider.features.truncated_gaussians import strained_gaussians, truncated_gaussians

LENGTHS = np.array([0.0, 0.3, 1.7, 9.0])
EXPONENTS = np.array([0.001, 0.05, 1.0, 20.0])


def by_quadrature(exponents, radius):
    nodes, weights = np.polynomial.legendre.leggauss(400)
    r, weights = (nodes + 1) / 2 * radius, weights / 2 * radius
    shells = 4 * np.pi * weights * r**2 * np.sinc(np.outer(LENGTHS, r) / np.pi)
    gaussians = (exponents[:, None] / np.pi) ** 1.5 * np.exp(-exponents[:, None] * r**2)
    return shells @ gaussians.T


@pytest.mark.parametrize("radius", [3.7, 12.0])
def test_values_and_slopes(radius):
    found = truncated_gaussians(LENGTHS, EXPONENTS, radius)
    np.testing.assert_allclose(found.values, by_quadrature(EXPONENTS, radius), atol=1e-13)
    step = 1e-3  # of the logarithm; fourth order
    near, far = (
        by_quadrature(EXPONENTS * np.exp(k * step), radius)
        - by_quadrature(EXPONENTS * np.exp(-k * step), radius)
        for k in (1, 2)
    )
    np.testing.assert_allclose(found.slopes, (8 * near - far) / (12 * step), atol=1e-10)


@pytest.mark.parametrize("radius", [1.5, 4.0])
def test_derivatives_by_lengths_and_radius(radius):
    def slope(function):
        """Fourth order in the step."""
        h = 1e-3
        near, far = (np.array(function(n * h)) - function(-n * h) for n in (1, 2))
        return (8 * near - far) / (12 * h)

    found = strained_gaussians(LENGTHS, EXPONENTS, radius)
    by_lengths = slope(lambda h: truncated_gaussians(np.exp(h) * LENGTHS, EXPONENTS, radius))
    by_radius = slope(lambda h: truncated_gaussians(LENGTHS, EXPONENTS, np.exp(h) * radius))
    np.testing.assert_allclose(found.by_lengths, by_lengths, atol=1e-8)
    np.testing.assert_allclose(found.by_radius, by_radius, atol=1e-8)
