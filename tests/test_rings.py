"""Fields of an atom at the points of others."""

import numpy as np
import pytest

from cider.features.rings import (
    DEGREE,
    PANEL_WIDTH,
    RINGS,
    TO_POWERS,
    num_nodes,
    panel_nodes,
    ring_matrices,
    ring_points,
)
from cider.features.spherical import real_spherical_harmonics

NUM_TARGETS = (4, 3, 2, 1)
DIRECTION = np.array([0.36, 0.48, 0.8])


def fields_like(function, distances):
    """Fields at distances from an atom, all of whose harmonics follow one function of it."""
    random = np.random.default_rng(4)
    nodes = []
    for l in range(RINGS[0].lmax + 1):
        values = function(panel_nodes()[: num_nodes(l)]).reshape(-1, DEGREE, 1)
        shape = 1, 2 * l + 1, NUM_TARGETS[0]
        nodes.append((TO_POWERS @ values).reshape(-1, 1, 1) * random.normal(size=shape))
    matrices = ring_matrices(nodes, NUM_TARGETS)
    coords, center = np.outer(distances, DIRECTION), np.zeros(3)
    fields = np.zeros((len(distances), NUM_TARGETS[0]))
    rings = ring_points(np.asarray(distances), np.zeros(len(distances), dtype=bool))
    for ring, matrix, count in zip(rings, matrices, NUM_TARGETS, strict=True):
        fields[ring.points, :count] += ring.evaluate(matrix, coords, center)
    return fields


@pytest.mark.parametrize("end", np.arange(1, round(RINGS[-1].outer / PANEL_WIDTH) + 1))
def test_fields_do_not_jump_where_a_panel_ends(end):
    """Fields of order one that change too fast for the polynomials of the panels."""
    step = 1e-11
    around = end * PANEL_WIDTH + np.array([-step, step])
    inside, outside = fields_like(lambda distance: np.cos(8 * distance), around)
    np.testing.assert_allclose(inside, outside, atol=1e-9)


def test_fields_are_whole_until_the_last_panel():
    start = RINGS[0].outer - PANEL_WIDTH
    first, last = fields_like(lambda distance: np.exp(-((distance / 5) ** 2)), [1.0, start - 1e-9])
    ratio = np.exp(-((start / 5) ** 2) + (1 / 5) ** 2)
    np.testing.assert_allclose(last, ratio * first, rtol=1e-6)


def test_narrow_tiles_keep_what_their_panels_have():
    """Many points in a panel, few powers each; one point, and two, in panels of their own."""
    distances = np.concatenate([np.linspace(1.0, 1.5, 4000), [2.2], [2.7, 2.9], [4.6]])
    matrices = [
        np.random.default_rng(5).normal(size=(ring.num_panels, DEGREE * 3, (ring.lmax + 1) ** 2))
        * np.repeat(0.4 ** np.arange(DEGREE), 3)[:, None]
        for ring in RINGS
    ]
    coords, center = np.outer(distances, DIRECTION), np.zeros(3)
    for ring, matrix in zip(
        ring_points(distances, np.zeros(len(distances), dtype=bool)), matrices, strict=True
    ):
        harmonics = real_spherical_harmonics(DIRECTION[None], ring.ring.lmax)[:, 0]
        by_panel = (matrix @ harmonics).reshape(ring.ring.num_panels, DEGREE, 3)
        from_start = (distances[ring.points] - ring.ring.inner) / PANEL_WIDTH
        panel = from_start.astype(int)
        powers = np.vander(2 * (from_start - panel) - 1, DEGREE, increasing=True)
        expected = np.einsum("np,npt->nt", powers, by_panel[panel])
        values = ring.evaluate(matrix, coords, center)
        np.testing.assert_allclose(values, expected, atol=1e-6)
        fields = np.random.default_rng(6).normal(size=(len(distances), 3))
        transposed = np.zeros_like(matrix)
        ring.add_transpose(transposed, fields, coords, center)
        forwards = np.vdot(values, fields[ring.points])
        np.testing.assert_allclose(np.vdot(transposed, matrix), forwards, atol=1e-11)
