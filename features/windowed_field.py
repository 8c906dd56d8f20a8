r"""A field about a centre, under a window, at the points of a uniform grid.

.. math:: f(\mathbf r) = w(r/R) \sum_{lm} f_{lm}(r)\, Y_{lm}(\hat r)
"""

from collections.abc import Sequence

import equinox as eqx
import numpy as np
from jaxtyping import Float, Int

from cider.features.length_runs import LengthRuns, length_runs
from cider.features.radial_nodes import RadialNodes
from cider.features.sphere_waves import AtNodes
from cider.features.spherical import (
    fill_harmonics_gradients,
    harmonics_recurrence,
    real_spherical_harmonics,
)
from cider.features.waves import reciprocal_lattice
from cider.features.window import Window

_NEAREST = 1e-6
"""Distance (bohr) from the centre that a point has at least: it needs a direction."""


WINDOW = Window(power=4, times=3)
"""Of the fields that the grid does without.

Windows that are flat further out fall too fast for the grid, those that fall sooner leave too
much: with either, energies of crystals moved against the grid vary ten times as much.
"""


class WindowedField(eqx.Module):
    """A linear map from values at ``nodes`` of the radius; built by ``windowed_field``.

    Points have ``indices`` on the grid and are at ``offsets`` (bohr) from the centre, in order of
    their distance. In a small cell the grid has some from several sides.
    """

    nodes: RadialNodes
    indices: Int[np.ndarray, " point"]
    offsets: Float[np.ndarray, "point xyz"]
    harmonics: Float[np.ndarray, "point lm"]
    runs: LengthRuns

    def apply(self, at_nodes: AtNodes) -> Float[np.ndarray, "point channel"]:
        """Values at the points."""
        num_channels = at_nodes.shape[2]
        values = np.empty((len(self.indices), num_channels))
        at_samples = self._at_samples(at_nodes)
        windowed = self._windowed_harmonics
        for run in self.runs:
            own = at_samples[run.samples].reshape(-1, num_channels)
            values[run.vectors] = run.spread(windowed[run.vectors]) @ own
        return values

    def transpose(self, by_values: Float[np.ndarray, "point channel"]) -> AtNodes:
        """The transposed map."""
        windowed = self._windowed_harmonics
        by_samples = np.empty((len(self.runs.samples), windowed.shape[1], by_values.shape[1]))
        for run in self.runs:
            own = run.spread(windowed[run.vectors]).T @ by_values[run.vectors]
            by_samples[run.samples] = own.reshape(-1, *by_samples.shape[1:])
        return np.tensordot(self._interpolation, by_samples, ((0,), (0,))).swapaxes(0, 1)

    def gradients(
        self, at_nodes: AtNodes, by_values: Float[np.ndarray, "point channel"]
    ) -> Float[np.ndarray, "point xyz"]:
        """Gradients (per bohr) of ``by_values`` times the values, as each point moves."""
        radii, radius = np.linalg.norm(self.offsets, axis=1), self.nodes.radius
        directions = self.offsets / radii[:, None]
        by_harmonics = self._by_harmonics(at_nodes, by_values)
        radial_slopes = np.einsum("kn,lnc->lkc", self.nodes.slopes, at_nodes)
        by_slopes = self._by_harmonics(radial_slopes, by_values)
        share, slope = WINDOW(radii / radius), WINDOW.slope(radii / radius) / radius
        along = share * np.sum(by_slopes * self.harmonics, axis=1)
        along += slope * np.sum(by_harmonics * self.harmonics, axis=1)
        across = np.empty((3, len(directions)))
        fill_harmonics_gradients(
            np.ascontiguousarray(directions.T),
            harmonics_recurrence(self._lmax),
            np.ascontiguousarray(by_harmonics.T),
            across,
        )
        return along[:, None] * directions + (share / radii * across).T

    def _by_harmonics(
        self, at_nodes: AtNodes, by_values: Float[np.ndarray, "point channel"]
    ) -> Float[np.ndarray, "point lm"]:
        """Derivatives by the harmonics of each point, without the window."""
        result = np.empty(self.harmonics.shape)
        at_samples = self._at_samples(at_nodes)
        for run in self.runs:
            own = np.tensordot(by_values[run.vectors], at_samples[run.samples], ((1,), (2,)))
            result[run.vectors] = np.einsum("ps,psl->pl", run.coefficients, own)
        return result

    def _at_samples(self, at_nodes: AtNodes) -> Float[np.ndarray, "sample lm channel"]:
        return np.tensordot(self._interpolation, at_nodes, ((1,), (1,)))

    @property
    def _interpolation(self) -> Float[np.ndarray, "sample node"]:
        return self.nodes.interpolation(self.runs.samples)

    @property
    def _windowed_harmonics(self) -> Float[np.ndarray, "point lm"]:
        radii = np.linalg.norm(self.offsets, axis=1, keepdims=True)
        return WINDOW(radii / self.nodes.radius) * self.harmonics

    @property
    def _lmax(self) -> int:
        return round(self.harmonics.shape[1] ** 0.5) - 1


def windowed_field(
    lattice: Float[np.ndarray, "vector xyz"],
    mesh: Sequence[int],
    center: Float[np.ndarray, " xyz"],
    nodes: RadialNodes,
    lmax: int,
) -> WindowedField:
    """The map for ``mesh`` points along each lattice vector (rows, bohr), the last fastest.

    Of the points, those that are nearer than the last node to the centre (bohr).
    """
    shape = np.array(mesh)
    middle = center @ np.linalg.inv(lattice) * shape
    reach = nodes.radius * np.linalg.norm(reciprocal_lattice(lattice), axis=1) / (2 * np.pi) * shape
    ranges = [
        np.arange(first, last + 1)
        for first, last in zip(
            np.ceil(middle - reach).astype(int), np.floor(middle + reach).astype(int), strict=True
        )
    ]
    places = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, 3)
    offsets = (places - middle) / shape @ lattice
    offsets[np.linalg.norm(offsets, axis=1) < _NEAREST] = 0.0, 0.0, _NEAREST
    distances = np.linalg.norm(offsets, axis=1)
    order = np.argsort(distances, kind="stable")
    order = order[distances[order] < nodes.radius]
    offsets, distances = offsets[order], distances[order]
    return WindowedField(
        nodes=nodes,
        indices=np.ravel_multi_index(tuple((places[order] % shape).T), tuple(mesh)),
        offsets=offsets,
        harmonics=real_spherical_harmonics(offsets / distances[:, None], lmax).T,
        runs=length_runs(distances, lambda some: nodes.interpolation(some).T),
    )
