r"""Atomic orbitals smoothed by Gaussians, in closed form.

A solid harmonic times a Gaussian, convolved with a Gaussian of unit integral, is the same shell
with another exponent:

.. math:: \left(\frac{\beta}{\pi}\right)^{3/2} \int e^{-\beta |\mathbf r - \mathbf r'|^2}
          S_{lm}(\mathbf r')\, e^{-a r'^2} d^3r'
          = \left(\frac{\beta}{a + \beta}\right)^{l + 3/2} S_{lm}(\mathbf r)\,
          e^{-\frac{a\beta}{a + \beta} r^2}

so that all orbitals of a shell share one radial function of :math:`r^2` for each :math:`\beta`,
with its derivatives by :math:`r^2` and by :math:`\ln\beta`. These are tabulated.

Where a point moves, each of these has its own derivative by :math:`r^2`, which is the next table:
the gradient of a gradient needs no other loops than the gradient.
"""

import dataclasses
from collections.abc import Sequence
from functools import cached_property, partial
from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Float, Int

from cider.conventions import GRADIENT_COMPONENTS
from cider.features.compiled import compiled

_INNERMOST = 0.004
"""Distance (bohr) from which on the knots of the tables lie evenly in its logarithm."""

_OUTERMOST = 1000.0
_SPACING = 0.025
"""Of the knots, between which six of them interpolate.

A Gaussian is good to 1e-9 of its value at the nucleus, and to 1e-5 of itself where it has fallen
to 1e-6.
"""

_NEIGHBOURS = np.arange(-2, 4)


class Shell(NamedTuple):
    """A contracted shell of solid harmonics: its atom, l, exponents (bohr^-2) and coefficients."""

    atom: int
    l: int
    exponents: Float[np.ndarray, " primitive"]
    coefficients: Float[np.ndarray, " primitive"]


@dataclasses.dataclass(frozen=True)
class SmoothedShells:
    """Shells, in the order of their orbitals, and the exponents (bohr^-2) that smooth them.

    ``with_gradient`` and ``with_slope`` are for derivatives by position and by the logarithms of
    the smoothing exponents; ``moving`` is for what these do where points or atoms move.
    """

    shells: Sequence[Shell]
    smoothing: Float[np.ndarray, " exponent"]
    with_gradient: bool
    with_slope: bool
    moving: bool = False

    @cached_property
    def atoms(self) -> Int[np.ndarray, " shell"]:
        """The atom of each shell."""
        return np.array([shell.atom for shell in self.shells])

    @cached_property
    def shell_of_orbital(self) -> Int[np.ndarray, " ao"]:
        """The shell of each orbital."""
        sizes = [2 * shell.l + 1 for shell in self.shells]
        return np.repeat(np.arange(len(sizes)), sizes)

    @property
    def num_components(self) -> int:
        """One, or four with the gradient."""
        return 4 if self.with_gradient else 1

    @property
    def order(self) -> int:
        """Up to which order harmonics and radial functions are differentiated."""
        return int(self.with_gradient) + int(self.moving)

    @property
    def num_smoothings(self) -> int:
        """As many as smoothing exponents, and as many again for derivatives by them."""
        return len(self.smoothing) * (2 if self.with_slope else 1)

    @cached_property
    def tables(
        self,
    ) -> tuple[Float[np.ndarray, "kind table knot smoothing"], Int[np.ndarray, " shell"]]:
        """Those of the different shells, and which of them is that of each shell."""
        last = np.log1p((_OUTERMOST / _INNERMOST) ** 2)
        squares = _INNERMOST**2 * np.expm1(np.arange(0, last, _SPACING))
        keys = [(s.l, s.exponents.tobytes(), s.coefficients.tobytes()) for s in self.shells]
        different = {key: shell for key, shell in zip(keys, self.shells, strict=True)}
        tables = np.stack([self._table(shell, squares) for shell in different.values()], axis=1)
        return tables, np.array([list(different).index(key) for key in keys])

    def _table(
        self, shell: Shell, squares: Float[np.ndarray, " knot"]
    ) -> Float[np.ndarray, "kind knot smoothing"]:
        """Radial functions, and derivatives by the square of the distance, at some squares."""
        r2, power = squares[:, None], shell.l + 1.5
        table = np.zeros((self.order + 1, len(squares), 2, len(self.smoothing)))
        for a, coefficient in zip(shell.exponents, shell.coefficients, strict=True):
            width, tightness = self.smoothing / (a + self.smoothing), a / (a + self.smoothing)
            decay = a * width
            value = coefficient * width**power * np.exp(-decay * r2)
            # Of the logarithm of the value, by that of the smoothing exponent.
            slope = power * tightness - decay * tightness * r2
            for kind, own in enumerate(table):
                derivative = (-decay) ** kind * value
                own[:, 0] += derivative
                own[:, 1] += (slope + kind * tightness) * derivative
        return table[:, :, : 1 + self.with_slope].reshape(*table.shape[:2], -1)


