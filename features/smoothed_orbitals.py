r"""Atomic orbitals smoothed by Gaussians, in closed form.

A solid harmonic times a Gaussian, convolved with a Gaussian of unit integral, is the same shell
with another exponent:

.. math:: \left(\frac{\beta}{\pi}\right)^{3/2} \int e^{-\beta |\mathbf r - \mathbf r'|^2}
          S_{lm}(\mathbf r')\, e^{-a r'^2} d^3r'
          = \left(\frac{\beta}{a + \beta}\right)^{l + 3/2} S_{lm}(\mathbf r)\,
          e^{-\frac{a\beta}{a + \beta} r^2}

so that all orbitals of a shell share one radial function of :math:`r^2` for each :math:`\beta`, or
for each sum of such Gaussians, with its derivative by :math:`\ln\beta`. Polynomials of the fifth
degree, between tabulated values and two derivatives, stand for it. As their second derivatives are
continuous, gradients, and what these do where a point moves, are those of the polynomials.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Float, Int

from cider.conventions import GRADIENT_COMPONENTS
from cider.features.compiled import compiled

_INNERMOST = 0.004
"""Distance (bohr) from which on the knots of the tables lie evenly in its logarithm."""

_OUTERMOST = 1000.0
_SPACING = 0.05
"""Of the knots.

