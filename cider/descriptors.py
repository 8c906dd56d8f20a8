"""What a learned functional reads of each point: bounded, dimensionless descriptors."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cider.conventions import DENSITY_CUTOFF, AnyArray
from cider.density import Density
from cider.features.nldf import Nldf
from cider.features.sdmx import Sdmx
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
    sdmx: Sdmx | None = None

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
        return semilocal + tuple(name for part in self._nonlocal for name in part.names)

    @property
    def ueg(self) -> tuple[Float[np.ndarray, "semilocal 1"], Float[np.ndarray, "nonlocal 1"]]:
        """Bounded descriptors in the uniform gas (p = 0, alpha = tau/tau_0 = 1)."""
        semilocal = np.array([-1.0] if self.level == "GGA" else [-1.0, 0.0])
        nonlocal_ = [2 * x.ueg / (x.ueg + x.reference) - 1 for x in self._nonlocal]
        return semilocal[:, None], np.concatenate([np.zeros(0), *nonlocal_])[:, None]

    @property
    def _nonlocal(self) -> tuple[Nldf | Sdmx, ...]:
        """The kinds of nonlocal features, in their order."""
        return tuple(part for part in (self.nldf, self.sdmx) if part is not None)

    def nldf_features(
        self,
        rho: Float[Array, " grid"],
        sigma: Float[Array, " grid"],
        tau: Float[Array, " grid"] | None,
        fields: Float[AnyArray, "grid target"] | None,
    ) -> Float[Array, "nldf grid"]:
        """Nonlocal density features of points; ``rho`` at least the cutoff.

        ``fields`` are what the convolution of the grid makes of the sources of ``nldf``.
        """
        if self.nldf is None:
            return jnp.zeros((0, rho.shape[0]))
        if fields is None:
            raise ValueError("nonlocal density features need the fields of their sources")
        return self.nldf.features(rho, sigma, tau, fields)

    def nonlocal_features(
        self,
        rho: Float[Array, " grid"],
        nldf_features: Float[Array, "nldf grid"],
        sdmx: Float[Array, "sdmx grid"] | None,
    ) -> Float[Array, "nonlocal grid"]:
        """The same, and behind them features of the density matrix, without dimension."""
        if self.sdmx is None:
            return nldf_features
        if sdmx is None:
            raise NotImplementedError(
                f"{', '.join(self.sdmx.names)} need the smoothed density matrix, which only "
                "PySCF's calculations have: choose a functional without these features"
            )
        return jnp.concatenate([nldf_features, self.sdmx.scaled(rho, sdmx)])

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
        if not self._nonlocal:
            return jnp.stack(semilocal), features
        references = jnp.concatenate([jnp.asarray(part.reference) for part in self._nonlocal])
        return jnp.stack(semilocal), bounded_ratio(features, references[:, None])

    def __call__(
        self,
        rho: Float[Array, " grid"],
        sigma: Float[Array, " grid"],
        tau: Float[Array, " grid"] | None,
        fields: Float[AnyArray, "grid target"] | None,
        sdmx: Float[Array, "sdmx grid"] | None = None,
    ) -> tuple[Float[Array, "semilocal grid"], Float[Array, "nonlocal grid"]]:
        """Bounded semilocal and nonlocal descriptors of points, from the fields of the grid."""
        if self.needs_tau:
            tau = self._required(tau)
        nldf_features = self.nldf_features(rho, sigma, tau, fields)
        features = self.nonlocal_features(rho, nldf_features, sdmx)
        return self.bounded(rho, sigma, tau, features)

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


def safe_sdmx(scaled: Density, spin: int) -> Float[Array, "sdmx grid"] | None:
    """Features of the density matrix of one spin, and none where there is no density."""
    if scaled.sdmx is None:
        return None
    return jnp.where((scaled.rho[spin] > DENSITY_CUTOFF)[None], scaled.sdmx[spin], 0.0)
