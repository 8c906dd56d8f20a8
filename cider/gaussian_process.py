r"""A Gaussian process of products of one-dimensional functions, in closed form.

The kernel is a sum over single inputs and pairs of inputs of products of one-dimensional Gaussian
kernels, each expanded in a few Chebyshev polynomials :math:`T_k` on [-1, 1]. The posterior mean
is then a quadratic form of those polynomials,

.. math:: g(x) = t(x)^T Q\, t(x) - t(x_0)^T Q\, t(x_0), \qquad
          t = (1, T_1(x_1), \dots, T_K(x_1), T_1(x_2), \dots),

which vanishes at the anchor :math:`x_0` (the uniform gas), costs one small matrix product per
point, and whose observations are integrals of :math:`t t^T` that need the grid only once.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def chebyshev_basis(x: Float[Array, "input grid"], degree: int) -> Float[Array, "grid basis"]:
    """The functions t(x): one, then ``T_1 ... T_degree`` of each input in turn."""
    polynomials = [x, 2 * x**2 - 1]
    for _ in range(2, degree):
        polynomials.append(2 * x * polynomials[-1] - polynomials[-2])
    stacked = jnp.stack(polynomials[:degree], axis=1)  # input, degree, grid
    flat = stacked.reshape(-1, x.shape[1])
    return jnp.concatenate([jnp.ones_like(flat[:1]), flat]).T


class QuadraticGaussianProcess(eqx.Module):
    """Posterior of the process: its mean, and a factor of its covariance.

    ``quadratic_form`` is the symmetric matrix Q. The covariance of the flattened Q is
    ``prior - reduction reductionᵀ`` in the parameters of the fit; it is kept as the factor
    ``covariance_factor`` of shape (parameter, rank) with ``covariance ≈ factor factorᵀ``.
    """

    quadratic_form: Float[np.ndarray, "basis basis"]
    anchor: Float[np.ndarray, " input"]
    degree: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        size = 1 + self.anchor.shape[0] * self.degree
        if self.quadratic_form.shape != (size, size):
            raise ValueError(
                f"{self.anchor.shape[0]} inputs of degree {self.degree} need a quadratic form of "
                f"{size} x {size}: got {self.quadratic_form.shape}"
            )

    def __call__(self, x: Float[Array, "input grid"]) -> Float[Array, " grid"]:
        """Posterior mean g at inputs within [-1, 1]."""
        at_anchor = self._quadratic(jnp.asarray(self.anchor)[:, None])
        return self._quadratic(x) - at_anchor

    def _quadratic(self, x: Float[Array, "input grid"]) -> Float[Array, " grid"]:
        t = chebyshev_basis(x, self.degree)
        return jnp.sum((t @ self.quadratic_form) * t, axis=1)
