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

NUM_TARGETS = (4, 3, 2, 1)
DIRECTION = np.array([0.36, 0.48, 0.8])


def smooth_fields(distances):
    """Fields at distances from an atom, all of whose harmonics follow one smooth function."""
    random = np.random.default_rng(4)
    nodes = []
    for l in range(RINGS[0].lmax + 1):
        values = np.exp(-((panel_nodes()[: num_nodes(l)] / 5) ** 2)).reshape(-1, DEGREE, 1)
        shape = 1, 2 * l + 1, NUM_TARGETS[0]
        nodes.append((TO_POWERS @ values).reshape(-1, 1, 1) * random.normal(size=shape))
    matrices = ring_matrices(nodes, NUM_TARGETS)
    coords, center = np.outer(distances, DIRECTION), np.zeros(3)
    fields = np.zeros((len(distances), NUM_TARGETS[0]))
    rings = ring_points(np.asarray(distances), np.zeros(len(distances), dtype=bool))
    for ring, matrix, count in zip(rings, matrices, NUM_TARGETS, strict=True):
        fields[ring.points, :count] += ring.evaluate(matrix, coords, center)
    return fields


@pytest.mark.parametrize("ring", RINGS)
def test_fields_do_not_jump_where_a_ring_ends(ring):
    step = 1e-9  # fields are of order one: slopes times the step, and interpolation in panels
    inside, outside = smooth_fields([ring.outer - step, ring.outer + step])
    np.testing.assert_allclose(inside, outside, atol=1e-6)


def test_fields_are_whole_until_the_last_panel():
    start = RINGS[0].outer - PANEL_WIDTH
    first, last = smooth_fields([1.0, start - 1e-9])
    ratio = np.exp(-((start / 5) ** 2) + (1 / 5) ** 2)
    np.testing.assert_allclose(last, ratio * first, rtol=1e-6)
