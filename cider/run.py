"""Self-consistent calculations of one molecule, side by side with PBE and PBE0."""

import dataclasses
import functools
import itertools
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cider.conventions import EV
from cider.functional import CiderFunctional

COMPARISON = ("PBE", "PBE0")
"""Hand-made functionals that every table shows beside the learned one."""

_GRID_LEVELS = range(10)

_LEAST_DISTANCE = 0.05
"""Angstrom; no nuclei come this close, but a file may list an atom twice."""


@dataclasses.dataclass(frozen=True)
class Molecule:
    """Elements and positions (angstrom), charge (e) and number of unpaired electrons."""

    name: str
    symbols: tuple[str, ...]
    positions: tuple[tuple[float, float, float], ...]
    charge: int = 0
    spin: int = 0

    def __post_init__(self) -> None:
        from ase.data import atomic_numbers

        if not np.all(np.isfinite(self.positions)):
            raise ValueError(f"{self.name}: a position is not a finite number")
        for first, second in itertools.combinations(range(len(self.symbols)), 2):
            if math.dist(self.positions[first], self.positions[second]) < _LEAST_DISTANCE:
                raise ValueError(
                    f"{self.name}: atoms {first + 1} and {second + 1} are at the same place"
                )
        electrons = sum(atomic_numbers[symbol] for symbol in self.symbols) - self.charge
        if electrons < 1:
            raise ValueError(f"{self.name}: charge {self.charge} leaves no electron")
        if not 0 <= self.spin <= electrons:
            raise ValueError(
                f"{self.name}: {electrons} electrons cannot have {self.spin} unpaired ones"
            )
        if (electrons - self.spin) % 2:
            raise ValueError(
                f"{self.name} with charge {self.charge} has {electrons} electrons, so not "
                f"{self.spin} unpaired ones; give an {'odd' if electrons % 2 else 'even'} spin "
                "(the number of unpaired electrons, 2S) or another charge"
            )


@dataclasses.dataclass(frozen=True)
class Calculation:
    """What to calculate. ``comparison`` names libxc functionals to run beside it."""

    molecule: Molecule
    functional: CiderFunctional
    title: str
    basis: str = "def2-svp"
    grid_level: int = 3
    density_fit: bool = False
    max_cycles: int = 50
    comparison: tuple[str, ...] = COMPARISON

    def __post_init__(self) -> None:
        if self.grid_level not in _GRID_LEVELS:
            raise ValueError(
                f"grid levels go from {_GRID_LEVELS[0]} (coarse) to {_GRID_LEVELS[-1]}: got "
                f"{self.grid_level}"
            )
        if self.max_cycles < 1:
            raise ValueError(f"a calculation needs at least one cycle: got {self.max_cycles}")


@dataclasses.dataclass(frozen=True)
class Result:
    """One functional's calculation: energies in Ha, orbital energies in eV, time in seconds.

    The three exchange energies are those of this calculation's density matrix. ``lumo`` is
    ``None`` if the basis leaves no orbital empty.
    """

    title: str
    converged: bool
    energy: float
    exact_exchange: float
    learned_exchange: float
    pbe_exchange: float
    homo: float
    lumo: float | None
    iterations: int
    seconds: float


def embedded_molecule() -> Molecule:
    """The default of ``cider run``: water, from the G2/97 set that comes with ASE."""
    from ase.build import molecule

    return _from_ase("H2O", molecule("H2O"), charge=0, spin=0)


def read_molecule(path: str | os.PathLike[str], charge: int = 0, spin: int = 0) -> Molecule:
    """The molecule of an XYZ file (positions in angstrom).

    Raises:
        ValueError: The file cannot be read, is periodic, or does not fit charge and spin.
    """
    import ase.io

    path = Path(path)
    try:
        atoms = ase.io.read(path, format="extxyz")
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except (OSError, ValueError, KeyError, IndexError, StopIteration) as error:
        raise ValueError(
            f"{path} is not a readable XYZ file ({str(error) or 'it is empty'}); it needs the "
            "number of atoms, a comment line, then one line per atom: element x y z in angstrom"
        ) from None
    if isinstance(atoms, list):
        raise ValueError(f"{path} holds {len(atoms)} structures; give a file with one")
    if atoms.pbc.any():
        raise ValueError(
            f"{path} describes a periodic structure; only molecules are supported so far"
        )
    if not len(atoms):
        raise ValueError(f"{path} holds no atom")
    return _from_ase(path.stem, atoms, charge, spin)


def run(
    calculation: Calculation, progress: Callable[[str], None] | None = None
) -> tuple[Result, ...]:
    """The calculation, then the ones to compare with; ``progress`` hears of every cycle.

    Raises:
        ValueError: The basis does not exist or lacks an element.
        NotImplementedError: The functional cannot do this kind of calculation yet.
    """
    mol = _build(calculation)
    return tuple(_results(calculation, mol, progress or (lambda _: None)))


