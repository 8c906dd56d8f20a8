"""The systems a functional learns from: frozen records and the embedded default set.

The default needs no download: atoms H-Kr, the G2/97 molecules that come with ASE, and extras made
here (ions and excited atoms, distorted molecules, synthetic molecules with unusual bonding, and
molecules with elements of the fourth row).
"""

import dataclasses
import functools
import hashlib
import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from ase.collections import g2
from ase.data import atomic_numbers, chemical_symbols
from jaxtyping import Float

from cider.training import extras

KINDS = ("atom", "molecule", "ion", "distorted", "synthetic", "crystal")
ROLES = ("training", "tuning", "test", "ten")

TEN_MOLECULES = ("H2", "N2", "CO", "H2O", "NH3", "CH4", "C2H4", "HF", "F2", "O2")
"""Never trained or tuned on: published exchange models were measured on them."""

TRAINING_SHARE = 0.65
TUNING_SHARE = 0.10

# 2S of the neutral ground states, by rows, H to Kr.
_GROUND_STATE_SPINS = (
    *(1, 0),
    *(1, 0, 1, 2, 3, 2, 1, 0),
    *(1, 0, 1, 2, 3, 2, 1, 0),
    *(1, 0, 1, 2, 3, 6, 5, 4, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0),
)

# Of AlP, NaF and BAs, what exact exchange changes by with the lattice constant, beside PBE
# exchange, is that of 4 x 4 x 4 to 0.3 mHa.
_CRYSTAL_KPTS = (3, 3, 3)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+.-]*")