class SmoothedOrbitals:
    """The smoothed orbitals at some points: a linear map from coefficients to fields.

    Coefficients are numbers for each orbital and point; fields are the sums of the smoothed
    orbitals, and of their gradients, times these. ``harmonics`` are the solid harmonics of each
    orbital about its atom, and their derivatives up to the ``order`` of the shells; ``offsets``
    lead from the atoms to the points.
    """

    def __init__(
        self,
        shells: SmoothedShells,
        harmonics: Float[np.ndarray, "component ao grid"],
        offsets: Float[np.ndarray, "grid atom xyz"],
    ):
        self.shells = shells
        self.harmonics = harmonics
        squared_distances = np.sum(offsets**2, axis=2)
        # The gradient of a function of the squared distance is its derivative times this.
        self._twice_offsets = 2 * offsets
        tables, table_of_shell = shells.tables
        self._tables = tables
        position = np.log1p(squared_distances / _INNERMOST**2) / _SPACING
        third = np.clip(position.astype(int), 2, tables.shape[2] - 4)
        weights = _interpolation_weights(position - third)
        self._knots = table_of_shell, shells.atoms, third - 2, weights, self._twice_offsets

    def apply(
        self, coefficients: Float[np.ndarray, "ao grid"]
    ) -> Float[np.ndarray, "grid component smoothing"]:
        """Fields of coefficients."""
        starts = np.flatnonzero(np.diff(self.shells.shell_of_orbital, prepend=-1))
        harmonics = self.harmonics[: self.shells.num_components]
        moments = np.add.reduceat(harmonics * coefficients, starts, axis=1)
        moments = np.ascontiguousarray(moments.transpose(2, 1, 0))
        shape = moments.shape[0], self.shells.num_components, self.shells.num_smoothings
        fields = np.zeros(shape)
        add_fields(self._radial(0), *self._knots, moments, fields)
        return fields

    def transpose(
        self, fields: Float[np.ndarray, "grid component smoothing"]
    ) -> Float[np.ndarray, "derivative ao grid"]:
        """Derivative by the coefficients from that by the fields.

        Behind it, if the shells are ``moving``, its gradient where points move and fields do not.
        """
        own = self._moments(fields, 0)
        harmonics = self.harmonics[: len(own)]
        transpose = np.sum(harmonics * own, axis=0)
        if not self.shells.moving:
            return transpose[None]
        by_square = self._moments(fields, 1)
        radial = np.sum(harmonics * by_square, axis=0)
        atoms = self.shells.atoms[self.shells.shell_of_orbital]
        gradient = self._twice_offsets.transpose(2, 1, 0)[:, atoms] * radial
        for x in range(3):
            of_harmonics = self.harmonics[[row[x] for row in GRADIENT_COMPONENTS[: len(own)]]]
            gradient[x] += np.sum(of_harmonics * own, axis=0)
            if self.shells.with_gradient:
                # Of the offset, in the gradient of a function of the squared distance.
                gradient[x] += 2 * harmonics[0] * by_square[1 + x]
        return np.concatenate([transpose[None], gradient])

    def _moments(
        self, fields: Float[np.ndarray, "grid component smoothing"], kind: int
    ) -> Float[np.ndarray, "component ao grid"]:
        """What the harmonics of each orbital are multiplied with in the transpose."""
        moments = np.empty((len(fields), len(self.shells.shells), self.shells.num_components))
        fill_moments(self._radial(kind), *self._knots, np.ascontiguousarray(fields), moments)
        return moments.transpose(2, 1, 0)[:, self.shells.shell_of_orbital]

    def _radial(self, kind: int) -> Float[np.ndarray, "kind table knot smoothing"]:
        """The tables of the radial functions, or of some derivative, as if these were those."""
        return self._tables[kind : kind + 1 + self.shells.with_gradient]


