r"""Atomic orbitals smoothed by Gaussians, in closed form.

A solid harmonic times a Gaussian, convolved with a Gaussian of unit integral, is the same shell
with another exponent:

.. math:: \left(\frac{\beta}{\pi}\right)^{3/2} \int e^{-\beta |\mathbf r - \mathbf r'|^2}
          S_{lm}(\mathbf r')\, e^{-a r'^2} d^3r'
          = \left(\frac{\beta}{a + \beta}\right)^{l + 3/2} S_{lm}(\mathbf r)\,
          e^{-\frac{a\beta}{a + \beta} r^2}

so that all orbitals of a shell share one radial function of :math:`r^2` for each :math:`\beta`,
with its derivatives by :math:`r^2` and by :math:`\ln\beta`.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Float, Int

from cider.features.compiled import compiled

_NEGLIGIBLE = 45.0
"""A Gaussian of this logarithm, 3e-20, is left out."""


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
    the smoothing exponents.
    """

    shells: Sequence[Shell]
    smoothing: Float[np.ndarray, " exponent"]
    with_gradient: bool
    with_slope: bool

    @functools.cached_property
    def atoms(self) -> Int[np.ndarray, " shell"]:
        """The atom of each shell."""
        return np.array([shell.atom for shell in self.shells])

    @functools.cached_property
    def shell_of_orbital(self) -> Int[np.ndarray, " ao"]:
        """The shell of each orbital."""
        sizes = [2 * shell.l + 1 for shell in self.shells]
        return np.repeat(np.arange(len(sizes)), sizes)

    @property
    def num_components(self) -> int:
        """One, or four with the gradient."""
        return 4 if self.with_gradient else 1

    @property
    def num_smoothings(self) -> int:
        """As many as smoothing exponents, and as many again for derivatives by them."""
        return len(self.smoothing) * (2 if self.with_slope else 1)

    def radial_functions(
        self, squared_distances: Float[np.ndarray, "grid atom"]
    ) -> Float[np.ndarray, "grid radial smoothing"]:
        """Radial functions of all shells, then their derivatives by the squared distance."""
        kinds = 2 if self.with_gradient else 1
        shape = len(squared_distances), kinds, len(self.shells), self.num_smoothings
        radial = np.zeros(shape)
        fill_radial_functions(squared_distances, self.atoms, *self._primitives, radial)
        return radial.reshape(shape[0], -1, shape[3])

    @functools.cached_property
    def _primitives(self) -> tuple[np.ndarray, ...]:
        """Where each shell's primitives begin; their decays and amplitudes, and slopes of these."""
        starts = np.cumsum([0, *(len(shell.exponents) for shell in self.shells)])
        a = np.concatenate([shell.exponents for shell in self.shells])[:, None]
        coefficients = np.concatenate([shell.coefficients for shell in self.shells])[:, None]
        l = np.repeat([shell.l for shell in self.shells], np.diff(starts))[:, None]
        width, tightness = self.smoothing / (a + self.smoothing), a / (a + self.smoothing)
        decays, amplitudes = a * width, coefficients * width ** (l + 1.5)
        return starts, decays, amplitudes, decays * tightness, amplitudes * (l + 1.5) * tightness


