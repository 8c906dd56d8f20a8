r"""Windows about the centre of a sphere, :math:`w(x) = (1 - x^p)^n`."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Window(NamedTuple):
    """One at the centre, zero from x = 1 on, with ``times - 1`` derivatives there."""

    power: int
    times: int

    def __call__(self, x: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Values; ``x`` at least zero."""
        return (1 - np.minimum(x, 1.0) ** self.power) ** self.times

    def slope(self, x: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Derivatives by ``x``."""
        inside = np.minimum(x, 1.0)
        by_base = self.times * (1 - inside**self.power) ** (self.times - 1)
        return -self.power * inside ** (self.power - 1) * by_base
