"""ASE: ``atoms.calc = Cider("pbe0-x-nldf", basis="def2-svp")``."""

import os
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import (
    Calculator,
    PropertyNotImplementedError,
    SCFError,
    all_changes,
)
from ase.stress import full_3x3_to_voigt_6_stress
from ase.units import Bohr, Hartree

from cider.functional import CiderFunctional


class Cider(Calculator):
    """Energy (eV) and forces (eV/angstrom) of molecules with a learned functional, by PySCF.

    Of crystals, the same per cell and the stress (eV/angstrom^3). Forces are the derivative of the
    energy on its grid, so that dynamics conserves it. The orbitals of one geometry start the next
    one.

    With ``host="gpaw"`` it is GPAW's own calculator, with all that it can do, and takes GPAW's
    parameters in place of those below: ``Cider("pbe0-x-nldf", host="gpaw", mode=PW(400))``.

    Args:
        functional: A ``CiderFunctional``, or the name or path of one.
        host: The program that runs it: ``"pyscf"`` or ``"gpaw"``.
        basis: Basis set of PySCF.
        charge: Charge of the molecule, or of a cell (e).
        spin: Unpaired electrons; by default the sum of the initial magnetic moments of the atoms.
        density_fit: Whether to fit Coulomb integrals; for molecules.
        grid_level: Quality of the grid of a molecule, 0 (coarse) to 9.
        pseudo: Pseudopotentials of crystals, such as ``"gth-pbe"``, which go with a GTH basis.
        kpts: k-points of crystals along each reciprocal lattice vector.
        mesh: Points of crystals along each lattice vector. PySCF's default depends on the cell:
            give one where the energy of one cell is compared to another's.

    Raises:
        ValueError: An unknown host, or a crystal without pseudopotentials.
        ImportError: GPAW is not installed.
        NotImplementedError: Atoms that are periodic in some directions only, or crystals with
            density fitting.
        PropertyNotImplementedError: The stress of a molecule.
        SCFError: The self-consistent field did not converge; the error names the molecule.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "forces", "stress"]

    def __new__(
        cls,
        functional: CiderFunctional | str | os.PathLike[str] = "pbe0-x-nldf",
        *,
        host: str = "pyscf",
        **parameters: Any,
    ) -> Any:
        """The calculator of the host."""
        if host == "pyscf":
            return super().__new__(cls)
        if host != "gpaw":
            raise ValueError(f"host={host!r} is not available: choose 'pyscf' or 'gpaw'")
        try:
            from gpaw import GPAW
        except ImportError:
            raise ImportError(
                "host='gpaw' needs GPAW: pip install 'cider-xc[gpaw]'; see docs/gpaw.md for the "
                "system packages that it is compiled with"
            ) from None
        return GPAW(xc=_as_functional(functional), **parameters)

    def __init__(
        self,
        functional: CiderFunctional | str | os.PathLike[str] = "pbe0-x-nldf",
        *,
        host: str = "pyscf",
        basis: str = "def2-svp",
        charge: int = 0,
        spin: int | None = None,
        density_fit: bool = False,
        grid_level: int = 3,
        pseudo: str | None = None,
        kpts: Sequence[int] = (1, 1, 1),
        mesh: Sequence[int] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self._functional = _as_functional(functional)
        self._basis = basis
        self._charge = charge
        self._spin = spin
        self._density_fit = density_fit
        self._grid_level = grid_level
        self._pseudo = pseudo
        self._kpts = kpts
        self._mesh = mesh
        self._solved: Any = None

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Called by ASE for what it does not have yet."""
        super().calculate(atoms, properties, system_changes)
        periodic = self.atoms.pbc.any()
        if "stress" in properties and not periodic:
            raise PropertyNotImplementedError("a molecule has no stress: set atoms.pbc = True")
        if system_changes or self._solved is None:
            self._solved = self._solve(self.atoms)
        self.results["energy"] = self._solved.e_tot * Hartree
        if "forces" in properties:
            gradients = self._solved.nuc_grad_method()
            if not periodic:
                gradients.grid_response = True
            self.results["forces"] = -gradients.kernel() * Hartree / Bohr
        if "stress" in properties:
            stress = self._solved.nuc_grad_method().get_stress()
            self.results["stress"] = full_3x3_to_voigt_6_stress(stress) * Hartree / Bohr**3

    def _solve(self, atoms: Atoms) -> Any:
        """The converged Kohn-Sham object of PySCF."""
        spin = self._spin
        if spin is None:
            spin = round(float(atoms.get_initial_magnetic_moments().sum()))
        mf = self._crystal(atoms, spin) if atoms.pbc.any() else self._molecule(atoms, spin)
        mf.conv_tol, mf.conv_tol_grad = 1e-10, 1e-6
        mf.kernel(dm0=self._guess(mf))
        if not mf.converged:
            raise SCFError(
                f"{atoms.get_chemical_formula()} (charge {self._charge}, {spin} unpaired "
                f"electrons): no convergence in {mf.max_cycle} cycles; try another geometry, "
                "spin or basis"
            )
        return mf

    def _molecule(self, atoms: Atoms, spin: int) -> Any:
        from pyscf import dft, gto

        mol = gto.M(**self._system(atoms, spin))
        mf = (dft.UKS if spin else dft.RKS)(mol, xc=self._functional)
        if self._density_fit:
            mf = mf.density_fit()
        mf.grids.level = self._grid_level
        return mf

    def _crystal(self, atoms: Atoms, spin: int) -> Any:
        from pyscf.pbc import dft, gto

        formula = atoms.get_chemical_formula()
        if not atoms.pbc.all():
            raise NotImplementedError(
                f"{formula} is periodic in some directions only: set atoms.pbc = True and leave "
                "vacuum between the images"
            )
        if self._density_fit:
            raise NotImplementedError(
                f"{formula} is periodic: PySCF has no forces and stress of crystals with density "
                "fitting; leave it out"
            )
        if self._pseudo is None:
            raise ValueError(
                f"{formula} is periodic: give pseudopotentials and a basis that goes with them, "
                "such as pseudo='gth-pbe', basis='gth-dzvp'"
            )
        cell = gto.M(
            **self._system(atoms, spin),
            a=atoms.cell.array / Bohr,
            pseudo=self._pseudo,
            mesh=self._mesh,
        )
        kpts = cell.make_kpts(self._kpts)
        mf = (dft.KUKS if spin else dft.KRKS)(cell, kpts=kpts, xc=self._functional)
        if spin:  # of one cell, where PySCF counts those of all k-points
            mf.nelec = tuple(len(kpts) * count for count in cell.nelec)
        return mf

    def _system(self, atoms: Atoms, spin: int) -> dict[str, Any]:
        """What molecules and cells of PySCF have in common."""
        return {
            "atom": list(zip(atoms.symbols, atoms.positions / Bohr, strict=True)),
            "unit": "Bohr",
            "basis": self._basis,
            "charge": self._charge,
            "spin": spin,
            "verbose": 0,
        }

    def _guess(self, mf: Any) -> np.ndarray | None:
        """The density matrix of the last geometry, if it was the same molecule."""
        before = self._solved
        if before is None or before.mol.elements != mf.mol.elements or type(before) is not type(mf):
            return None
        return before.make_rdm1()


def _as_functional(functional: CiderFunctional | str | os.PathLike[str]) -> CiderFunctional:
    return functional if isinstance(functional, CiderFunctional) else CiderFunctional(functional)
