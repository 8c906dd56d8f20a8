"""Second derivatives of the energy by nuclear positions: differences of gradients."""

import itertools
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from pyscf import lib
from pyscf.data import nist
from pyscf.gto import MoleBase
from pyscf.hessian.rhf import HessianBase
from pyscf.lib import logger

from cider.plugins.pyscf.libxc import raise_not_yet

ENERGY_TOLERANCE = 1e-5
"""Largest energy (Ha) that gradients may leave unexplained between two positions of an atom.

The step's own error is 1e-8; another electronic state is farther away.
"""


class CiderHessian(HessianBase):
    """Nuclear Hessian of a Kohn-Sham object of molecules, in the shape and units of PySCF.

    Central differences of analytic gradients: two self-consistent fields for each coordinate, each
    from the converged density matrix. The object itself and its checkpoint stay as they are.

    Attributes:
        step: How far an atom is moved (bohr). Water's frequencies with pbe0-x-nldf at grid level 1
            differ by up to 1 cm^-1 between steps of 0.01 and 0.02.
        grid_response: Whether the gradients are derivatives of the energy on its grid.
        de: The Hessian (Ha/bohr^2); axes are atom, atom, xyz, xyz.
        dipole_derivatives: The derivative of the dipole (e); axes are atom, xyz, xyz of the dipole.
    """

    _keys = frozenset({"step", "grid_response", "dipole_derivatives"})

    def __init__(self, mf: Any):
        super().__init__(mf)
        self.step = 0.01
        self.grid_response = True
        self.dipole_derivatives: Float[np.ndarray, "atom xyz xyz"] | None = None

    def kernel(
        self, mo_energy: Any = None, mo_coeff: Any = None, mo_occ: Any = None, atmlst: Any = None
    ) -> Float[np.ndarray, "atom atom xyz xyz"]:
        """The Hessian between the atoms ``atmlst``; orbitals are where the moved ones start from.

        Raises ``RuntimeError`` where a moved atom leaves the self-consistent field without
        convergence or in another state.
        """
        self._require_supported()
        if self.base.mo_coeff is None:
            self.base.run()
        atoms = list(self.atmlst if atmlst is None else atmlst)
        dm = self.base.make_rdm1(
            self.base.mo_coeff if mo_coeff is None else mo_coeff,
            self.base.mo_occ if mo_occ is None else mo_occ,
        )
        logger.note(
            self,
            "Hessian with a learned functional: central differences of %d gradients, "
            "each from a self-consistent field with an atom moved by %g bohr",
            6 * len(atoms),
            self.step,
        )
        moved = _private_copy(self.base).set(chkfile=None)
        moved.conv_tol = min(moved.conv_tol, 1e-10)
        moved.conv_tol_grad = min(moved.conv_tol_grad or 1.0, 1e-6)
        by_coordinate = [
            self._derivative(moved, dm, atom, axis)
            for atom, axis in itertools.product(atoms, range(3))
        ]
        gradients, dipoles = (np.stack(x) for x in zip(*by_coordinate, strict=True))
        rows = gradients.reshape(len(atoms), 3, self.mol.natm, 3).transpose(0, 2, 1, 3)
        self.dipole_derivatives = dipoles.reshape(len(atoms), 3, 3)
        hessian = rows[:, atoms]
        transpose = hessian.transpose(1, 0, 3, 2)
        logger.info(
            self,
            "Hessian: asymmetric by %.2g, translation of the molecule %.2g Ha/bohr^2",
            abs(hessian - transpose).max(),
            abs(rows.sum(axis=1)).max(),
        )
        self.atmlst = atoms
        self.de = (hessian + transpose) / 2
        return self.de

    hess = kernel

    def _derivative(
        self, mf: Any, dm: Any, atom: int, axis: int
    ) -> tuple[Float[np.ndarray, "atom xyz"], Float[np.ndarray, " xyz"]]:
        """Of the gradient and the dipole by one coordinate of an atom."""
        ahead, behind = (self._moved(mf, dm, atom, axis, s * self.step) for s in (1, -1))
        gradients = (ahead.gradient - behind.gradient) / (2 * self.step)
        explained = gradients[atom, axis] * self.step**2
        unexplained = ahead.energy + behind.energy - 2 * self.base.e_tot - explained
        if abs(unexplained) > ENERGY_TOLERANCE:
            raise RuntimeError(
                f"Hessian: with {self._name(atom, axis)} moved by {self.step:g} bohr the energy "
                f"changes by {unexplained:.2g} Ha more than its gradient says, as between two "
                "electronic states; check mf.stability() and mf.converged"
            )
        logger.info(self, "%s: done", self._name(atom, axis))
        return gradients, (ahead.dipole - behind.dipole) / (2 * self.step)

    def _moved(self, mf: Any, dm: Any, atom: int, axis: int, step: float) -> "_Displaced":
        coords = self.mol.atom_coords()
        coords[atom, axis] += step
        mol = self.mol.copy()
        mol.unit, mol.verbose = "Bohr", mf.verbose
        mf.reset(mol.set_geom_(coords, symmetry=bool(mol.symmetry)))
        energy = mf.kernel(dm0=dm)
        if not mf.converged:
            raise RuntimeError(
                f"Hessian: no convergence with {self._name(atom, axis)} moved by {step:g} bohr in "
                f"{mf.max_cycle} cycles; raise mf.max_cycle or take mf.newton()"
            )
        gradients = mf.nuc_grad_method().set(grid_response=self.grid_response)
        return _Displaced(energy, gradients.kernel(), mf.dip_moment(unit="AU", verbose=0))

    def _name(self, atom: int, axis: int) -> str:
        return f"atom {atom} ({self.mol.atom_symbol(atom)}) along {'xyz'[axis]}"

    def _require_supported(self) -> None:
        if self.base.istype("_Solvation"):
            # PySCF's class for it adds the solvent to the Hessian, which these gradients have.
            raise_not_yet("Hessians in a solvent are", self.base.xc)
        if getattr(self.base, "irrep_nelec", None):
            # An atom that moves breaks the symmetry that they belong to.
            raise_not_yet("Hessians with irrep_nelec are", self.base.xc)

    def to_gpu(self) -> Any:
        """Not available yet with a learned functional."""
        raise_not_yet("gpu4pyscf is", self.base.xc)

    def make_h1(self, *args: Any, **kwargs: Any) -> Any:
        """Not available: there are no analytic Hessians of learned functionals."""
        raise_not_yet(
            "the analytic response to a moving nucleus (make_h1, gen_hop) is", self.base.xc
        )

    hess_elec = partial_hess_elec = gen_hop = make_h1


