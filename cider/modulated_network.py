r"""A neural network whose layers its inputs modulate.

.. math:: g(x) = r \cdot h_L + c, \qquad
          h_l = \tanh\big((V_l x + d_l) \circ h_{l-1} + W_l h_{l-1} + b_l\big), \qquad
          h_0 = W_0 x + b_0

The published functionals of the smoothed density matrix have one in place of a Gaussian process.
Ref: Bystrom, Falletta, Kozinsky, J. Chem. Theory Comput. 20, 7516 (2024).
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class ModulatedNetwork(eqx.Module):
    """The network; ``modulations`` are V, ``shifts`` are d, ``entry`` is the layer of no number."""

    entry_weights: Float[np.ndarray, "hidden input"]
    entry_biases: Float[np.ndarray, " hidden"]
    modulations: Float[np.ndarray, "layer hidden input"]
    shifts: Float[np.ndarray, "layer hidden"]
    weights: Float[np.ndarray, "layer hidden hidden"]
    biases: Float[np.ndarray, "layer hidden"]
    readout: Float[np.ndarray, " hidden"]
    constant: Float[np.ndarray, ""]

    def __check_init__(self) -> None:
        layers, hidden, inputs = self.modulations.shape
        expected = modulated_network_shapes(inputs, hidden, layers)
        found = {name: getattr(self, name).shape for name in expected}
        if found != expected:
            raise ValueError(
                f"a network of {inputs} inputs and {layers} layers of {hidden} units needs arrays "
                f"{expected}: got {found}"
            )

    def __call__(self, x: Float[Array, "input grid"]) -> Float[Array, " grid"]:
        """The value g at inputs."""
        hidden = self.entry_weights @ x + self.entry_biases[:, None]
        layers = (self.modulations, self.shifts, self.weights, self.biases)
        for modulation, shift, weights, biases in zip(*layers, strict=True):
            factor = modulation @ x + shift[:, None]
            hidden = jnp.tanh(factor * hidden + weights @ hidden + biases[:, None])
        return self.readout @ hidden + self.constant


def modulated_network_shapes(inputs: int, hidden: int, layers: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays of a network by their names.

    Raises:
        ValueError: There is no input, no unit or no layer.
    """
    if min(inputs, hidden, layers) < 1:
        raise ValueError(
            f"a network of {inputs} inputs and {layers} layers of {hidden} units: at least one of "
            "each is needed"
        )
    return {
        "entry_weights": (hidden, inputs),
        "entry_biases": (hidden,),
        "modulations": (layers, hidden, inputs),
        "shifts": (layers, hidden),
        "weights": (layers, hidden, hidden),
        "biases": (layers, hidden),
        "readout": (hidden,),
        "constant": (),
    }
