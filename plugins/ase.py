"""ASE: ``atoms.calc = Cider("pbe0-x-nldf", basis="def2-svp")``."""

import os
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, SCFError, all_changes
from ase.units import Bohr, Hartree

from cider.functional import CiderFunctional


class Cider(Calculator):
    """Energy (eV) and forces (eV/angstrom) of molecules with a learned functional, by PySCF.

    Forces are the derivative of the energy on its grid, so that dynamics conserves it. The orbitals
    of one geometry start the next one.

    Args:
        functional: A ``CiderFunctional``, or the name or path of one.
        host: The program that runs it: ``"pyscf"``.
        basis: Basis set of PySCF.
        charge: Charge of the molecule (e).
        spin: Unpaired electrons; by default the sum of the initial magnetic moments of the atoms.
        density_fit: Whether to fit Coulomb integrals.
        grid_level: Quality of the grid, 0 (coarse) to 9.

    Raises:
        NotImplementedError: Another host, or periodic boundary conditions.
        SCFError: The self-consistent field did not converge; the error names the molecule.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "forces"]

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
        **kwargs: Any,
    ):
        if host != "pyscf":
            raise NotImplementedError(f"host={host!r} is not available: only 'pyscf' is")
        super().__init__(**kwargs)
        if not isinstance(functional, CiderFunctional):
            functional = CiderFunctional(functional)
        self._functional = functional
        self._basis = basis
        self._charge = charge
        self._spin = spin
        self._density_fit = density_fit
        self._grid_level = grid_level
        self._solved: Any = None

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Called by ASE for what it does not have yet."""
        super().calculate(atoms, properties, system_changes)
        if self.atoms.pbc.any():
            raise NotImplementedError(
                f"{self.atoms.get_chemical_formula()} is periodic: this calculator runs molecules; "
                "set atoms.pbc = False, or run pyscf.pbc with mf.xc = CiderFunctional(...)"
            )
        if system_changes or self._solved is None:
            self._solved = self._solve(self.atoms)
        self.results["energy"] = self._solved.e_tot * Hartree
        if "forces" in properties:
            gradients = self._solved.nuc_grad_method().set(grid_response=True)
            self.results["forces"] = -gradients.kernel() * Hartree / Bohr

    def _solve(self, atoms: Atoms) -> Any:
        """The converged Kohn-Sham object of PySCF."""
        from pyscf import dft, gto

        spin = self._spin
        if spin is None:
            spin = round(float(atoms.get_initial_magnetic_moments().sum()))
        mol = gto.M(
            atom=list(zip(atoms.symbols, atoms.positions / Bohr, strict=True)),
            unit="Bohr",
            basis=self._basis,
            charge=self._charge,
            spin=spin,
            verbose=0,
        )
        method = dft.UKS if spin else dft.RKS
        mf = method(mol, xc=self._functional)
        if self._density_fit:
            mf = mf.density_fit()
        mf.grids.level = self._grid_level
        mf.conv_tol, mf.conv_tol_grad = 1e-10, 1e-6
        mf.kernel(dm0=self._guess(mf))
        if not mf.converged:
            raise SCFError(
                f"{atoms.get_chemical_formula()} (charge {self._charge}, {spin} unpaired "
                f"electrons): no convergence in {mf.max_cycle} cycles; try another geometry, "
                "spin or basis"
            )
        return mf

    def _guess(self, mf: Any) -> np.ndarray | None:
        """The density matrix of the last geometry, if it was the same molecule."""
        before = self._solved
        if before is None or before.mol.elements != mf.mol.elements or type(before) is not type(mf):
            return None
        return before.make_rdm1()
