"""Units, axes, constants and thresholds: the one place where they are set.

Everything is in Hartree atomic units. Arrays over the real-space grid carry a leading ``spin``
axis of length 1 (closed shell: the entry is the *total* density) or 2 (spin up, spin down).
Plugins convert to the units of their host.
"""

import functools
import math
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
import numpy as np

AnyArray = jax.Array | np.ndarray
"""What hosts may pass: their arrays are NumPy's, and double precision stays so on the way in."""

_P = ParamSpec("_P")
_R = TypeVar("_R")

LDA_EXCHANGE_PREFACTOR = -0.75 * (3 / math.pi) ** (1 / 3)
r"""Exchange energy per volume of the uniform gas is this times :math:`\rho^{4/3}`."""

THOMAS_FERMI_PREFACTOR = 0.3 * (3 * math.pi**2) ** (2 / 3)
r"""Kinetic energy per volume of the uniform gas is this times :math:`\rho^{5/3}`."""

REDUCED_GRADIENT_PREFACTOR = 1 / (4 * (3 * math.pi**2) ** (2 / 3))
r""":math:`p = s^2` is this times :math:`|\nabla\rho|^2 / \rho^{8/3}`."""

DENSITY_CUTOFF = 1e-12
"""Spin-scaled density (bohr^-3) below which a point carries no exchange energy.

A tail of exp(-2r) beyond this density holds less than 1e-14 Ha, so the cutoff moves no energy
by more than the rounding error of the grid sum.
"""

GRADIENT_COMPONENTS = ((1, 2, 3), (4, 5, 6), (5, 7, 8), (6, 8, 9))
"""Of a function, its gradient and second derivatives (xx, xy, xz, yy, yz, zz), in this order:

which of these are the gradients of the first four.
"""

KCAL_PER_MOL = 627.5094740631
"""One Hartree in kcal/mol (CODATA 2018)."""

EV = 27.211386245988
"""One Hartree in eV (CODATA 2018)."""


def float64(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Run ``function`` in double precision, whatever the process set for JAX.

    Energy differences of 1e-6 of the total need it. The user's own ``jax_enable_x64`` is left
    as it was before the call and after it.
    """

    @functools.wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with jax.enable_x64(True):
            return function(*args, **kwargs)

    return wrapper
