"""What a learned functional reads of each point: bounded, dimensionless descriptors."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cider.conventions import DENSITY_CUTOFF, AnyArray
from cider.density import Density
from cider.features.nldf import Nldf
from cider.features.semilocal import bounded_gradient, bounded_isoorbital, bounded_kinetic_ratio
from cider.input_transform import bounded_ratio

_KINETIC = {"alpha": bounded_isoorbital, "tau/tau_0": bounded_kinetic_ratio}


class Descriptors(eqx.Module):
    """What a model reads of a closed-shell (or spin-scaled) density.

    ``kinetic`` is what descriptors of level MGGA read of tau: the iso-orbital indicator "alpha",
    or "tau/tau_0", the ratio to the uniform gas.
    """

    level: str = eqx.field(static=True)
    nldf: Nldf | None = None
    kinetic: str = eqx.field(static=True, default="alpha")

    def __check_init__(self) -> None:
        if self.level not in ("GGA", "MGGA"):
            raise ValueError(f"level must be 'GGA' or 'MGGA': got {self.level!r}")
        if self.kinetic not in _KINETIC:
            raise ValueError(f"kinetic must be one of {list(_KINETIC)}: got {self.kinetic!r}")

    @property
    def needs_tau(self) -> bool:
        """Whether the kinetic energy density enters."""
        return self.level == "MGGA" or (self.nldf is not None and self.nldf.needs_tau)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the descriptors, semilocal ones first."""
        semilocal = ("p",) if self.level == "GGA" else ("p", self.kinetic)
        return semilocal + (() if self.nldf is None else self.nldf.names)

    @property
    def ueg(self) -> tuple[Float[np.ndarray, "semilocal 1"], Float[np.ndarray, "nonlocal 1"]]:
        """Bounded descriptors in the uniform gas (p = 0, alpha = tau/tau_0 = 1)."""
        semilocal = [-1.0] if self.level == "GGA" else [-1.0, 0.0]
        count = 0 if self.nldf is None else len(self.nldf.exponents)
        return np.array(semilocal)[:, None], np.zeros((count, 1))

    def nonlocal_features(
        self,
        rho: Float[Array, " grid"],
        sigma: Float[Array, " grid"],
        tau: Float[Array, " grid"] | None,
        fields: Float[AnyArray, "grid target"] | None,
    ) -> Float[Array, "nonlocal grid"]:
        """Nonlocal density features of points; ``rho`` at least the cutoff.

        ``fields`` are what the convolution of the grid makes of the sources of ``nldf``.
        """
        if self.nldf is None:
            return jnp.zeros((0, rho.shape[0]))
        if fields is None:
            raise ValueError("nonlocal density features need the fields of their sources")
        return self.nldf.features(rho, sigma, tau, fields)

    def bounded(
        self,
        rho: Float[Array, " grid"],
        sigma: Float[Array, " grid"],
        tau: Float[Array, " grid"] | None,
        features: Float[Array, "nonlocal grid"],
    ) -> tuple[Float[Array, "semilocal grid"], Float[Array, "nonlocal grid"]]:
        """Bounded semilocal and nonlocal descriptors of points; ``rho`` at least the cutoff."""
        semilocal = [bounded_gradient(rho, sigma)]
        if self.level == "MGGA":
            semilocal.append(_KINETIC[self.kinetic](rho, sigma, self._required(tau)))
        if self.nldf is None:
            return jnp.stack(semilocal), features
        return jnp.stack(semilocal), bounded_ratio(features, jnp.asarray(self.nldf.ueg)[:, None])

    def __call__(
        self,
        rho: Float[Array, " grid"],
        sigma: Float[Array, " grid"],
        tau: Float[Array, " grid"] | None,
        fields: Float[AnyArray, "grid target"] | None,
    ) -> tuple[Float[Array, "semilocal grid"], Float[Array, "nonlocal grid"]]:
        """Bounded semilocal and nonlocal descriptors of points, from the fields of the grid."""
        if self.needs_tau:
            tau = self._required(tau)
        return self.bounded(rho, sigma, tau, self.nonlocal_features(rho, sigma, tau, fields))

    def _required(self, tau: Float[Array, " grid"] | None) -> Float[Array, " grid"]:
        if tau is None:
            raise ValueError(
                f"the descriptors {', '.join(self.names)} need tau but the density has none; "
                "compute a meta-GGA density or choose a GGA-level functional"
            )
        return tau


def safe_ingredients(
    scaled: Density, spin: int
) -> tuple[Float[Array, " grid"], Float[Array, " grid"], Float[Array, " grid"] | None]:
    """rho, sigma and tau of one spin, with a uniform gas of cutoff density where there is none.

    Keeps every formula and its derivative finite at points that carry no energy.
    """
    occupied = scaled.rho[spin] > DENSITY_CUTOFF
    rho = jnp.where(occupied, scaled.rho[spin], DENSITY_CUTOFF)
    # The inner selection keeps the derivative of an infinite or NaN gradient out.
    sigma = jnp.sum(jnp.where(occupied, scaled.grad_rho[spin], 0.0) ** 2, axis=0)
    tau = None if scaled.tau is None else jnp.where(occupied, scaled.tau[spin], 0.0)
    return rho, sigma, tau
