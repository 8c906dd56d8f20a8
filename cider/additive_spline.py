r"""A sum of cubic splines of a few inputs each, on uniform knots.

.. math:: g(x) = g_0 + \sum_t \sum_{ijk} c^t_{ijk}\,
          B_i(x_{t_1})\, B_j(x_{t_2})\, B_k(x_{t_3})

with one, two or three inputs in a term and :math:`B_i` the uniform cubic B-splines. A Gaussian
process with an additive kernel of low order, tabulated on such knots, costs a few windows of
coefficients per point, however many control points it has.

Ref: Bystrom, Kozinsky, Phys. Rev. B 110, 075130 (2024); for the splines, de Boor, A Practical
Guide to Splines (Springer, 1978).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

WIDTH = 4
"""Cubic B-splines that do not vanish at a point."""


class UniformKnots(eqx.Module):
    """``count`` knots from ``low`` to ``high``; ``count + 2`` B-splines live on them."""

    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)
    count: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        if not (np.isfinite([self.low, self.high]).all() and self.low < self.high):
            raise ValueError(f"knots need finite bounds, low first: got {self.low}, {self.high}")
        if self.count < 2:
            raise ValueError(f"knots need at least two points: got {self.count}")

    @property
    def num_splines(self) -> int:
        """Number of B-splines: two more than knots."""
        return self.count + 2

    def window(
        self, x: Float[Array, " grid"]
    ) -> tuple[Int[Array, " grid"], Float[Array, "grid width"]]:
        """First of the four B-splines at each point, and their values.

        Beyond the knots they go on as straight lines.
        """
        u = (x - self.low) * ((self.count - 1) / (self.high - self.low))
        interval = jax.lax.stop_gradient(jnp.clip(jnp.floor(u), 0, self.count - 2))
        t = u - interval
        inside = jnp.clip(t, 0.0, 1.0)
        values = _basis(inside) + _basis_slope(inside) * (t - inside)[None]
        return interval.astype(int), values.T


def _basis(t: Float[Array, " grid"]) -> Float[Array, "width grid"]:
    rows = [(1 - t) ** 3, 4 - 6 * t**2 + 3 * t**3, 1 + 3 * t + 3 * t**2 - 3 * t**3, t**3]
    return jnp.stack(rows) / 6


def _basis_slope(t: Float[Array, " grid"]) -> Float[Array, "width grid"]:
    rows = [-((1 - t) ** 2), 3 * t**2 - 4 * t, 1 + 2 * t - 3 * t**2, t**2]
    return jnp.stack(rows) / 2


class AdditiveSpline(eqx.Module):
    """The splines: ``coefficients[t]`` has one axis for each input that ``terms[t]`` names."""

    knots: tuple[UniformKnots, ...]
    terms: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    coefficients: tuple[Float[np.ndarray, "..."], ...]
    constant: Float[np.ndarray, ""]

    def __check_init__(self) -> None:
        if len(self.terms) != len(self.coefficients):
            raise ValueError(
                f"{len(self.terms)} terms need as many arrays of coefficients: got "
                f"{len(self.coefficients)}"
            )
        for shape, coefficients in zip(self.shapes, self.coefficients, strict=True):
            if coefficients.shape != shape:
                raise ValueError(
                    f"coefficients of shape {coefficients.shape}, but the knots need {shape}"
                )

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes that the coefficients of each term must have."""
        return spline_shapes(self.knots, self.terms)

    def __call__(self, x: Float[Array, "input grid"]) -> Float[Array, " grid"]:
        """The value g at inputs; all derivatives up to the second are continuous in the knots."""
        windows = [knots.window(row) for knots, row in zip(self.knots, x, strict=True)]
        total = jnp.broadcast_to(jnp.asarray(self.constant), x.shape[1:])
        for inputs, coefficients in zip(self.terms, self.coefficients, strict=True):
            firsts, values = zip(*(windows[i] for i in inputs), strict=True)
            total = total + _contract(jnp.asarray(coefficients), firsts, values)
        return total


def spline_shapes(
    knots: tuple[UniformKnots, ...], terms: tuple[tuple[int, ...], ...]
) -> tuple[tuple[int, ...], ...]:
    """Shapes of the coefficients of each term.

    Raises:
        ValueError: A term names no input, one twice, or one without knots.
    """
    for inputs in terms:
        known = all(0 <= i < len(knots) for i in inputs)
        if not (inputs and known and len(set(inputs)) == len(inputs)):
            raise ValueError(f"a term of the inputs {inputs}, but there are {len(knots)} of them")
    return tuple(tuple(knots[i].num_splines for i in inputs) for inputs in terms)


def _contract(
    coefficients: Float[Array, "..."],
    firsts: tuple[Int[Array, " grid"], ...],
    values: tuple[Float[Array, "grid width"], ...],
) -> Float[Array, " grid"]:
    """Sum of the windows of coefficients times the B-splines of all axes."""
    sizes = (WIDTH,) * coefficients.ndim
    windows = jax.vmap(lambda *first: jax.lax.dynamic_slice(coefficients, first, sizes))(*firsts)
    for axis in reversed(values):
        windows = jnp.einsum("g...w,gw->g...", windows, axis)
    return windows
