"""Transforms of Gaussians that end at a radius, against quadrature."""

import numpy as np
import pytest

from cider.features.truncated_gaussians import truncated_gaussians

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