@dataclasses.dataclass(frozen=True)
class System:
    """A molecule or atom: geometry (angstrom), charge (e), spin, and its part in the training.

    ``spin`` is 2S, the number of spin-up minus spin-down electrons. ``role`` says whether a system
    is fitted ("training"), calibrates the error bars ("tuning") or only measures errors ("test",
    "ten"). A crystal, a closed shell without charge, has a ``cell`` of three vectors (angstrom) and
    is sampled at so many ``kpts`` along each reciprocal one.

    Raises:
        ValueError: The name cannot be a file name, the electrons do not fit the spin, two atoms
            sit on top of each other, or cell and kind do not go together.
    """

    name: str
    kind: str
    symbols: tuple[str, ...]
    positions: tuple[tuple[float, float, float], ...]
    charge: int = 0
    spin: int = 0
    role: str = "training"
    cell: tuple[tuple[float, float, float], ...] = ()
    kpts: tuple[int, int, int] = (1, 1, 1)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"{self.name!r} cannot name a system: use letters, digits and _ + . - only"
            )
        if self.kind not in KINDS:
            raise ValueError(f"{self.name}: kind {self.kind!r} is none of {', '.join(KINDS)}")
        if self.role not in ROLES:
            raise ValueError(f"{self.name}: role {self.role!r} is none of {', '.join(ROLES)}")
        if not self.symbols or len(self.symbols) != len(self.positions):
            raise ValueError(
                f"{self.name}: {len(self.symbols)} symbols but {len(self.positions)} positions"
            )
        unknown = sorted(set(self.symbols) - set(chemical_symbols[1:]))
        if unknown:
            raise ValueError(f"{self.name}: {', '.join(unknown)} is no chemical element")
        electrons = self.electrons
        if electrons < 1:
            raise ValueError(f"{self.name}: charge {self.charge} leaves no electron")
        if self.spin < 0 or self.spin > electrons or (electrons - self.spin) % 2:
            raise ValueError(
                f"{self.name}: {electrons} electrons cannot have spin {self.spin} "
                "(2S = number of up minus down electrons); change charge or spin"
            )
        xyz = np.asarray(self.positions, dtype=float)
        if xyz.shape != (len(self.symbols), 3) or not np.isfinite(xyz).all():
            raise ValueError(f"{self.name}: positions must be three finite numbers an atom")
        self._check_cell()
        distance = self.to_atoms().get_all_distances(mic=bool(self.cell))
        np.fill_diagonal(distance, np.inf)
        if distance.min() < 0.3:
            raise ValueError(
                f"{self.name}: two atoms are {distance.min():.3f} angstrom apart; "
                "are the coordinates in angstrom?"
            )

    def _check_cell(self) -> None:
        if bool(self.cell) != (self.kind == "crystal"):
            raise ValueError(f"{self.name}: a crystal has a cell, and nothing else has one")
        if not self.cell:
            return
        cell = np.asarray(self.cell, dtype=float)
        if cell.shape != (3, 3) or not np.isfinite(cell).all() or not np.linalg.det(cell):
            raise ValueError(f"{self.name}: a cell must be three vectors that span a volume")
        if self.charge or self.spin:
            raise ValueError(f"{self.name}: crystals are closed shells without charge")
        if len(self.kpts) != 3 or min(self.kpts) < 1:
            raise ValueError(f"{self.name}: kpts {self.kpts} must be three positive numbers")

    def to_atoms(self) -> Atoms:
        """The geometry as ASE has it."""
        cell = self.cell or None
        return Atoms(list(self.symbols), self.positions, cell=cell, pbc=bool(self.cell))

    @property
    def electrons(self) -> int:
        """Number of electrons."""
        return sum(atomic_numbers[symbol] for symbol in self.symbols) - self.charge

    @property
    def formula(self) -> str:
        """Sum formula in Hill order, without the charge."""
        return str(Atoms(list(self.symbols)).get_chemical_formula())

    @property
    def is_atom(self) -> bool:
        """Whether the system is a single atom or ion."""
        return len(self.symbols) == 1 and not self.cell

    def same_calculation(self, other: "System") -> bool:
        """Whether both give the same reference data: all but ``kind`` and ``role`` agree."""
        both = (system.to_dict() | {"kind": "", "role": ""} for system in (self, other))
        return next(both) == next(both)

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON-ready values; :meth:`from_dict` reads it back."""
        values = dataclasses.asdict(self)
        values["symbols"] = list(self.symbols)
        values["positions"] = [list(row) for row in self.positions]
        cell, kpts = values.pop("cell"), values.pop("kpts")
        if cell:
            values |= {"cell": [list(row) for row in cell], "kpts": list(kpts)}
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "System":
        """The system that :meth:`to_dict` described."""
        fields = dict(values)
        fields["symbols"] = tuple(fields["symbols"])
        for name in ("positions", "cell"):
            fields[name] = tuple(tuple(map(float, row)) for row in fields.get(name, ()))
        fields["kpts"] = tuple(fields.get("kpts", (1, 1, 1)))
        return cls(**fields)


def from_atoms(atoms: Atoms, name: str, kind: str, spin: int = 0, **fields: Any) -> System:
    """A system from an ASE ``Atoms`` object (positions in angstrom), with its cell if a crystal."""
    symbols = tuple(atoms.get_chemical_symbols())
    if kind == "crystal":
        fields["cell"] = _rounded(np.asarray(atoms.cell))
    return System(name, kind, symbols, _rounded(atoms.positions), spin=spin, **fields)


def _rounded(xyz: Float[np.ndarray, "atom xyz"]) -> tuple[tuple[float, float, float], ...]:
    # Eight digits: the same geometry on every machine, whatever its rounding.
    return tuple((round(float(x), 8), round(float(y), 8), round(float(z), 8)) for x, y, z in xyz)


def ground_state_spin(symbol: str) -> int | None:
    """2S of the neutral atom's ground state for H-Kr; nothing for heavier ones."""
    z = atomic_numbers[symbol]
    return _GROUND_STATE_SPINS[z - 1] if z <= len(_GROUND_STATE_SPINS) else None


def split_role(name: str) -> str:
    """The part of the data a molecule belongs to, from the SHA-256 of its name alone.

    It depends on no other molecule and no seed, so adding data never moves a molecule from one
    part to another.
    """
    if name in TEN_MOLECULES:
        return "ten"
    fraction = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    if fraction < TRAINING_SHARE:
        return "training"
    return "tuning" if fraction < TRAINING_SHARE + TUNING_SHARE else "test"


@functools.cache
def atoms() -> tuple[System, ...]:
    """The neutral atoms H-Kr in their ground-state spin."""
    return tuple(
        System(chemical_symbols[z], "atom", (chemical_symbols[z],), ((0.0, 0.0, 0.0),), spin=spin)
        for z, spin in enumerate(_GROUND_STATE_SPINS, start=1)
    )


@functools.cache
def molecules() -> tuple[System, ...]:
    """The 148 molecules of G2/97 as ASE ships them, split by :func:`split_role`."""
    found = []
    for name in sorted(g2.names):
        geometry = molecule(name)
        if len(geometry) > 1:
            spin = round(float(geometry.get_initial_magnetic_moments().sum()))
            found.append(from_atoms(geometry, name, "molecule", spin, role=split_role(name)))
    return tuple(found)