def _interpolation_weights(
    offset: Float[np.ndarray, "grid atom"],
) -> Float[np.ndarray, "grid atom neighbour"]:
    """Lagrange's, at offsets from the third of six knots, in units of their distance."""
    differences = offset[..., None] - _NEIGHBOURS
    weights = np.empty_like(differences)
    for i, knot in enumerate(_NEIGHBOURS):
        others = np.delete(np.arange(len(_NEIGHBOURS)), i)
        weights[..., i] = np.prod(differences[..., others] / (knot - _NEIGHBOURS[others]), axis=-1)
    return weights


@compiled
@no_type_check
def between_knots(
    table: Float[np.ndarray, "knot smoothing"],
    first: int,
    weights: Float[np.ndarray, " neighbour"],
    values: Float[np.ndarray, " smoothing"],
) -> None:
    """Write the entries of six knots of a table, times their weights."""
    w0, w1, w2 = weights[0], weights[1], weights[2]
    w3, w4, w5 = weights[3], weights[4], weights[5]
    for k in range(len(values)):
        values[k] = (
            w0 * table[first, k]
            + w1 * table[first + 1, k]
            + w2 * table[first + 2, k]
            + w3 * table[first + 3, k]
            + w4 * table[first + 4, k]
            + w5 * table[first + 5, k]
        )


@compiled
@no_type_check
def add_fields(
    tables: Float[np.ndarray, "kind table knot smoothing"],
    table_of_shell: Int[np.ndarray, " shell"],
    atoms: Int[np.ndarray, " shell"],
    knots: Int[np.ndarray, "grid atom"],
    weights: Float[np.ndarray, "grid atom neighbour"],
    twice_offsets: Float[np.ndarray, "grid atom xyz"],
    moments: Float[np.ndarray, "grid shell component"],
    fields: Float[np.ndarray, "grid component smoothing"],
) -> None:
    """Add radial functions times moments of the harmonics, and the gradients of that."""
    values, derivatives = np.empty(fields.shape[2]), np.empty(fields.shape[2])
    for shell in range(len(atoms)):
        atom, table = atoms[shell], table_of_shell[shell]
        for point in range(len(fields)):
            first, w = knots[point, atom], weights[point, atom]
            moment = moments[point, shell]
            between_knots(tables[0, table], first, w, values)
            for k in range(len(values)):
                fields[point, 0, k] += moment[0] * values[k]
            if fields.shape[1] == 1:
                continue
            between_knots(tables[1, table], first, w, derivatives)
            x, y, z = moment[1], moment[2], moment[3]
            along_x = twice_offsets[point, atom, 0] * moment[0]
            along_y = twice_offsets[point, atom, 1] * moment[0]
            along_z = twice_offsets[point, atom, 2] * moment[0]
            for k in range(len(values)):
                fields[point, 1, k] += x * values[k] + along_x * derivatives[k]
                fields[point, 2, k] += y * values[k] + along_y * derivatives[k]
                fields[point, 3, k] += z * values[k] + along_z * derivatives[k]


@partial(compiled, reorder_sums=True)
@no_type_check
def fill_moments(
    tables: Float[np.ndarray, "kind table knot smoothing"],
    table_of_shell: Int[np.ndarray, " shell"],
    atoms: Int[np.ndarray, " shell"],
    knots: Int[np.ndarray, "grid atom"],
    weights: Float[np.ndarray, "grid atom neighbour"],
    twice_offsets: Float[np.ndarray, "grid atom xyz"],
    fields: Float[np.ndarray, "grid component smoothing"],
    moments: Float[np.ndarray, "grid shell component"],
) -> None:
    """The transpose of ``add_fields``."""
    values, derivatives = np.empty(fields.shape[2]), np.empty(fields.shape[2])
    for shell in range(len(atoms)):
        atom, table = atoms[shell], table_of_shell[shell]
        for point in range(len(fields)):
            first, w = knots[point, atom], weights[point, atom]
            between_knots(tables[0, table], first, w, values)
            total = 0.0
            for k in range(len(values)):
                total += fields[point, 0, k] * values[k]
            if fields.shape[1] > 1:
                between_knots(tables[1, table], first, w, derivatives)
                for x in range(3):
                    of_gradient, along = 0.0, 0.0
                    for k in range(len(values)):
                        of_gradient += fields[point, 1 + x, k] * values[k]
                        along += fields[point, 1 + x, k] * derivatives[k]
                    moments[point, shell, 1 + x] = of_gradient
                    total += twice_offsets[point, atom, x] * along
            moments[point, shell, 0] = total
