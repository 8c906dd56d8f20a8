"""From descriptors to the inputs of a model: bounded, decorrelated, of like scale."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def bounded_ratio(
    feature: Float[Array, "*#shape"], reference: Float[Array, "*#shape"]
) -> Float[Array, "*#shape"]:
    r"""A positive feature beside its reference, mapped to [-1, 1).

    .. math:: \tanh\left(\tfrac12 \ln (G/G_0)\right) = \frac{G - G_0}{G + G_0}

    Unlike the logarithm it stays finite where the feature vanishes.
    """
    return 1 - 2 * reference / (feature + reference)


def squash(x: Float[Array, "*shape"], radius: float) -> Float[Array, "*shape"]:
    """Odd and smooth map of the line to (-1, 1), with slope 1/radius at zero."""
    return x / jnp.sqrt(x**2 + radius**2)


class InputTransform(eqx.Module):
    r"""Semilocal inputs of like scale, then decorrelated nonlocal ones, all squashed to (-1, 1).

    The transform takes out of the nonlocal descriptors a polynomial in :math:`(1, u_i, u_i u_j)` of
    the semilocal ones :math:`u`, and whitens the rest. :func:`fit_input_transform` takes out their
    mean alone.
    """

    SQUASH_RADIUS = 2.5
    LEAST_DEVIATION = 0.02
    """Standard deviation below which a nonlocal direction is not blown up to unit scale.

    What a direction of deviation 5e-4 says is no more than a thousandth of the features, which
    grids and ladders resolve to 5e-5: whitened in full, their errors became 1e-4 of the energy.
    """

    semilocal_mean: Float[np.ndarray, " semilocal"]
    semilocal_scale: Float[np.ndarray, " semilocal"]
    regression: Float[np.ndarray, "monomial nonlocal"]
    whitening: Float[np.ndarray, "nonlocal nonlocal"]

    def __call__(
        self,
        semilocal: Float[Array, "semilocal grid"],
        nonlocal_: Float[Array, "nonlocal grid"],
    ) -> Float[Array, "input grid"]:
        """Inputs of the model, semilocal ones first."""
        standard = (semilocal - self.semilocal_mean[:, None]) / self.semilocal_scale[:, None]
        residual = nonlocal_ - self.regression.T @ quadratic_monomials(semilocal)
        inputs = jnp.concatenate([standard, self.whitening.T @ residual])
        return squash(inputs, self.SQUASH_RADIUS)


class FractionTransform(eqx.Module):
    r"""Inputs that are fractions of one descriptor each, in the order of the descriptors.

    .. math:: x = c + s\, \frac{\kappa q^k}{1 + \kappa q^k}

    with q one of p, alpha and :math:`G/G_0`. Descriptors come bounded, as
    :math:`u = (q - q_0)/(q + q_0)`, in which the fraction is

    .. math:: \frac{r (1 + u)^k}{(1 - u)^k + r (1 + u)^k}, \qquad r = \kappa q_0^k

    so that it stays exact where q grows without bound.
    Ref: Bystrom, Kozinsky, Phys. Rev. B 110, 075130 (2024).
    """

    powers: tuple[int, ...] = eqx.field(static=True)
    ratios: Float[np.ndarray, " input"]
    scales: Float[np.ndarray, " input"]
    offsets: Float[np.ndarray, " input"]

    def __check_init__(self) -> None:
        if not (len(self.powers) == len(self.ratios) == len(self.scales) == len(self.offsets)):
            raise ValueError("powers, ratios, scales and offsets must be as many as the inputs")
        if not (np.all(np.isin(self.powers, (1, 2))) and np.all(np.asarray(self.ratios) > 0)):
            raise ValueError(
                f"fractions need powers 1 or 2 and positive ratios: got {self.powers}, "
                f"{self.ratios}"
            )

    def __call__(
        self,
        semilocal: Float[Array, "semilocal grid"],
        nonlocal_: Float[Array, "nonlocal grid"],
    ) -> Float[Array, "input grid"]:
        """Inputs of the model, semilocal ones first."""
        inputs = []
        for i, u in enumerate([*semilocal, *nonlocal_]):
            grown = self.ratios[i] * (1 + u) ** self.powers[i]
            fraction = grown / ((1 - u) ** self.powers[i] + grown)
            inputs.append(self.offsets[i] + self.scales[i] * fraction)
        return jnp.stack(inputs)


def quadratic_monomials(u: Float[Array, "semilocal grid"]) -> Float[Array, "monomial grid"]:
    """One, the descriptors, and their products of order two."""
    rows = [jnp.ones_like(u[0]), *u]
    rows += [u[i] * u[j] for i in range(len(u)) for j in range(i, len(u))]
    return jnp.stack(rows)


def fit_input_transform(
    semilocal: Float[np.ndarray, "semilocal grid"],
    nonlocal_: Float[np.ndarray, "nonlocal grid"],
    importance: Float[np.ndarray, " grid"],
) -> InputTransform:
    """The transform of a sample of points, each with its importance (such as its energy).

    Between a core and its valence shell p and alpha change much faster than nonlocal descriptors.
    Had these lost their regression on p and alpha, they would change as fast, and what is learned
    of them would turn open shells against the grid.
    """
    importance = importance / importance.sum()
    mean = semilocal @ importance
    scale = np.sqrt(((semilocal - mean[:, None]) ** 2) @ importance)
    # Of one orbital alone the iso-orbital indicator is constant.
    scale = np.maximum(scale, InputTransform.LEAST_DEVIATION)
    num_monomials = len(quadratic_monomials(jnp.asarray(semilocal)))
    polynomial = np.zeros((num_monomials, len(nonlocal_)))
    polynomial[0] = nonlocal_ @ importance
    residual = nonlocal_ - polynomial[0][:, None]
    variances, directions = np.linalg.eigh((residual * importance) @ residual.T)
    deviations = np.sqrt(variances + InputTransform.LEAST_DEVIATION**2)
    return InputTransform(mean, scale, polynomial, directions / deviations)