@functools.cache
def ions() -> tuple[System, ...]:
    """Cations, anions and atoms excited to another spin."""
    return tuple(
        System(
            f"{symbol}{'+' * max(charge, 0)}{'-' * max(-charge, 0)}_{spin + 1}",
            "ion",
            (symbol,),
            ((0.0, 0.0, 0.0),),
            charge=charge,
            spin=spin,
        )
        for symbol, charge, spin in extras.IONS
    )


@functools.cache
def distorted(count: int = 30, seed: int = 0) -> tuple[System, ...]:
    """Training molecules away from equilibrium: half of them scaled, half randomly displaced."""
    parents = [s for s in molecules() if s.role == "training" and len(s.symbols) <= 8]
    order = np.random.default_rng(seed).permutation(len(parents))
    found = []
    for index in range(count):
        parent = parents[order[index % len(parents)]]
        xyz = extras.distort(np.asarray(parent.positions), index, seed)
        found.append(
            dataclasses.replace(
                parent,
                name=f"{parent.name}_d{index:02d}",
                kind="distorted",
                positions=_rounded(xyz),
            )
        )
    return tuple(found)


@functools.cache
def synthetic() -> tuple[System, ...]:
    """Small molecules with unusual bonding, none with the sum formula of a held-out molecule."""
    held_out = {s.formula for s in molecules() if s.role != "training"}
    found = (
        from_atoms(geometry, f"{name}_s", "synthetic", spin)
        for name, geometry, spin in extras.synthetic_geometries()
    )
    return tuple(system for system in found if system.formula not in held_out)


@functools.cache
def homologues(count: int = 100, seed: int = 0) -> tuple[System, ...]:
    """Training molecules with elements replaced by others of the same valence.

    All sum formulas differ, and none is that of a held-out molecule.
    """
    return _replaced(extras.homologue, {s.formula for s in molecules()}, count, seed)


@functools.cache
def heavier(count: int = 40, seed: int = 0) -> tuple[System, ...]:
    """Training molecules with an element replaced by that of the fourth row of its group.

    All sum formulas differ, also from those of the synthetic molecules.
    """
    return _replaced(extras.heavier, {s.formula for s in synthetic()}, count, seed)


@functools.cache
def crystals() -> tuple[System, ...]:
    """Cubic crystals, each at the lattice constant of experiment, then smaller and larger.

    None of them is among the solids of ``benchmarks/solids.py``.
    """
    found = []
    for (formula, structure, constant), scale in itertools.product(extras.CRYSTALS, extras.SCALES):
        atoms = bulk(formula, structure, a=scale * constant)
        suffix = "" if scale == 1.0 else f"_{scale:g}"
        found.append(
            from_atoms(atoms, f"{formula}_{structure}{suffix}", "crystal", kpts=_CRYSTAL_KPTS)
        )
    return tuple(found)


def _replaced(
    replace: Callable[[Atoms, int, int], Atoms | None], taken: set[str], count: int, seed: int
) -> tuple[System, ...]:
    parents = [s for s in molecules() if s.role == "training" and len(s.symbols) <= 8]
    order = np.random.default_rng(seed).permutation(len(parents))
    found = list[System]()
    indices = itertools.count()
    while len(found) < count:
        index = next(indices)
        parent = parents[order[index % len(parents)]]
        geometry = replace(parent.to_atoms(), index, seed)
        if geometry is not None and (formula := geometry.get_chemical_formula()) not in taken:
            taken.add(formula)
            found.append(from_atoms(geometry, f"{formula}_h", "synthetic", parent.spin))
    return tuple(found)


def default_systems() -> tuple[System, ...]:
    """The embedded default: atoms, G2/97 molecules, then the extras."""
    extra = ions() + synthetic() + distorted() + homologues() + heavier()
    return unique(atoms() + molecules() + extra)


def small_systems() -> tuple[System, ...]:
    """A subset that trains in minutes: light atoms and the small molecules made of them."""
    elements = {"H", "C", "N", "O", "F"}
    light = [
        s
        for s in molecules()
        if set(s.symbols) <= elements and (len(s.symbols) <= 4 or s.role == "ten")
    ]
    return unique(tuple(a for a in atoms() if a.name in elements) + tuple(light))


def unique(systems: tuple[System, ...]) -> tuple[System, ...]:
    """The same systems, once every name is known to occur once.

    Raises:
        ValueError: Two systems share a name.
    """
    seen: set[str] = set()
    for system in systems:
        if system.name in seen:
            raise ValueError(f"two systems are called {system.name!r}; rename one of them")
        seen.add(system.name)
    return systems
