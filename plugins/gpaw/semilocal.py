"""The part of a functional that libxc evaluates, as an object of GPAW."""

import numpy as np
from gpaw.xc.functional import XCFunctional
from gpaw.xc.libxc import LibXC
from gpaw.xc.mgga import MGGA

from cider.functional import CiderFunctional
from cider.plugins.gpaw.radial_gga import RadialGGA, WithoutTauInSpheres


def semilocal_functional(functional: CiderFunctional) -> XCFunctional:
    """The libxc terms of a functional, of the level that the whole needs.

    Raises ``ImportError`` where GPAW was built without libxc, ``ValueError`` for unknown names.
    """
    kernel = LibxcTerms(functional)
    if kernel.type == "GGA":
        semilocal = RadialGGA(kernel)
    else:
        semilocal = MGGA(kernel) if kernel.reads_tau else WithoutTauInSpheres(kernel)
    # Data sets are named after the functional that made them: there is none for ours.
    semilocal.get_setup_name = lambda: "PBE"
    return semilocal


class LibxcTerms:
    """GPAW's interface of pointwise functionals, for a weighted sum of those of libxc."""

    def __init__(self, functional: CiderFunctional):
        self.name = functional.name
        self.terms = [(weight, _libxc(name)) for weight, name in functional.libxc_terms]
        self.reads_tau = any(term.type == "MGGA" for _, term in self.terms)
        self.type = "MGGA" if self.reads_tau or functional.needs_tau else "GGA"

    def calculate(
        self,
        e_g: np.ndarray,
        n_sg: np.ndarray,
        dedn_sg: np.ndarray,
        sigma_xg: np.ndarray,
        dedsigma_xg: np.ndarray,
        tau_sg: np.ndarray | None = None,
        dedtau_sg: np.ndarray | None = None,
    ) -> None:
        """Energy density (Ha/bohr^3) and its derivatives; that by the density is added."""
        written = [array for array in (e_g, dedsigma_xg, dedtau_sg) if array is not None]
        for array in written:
            array[:] = 0.0
        for weight, term in self.terms:
            own = [np.zeros_like(array) for array in written]
            own_dedn = np.zeros_like(dedn_sg)
            tau = (tau_sg, own[2]) if tau_sg is not None else ()
            # libxc may write to what it reads.
            term.calculate(own[0], n_sg.copy(), own_dedn, sigma_xg.copy(), own[1], *tau)
            dedn_sg += weight * own_dedn
            for array, part in zip(written, own, strict=True):
                array += weight * part


def _libxc(name: str) -> LibXC:
    try:
        return LibXC(name)
    except NameError as error:
        if "not compiled" in str(error):
            raise ImportError(
                f"GPAW was built without libxc, which has {name}: install libxc's development "
                "files (Debian: apt-get install libxc-dev) and build GPAW again "
                "(pip install --force-reinstall --no-cache-dir --no-binary gpaw gpaw)"
            ) from None
        raise ValueError(
            f"{name!r} is no full libxc name: write for example correlation='GGA_C_PBE'"
        ) from None
