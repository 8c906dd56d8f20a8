"""Grids of atoms in spherical shells, and spherical harmonics on them."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, no_type_check

import equinox as eqx
import numpy as np
from jaxtyping import Float, Int

from cider.features.compiled import add_rows, compiled
from cider.features.spherical import real_spherical_harmonics

PARTITION_POWER = 6
PARTITION_LENGTH = 3.0
"""Power and length (bohr) of the partition of the sources; see ``partition_of_unity``."""

_NO_WEIGHT = -40.0
"""Logarithm of a weight, by that of the own atom, that is none: 4e-18."""


@dataclass(frozen=True)
class AngularGrid:
    """Directions of a spherical quadrature, and the degree up to which it is exact."""

    directions: Float[np.ndarray, "angle xyz"]
    degree: int


@dataclass(frozen=True)
class AtomicGrid:
    """The quadrature of one atom, in shells of ascending radius (bohr).

    ``points[s][a]`` is the index in the whole grid of direction ``a`` on shell ``s``. Atoms of
    equal ``species`` have equal radii and directions. The covalent radius (bohr) says how far
    the density of the element reaches.
    """

    species: Hashable
    center: Float[np.ndarray, " xyz"]
    covalent_radius: float
    radii: Float[np.ndarray, " shell"]
    angular: tuple[AngularGrid, ...]
    points: tuple[Int[np.ndarray, " _"], ...]


def owners_of_points(atoms: Sequence[AtomicGrid], num_points: int) -> Int[np.ndarray, " grid"]:
    """The number of the atom of each point of the whole grid; -1 for points of none."""
    owner = np.full(num_points, -1)
    for index, atom in enumerate(atoms):
        owner[np.concatenate(atom.points)] = index
    return owner


def partition_of_unity(
    coords: Float[np.ndarray, "grid xyz"],
    own_centers: Float[np.ndarray, "grid xyz"],
    centers: Float[np.ndarray, "atom xyz"],
) -> Float[np.ndarray, " grid"]:
    r"""Share of each point's own atom, which is at ``own_centers``, in the sources there.

    .. math:: P_A(\mathbf r) = \frac{w(r_A)}{\sum_B w(r_B)}, \qquad
              w(r) = r^{-k} e^{-(r/\ell)^2}

    The power leaves nothing of a nucleus's surroundings to other atoms, whose expansions could not
    resolve the core density there (a Becke partition leaves enough to spoil the energy by 5e-6),
    and is smooth enough between atoms for expansions of low order. The exponential keeps what is
    near an atom from those far away (with the power alone 1e-4 of benzene's features would be
    theirs), whose panels do not reach so far.
    """
    own = np.sum((coords - own_centers) ** 2, axis=1)
    total = np.zeros(len(coords))
    _add_weights_by_own(np.ascontiguousarray(coords), own, np.ascontiguousarray(centers), total)
    return 1 / total


def partition_of_unity_derivative(
    coords: Float[np.ndarray, "grid xyz"],
    owner: Int[np.ndarray, " grid"],
    centers: Float[np.ndarray, "atom xyz"],
    by_log_shares: Float[np.ndarray, " grid"],
) -> Float[np.ndarray, "atom xyz"]:
    r"""Derivative by the centres, from that by the logarithms of the shares.

    Points move with their atoms. Of what moves atom A against B, a point of A feels

    .. math:: \frac{\partial \ln P_A}{\partial \mathbf r}
              = \sum_B P_B \left(\frac{k}{r_B^2} + \frac{2}{\ell^2}\right) \mathbf r_B .
    """
    own = np.sum((coords - centers[owner]) ** 2, axis=1)
    distance_squared, weights = np.empty((2, len(centers), len(coords)))
    for atom, center in enumerate(centers):
        distance_squared[atom] = np.sum((coords - center) ** 2, axis=1)
        _fill_weights_by_own(distance_squared[atom], own, weights[atom])
    slopes = PARTITION_POWER / np.maximum(distance_squared, 1e-20) + 2 / PARTITION_LENGTH**2
    factors = by_log_shares * slopes * weights / weights.sum(axis=0)
    derivative = np.zeros_like(centers)
    for atom, center in enumerate(centers):
        by_points = factors[atom][:, None] * (coords - center)
        add_rows(derivative, owner, by_points)
        derivative[atom] -= by_points.sum(axis=0)
    return derivative


@compiled
@no_type_check
def _weight_by_own(distance_squared: float, own: float) -> float:
    """A weight of the partition by that of the own atom: they themselves would overflow."""
    # Never so large that it overflows: there the share is zero all the same.
    decay = min((own - distance_squared) / PARTITION_LENGTH**2, 500.0)
    if decay < _NO_WEIGHT:
        return 0.0
    return (own / max(distance_squared, 1e-20)) ** (PARTITION_POWER // 2) * math.exp(decay)


@compiled
@no_type_check
def _fill_weights_by_own(
    distance_squared: Float[np.ndarray, " grid"],
    own: Float[np.ndarray, " grid"],
    weights: Float[np.ndarray, " grid"],
) -> None:
    """Weights of one atom at all points."""
    for point in range(len(own)):
        weights[point] = _weight_by_own(distance_squared[point], own[point])


@compiled
@no_type_check
def _add_weights_by_own(
    coords: Float[np.ndarray, "grid xyz"],
    own: Float[np.ndarray, " grid"],
    centers: Float[np.ndarray, "atom xyz"],
    total: Float[np.ndarray, " grid"],
) -> None:
    """Add those of all atoms, of which a crystal has thousands near a point."""
    for point in range(len(own)):
        x, y, z = coords[point]
        for atom in range(len(centers)):
            distance_squared = (x - centers[atom, 0]) ** 2
            distance_squared += (y - centers[atom, 1]) ** 2
            distance_squared += (z - centers[atom, 2]) ** 2
            total[point] += _weight_by_own(distance_squared, own[point])


Moments: TypeAlias = list[Float[np.ndarray, "_ _ _"]]
"""Per l, values on shells (or other radial places), m and channels."""


class _AngularGroup(eqx.Module):
    """Shells of an atom that share their directions: where they and their points are."""

    shells: Int[np.ndarray, " shell"]
    points: Int[np.ndarray, "shell angle"]
    harmonics: Float[np.ndarray, "lm angle"]


class SphericalShells(eqx.Module):
    """Spherical harmonics on the shells of an atom, up to what their quadrature resolves.

    ``resolved[l]`` are the shells whose quadrature is exact to degree 2l.
    """

    groups: tuple[_AngularGroup, ...]
    resolved: tuple[Int[np.ndarray, " _"], ...]

    @property
    def num_shells(self) -> int:
        """Number of all shells."""
        return sum(len(group.shells) for group in self.groups)

    @property
    def num_points(self) -> int:
        """Number of points of all shells."""
        return sum(group.points.size for group in self.groups)

    @property
    def lmax(self) -> int:
        """Largest angular momentum."""
        return len(self.resolved) - 1

    def project(self, values: Float[np.ndarray, "point c"], lmax: int) -> Moments:
        """Sums of values times harmonics, up to ``lmax``, on each shell."""
        resolved = self.resolved[: lmax + 1]
        moments = np.zeros((self.num_shells, len(resolved) ** 2, values.shape[1]))
        for group in self.groups:
            harmonics = group.harmonics[: len(resolved) ** 2]
            moments[group.shells, : len(harmonics)] = harmonics @ values[group.points]
        return [moments[shells, l * l : (l + 1) ** 2] for l, shells in enumerate(resolved)]

    def expand(self, moments: Moments) -> Float[np.ndarray, "point c"]:
        """The transpose of ``project``: sums of harmonics at the atom's points."""
        num_channels = moments[0].shape[2]
        every = np.zeros((self.num_shells, len(moments) ** 2, num_channels))
        for l, part in enumerate(moments):
            every[self.resolved[l], l * l : (l + 1) ** 2] = part
        values = np.empty((self.num_points, num_channels))
        for group in self.groups:
            harmonics = group.harmonics[: len(moments) ** 2]
            values[group.points] = harmonics.T @ every[group.shells, : len(harmonics)]
        return values


def spherical_shells(angular: Sequence[AngularGrid], largest_lmax: int) -> SphericalShells:
    """Harmonics on the angular grids of an atom's shells, none above ``largest_lmax``."""
    degrees = np.array([grid.degree for grid in angular])
    lmax = min(largest_lmax, int(degrees.max()) // 2)
    first_point = np.cumsum([0, *(len(grid.directions) for grid in angular)])
    grids = {grid.degree: grid.directions for grid in angular}
    every = real_spherical_harmonics(np.concatenate(list(grids.values())), lmax)
    groups, start = [], 0
    for degree, directions in grids.items():
        members = np.flatnonzero(degrees == degree)
        points = first_point[members][:, None] + np.arange(len(directions))
        num_harmonics = (min(lmax, degree // 2) + 1) ** 2
        harmonics = every[:num_harmonics, start : start + len(directions)]
        groups.append(_AngularGroup(members, points, np.ascontiguousarray(harmonics)))
        start += len(directions)
    resolved = tuple(np.flatnonzero(degrees // 2 >= l) for l in range(lmax + 1))
    return SphericalShells(tuple(groups), resolved)
