"""The gradient on a uniform grid against closed forms and its own transpose."""

import numpy as np
import pytest

from cider.features.spectral_gradient import spectral_gradient

LATTICE = np.array([[5.0, 0.0, 0.5], [1.0, 6.0, 0.0], [0.0, -1.0, 4.5]])
MESH = (12, 15, 10)


def test_gradient_of_waves():
    """Of the shortest ones that the grid tells from others, too."""
    fractions = np.meshgrid(*(np.arange(n) / n for n in MESH), indexing="ij")
    points = np.stack(fractions, axis=-1).reshape(-1, 3) @ LATTICE
    vectors = np.array([(1, -2, 0), (5, 7, -4)]) @ (2 * np.pi * np.linalg.inv(LATTICE).T)
    phases = vectors @ points.T + 0.3
    gradients = spectral_gradient(LATTICE, MESH).apply(np.cos(phases))
    np.testing.assert_allclose(
        gradients, -vectors[:, :, None] * np.sin(phases)[:, None], atol=1e-11
    )


def test_shortest_wave_has_no_slope():
    """Between its points it may be any wave of that length: what it says at them is zero."""
    alternating = np.broadcast_to((-1.0) ** np.arange(10), MESH).reshape(1, -1)
    assert np.max(np.abs(spectral_gradient(LATTICE, MESH).apply(alternating))) < 1e-12


def test_transpose():
    random = np.random.default_rng(0)
    gradient = spectral_gradient(LATTICE, MESH)
    size = np.prod(MESH)
    values, by_gradients = random.normal(size=(2, size)), random.normal(size=(2, 3, size))
    forward = np.vdot(by_gradients, gradient.apply(values))
    assert forward == pytest.approx(np.vdot(gradient.transpose(by_gradients), values), rel=1e-11)
