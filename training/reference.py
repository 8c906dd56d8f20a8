r"""Reference data of one system: an SCF density matrix and its exact exchange energy.

The density comes from any method (a functional of libxc, or "HF"); the energy that the training
aims at is always the exact exchange of that density matrix,

.. math:: E_x[\gamma] = -\tfrac12 \sum_\sigma \mathrm{Tr}\,(\gamma_\sigma K[\gamma_\sigma])

with exact four-centre integrals. The SCF itself fits its Coulomb (and Fock) matrix, because only
the energy has to be exact for the density at hand. Its derivatives by the occupations of orbitals,

.. math:: \frac{\partial E_x}{\partial f_{i\sigma}} = -\langle i | K[\gamma_\sigma] | i \rangle

are the exchange parts of orbital energies; they come from the same integrals.
"""

import dataclasses
import re
import time
import warnings
from typing import Any

import numpy as np
import pyscf
from jaxtyping import Float
from pyscf import dft, gto, lib, scf
from scipy.spatial.transform import Rotation

from cider.training.store import Record
from cider.training.systems import System

SEMILOCAL_EXCHANGE = {"PBE_X": "GGA_X_PBE", "R2SCAN_X": "MGGA_X_R2SCAN"}
"""Exchange functionals whose energies are kept beside the exact one, for the reports."""

_DENSITY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_ROUND = 1e-3  # change of density matrices
_ORBITAL_NAME = re.compile(r"HOMO(-[1-9][0-9]*)?|LUMO")


class UnconvergedError(Exception):
    """No procedure brought the SCF to convergence."""


@dataclasses.dataclass(frozen=True)
class ReferenceSettings:
    """What determines reference data, apart from the system and the density's method.

    ``energy_tolerance`` in Ha. Grid levels are PySCF's, with its pruning. ``plane_wave_cutoff``
    (eV) is for crystals.

    Raises:
        ValueError: A grid level or the tolerance is out of range.
    """

    basis: str = "def2-tzvpd"
    molecule_grid_level: int = 2
    atom_grid_level: int = 3
    energy_tolerance: float = 1e-8
    plane_wave_cutoff: float = 600.0

    def __post_init__(self) -> None:
        for level in (self.molecule_grid_level, self.atom_grid_level):
            if level not in range(10):
                raise ValueError(f"grid level {level} does not exist; PySCF has 0 to 9")
        if not 0 < self.energy_tolerance <= 1e-4:
            raise ValueError(f"energy_tolerance {self.energy_tolerance} Ha is not in (0, 1e-4]")
        if self.plane_wave_cutoff < 200:
            raise ValueError(f"plane_wave_cutoff {self.plane_wave_cutoff} eV is below 200")

    def grid_level(self, system: System) -> int:
        """PySCF's grid level for ``system``."""
        return self.atom_grid_level if system.is_atom else self.molecule_grid_level

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-ready values, for a store's header."""
        return {"content": "reference", "version": 3, **dataclasses.asdict(self)}


def reference_key(system: System | str, density: str) -> str:
    """The record's key in a store: ``reference/<density>/<system>``."""
    if not _DENSITY_NAME.fullmatch(density):
        raise ValueError(f"{density!r} cannot name a density: use PBE, R2SCAN, HF or alike")
    return f"reference/{density}/{system if isinstance(system, str) else system.name}"


