r"""A Gaussian process with a squared-exponential kernel, summed over its control points.

.. math:: g(x) = \sum_m w_m \exp\Big(-\sum_i \beta_i (x_i - x_{mi})^2\Big)

Ref: Rasmussen, Williams, Gaussian Processes for Machine Learning (MIT Press, 2006), Eq. 2.27.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class RadialBasis(eqx.Module):
    r"""The sum; ``exponents`` :math:`\beta_i = 1/(2 l_i^2)` are those of the length scales."""

    control_points: Float[np.ndarray, "control input"]
    weights: Float[np.ndarray, " control"]
    exponents: Float[np.ndarray, " input"]

    def __check_init__(self) -> None:
        control, inputs = self.control_points.shape
        if control == 0:
            raise ValueError("a radial basis needs at least one control point")
        if self.weights.shape != (control,) or self.exponents.shape != (inputs,):
            raise ValueError(
                f"{control} control points of {inputs} inputs need as many weights and exponents: "
                f"got {self.weights.shape} and {self.exponents.shape}"
            )
        if not np.all(np.asarray(self.exponents) > 0):
            raise ValueError(f"exponents of a radial basis must be positive: {self.exponents}")

    def __call__(self, x: Float[Array, "input grid"]) -> Float[Array, " grid"]:
        """The value g at inputs."""
        # Distances from one matrix product; from a common centre, its terms cancel least.
        points = jnp.asarray(self.control_points).T
        centre = jnp.mean(points, axis=1, keepdims=True)
        root = jnp.sqrt(jnp.asarray(self.exponents))[:, None]
        z, c = root * (x - centre), root * (points - centre)
        distance = jnp.sum(z**2, axis=0)[:, None] + jnp.sum(c**2, axis=0)[None] - 2 * z.T @ c
        return jnp.exp(-distance) @ jnp.asarray(self.weights)