class _Displaced(NamedTuple):
    """What was computed with one atom moved."""

    energy: float
    gradient: Float[np.ndarray, "atom xyz"]
    dipole: Float[np.ndarray, " xyz"]


def _private_copy(method: Any) -> Any:
    """A copy that another molecule can be given to, and that says no more than warnings.

    PySCF's ``copy`` is shallow: ``reset`` would change the grids and the density fitting of both.
    """
    copy = method.copy()
    copy.verbose = min(copy.verbose, logger.WARN)
    for name, value in vars(copy).items():
        if isinstance(value, lib.StreamObject) and not isinstance(value, MoleBase):
            copy.__dict__[name] = _private_copy(value)
    return copy


def infrared_intensities(
    normal_modes: Float[np.ndarray, "mode atom xyz"],
    dipole_derivatives: Float[np.ndarray, "atom xyz xyz"],
) -> Float[np.ndarray, " mode"]:
    r"""Absorption intensities (km/mol) of the fundamental bands, harmonic.

    .. math:: A_k = \frac{N_A}{12 \epsilon_0 c^2} |\partial\mu / \partial Q_k|^2

    ``normal_modes`` are ``norm_mode`` of ``pyscf.hessian.thermo.harmonic_analysis``
    (amu^(-1/2)), ``dipole_derivatives`` those of a ``CiderHessian``.
    """
    by_modes = np.einsum("kax,axd->kd", normal_modes, dipole_derivatives)
    squared = nist.E_CHARGE**2 / nist.ATOMIC_MASS * np.sum(by_modes**2, axis=1)
    # 1 / (epsilon_0 c^2) is the vacuum permeability; metres to kilometres.
    return nist.AVOGADRO * 4e-7 * np.pi / 12 * squared / 1e3
