"""The part of a functional that libxc evaluates, and what PySCF asks libxc about the whole."""

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Float
from pyscf.dft import libxc
from pyscf.dft.numint import NumInt

from cider.functional import CiderFunctional

_INGREDIENTS = {"LDA": 1, "GGA": 4, "MGGA": 5}
"""How many rows of rho, grad rho, tau each level of functional reads."""


def needs_tau(functional: CiderFunctional) -> bool:
    """Whether the learned part or a libxc part reads the kinetic energy density."""
    return functional.needs_tau or any(
        libxc.xc_type(name) == "MGGA" for _, name in functional.libxc_terms
    )


def num_ingredients(functional: CiderFunctional) -> int:
    """Rows of rho, grad rho and, if a part reads it, tau; SDMX features come behind them."""
    return _INGREDIENTS["MGGA" if needs_tau(functional) else "GGA"]


def raise_not_yet(feature: str, functional: CiderFunctional) -> NoReturn:
    """Raise ``NotImplementedError``, which names the feature and what to do."""
    raise NotImplementedError(
        f"{feature} not available yet with {functional}; "
        "assign a libxc functional, as in mf.xc = 'PBE', to use PySCF's own"
    )


def check_libxc_terms(functional: CiderFunctional) -> None:
    """Raise ``ValueError`` unless every libxc term is a semilocal part of known name."""
    for _, name in functional.libxc_terms:
        if name.upper() not in libxc.XC_CODES or not {"X", "C"} & set(name.upper().split("_")):
            raise ValueError(
                f"{name!r} in {functional} is not the full libxc name of an exchange or a "
                "correlation functional: write for example correlation='GGA_C_PBE' "
                "(pyscf.dft.libxc.XC_CODES lists them)"
            )
        if libxc.is_hybrid_xc(name) or libxc.is_nlc(name):
            raise NotImplementedError(
                f"{name} in {functional} holds exact exchange or a nonlocal correlation, which "
                "is not available yet beside a learned exchange"
            )


def libxc_energy_density_and_potential(
    functional: CiderFunctional,
    rho: Float[np.ndarray, "spin ingredient grid"],
    weights: Float[np.ndarray, " grid"],
) -> tuple[Float[np.ndarray, " grid"], Float[np.ndarray, "spin ingredient grid"]]:
    """Energy density (Ha/bohr^3) of the libxc terms, and what they add to the potential.

    Like that of the learned part, the potential is the derivative of the grid sum by rho, grad rho
    and tau of each point.
    """
    energy_density = np.zeros(rho.shape[2])
    potential = np.zeros_like(rho)
    for factor, name in functional.libxc_terms:
        rows, (eps_xc, vxc) = _evaluated(name, rho, 1)
        energy_density += factor * rho[:, 0].sum(axis=0) * eps_xc
        potential[:, :rows] += factor * weights * vxc.reshape(rho.shape[0], rows, -1)
    return energy_density, potential


def libxc_second_derivative(
    functional: CiderFunctional,
    rho: Float[np.ndarray, "spin ingredient grid"],
    weights: Float[np.ndarray, " grid"],
) -> Float[np.ndarray, "spin ingredient spin ingredient grid"]:
    """Second derivative of the energy (Ha) of the libxc terms by rho, grad rho and tau."""
    total = np.zeros((*rho.shape[:2], *rho.shape))
    for factor, name in functional.libxc_terms:
        rows, (_, _, fxc) = _evaluated(name, rho, 2)
        shape = (rho.shape[0], rows) * 2
        total[:, :rows, :, :rows] += factor * weights * fxc.reshape(*shape, -1)
    return total


def _evaluated(
    name: str, rho: Float[np.ndarray, "spin ingredient grid"], order: int
) -> tuple[int, list[np.ndarray]]:
    """How many ingredients a libxc functional reads, its energy and derivatives up to an order."""
    level = libxc.xc_type(name)
    rows = _INGREDIENTS[level]
    read = rho[:, 0] if level == "LDA" else rho[:, :rows]
    polarised = rho.shape[0] == 2
    values = NumInt().eval_xc_eff(
        name, read if polarised else read[0], deriv=order, xctype=level, spin=int(polarised)
    )
    return rows, values[: order + 1]


_is_hybrid_xc = libxc.is_hybrid_xc


def is_hybrid_xc(xc_code: Any) -> bool:
    """As in libxc; a learned functional needs no exact exchange."""
    return False if isinstance(xc_code, CiderFunctional) else _is_hybrid_xc(xc_code)


def answer_for_density_fitting() -> None:
    """Put ``is_hybrid_xc`` in place of libxc's own.

    ``pyscf.df.density_fit(mf)`` asks the module, not ``mf``, when it chooses an auxiliary basis.
    """
    libxc.is_hybrid_xc = is_hybrid_xc


class LibxcWithCider:
    """The module ``pyscf.dft.libxc``, whose functions also take a ``CiderFunctional``.

    What PySCF asks about a functional is answered. What would evaluate it point by point
    (PySCF's own gradients, Hessians, grid tools) raises, because a nonlocal energy is no function
    of one point and a partial answer would be wrong in silence.
    """

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(libxc, name)
        if not callable(attribute):
            return attribute

        def function(xc: Any, *args: Any, **kwargs: Any) -> Any:
            if not isinstance(xc, CiderFunctional):
                return attribute(xc, *args, **kwargs)
            if name in _ANSWERS:
                return _ANSWERS[name](xc, *args, **kwargs)
            raise NotImplementedError(
                f"pyscf.dft.libxc.{name} cannot evaluate {xc} point by point: ask the calculation, "
                "as in mf.nuc_grad_method(), mf.Hessian() or mf.TDDFT().get_ab(), not functions "
                "and classes of PySCF's modules; what mf does not have is not available yet"
            )

        return function


def _test_deriv_order(functional: CiderFunctional, deriv: int, raise_error: bool = False) -> bool:
    if deriv > 2 and raise_error:
        raise NotImplementedError(
            f"third derivatives (k_xc) of {functional} are not available yet: no gradients of "
            "excited states or hyperpolarisabilities"
        )
    return deriv <= 2


def _reference(functional: CiderFunctional) -> list[str]:
    learned = functional.learned
    kind = "exchange and correlation" if learned.has_correlation else "exchange"
    reference = f"{learned.name}: learned {kind}, Bystrom, Kozinsky, PRB 110, 075130"
    others = [libxc.xc_reference(name) for _, name in functional.libxc_terms]
    return [reference, *(line for lines in others for line in lines)]


_ANSWERS: dict[str, Callable[..., Any]] = {
    "is_hybrid_xc": lambda functional: False,
    "is_nlc": lambda functional: False,
    "is_lda": lambda functional: False,
    "is_gga": lambda functional: not needs_tau(functional),
    "is_meta_gga": needs_tau,
    "xc_type": lambda functional: "MGGA" if needs_tau(functional) else "GGA",
    "hybrid_coeff": lambda functional, spin=0: 0.0,
    "rsh_coeff": lambda functional: (0.0, 0.0, 0.0),
    "nlc_coeff": lambda functional: (),
    "max_deriv_order": lambda functional: 2,
    "test_deriv_order": _test_deriv_order,
    "xc_reference": _reference,
}