def build_molecule(system: System, basis: str) -> gto.Mole:
    """PySCF's molecule of ``system``.

    Raises:
        ValueError: PySCF has no such basis for one of the elements.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PySCF advertises another package before it raises
            return gto.M(
                atom=list(zip(system.symbols, system.positions, strict=True)),
                basis=basis,
                charge=system.charge,
                spin=system.spin,
                verbose=0,
            )
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{system.name} cannot be built in {basis}: {error}") from error


def compute_reference(system: System, density: str, settings: ReferenceSettings) -> Record:
    """SCF density of ``system`` with the method ``density``, and its exchange energies (Ha).

    A closed shell is computed restricted and stored with a spin axis of length 1. For each spin
    there are the occupied orbitals, the lowest unoccupied one, and for these in turn the derivative
    (Ha) of the exact exchange energy by the occupation of one spin orbital.

    Raises:
        ValueError: The system cannot be built.
        UnconvergedError: The SCF does not converge, whichever way it is tried.
    """
    started = time.perf_counter()
    mol = build_molecule(system, settings.basis)
    mf, procedure = _converged_scf(mol, density, settings, system)
    scf_seconds = time.perf_counter() - started

    orbitals, occupations = _spin_orbitals(mf)
    dm = density_matrix(orbitals, occupations)
    started = time.perf_counter()
    potential = exact_exchange_potential(mol, dm)
    exact = 0.5 * float(np.vdot(dm, potential))
    exchange_seconds = time.perf_counter() - started

    grids = mf.grids if hasattr(mf, "grids") else _grids(mol, settings.grid_level(system))
    energies, electrons = semilocal_exchange_energies(mol, grids, orbitals, occupations)
    arrays: dict[str, np.ndarray] = {"occupations": occupations}
    for spin, (c, n) in enumerate(zip(orbitals, occupations, strict=True)):
        occupied, unoccupied = c[:, n > 0], c[:, n == 0][:, :1]
        both = np.concatenate([occupied, unoccupied], axis=1)
        arrays[f"occupied_orbitals_{spin}"] = occupied
        arrays[f"unoccupied_orbitals_{spin}"] = unoccupied
        arrays[f"exchange_by_occupation_{spin}"] = np.sum(both * (potential[spin] @ both), axis=0)
    spin_square = mf.spin_square()[0] if system.spin else 0.0
    facts = {
        "status": "converged",
        "system": system.to_dict(),
        "density": density,
        "basis": settings.basis,
        "exact_exchange": exact,
        **energies,
        "total_energy": float(mf.e_tot),
        "spin_square": float(spin_square),
        "grid_electrons": electrons,
        "grid_points": int(grids.weights.size),
        "procedure": procedure,
        "cycles": int(getattr(mf, "cycles", 0)),
        "auxiliary_basis": str(mf.with_df.auxbasis),
        "versions": {"pyscf": pyscf.__version__, "numpy": np.__version__},
        "scf_seconds": round(scf_seconds, 3),
        "exchange_seconds": round(exchange_seconds, 3),
    }
    return Record(reference_key(system, density), arrays, facts)


def failed_reference(system: System, density: str, reason: str) -> Record:
    """The record of a system that gave no reference data, with the reason."""
    facts = {"status": "failed", "system": system.to_dict(), "density": density, "reason": reason}
    return Record(reference_key(system, density), {}, facts)


def exact_exchange_potential(
    mol: gto.Mole, dm: Float[np.ndarray, "spin ao ao"]
) -> Float[np.ndarray, "spin ao ao"]:
    """Derivative of the exact exchange energy (Ha) by the density matrix, by exact integrals.

    Spin length 1 is the total density matrix of a closed shell. The energy, half of the product of
    both, is screened to be good to about 1e-8 Ha.
    """
    solver = scf.RHF(mol)
    solver.direct_scf_tol = 1e-12
    # Integrals are recomputed, not kept: two workers share the memory of a laptop.
    solver.max_memory = 0
    # With 2 gamma_sigma = dm[0], K is linear and both spins contribute the same.
    if len(dm) == 1:
        return -0.5 * solver.get_k(mol, dm[0], hermi=1)[None]
    return -solver.get_k(mol, dm, hermi=1)


def semilocal_exchange_energies(
    mol: gto.Mole,
    grids: dft.gen_grid.Grids,
    orbitals: Float[np.ndarray, "spin ao orbital"],
    occupations: Float[np.ndarray, "spin orbital"],
) -> tuple[dict[str, float], float]:
    """Energies (Ha) of :data:`SEMILOCAL_EXCHANGE` on ``grids``, and the integrated density."""
    integrator = dft.numint.NumInt()
    energies = dict.fromkeys(SEMILOCAL_EXCHANGE, 0.0)
    electrons = 0.0
    for ao, mask, weights, _ in integrator.block_loop(mol, grids, mol.nao, deriv=1):
        rho = np.stack(
            [
                integrator.eval_rho2(mol, ao, c, n, mask, xctype="MGGA", with_lapl=False)
                for c, n in zip(orbitals, occupations, strict=True)
            ]
        )
        electrons += float(weights @ rho[:, 0].sum(axis=0))
        for name, energy in semilocal_exchange(rho, weights).items():
            energies[name] += energy
    return energies, electrons


def semilocal_exchange(
    rho: Float[np.ndarray, "spin 5 grid"], weights: Float[np.ndarray, " grid"]
) -> dict[str, float]:
    """Energies (Ha) of :data:`SEMILOCAL_EXCHANGE` of a density, its gradient and tau."""
    energies = {}
    for name, code in SEMILOCAL_EXCHANGE.items():
        kind = "MGGA" if code.startswith("MGGA") else "GGA"
        needed = rho if kind == "MGGA" else rho[:, :4]
        argument = needed if len(rho) == 2 else needed[0]
        per_particle = dft.numint.NumInt().eval_xc_eff(code, argument, deriv=0, xctype=kind)[0]
        energies[name] = float(weights @ (rho[:, 0].sum(axis=0) * per_particle))
    return energies


def density_matrix(
    orbitals: Float[np.ndarray, "spin ao orbital"], occupations: Float[np.ndarray, "spin orbital"]
) -> Float[np.ndarray, "spin ao ao"]:
    """Density matrix with a leading spin axis: total for length 1, else spin up and down."""
    return np.einsum("spi,si,sqi->spq", orbitals, occupations, orbitals)


def read_density(record: Record) -> tuple[gto.Mole, Float[np.ndarray, "spin ao ao"]]:
    """Molecule and density matrix of a record; spin length 1 is the total of a closed shell.

    Raises:
        ValueError: The record is that of a failed system.
    """
    require_density(record)
    mol = build_molecule(System.from_dict(record.facts["system"]), record.facts["basis"])
    occupations = record.arrays["occupations"]
    matrices = []
    for spin, n in enumerate(occupations):
        c = record.arrays[f"occupied_orbitals_{spin}"]
        matrices.append((c * n[n > 0]) @ c.T)
    return mol, np.stack(matrices)


def require_density(record: Record) -> None:
    """Raise ``ValueError`` if the record is that of a failed system."""
    if record.facts["status"] != "converged":
        raise ValueError(f"{record.key} has no density: {record.facts['reason']}")


def turned(
    mol: gto.Mole, dm: Float[np.ndarray, "spin ao ao"], orientation: int
) -> Float[np.ndarray, "spin ao ao"]:
    """The density matrix of an atom, turned by the random rotation of that number.

    Raises:
        ValueError: ``mol`` is no atom: a molecule's atoms would have to turn with it.
    """
    if mol.natm != 1:
        raise ValueError(f"only an atom's density can be turned: this one has {mol.natm} atoms")
    rotation = Rotation.random(random_state=orientation).as_matrix()
    turn = gto.mole.ao_rotation_matrix(mol, rotation)
    return turn @ dm @ turn.T


def is_round(record: Record) -> bool:
    """Whether the density of an atom is the same in all orientations."""
    mol, dm = read_density(record)
    return bool(np.abs(turned(mol, dm, 1) - dm).max() < _ROUND)


def check_orbital(name: str) -> None:
    """Raise ``ValueError`` unless ``name`` is HOMO, HOMO-1, HOMO-2, ... or LUMO."""
    if not _ORBITAL_NAME.fullmatch(name):
        raise ValueError(f"orbital {name!r} is none of HOMO, HOMO-1, HOMO-2, ..., LUMO")


def orbital_index(record: Record, name: str, spin: int) -> int | None:
    """The place of an orbital among a record's: the occupied ones, then the unoccupied one.

    None where there is no such orbital, or the spin has no electrons at all.
    """
    occupied = record.arrays[f"occupied_orbitals_{spin}"].shape[1]
    unoccupied = record.arrays[f"unoccupied_orbitals_{spin}"].shape[1]
    if name == "LUMO":
        return occupied if occupied and unoccupied else None
    index = occupied - 1 - int(name.partition("-")[2] or 0)
    return index if index >= 0 else None


def _spin_orbitals(mf: Any) -> tuple[np.ndarray, np.ndarray]:
    orbitals, occupations = np.asarray(mf.mo_coeff), np.asarray(mf.mo_occ)
    return (orbitals[None], occupations[None]) if occupations.ndim == 1 else (orbitals, occupations)


def _grids(mol: gto.Mole, level: int) -> dft.gen_grid.Grids:
    grids = dft.gen_grid.Grids(mol)
    grids.level = level
    return grids.build()


def _solver(mol: gto.Mole, density: str, settings: ReferenceSettings, system: System) -> Any:
    if density == "HF":
        mf = scf.UHF(mol) if mol.spin else scf.RHF(mol)
    else:
        mf = dft.UKS(mol, xc=density) if mol.spin else dft.RKS(mol, xc=density)
        mf.grids.level = settings.grid_level(system)
    needs_exchange = density == "HF" or dft.libxc.is_hybrid_xc(density)
    mf = mf.density_fit(
        auxbasis="def2-universal-jkfit" if needs_exchange else "def2-universal-jfit"
    )
    # Kept in memory; else PySCF recomputes the three-centre integrals in every cycle.
    mf.with_df.build()
    mf.conv_tol = settings.energy_tolerance
    mf.max_cycle = 60
    return mf


def _converged_scf(
    mol: gto.Mole, density: str, settings: ReferenceSettings, system: System
) -> tuple[Any, str]:
    """A converged solver and the name of the procedure that got there."""
    mf = _solver(mol, density, settings, system)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mf.kernel()
        procedure = "diis"
        if not mf.converged:
            procedure = "level shift"
            mf.level_shift, mf.max_cycle = 0.3, 150
            mf.kernel(dm0=mf.make_rdm1())
        if not mf.converged:
            procedure = "second order"
            mf.level_shift = 0
            _take_second_order_steps(mf)
        if mf.converged and system.is_atom and _has_rotations(mf):
            procedure = _follow_instabilities(mf, procedure)
    if not mf.converged:
        raise UnconvergedError(
            f"{density} SCF of {system.name} (charge {system.charge}, spin {system.spin}) does not "
            "converge with DIIS, level shift or second-order steps"
        )
    return mf, procedure


def _take_second_order_steps(mf: Any) -> None:
    newton = mf.newton()
    newton.max_cycle = 60
    newton.kernel(mf.mo_coeff, mf.mo_occ)
    for name in ("converged", "e_tot", "mo_coeff", "mo_energy", "mo_occ"):
        setattr(mf, name, getattr(newton, name))


def _has_rotations(mf: Any) -> bool:
    """Whether there are orbitals to mix: a minimal basis may leave none empty."""
    return any((n > 0).any() and (n == 0).any() for n in _spin_orbitals(mf)[1])


def _follow_instabilities(mf: Any, procedure: str) -> str:
    """Follow an atom's SCF down from saddle points, where DIIS may have stopped."""
    for _ in range(3):
        orbitals, _, stable, _ = mf.stability(return_status=True)
        if stable:
            break
        procedure = f"{procedure}, stability"
        mf.kernel(dm0=mf.make_rdm1(orbitals, mf.mo_occ))
        if not mf.converged:
            _take_second_order_steps(mf)
    return procedure


def limit_threads(count: int) -> None:
    """Let PySCF use ``count`` threads in this process."""
    lib.num_threads(count)
