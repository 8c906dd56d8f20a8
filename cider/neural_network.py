r"""An ensemble of neural networks, which vanish in the uniform gas and are bounded.

.. math:: g(x) = \frac1M \sum_m b\,\varsigma\big((f_m(x) - f_m(x_0))/b\big), \qquad
          f_m(x) = r_m \cdot h_L, \quad h_l = \varsigma(W_{ml} h_{l-1} + c_{ml}), \quad h_0 = x,

with :math:`\varsigma(z) = z/\sqrt{1 + z^2}`, so that g has all derivatives, is zero at the anchor
:math:`x_0` (the uniform gas) and stays within the bound b, whatever the weights are. The members
differ by where their training began; how far they are from one another tells how little the
observations say.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cider.input_transform import squash


class NeuralNetworkEnsemble(eqx.Module):
    """The networks: ``weights`` and ``biases`` of each hidden layer, ``readout`` of the last."""

    weights: tuple[Float[np.ndarray, "member _ _"], ...]
    biases: tuple[Float[np.ndarray, "member _"], ...]
    readout: Float[np.ndarray, "member hidden"]
    anchor: Float[np.ndarray, " input"]
    bound: float = eqx.field(static=True)

    def __check_init__(self) -> None:
        members, last = self.readout.shape
        sizes = (self.anchor.shape[0], *(b.shape[-1] for b in self.biases))
        expected = network_shapes(members, sizes)
        found = (*(w.shape for w in self.weights), *(b.shape for b in self.biases))
        if found != expected or last != sizes[-1]:
            raise ValueError(
                f"{members} networks of layers {sizes} need weights and biases {expected} and a "
                f"readout of {sizes[-1]}: got {found} and {last}"
            )
        if not (np.isfinite(self.bound) and self.bound > 0):
            raise ValueError(f"the bound of a network must be positive: got {self.bound}")

    def __call__(self, x: Float[Array, "input grid"]) -> Float[Array, " grid"]:
        """The mean of the members."""
        return jnp.mean(self.members(x), axis=0)

    def members(self, x: Float[Array, "input grid"]) -> Float[Array, "member grid"]:
        """The value of each member."""
        beyond = self._last_layer(x) - self._last_layer(jnp.asarray(self.anchor)[:, None])
        value = jnp.einsum("mh,mhg->mg", jnp.asarray(self.readout), beyond)
        return self.bound * squash(value / self.bound, 1.0)

    def _last_layer(self, x: Float[Array, "input grid"]) -> Float[Array, "member hidden grid"]:
        hidden = jnp.broadcast_to(x, (len(self.readout), *x.shape))
        for weights, biases in zip(self.weights, self.biases, strict=True):
            before = jnp.einsum("moi,mig->mog", jnp.asarray(weights), hidden)
            hidden = squash(before + jnp.asarray(biases)[:, :, None], 1.0)
        return hidden


def network_shapes(members: int, sizes: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Shapes of the weights, then of the biases, of hidden layers; inputs are the first size.

    Raises:
        ValueError: There is no member, no hidden layer, or one without a unit.
    """
    if members < 1 or len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"{members} networks of layers {sizes}: at least one of each is needed")
    weights = tuple((members, *pair) for pair in zip(sizes[1:], sizes[:-1], strict=True))
    return (*weights, *((members, size) for size in sizes[1:]))
