"""Teach GPAW about ``CiderFunctional`` as soon as both packages are imported, in either order.

Two methods of ``gpaw.dft`` take one more case each: what may be given as ``xc=``, and what builds
a calculation with it. All others do what they did.
"""

import inspect
from typing import Any

from cider.when_imported import when_imported

SUPPORTED = (26, 7), (27,)
"""First supported version of GPAW, and the first that is not."""


def install() -> None:
    """Make ``GPAW(xc=CiderFunctional(...))`` work in this process.

    It does not import GPAW. Calling it again changes nothing.
    """
    when_imported("gpaw.dft", _extend)


def _extend() -> None:
    from gpaw.dft import XC, Parameters

    if not hasattr(XC.from_param, "before_cider"):
        XC.from_param = _with_cider_functionals(XC.from_param)
        Parameters.dft_component_builder = _with_cider_builder(Parameters.dft_component_builder)


def _with_cider_functionals(from_param: Any) -> Any:
    def from_param_with_cider(xc: Any) -> Any:
        # Not before: it needs the package that is being imported when the hook is put in place.
        from cider.functional import CiderFunctional

        if not isinstance(xc, CiderFunctional) and not _is_named_cider(xc):
            return from_param(xc)
        require_supported_gpaw()
        from cider.plugins.gpaw.parameter import CiderXC

        return CiderXC(xc) if isinstance(xc, CiderFunctional) else CiderXC.from_dict(xc)

    from_param_with_cider.before_cider = from_param  # type: ignore[attr-defined]
    return staticmethod(from_param_with_cider)


def _is_named_cider(xc: Any) -> bool:
    return xc == "cider" or (isinstance(xc, dict) and xc.get("name") == "cider")


def _with_cider_builder(dft_component_builder: Any) -> Any:
    def dft_component_builder_with_cider(
        self: Any, atoms: Any, *, comm: Any = None, log: Any = None
    ) -> Any:
        functional = getattr(self.xc, "cider_functional", None)
        if functional is None:
            return dft_component_builder(self, atoms, comm=comm, log=log)
        from cider.plugins.gpaw.builder import cider_builder

        return cider_builder(functional, atoms, self, comm=comm, log=log)

    return dft_component_builder_with_cider


def require_supported_gpaw() -> None:
    """Raise ``ImportError`` unless this version of GPAW, and what we use of it, is known."""
    import gpaw
    from gpaw.new.builder import create_uniform_grid
    from gpaw.new.pw.builder import PWDFTComponentsBuilder
    from gpaw.new.pw.hamiltonian import PWHamiltonian
    from gpaw.new.pw.pot_calc import PlaneWavePotentialCalculator
    from gpaw.new.scf import SCFLoop
    from gpaw.new.xc import Functional
    from gpaw.xc.gga import GGA
    from gpaw.xc.lda import calculate_paw_correction

    first, beyond = SUPPORTED
    version = tuple(int(part) for part in gpaw.__version__.split(".")[:2] if part.isdigit())
    if not first <= version < beyond:
        raise ImportError(
            f"learned functionals run on GPAW 26.7 up to, but not including, 27: this is "
            f"{gpaw.__version__}; pip install 'cider-xc[gpaw]'"
        )
    builder, calculator = PWDFTComponentsBuilder, PlaneWavePotentialCalculator
    expected = {
        create_uniform_grid: "mode gpts cell pbc symmetries h interpolation ecut comm",
        builder.create_uniform_grids: "self",
        builder.create_mixer: "self",
        builder.create_scf_loop: "self",
        builder.create_hamiltonian_operator: "self blocksize",
        builder.create_potential_calculator: "self",
        SCFLoop: "hamiltonian occ_calc eigensolver mixer comm convergence maxiter",
        SCFLoop.iterate: (
            "self ibzwfs density potential energies pot_calc maxiter calculate_forces log"
        ),
        PWHamiltonian.apply: (
            "self vt_sR dedtaut_sR ibzwfs D_asii psit_nG out spin calculate_energy"
        ),
        Functional.calculate: "self nt_sr taut_sr",
        Functional.calculate_paw_correction: "self setup d h a",
        GGA.calculate_paw_correction: "self setup D_sp dEdD_sp addcoredensity a",
        calculate_paw_correction: "expansion setup D_sp dEdD_sp addcoredensity a",
        Functional.stress_contribution: "self ibzwfs density interpolate",
        calculator.calculate: "self density ibzwfs vHt_x kpt_band_comm",
        calculator.calculate_without_orbitals: "self density ibzwfs vHt_x kpt_band_comm",
        calculator.calculate_pseudo_potential: "self density ibzwfs vHt_h",
        calculator.move: "self relpos_ac atomdist",
        calculator.force_contributions: "self Q_aL density potential",
        calculator.stress: "self ibzwfs density potential",
    }
    for method, parameters in expected.items():
        found = " ".join(inspect.signature(method).parameters)
        if found != parameters:
            raise ImportError(
                f"{method.__qualname__} of GPAW {gpaw.__version__} takes ({found}), not "
                f"({parameters}): pip install 'gpaw>=26.7,<27'"
            )
