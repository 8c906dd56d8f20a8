r"""Even-tempered ladders of Gaussians, and the expansion of any Gaussian in them.

.. math:: e^{-a u^2} \approx \sum_\beta p_\beta(a)\, e^{-\beta u^2}

turns a kernel whose width changes from point to point into a few fixed convolutions.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from cider.conventions import AnyArray

RATIO = 1.6
"""Ratio of neighbouring exponents; with 1.8, energies were off by 3e-6 of the exchange energy."""

ORIGIN = 1.0
"""An exponent of the one absolute ladder, bohr^-2; all others are this times a power of the ratio.

The ladder is the same for all elements and systems, so that energies are comparable.
"""


def ladder_exponents(
    least: float, largest: float, ratio: float = RATIO
) -> Float[np.ndarray, " exponent"]:
    """Exponents (bohr^-2) of the absolute ladder that enclose ``[least, largest]``."""
    first = int(np.floor(np.log(least / ORIGIN) / np.log(ratio)))
    last = int(np.ceil(np.log(largest / ORIGIN) / np.log(ratio)))
    return ORIGIN * ratio ** np.arange(first, last + 1)


class GaussianLadder(eqx.Module):
    r"""Least-squares expansion of Gaussians on a ladder of exponents.

    The square error is weighted by :math:`u\,du`. Between the one-dimensional weight (long diffuse
    tails of the coefficients) and the volume (large sharp ones) this gave the smallest error of
    Gaussians convolved with Gaussians: 2e-8 relative at the ratio 1.6. It makes overlaps
    :math:`1/(a + \beta)`, a Cauchy matrix, whose inverse is known in closed form:

    .. math:: p_\beta(a) = \frac{2 \beta}{a + \beta} \prod_{\gamma \ne \beta}
              \frac{(\beta + \gamma)(a - \gamma)}{(\beta - \gamma)(a + \gamma)}

    Sums over the numerical inverse, of condition 1e8, would leave noise of 1e-8 in them.
    Derivatives are those by ``a`` and the values; the ladder is fixed.
    """

    exponents: Float[np.ndarray, " exponent"]
    _scales: Float[np.ndarray, " exponent"]
    _bounds: Float[np.ndarray, " bound"]

    def __init__(self, exponents: Float[np.ndarray, " exponent"]):
        self.exponents = np.asarray(exponents, dtype=np.float64)
        sums = np.add.outer(self.exponents, self.exponents)
        differences = np.subtract.outer(self.exponents, self.exponents)
        np.fill_diagonal(differences, 1.0)
        self._scales = np.prod(sums / differences, axis=1)
        self._bounds = np.sqrt(self.exponents[1:] * self.exponents[:-1])

    def coefficients(self, a: Float[Array, "*shape"]) -> Float[Array, "*shape exponent"]:
        r"""Coefficients :math:`p_\beta(a)` of ``exp(-a u^2)``; ``a`` in bohr^-2."""
        of_point = jnp.vectorize(_coefficients, excluded=(1,), signature="()->(exponent)")
        return of_point(a, self._arrays())

    def expand(
        self, a: Float[Array, " grid"], values: Float[AnyArray, "grid exponent"]
    ) -> Float[Array, " grid"]:
        r"""The sum :math:`\sum_\beta p_\beta(a) v_\beta` at each point.

        As ``coefficients`` times ``values``, but differentiated in half the time.
        """
        return jax.vmap(_expand, in_axes=(0, 0, None))(a, jnp.asarray(values), self._arrays())

    def _arrays(self) -> "_Arrays":
        return _Arrays(*map(jnp.asarray, (self.exponents, self._scales, self._bounds)))


class _Arrays(NamedTuple):
    exponents: Float[Array, " exponent"]
    scales: Float[Array, " exponent"]
    """Constant factors of the coefficients."""
    bounds: Float[Array, " bound"]
    """Where another exponent becomes the nearest one."""


@jax.custom_jvp
def _coefficients(a: Float[Array, ""], ladder: _Arrays) -> Float[Array, " exponent"]:
    product, ratios, _ = _factors(a, ladder)
    return ladder.scales * product * ratios


@_coefficients.defjvp
def _(
    primals: tuple[Array, _Arrays], tangents: tuple[Array, Any]
) -> tuple[Float[Array, " exponent"], Float[Array, " exponent"]]:
    (a, ladder), (change, _) = primals, tangents
    product, ratios, slopes = _factors(a, ladder)
    return ladder.scales * product * ratios, ladder.scales * product * slopes * change


@jax.custom_jvp
def _expand(
    a: Float[Array, ""], values: Float[Array, " exponent"], ladder: _Arrays
) -> Float[Array, ""]:
    product, ratios, _ = _factors(a, ladder)
    return product * (ladder.scales * ratios * values).sum()


@_expand.defjvp
def _(
    primals: tuple[Array, Array, _Arrays], tangents: tuple[Array, Array, Any]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    (a, values, ladder), (change, changes, _) = primals, tangents
    product, ratios, slopes = _factors(a, ladder)
    scaled = ladder.scales * values
    by_a = product * (scaled * slopes).sum()
    by_values = product * (ladder.scales * ratios * changes).sum()
    return product * (scaled * ratios).sum(), by_a * change + by_values


def _factors(
    a: Float[Array, ""], ladder: _Arrays
) -> tuple[Float[Array, ""], Float[Array, " exponent"], Float[Array, " exponent"]]:
    r"""One factor of all coefficients, one of each, and its derivative as multiple of the first.

    With :math:`\nu` nearest to ``a``, the first is the product of all :math:`a - \beta` but
    :math:`a - \nu`, which may vanish, over that of all :math:`a + \beta`; the second is 1 for
    :math:`\nu`, else :math:`(a - \nu)/(a - \beta)`.
    """
    exponents = ladder.exponents
    index = jnp.searchsorted(ladder.bounds, a, method="compare_all")
    nearest = jnp.arange(len(exponents)) == index
    others = jnp.where(nearest, 1.0, a - exponents)
    # Divisions take most of the time: these are all.
    inverse, inverse_sum = 1 / others, 1 / (a + exponents)
    product = _product_of_nonzero(others * inverse_sum)
    slope = (jnp.where(nearest, 0.0, inverse) - inverse_sum).sum()
    ratios = jnp.where(nearest, 1.0, (a - exponents[index]) * inverse)
    return product, ratios, slope * ratios + (1 - ratios) * inverse


@jax.custom_jvp
def _product_of_nonzero(factors: Float[Array, " factor"]) -> Float[Array, ""]:
    """The product, differentiated by division."""
    return jnp.prod(factors)


@_product_of_nonzero.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (factors,), (changes,) = primals, tangents
    product = _product_of_nonzero(factors)
    return product, product * jnp.sum(changes / factors)


def ladder_of_sums(
    source_exponents: Float[np.ndarray, " source"],
    target_exponents: Float[np.ndarray, " target"],
    selected: Bool[np.ndarray, "source target"] | None = None,
) -> tuple[Float[np.ndarray, "exponent source target"], Float[np.ndarray, " exponent"]]:
    """Expansion of Gaussians of the sums of exponents (bohr^-2), and its ladder.

    Sums that are not ``selected`` (by default all are) have zero coefficients.
    """
    sums = np.add.outer(source_exponents, target_exponents)
    chosen = np.ones(sums.shape, dtype=bool) if selected is None else selected
    # Margins on both sides, where the expansion is poor: from half of the least sum, smooth
    # densities were off by 4e-5, from an eighth by 1e-7.
    ladder = GaussianLadder(ladder_exponents(sums[chosen].min() / 8, 4 * sums.max()))
    coefficients = np.asarray(_compiled_coefficients(ladder, sums)) * chosen[..., None]
    return np.ascontiguousarray(np.moveaxis(coefficients, -1, 0)), ladder.exponents


@eqx.filter_jit
def _compiled_coefficients(
    ladder: GaussianLadder, a: Float[AnyArray, "*shape"]
) -> Float[Array, "*shape exponent"]:
    return ladder.coefficients(jnp.asarray(a))