A Gaussian is good to 1e-11 of its value at the nucleus, and to 1e-6 of itself where it has fallen
to 1e-6.
"""

NEGLIGIBLE = 1e-15
"""Share of the largest value of a smoothed orbital that is left out."""

_AT_ONCE = 8
"""Numbers that a processor may multiply at once."""

_FROM_ENDS = np.linalg.inv(
    [
        [1, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 0, 2, 0, 0, 0],
        [1, 1, 1, 1, 1, 1],
        [0, 1, 2, 3, 4, 5],
        [0, 0, 2, 6, 12, 20],
    ]
)
"""Coefficients of the powers of a polynomial from its value and derivatives at zero and one."""


class Shell(NamedTuple):
    """A contracted shell of solid harmonics: its atom, l, exponents (bohr^-2) and coefficients."""

    atom: int
    l: int
    exponents: Float[np.ndarray, " primitive"]
    coefficients: Float[np.ndarray, " primitive"]


@dataclasses.dataclass(frozen=True)
class SmoothedShells:
    """Shells, in the order of their orbitals, and the kernels that smooth them.

    These are sums of Gaussians of some exponents (bohr^-2) and of unit integral.

    ``parts`` are how many components fields have of the smoothed orbitals, one or, with the
    gradient, four; and then of their derivatives by the logarithms of the exponents, if there are
    to be any. ``moving`` is for what these do where points or atoms move.
    """

    shells: Sequence[Shell]
    exponents: Float[np.ndarray, " exponent"]
    kernels: Float[np.ndarray, "exponent kernel"]
    parts: tuple[int, ...]
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

    @cached_property
    def harmonics(self) -> tuple[tuple[int, int], ...]:
        """Atom and l of the different solid harmonics."""
        return tuple(dict.fromkeys((shell.atom, shell.l) for shell in self.shells))

    @cached_property
    def harmonic_of_orbital(self) -> Int[np.ndarray, " ao"]:
        """Which of all the components of these is that of each orbital."""
        sizes = [2 * l + 1 for _, l in self.harmonics]
        parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
        own = dict(zip(self.harmonics, parts, strict=True))
        return np.concatenate([own[shell.atom, shell.l] for shell in self.shells])

    @property
    def order(self) -> int:
        """Up to which order harmonics and radial functions are differentiated."""
        return int(4 in self.parts) + int(self.moving)

    @cached_property
    def tables(
        self,
    ) -> tuple[
        Float[np.ndarray, "part table row kernel"],
        Int[np.ndarray, "table knot"],
        Int[np.ndarray, " shell"],
    ]:
        """Those of the different shells, and which of them is that of each shell.

        Three rows for each knot: the radial functions, and their first two derivatives by the
        number of the knot. After so many kernels as the second array says they are negligible from
        a knot to the next one: where a shell does not reach, it has only what is smoothed widely.
        """
        last = np.log1p((_OUTERMOST / _INNERMOST) ** 2)
        squares = _INNERMOST**2 * np.expm1(np.arange(0, last, _SPACING))
        keys = [(s.l, s.exponents.tobytes(), s.coefficients.tobytes()) for s in self.shells]
        different = {key: shell for key, shell in zip(keys, self.shells, strict=True)}
        tables = np.stack([self._table(shell, squares) for shell in different.values()], axis=1)
        counts = [
            _not_negligible(tables[:, index], squares ** (shell.l / 2))
            for index, shell in enumerate(different.values())
        ]
        return tables, np.array(counts), np.array([list(different).index(key) for key in keys])

    def _table(
        self, shell: Shell, squares: Float[np.ndarray, " knot"]
    ) -> Float[np.ndarray, "part row kernel"]:
        r2, power = squares[:, None], shell.l + 1.5
        table = np.zeros((len(self.parts), len(squares), 3, len(self.exponents)))
        # Of the squared distance, by the knot's number; the second derivative is _SPACING times it.
        stretch = _SPACING * (r2 + _INNERMOST**2)
        for a, coefficient in zip(shell.exponents, shell.coefficients, strict=True):
            width, tightness = self.exponents / (a + self.exponents), a / (a + self.exponents)
            decay = a * width
            value = coefficient * width**power * np.exp(-decay * r2)
            # Of the value's logarithm: by the knot's number, and by the exponent's logarithm.
            by_knot = -decay * stretch
            by_exponent = (power - decay * r2) * tightness
            factors = [1.0, by_knot, by_knot * (_SPACING + by_knot)]
            growths = [0.0, by_knot * tightness, by_knot * tightness * (_SPACING + 2 * by_knot)]
            for order, (factor, growth) in enumerate(zip(factors, growths, strict=True)):
                table[0, :, order] += factor * value
                if len(self.parts) == 2:
                    table[1, :, order] += (by_exponent * factor + growth) * value
        return (table @ self.kernels).reshape(len(table), -1, self.kernels.shape[1])


def _not_negligible(
    table: Float[np.ndarray, "part row kernel"], harmonic: Float[np.ndarray, " knot"]
) -> Int[np.ndarray, " knot"]:
    """After how many kernels rows of two knots, times a ``harmonic``, are negligible."""
    size = abs(table).reshape(len(table), -1, 3, table.shape[2]).max(axis=(0, 2))
    size *= harmonic[:, None]
    reached = size > NEGLIGIBLE * size.max()
    reached[:-1] |= reached[1:]
    kernels = np.arange(1, table.shape[2] + 1)
    counts = np.max(reached * kernels, axis=1)
    return np.minimum(-(-counts // _AT_ONCE) * _AT_ONCE, len(kernels))


class SmoothedOrbitals:
    """The smoothed orbitals at some points: a linear map from coefficients to fields.

    Coefficients are numbers for each orbital and point; fields are the sums of the smoothed
    orbitals, and of their gradients, times these: the components of one part of the shells after
    the other. ``harmonics`` are the different solid harmonics, each about its atom, and their
    derivatives up to the ``order`` of the shells; ``offsets`` lead from the atoms to the points.
    """

    def __init__(
        self,
        shells: SmoothedShells,
        harmonics: Float[np.ndarray, "component harmonic grid"],
        offsets: Float[np.ndarray, "grid atom xyz"],
    ):
        self.shells = shells
        self.harmonics = harmonics
        # The gradient of a function of the squared distance is its derivative times this.
        self._twice_offsets = 2 * offsets
        self._tables, counts, table_of_shell = shells.tables
        firsts = np.empty(offsets.shape[:2], dtype=np.int64)
        self._weights = np.empty((3, *offsets.shape[:2], 6))
        last = self._tables.shape[2] // 3 - 2
        fill_weights(offsets, _FROM_ENDS, last, firsts, self._weights)
        self._knots = counts, table_of_shell, shells.atoms, firsts, self._twice_offsets
        self._orbitals = shells.harmonic_of_orbital, shells.shell_of_orbital

    def apply(
        self, coefficients: Float[np.ndarray, "ao grid"]
    ) -> Float[np.ndarray, "grid component kernel"]:
        """Fields of coefficients."""
        shells, points = self.shells, coefficients.shape[1]
        moments = np.zeros((max(shells.parts), len(shells.shells), points))
        add_moments(*self._orbitals, self.harmonics, np.ascontiguousarray(coefficients), moments)
        fields = np.zeros((points, sum(shells.parts), shells.kernels.shape[1]))
        for tables, components in self._parts():
            add_fields(tables, *self._knots, self._weights, moments, fields, components)
        return fields

    def transpose(
        self, fields: Float[np.ndarray, "grid component kernel"]
    ) -> Float[np.ndarray, "derivative ao grid"]:
        """Derivative by the coefficients from that by the fields.

        Behind it, if the shells are ``moving``, its gradient where points move and fields do not.
        """
        own = self._moments(fields, 0)
        transpose = np.zeros((4 if self.shells.moving else 1, len(self._orbitals[0]), len(fields)))
        add_harmonics(*self._orbitals, self.harmonics, own, transpose[0])
        if not self.shells.moving:
            return transpose
        by_square = self._moments(fields, 1)
        radial = np.zeros_like(transpose[0])
        add_harmonics(*self._orbitals, self.harmonics, by_square, radial)
        atoms = self.shells.atoms[self.shells.shell_of_orbital]
        transpose[1:] = self._twice_offsets.transpose(2, 1, 0)[:, atoms] * radial
        for x in range(3):
            gradients = self.harmonics[[row[x] for row in GRADIENT_COMPONENTS[: len(own)]]]
            add_harmonics(*self._orbitals, gradients, own, transpose[1 + x])
            if len(own) == 4:
                # Of the offset, in the gradient of a function of the squared distance.
                twice = 2 * by_square[[1 + x]]
                add_harmonics(*self._orbitals, self.harmonics, twice, transpose[1 + x])
        return transpose

    def _moments(
        self, fields: Float[np.ndarray, "grid component kernel"], order: int
    ) -> Float[np.ndarray, "factor shell grid"]:
        """What the harmonics of each shell are multiplied with in the transpose.

        Or the same with radial functions differentiated by the squared distance.
        """
        moments = np.zeros((max(self.shells.parts), len(self.shells.shells), len(fields)))
        fields = np.ascontiguousarray(fields)
        for tables, components in self._parts():
            add_transposed(tables, *self._knots, self._weights[order:], fields, moments, components)
        return moments

    def _parts(self) -> Iterator[tuple[Float[np.ndarray, "table row kernel"], tuple[int, int]]]:
        """Tables of each part, and which components of the fields belong to it."""
        ends = itertools.accumulate(self.shells.parts, initial=0)
        return zip(self._tables, itertools.pairwise(ends), strict=True)


@compiled
@no_type_check
def fill_weights(
    offsets: Float[np.ndarray, "grid atom xyz"],
    ends: Float[np.ndarray, "power row"],
    last: int,
    firsts: Int[np.ndarray, "grid atom"],
    weights: Float[np.ndarray, "order grid atom row"],
) -> None:
    """Of the rows of two knots around each point, of which ``firsts`` are the first.

    In the radial functions, and in their derivatives by the squared distance.
    """
    for point in range(offsets.shape[0]):
        for atom in range(offsets.shape[1]):
            square = 0.0
            for x in range(3):
                square += offsets[point, atom, x] ** 2
            position = np.log1p(square / _INNERMOST**2) / _SPACING
            knot = min(int(position), last)
            firsts[point, atom] = 3 * knot
            t = position - knot
            # Of the position, by the squared distance; its own is -_SPACING times its square.
            by_square = 1 / (_SPACING * (square + _INNERMOST**2))
            for row in range(6):
                c0, c1, c2 = ends[0, row], ends[1, row], ends[2, row]
                c3, c4, c5 = ends[3, row], ends[4, row], ends[5, row]
                value = c0 + t * (c1 + t * (c2 + t * (c3 + t * (c4 + t * c5))))
                slope = c1 + t * (2 * c2 + t * (3 * c3 + t * (4 * c4 + t * 5 * c5)))
                bend = 2 * c2 + t * (6 * c3 + t * (12 * c4 + t * 20 * c5))
                weights[0, point, atom, row] = value
                weights[1, point, atom, row] = slope * by_square
                weights[2, point, atom, row] = (bend - _SPACING * slope) * by_square**2


@compiled
@no_type_check
def add_moments(
    harmonic_of_orbital: Int[np.ndarray, " ao"],
    shell_of_orbital: Int[np.ndarray, " ao"],
    harmonics: Float[np.ndarray, "any harmonic grid"],
    coefficients: Float[np.ndarray, "ao grid"],
    moments: Float[np.ndarray, "factor shell grid"],
) -> None:
    """Add coefficients of orbitals times harmonics to what each shell has."""
    for orbital in range(len(coefficients)):
        harmonic, shell = harmonic_of_orbital[orbital], shell_of_orbital[orbital]
        for factor in range(len(moments)):
            for point in range(coefficients.shape[1]):
                moments[factor, shell, point] += (
                    harmonics[factor, harmonic, point] * coefficients[orbital, point]
                )


@compiled
@no_type_check
def add_harmonics(
    harmonic_of_orbital: Int[np.ndarray, " ao"],
    shell_of_orbital: Int[np.ndarray, " ao"],
    harmonics: Float[np.ndarray, "any harmonic grid"],
    moments: Float[np.ndarray, "factor shell grid"],
    coefficients: Float[np.ndarray, "ao grid"],
) -> None:
    """The transpose of ``add_moments``."""
    for orbital in range(len(coefficients)):
        harmonic, shell = harmonic_of_orbital[orbital], shell_of_orbital[orbital]
        for factor in range(len(moments)):
            for point in range(coefficients.shape[1]):
                coefficients[orbital, point] += (
                    harmonics[factor, harmonic, point] * moments[factor, shell, point]
                )


@compiled
@no_type_check
def add_fields(
    tables: Float[np.ndarray, "table row kernel"],
    counts: Int[np.ndarray, "table knot"],
    table_of_shell: Int[np.ndarray, " shell"],
    atoms: Int[np.ndarray, " shell"],
    firsts: Int[np.ndarray, "grid atom"],
    twice_offsets: Float[np.ndarray, "grid atom xyz"],
    weights: Float[np.ndarray, "order grid atom row"],
    moments: Float[np.ndarray, "factor shell grid"],
    fields: Float[np.ndarray, "grid component kernel"],
    components: tuple[int, int],
) -> None:
    """Add radial functions times moments of the harmonics, and the gradients of that."""
    start, stop = components
    for point in range(len(fields)):
        own = fields[point]
        for shell in range(len(atoms)):
            atom = atoms[shell]
            first = firsts[point, atom]
            rows = tables[table_of_shell[shell], first : first + 6]
            count = counts[table_of_shell[shell], first // 3]
            w, moment = weights[0, point, atom], moments[0, shell, point]
            if stop == start + 1:
                w0, w1, w2 = moment * w[0], moment * w[1], moment * w[2]
                w3, w4, w5 = moment * w[3], moment * w[4], moment * w[5]
                for k in range(count):
                    own[start, k] += (
                        w0 * rows[0, k]
                        + w1 * rows[1, k]
                        + w2 * rows[2, k]
                        + w3 * rows[3, k]
                        + w4 * rows[4, k]
                        + w5 * rows[5, k]
                    )
                continue
            w0, w1, w2, w3, w4, w5 = w[0], w[1], w[2], w[3], w[4], w[5]
            d = weights[1, point, atom]
            d0, d1, d2, d3, d4, d5 = d[0], d[1], d[2], d[3], d[4], d[5]
            x, y, z = moments[1, shell, point], moments[2, shell, point], moments[3, shell, point]
            along_x = twice_offsets[point, atom, 0] * moment
            along_y = twice_offsets[point, atom, 1] * moment
            along_z = twice_offsets[point, atom, 2] * moment
            for k in range(count):
                r0, r1, r2 = rows[0, k], rows[1, k], rows[2, k]
                r3, r4, r5 = rows[3, k], rows[4, k], rows[5, k]
                value = w0 * r0 + w1 * r1 + w2 * r2 + w3 * r3 + w4 * r4 + w5 * r5
                derivative = d0 * r0 + d1 * r1 + d2 * r2 + d3 * r3 + d4 * r4 + d5 * r5
                own[start, k] += moment * value
                own[start + 1, k] += x * value + along_x * derivative
                own[start + 2, k] += y * value + along_y * derivative
                own[start + 3, k] += z * value + along_z * derivative


@partial(compiled, reorder_sums=True)
@no_type_check
def add_transposed(
    tables: Float[np.ndarray, "table row kernel"],
    counts: Int[np.ndarray, "table knot"],
    table_of_shell: Int[np.ndarray, " shell"],
    atoms: Int[np.ndarray, " shell"],
    firsts: Int[np.ndarray, "grid atom"],
    twice_offsets: Float[np.ndarray, "grid atom xyz"],
    weights: Float[np.ndarray, "order grid atom row"],
    fields: Float[np.ndarray, "grid component kernel"],
    moments: Float[np.ndarray, "factor shell grid"],
    components: tuple[int, int],
) -> None:
    """The transpose of ``add_fields``."""
    start, stop = components
    for point in range(len(fields)):
        own = fields[point]
        for shell in range(len(atoms)):
            atom = atoms[shell]
            first = firsts[point, atom]
            rows = tables[table_of_shell[shell], first : first + 6]
            count = counts[table_of_shell[shell], first // 3]
            w = weights[0, point, atom]
            w0, w1, w2, w3, w4, w5 = w[0], w[1], w[2], w[3], w[4], w[5]
            total = 0.0
            if stop == start + 1:
                for k in range(count):
                    value = (
                        w0 * rows[0, k]
                        + w1 * rows[1, k]
                        + w2 * rows[2, k]
                        + w3 * rows[3, k]
                        + w4 * rows[4, k]
                        + w5 * rows[5, k]
                    )
                    total += value * own[start, k]
                moments[0, shell, point] += total
                continue
            d = weights[1, point, atom]
            d0, d1, d2, d3, d4, d5 = d[0], d[1], d[2], d[3], d[4], d[5]
            x, y, z, along_x, along_y, along_z = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
            for k in range(count):
                r0, r1, r2 = rows[0, k], rows[1, k], rows[2, k]
                r3, r4, r5 = rows[3, k], rows[4, k], rows[5, k]
                value = w0 * r0 + w1 * r1 + w2 * r2 + w3 * r3 + w4 * r4 + w5 * r5
                derivative = d0 * r0 + d1 * r1 + d2 * r2 + d3 * r3 + d4 * r4 + d5 * r5
                total += value * own[start, k]
                x += value * own[start + 1, k]
                y += value * own[start + 2, k]
                z += value * own[start + 3, k]
                along_x += derivative * own[start + 1, k]
                along_y += derivative * own[start + 2, k]
                along_z += derivative * own[start + 3, k]
            total += twice_offsets[point, atom, 0] * along_x
            total += twice_offsets[point, atom, 1] * along_y
            total += twice_offsets[point, atom, 2] * along_z
            moments[0, shell, point] += total
            moments[1, shell, point] += x
            moments[2, shell, point] += y
            moments[3, shell, point] += z
