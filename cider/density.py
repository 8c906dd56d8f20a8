"""The density on a grid: what every functional reads."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from cider.conventions import AnyArray


class Density(eqx.Module):
    """Density, gradient and kinetic energy density on a real-space grid, in atomic units.

    The ``spin`` axis has length 1 (closed shell, total density) or 2 (spin up, spin down).
    ``tau`` is positive and carries the factor one half; ``None`` where it was not computed.
    ``sdmx`` are features of the density matrix, quadratic forms of it (``cider.features.sdmx``).
    The derivative of an energy by a density is again a ``Density``.
    """

    rho: Float[AnyArray, "spin grid"]
    grad_rho: Float[AnyArray, "spin xyz grid"]
    tau: Float[AnyArray, "spin grid"] | None = None
    sdmx: Float[AnyArray, "spin feature grid"] | None = None

    @property
    def sigma(self) -> Float[Array, "spin grid"]:
        r"""Squared gradient of each spin density, :math:`|\nabla\rho_\sigma|^2`."""
        return jnp.sum(self.grad_rho**2, axis=1)

    @property
    def num_spins(self) -> int:
        """Length of the spin axis."""
        return self.rho.shape[0]

    @property
    def num_points(self) -> int:
        """Length of the grid axis."""
        return self.rho.shape[1]

    def spin_scaled(self) -> "Density":
        r"""The closed-shell densities :math:`2\rho_\sigma` of exact spin scaling.

        Exchange obeys :math:`E_x[\rho_\uparrow, \rho_\downarrow] = \frac12 \sum_\sigma
        E_x[2\rho_\sigma]` (Oliver, Perdew, Phys. Rev. A 20, 397 (1979)); a closed shell is its
        own scaled density. With n spins the energy is the mean over the spin axis of what the
        scaled densities give. Of a derivative by the scaled densities, the same factors make that
        by the densities.
        """
        factor = self.num_spins
        tau = None if self.tau is None else factor * self.tau
        sdmx = None if self.sdmx is None else factor**2 * self.sdmx
        return Density(factor * self.rho, factor * self.grad_rho, tau, sdmx)

    def of_spins(self, spins: slice) -> "Density":
        """The densities of some spins: of NumPy arrays, a view."""
        tau = None if self.tau is None else self.tau[spins]
        sdmx = None if self.sdmx is None else self.sdmx[spins]
        return Density(self.rho[spins], self.grad_rho[spins], tau, sdmx)

    def of_spin(self, spin: int) -> "Density":
        """The density of one spin alone, with a spin axis of length 1."""
        return self.of_spins(slice(spin, spin + 1))