class SmoothedOrbitals:
    """The smoothed orbitals at some points: a linear map from coefficients to fields.

    Coefficients are numbers for each orbital and point; fields are the sums of the smoothed
    orbitals, and of their gradients, times these. ``harmonics`` are the solid harmonics of each
    orbital about its atom, and their gradients; ``offsets`` lead from the atoms to the points.
    """

    def __init__(
        self,
        shells: SmoothedShells,
        harmonics: Float[np.ndarray, "component ao grid"],
        offsets: Float[np.ndarray, "grid atom xyz"],
    ):
        self.shells = shells
        self.harmonics = harmonics
        self.radial = shells.radial_functions(np.sum(offsets**2, axis=2))
        # The gradient of a function of the squared distance is twice its derivative times this.
        self.twice_offsets = 2 * offsets[:, shells.atoms].transpose(2, 0, 1)

    def apply(
        self, coefficients: Float[np.ndarray, "ao grid"]
    ) -> Float[np.ndarray, "grid component smoothing"]:
        """Fields of coefficients."""
        starts = np.flatnonzero(np.diff(self.shells.shell_of_orbital, prepend=-1))
        moments = np.add.reduceat(self.harmonics * coefficients, starts, axis=1)
        moments = moments.transpose(0, 2, 1)  # component, grid, shell
        count = moments.shape[2]
        weights = np.zeros((len(self.radial), len(moments), self.radial.shape[1]))
        weights[:, :, :count] = moments.transpose(1, 0, 2)
        if self.shells.with_gradient:
            weights[:, 1:, count:] = (self.twice_offsets * moments[0]).transpose(1, 0, 2)
        return weights @ self.radial

    def transpose(
        self, fields: Float[np.ndarray, "grid component smoothing"]
    ) -> Float[np.ndarray, "ao grid"]:
        """Derivative by the coefficients from that by the fields."""
        weights = (fields @ self.radial.swapaxes(1, 2)).transpose(1, 0, 2)
        count = len(self.shells.shells)
        moments = weights[:, :, :count].copy()
        if self.shells.with_gradient:
            moments[0] += np.sum(self.twice_offsets * weights[1:, :, count:], axis=0)
        by_orbital = moments.transpose(0, 2, 1)[:, self.shells.shell_of_orbital]
        return np.sum(self.harmonics * by_orbital, axis=0)


@compiled
@no_type_check
def fill_radial_functions(
    squared_distances: Float[np.ndarray, "grid atom"],
    atoms: Int[np.ndarray, " shell"],
    starts: Int[np.ndarray, " shell_and_one"],
    decays: Float[np.ndarray, "primitive exponent"],
    amplitudes: Float[np.ndarray, "primitive exponent"],
    decay_slopes: Float[np.ndarray, "primitive exponent"],
    amplitude_slopes: Float[np.ndarray, "primitive exponent"],
    radial: Float[np.ndarray, "grid kind shell smoothing"],
) -> None:
    """Add the Gaussians of all primitives to zeros: see ``SmoothedShells.radial_functions``."""
    count = decays.shape[1]
    with_gradient, with_slope = radial.shape[1] > 1, radial.shape[3] > count
    gaussians = np.empty(count)
    for point in range(radial.shape[0]):
        for shell in range(radial.shape[2]):
            square = squared_distances[point, atoms[shell]]
            values = radial[point, 0, shell]
            for primitive in range(starts[shell], starts[shell + 1]):
                decay, amplitude = decays[primitive], amplitudes[primitive]
                wide = count  # decays rise with the exponent
                while wide > 0 and decay[wide - 1] * square > _NEGLIGIBLE:
                    wide -= 1
                for k in range(wide):
                    # The exponential as a power of its series: unlike the library's, loops of it
                    # are vectorised. It is good to 1e-12.
                    x = -decay[k] * square * (1 / 1024)
                    g = 1 + x * (1 + x * (1 / 2 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120)))))
                    g *= g
                    g *= g
                    g *= g
                    g *= g
                    g *= g
                    g *= g
                    g *= g
                    g *= g
                    g *= g
                    g *= g
                    gaussians[k] = g
                for k in range(wide):
                    values[k] += amplitude[k] * gaussians[k]
                if with_gradient:
                    derivatives = radial[point, 1, shell]
                    for k in range(wide):
                        derivatives[k] -= decay[k] * amplitude[k] * gaussians[k]
                if with_slope:
                    by_decay, by_amplitude = decay_slopes[primitive], amplitude_slopes[primitive]
                    for k in range(wide):
                        slope = by_amplitude[k] - amplitude[k] * by_decay[k] * square
                        values[count + k] += slope * gaussians[k]
                        if with_gradient:
                            derivatives[count + k] -= (
                                decay[k] * slope + by_decay[k] * amplitude[k]
                            ) * gaussians[k]