def _results(
    calculation: Calculation, mol: Any, progress: Callable[[str], None]
) -> Iterator[Result]:
    functionals: dict[str, CiderFunctional | str] = {calculation.title: calculation.functional}
    functionals |= {name: name for name in calculation.comparison}
    learned_exchange = CiderFunctional(calculation.functional.learned.exchange)
    learned_mf = None
    for title, functional in functionals.items():
        started = time.perf_counter()
        mf = _converge(calculation, mol, functional, functools.partial(_tell, progress, title))
        seconds = time.perf_counter() - started
        _tell(progress, title, "exchange energies of its density matrix")
        # On one grid for all columns: the functional is compiled and its nonlocal map built once.
        learned_mf = learned_mf or mf
        dm = mf.make_rdm1()
        homo, lumo = _frontier_orbitals(mf)
        yield Result(
            title=title,
            converged=bool(mf.converged),
            energy=float(mf.e_tot),
            exact_exchange=_exact_exchange(mf, dm),
            learned_exchange=_exchange(learned_mf, learned_exchange, dm),
            pbe_exchange=_exchange(learned_mf, "PBE,", dm),
            homo=homo,
            lumo=lumo,
            iterations=int(mf.cycles),
            seconds=seconds,
        )


def _tell(progress: Callable[[str], None], title: str, line: str) -> None:
    progress(f"{title}: {line}")


def _converge(
    calculation: Calculation,
    mol: Any,
    functional: CiderFunctional | str,
    progress: Callable[[str], None],
) -> Any:
    from pyscf import dft

    mf = (dft.UKS if mol.spin else dft.RKS)(mol, xc=functional)
    if calculation.density_fit:
        mf = mf.density_fit()
    mf.grids.level = calculation.grid_level
    mf.max_cycle = calculation.max_cycles
    mf.callback = lambda state: progress(f"cycle {state['cycle'] + 1}, {state['e_tot']:.6f} Ha")
    mf.kernel()
    return mf


def _exchange(mf: Any, functional: CiderFunctional | str, dm: np.ndarray) -> float:
    """Energy (Ha) that an exchange functional gives for a density matrix, on the grid of ``mf``."""
    integrate = mf._numint.nr_rks if dm.ndim == 2 else mf._numint.nr_uks
    _, energy, _ = integrate(mf.mol, mf.grids, functional, dm)
    return float(energy)


def _exact_exchange(mf: Any, dm: np.ndarray) -> float:
    """Exact (Fock) exchange energy in Ha of a density matrix, with or without a spin axis."""
    factor = 0.25 if dm.ndim == 2 else 0.5
    return float(-factor * np.sum(dm * mf.get_k(mf.mol, dm)))


def _frontier_orbitals(mf: Any) -> tuple[float, float | None]:
    energies, occupied = np.ravel(mf.mo_energy), np.ravel(mf.mo_occ) > 0
    lumo = EV * float(energies[~occupied].min()) if not occupied.all() else None
    return EV * float(energies[occupied].max()), lumo


def _build(calculation: Calculation) -> Any:
    from pyscf import gto
    from pyscf.lib.exceptions import BasisNotFoundError

    molecule, basis = calculation.molecule, calculation.basis
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice to install a package that would not help here
        for symbol in sorted(set(molecule.symbols)):
            try:
                gto.basis.load(basis, symbol)
            except (BasisNotFoundError, KeyError, ValueError, OSError):
                raise ValueError(
                    f"PySCF has no basis {basis!r} for {symbol}; choose another one, such as "
                    "def2-svp, def2-tzvp or cc-pvtz"
                ) from None
        return gto.M(
            atom=list(zip(molecule.symbols, molecule.positions, strict=True)),
            basis=basis,
            ecp=_effective_cores(basis, set(molecule.symbols)),
            charge=molecule.charge,
            spin=molecule.spin,
            verbose=0,
        )


def _effective_cores(basis: str, symbols: set[str]) -> dict[str, Any]:
    """The effective core potentials that belong to the basis, for the elements that have one."""
    from pyscf import gto
    from pyscf.lib.exceptions import BasisNotFoundError

    potentials = {}
    for symbol in symbols:
        try:
            found = gto.basis.load_ecp(basis, symbol)
        except (BasisNotFoundError, KeyError, ValueError, OSError):
            continue
        if found:
            potentials[symbol] = found
    return potentials


def _from_ase(name: str, atoms: Any, charge: int, spin: int) -> Molecule:
    symbols = tuple(atoms.get_chemical_symbols())
    if "X" in symbols:
        raise ValueError(f"{name}: X is no chemical element")
    positions = tuple((float(x), float(y), float(z)) for x, y, z in atoms.positions)
    return Molecule(name, symbols, positions, charge, spin)
