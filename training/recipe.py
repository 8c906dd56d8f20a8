"""Recipes: everything that determines a trained functional, as validated frozen records.

A recipe is a TOML file with the keys of :class:`Recipe`. Two hashes identify it: one of what
determines the reference data (so that several functionals share one costly store), one of
everything.
"""

import dataclasses
import functools
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ase.io
from ase import Atoms

from cider.baselines import BASELINES
from cider.features.sdmx import Sdmx
from cider.training import systems as default_sets
from cider.training.configuration import RecipeError, from_table, to_table
from cider.training.observations import Reaction
from cider.training.produce import Job, plan_jobs
from cider.training.reference import ReferenceSettings, check_orbital, reference_key
from cider.training.store import content_hash
from cider.training.systems import (
    KINDS,
    ROLES,
    System,
    from_atoms,
    ground_state_spin,
    unique,
)

_SETS = {
    "default": default_sets.default_systems,
    "small": default_sets.small_systems,
    "none": lambda: (),
}


@dataclasses.dataclass(frozen=True)
class SystemFile:
    """A structure file that ASE reads (angstrom), with the charge (e) and 2S of its molecules.

    Without ``spin`` an even number of electrons is a closed shell and an odd one a doublet. With
    ``kpts``, so many along each reciprocal lattice vector, its structures are crystals.
    """

    path: str
    name: str = ""
    charge: int = 0
    spin: int | None = None
    role: str = "training"
    kpts: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"role {self.role!r} is none of {', '.join(ROLES)}")

    def read(self, folder: Path) -> tuple[System, ...]:
        """The systems of the file, whose path is relative to ``folder``.

        Raises:
            RecipeError: The file cannot be read, or a molecule of it cannot be built.
        """
        path = folder / self.path
        try:
            images = ase.io.read(path, index=":")
        except Exception as error:  # ASE's readers raise anything, from KeyError to StopIteration
            raise RecipeError(f"{path} cannot be read: {error or type(error).__name__}") from error
        stem = self.name or path.stem
        images = images if isinstance(images, list) else [images]
        if not images:
            raise RecipeError(f"{path} holds no structure")
        names = [stem] if len(images) == 1 else [f"{stem}_{i}" for i in range(len(images))]
        return tuple(self._system(*pair) for pair in zip(names, images, strict=True))

    def _system(self, name: str, atoms: Atoms) -> System:
        electrons = int(atoms.numbers.sum()) - self.charge
        spin = electrons % 2 if self.spin is None else self.spin
        fields: dict[str, Any] = {"charge": self.charge, "role": self.role}
        kind = "molecule"
        if self.kpts is not None:
            kind, fields["kpts"] = "crystal", self.kpts
        elif len(atoms) == 1:
            ground_state = ground_state_spin(atoms.get_chemical_symbols()[0])
            kind = "ion" if self.charge or ground_state not in (None, spin) else "atom"
        try:
            return from_atoms(atoms, name, kind, spin, **fields)
        except ValueError as error:
            raise RecipeError(f"{self.path}: {error}") from error


@dataclasses.dataclass(frozen=True)
class SystemChoice:
    """Which systems: an embedded set ("default", "small" or "none") and structure files.

    ``kinds`` keeps of the set only these ("atom", "molecule", "ion", "distorted", "synthetic");
    none means all. ``crystals`` adds the embedded ones, whose reference data GPAW makes.
    """

    set: str = "default"
    kinds: tuple[str, ...] = ()
    crystals: bool = False
    files: tuple[SystemFile, ...] = ()

    def __post_init__(self) -> None:
        if self.set not in _SETS:
            raise ValueError(f"set {self.set!r} is none of {', '.join(_SETS)}")
        for kind in self.kinds:
            if kind not in KINDS:
                raise ValueError(f"kind {kind!r} is none of {', '.join(KINDS)}")


@dataclasses.dataclass(frozen=True)
class FeatureChoice:
    """Which features of the density the functional sees, and the grids that integrate them.

    ``nldf`` lists the exponents (A, B, C) of the nonlocal features, ``source_exponent`` is that of
    the integrated density (design: Phys. Rev. B 110, 075130). ``sdmx`` lists families and powers j
    of features of the density matrix (``cider.features.sdmx``). With neither, the functional is
    semilocal.
    """

    level: str = "mgga"
    nldf: tuple[tuple[float, float, float], ...] = ()
    source_exponent: tuple[float, float, float] = (0.5, 0.0, 0.0)
    molecule_grid_level: int = 2
    atom_grid_level: int = 3
    sdmx: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        if self.level not in ("gga", "mgga"):
            raise ValueError(f"level {self.level!r} is neither 'gga' nor 'mgga'")
        for grid_level in (self.molecule_grid_level, self.atom_grid_level):
            if grid_level not in range(10):
                raise ValueError(f"grid level {grid_level} does not exist; PySCF has 0 to 9")
        for exponent in (*self.nldf, self.source_exponent):
            if exponent[0] <= 0 or exponent[1] < 0 or exponent[2] < 0:
                raise ValueError(f"exponent {list(exponent)} needs A > 0, B >= 0 and C >= 0")
            if self.level == "gga" and exponent[2] and self.nldf:
                raise ValueError(f"exponent {list(exponent)} needs tau (C > 0): set level = 'mgga'")
        if len(set(self.nldf)) < len(self.nldf):
            raise ValueError("two nldf exponents are equal; their features would be the same")
        if self.sdmx:
            Sdmx(self.sdmx)


@dataclasses.dataclass(frozen=True)
class ModelChoice:
    """Bounds of the Gaussian process: kernel lengths (inputs lie in [-1, 1]) and noise (mHa).

    ``amplitude_bounds`` are for the enhancement factor of single inputs (s_i of
    ``cider.training.fit``), ``interaction_bounds`` for the factor s_2 of pairs.
    ``noise_bounds`` keeps the fitted noise from vanishing, which costs smoothness before it gains
    accuracy; ``density_noise_bounds`` is for what several densities of one system do not share.
    ``chebyshev_degree`` is that of the one-dimensional parts of the kernel. ``total_energies``
    observes molecules twice, by their atomisation energy and by their total energy.

    ``enhancement_points`` points of molecules, far from one another in the inputs, hold the learned
    enhancement factor to the baseline's within ``enhancement_sigma``: without them corrections
    of opposite sign cancel in the energies and roughen the potential. ``semilocal_slope_sigma`` and
    ``nldf_slope_sigma`` do so for its root mean square slope by the semilocal descriptors and by
    the logarithms of nonlocal features (``cider.training.smoothness``); 0 leaves slopes free.
    What is named ``nldf`` here holds for SDMX features too. ``isoorbital_slope_sigma`` holds the
    slope by the iso-orbital indicator where one orbital is alone, of which energies tell nothing.

    ``orbital_sigma`` (mHa) holds what the learned part adds to the energies of the recipe's
    orbitals to zero within it, in place of observing them: total energies alone leave the potential
    free where there is little density. With 0 orbitals are observed.

    ``orientation_sigma`` (microhartree) does so for what the energies of atoms and ions change by
    as their densities turn against the grid. A factor that is rough in the angles turns them in the
    self-consistent field, which then takes many cycles. With 0 they turn as they like.
    """

    chebyshev_degree: int = 8
    semilocal_length_bounds: tuple[float, float] = (0.3, 10.0)
    nldf_length_bounds: tuple[float, float] = (0.6, 10.0)
    amplitude_bounds: tuple[float, float] = (1e-3, 0.3)
    interaction_bounds: tuple[float, float] = (1e-2, 10.0)
    noise_bounds: tuple[float, float] = (0.5, 20.0)
    atom_noise_bounds: tuple[float, float] = (0.3, 20.0)
    orbital_noise_bounds: tuple[float, float] = (1.0, 100.0)
    density_noise_bounds: tuple[float, float] = (0.2, 5.0)
    total_energies: bool = False
    enhancement_points: int = 0
    enhancement_sigma: float = 0.25
    semilocal_slope_sigma: float = 0.0
    nldf_slope_sigma: float = 0.0
    isoorbital_slope_sigma: float = 0.0
    orbital_sigma: float = 0.0
    orientation_sigma: float = 0.0
    baseline: str = "GGA_X_PBE"
    starts: int = 3
    iterations: int = 200

    def __post_init__(self) -> None:
        if not 1 <= self.chebyshev_degree <= 32:
            raise ValueError(f"chebyshev_degree {self.chebyshev_degree} is not in 1 to 32")
        for field in dataclasses.fields(self):
            if field.name.endswith("_bounds"):
                low, high = getattr(self, field.name)
                if not 0 < low < high:
                    raise ValueError(
                        f"{field.name} = [{low}, {high}] must be positive and increasing"
                    )
        if self.baseline not in BASELINES:
            raise ValueError(f"baseline {self.baseline!r} is none of {', '.join(BASELINES)}")
        if self.enhancement_points < 0 or self.enhancement_sigma <= 0:
            raise ValueError("enhancement_points must not be negative, enhancement_sigma positive")
        for name in (
            "semilocal_slope_sigma",
            "nldf_slope_sigma",
            "isoorbital_slope_sigma",
            "orbital_sigma",
            "orientation_sigma",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")
        if self.starts < 1 or self.iterations < 1:
            raise ValueError("starts and iterations must be at least 1")


@dataclasses.dataclass(frozen=True)
class NetworkChoice:
    """An ensemble of neural networks (``cider.neural_network``), fitted to the same observations.

    The Gaussian process of ``ModelChoice`` is fitted all the same: its noise is that of the
    networks, the report compares both, and what it says of baseline, total energies, enhancement
    factor and slopes holds for the networks too.
    ``hidden`` are the units of each layer, ``bound`` is that of the learned enhancement factor: 1
    never lets exchange change its sign where the baseline's factor is at least 1, as PBE's.
    ``weight_sigma`` and ``readout_sigma`` are prior standard deviations of the weights, times the
    root of the inputs of a unit. Training ends where the error of the tuning part has not fallen
    for ``patience`` steps, and after ``iterations`` of them.
    """

    hidden: tuple[int, ...] = (24, 24)
    members: int = 4
    bound: float = 1.0
    weight_sigma: float = 1.0
    readout_sigma: float = 0.5
    iterations: int = 150
    patience: int = 20

    def __post_init__(self) -> None:
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden = {list(self.hidden)} needs one or more layers of units")
        if self.members < 2:
            raise ValueError("members must be at least 2: their spread is the error bar")
        for name in ("bound", "weight_sigma", "readout_sigma"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive")
        if self.iterations < 1 or self.patience < 1:
            raise ValueError("iterations and patience must be at least 1")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A training run. ``output`` is its folder, relative to the current one.

    The first of ``densities`` is computed for all systems, the others for atoms and molecules only.
    ``orbitals`` ("HOMO", "HOMO-1", ..., "LUMO") are those of the systems of ``orbital_kinds``, at
    that first density, whose exchange energies are observed (or held: ``ModelChoice``):
    derivatives by occupations, of each spin.
    With ``network`` the functional is an ensemble of neural networks, else a Gaussian process.
    ``origin`` is the folder that structure files are relative to; it comes from the recipe's own
    place and takes no part in the hashes.
    """

    name: str
    seed: int = 0
    output: str = ""
    densities: tuple[str, ...] = ("PBE",)
    orbitals: tuple[str, ...] = ()
    orbital_kinds: tuple[str, ...] = ("atom", "molecule")
    systems: SystemChoice = SystemChoice()
    reactions: tuple[Reaction, ...] = ()
    reference: ReferenceSettings = dataclasses.field(default_factory=ReferenceSettings)
    features: FeatureChoice = FeatureChoice()
    model: ModelChoice = ModelChoice()
    network: NetworkChoice | None = None
    origin: str = "."

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ValueError(f"name {self.name!r} cannot name a functional file")
        if not self.densities or len(set(self.densities)) < len(self.densities):
            raise ValueError(f"densities {list(self.densities)} must be one or more different ones")
        for density in self.densities:
            reference_key("any", density)
        for orbital in self.orbitals:
            check_orbital(orbital)
        for kind in self.orbital_kinds:
            if kind not in KINDS:
                raise ValueError(f"kind {kind!r} is none of {', '.join(KINDS)}")
        if self.model.orbital_sigma and not self.orbitals:
            raise ValueError("orbital_sigma holds orbitals: list them, such as ['HOMO', 'LUMO']")
        if self.model.isoorbital_slope_sigma and self.features.level == "gga":
            raise ValueError("isoorbital_slope_sigma needs tau: set level = 'mgga'")
        for name in ("isoorbital_slope_sigma", "orbital_sigma", "orientation_sigma"):
            if getattr(self.model, name) and self.network is not None:
                raise ValueError(f"{name} holds Gaussian processes only: leave out [network]")
        if len(set(self.orbitals)) < len(self.orbitals):
            raise ValueError(f"orbitals {list(self.orbitals)} must be different ones")
        if self.features.sdmx and any(system.cell for system in self.all_systems()):
            raise ValueError("crystals have no features of the density matrix: leave them out")
        known = {system.name for system in self.all_systems()}
        for reaction in self.reactions:
            for name in reaction.coefficients:
                if name not in known:
                    raise ValueError(f"reaction {reaction.name!r}: no system is called {name!r}")

    def all_systems(self) -> tuple[System, ...]:
        """The systems of the embedded set, then those of the files, which are read once."""
        return self._systems

    @functools.cached_property
    def _systems(self) -> tuple[System, ...]:
        kinds = self.systems.kinds or KINDS
        chosen = [s for s in _SETS[self.systems.set]() if s.kind in kinds]
        if self.systems.crystals:
            chosen.extend(default_sets.crystals())
        for file in self.systems.files:
            chosen.extend(file.read(Path(self.origin)))
        if not chosen:
            raise ValueError("the recipe has no systems: choose a set or list files")
        return unique(tuple(chosen))

    def jobs(self) -> tuple[Job, ...]:
        """The reference calculations, in the order of their use."""
        return plan_jobs(self.all_systems(), self.densities)

    def orbital_jobs(self) -> tuple[Job, ...]:
        """The densities of whose orbitals something is asked."""
        chosen = [s for s in self.all_systems() if s.kind in self.orbital_kinds]
        return plan_jobs(chosen, self.densities[:1]) if self.orbitals else ()

    @property
    def folder(self) -> Path:
        """Where the run keeps its store and writes its results."""
        return Path(self.output or f"cider-{self.name}")

    def reference_hash(self) -> str:
        """Hash of what determines the reference data: settings, systems, densities."""
        return content_hash(
            {
                "settings": self.reference.to_dict(),
                "densities": list(self.densities),
                "systems": [s.to_dict() for s in self.all_systems()],
            }
        )

    def hash(self) -> str:
        """Hash of everything that determines the functional; not of where the run is kept."""
        table = to_table(self)
        del table["output"], table["origin"]
        table["systems"] = [s.to_dict() for s in self.all_systems()]
        return content_hash(table)


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """The recipe of a TOML file.

    Raises:
        RecipeError: The file is missing or no TOML, a key is unknown (the nearest known one is
            named), a value is out of range, or a molecule cannot be built.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise RecipeError(f"recipe {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid TOML: {error}") from error
    return recipe_from_table(table, path.name, path.parent)


def recipe_from_table(
    table: Mapping[str, Any], where: str = "recipe", origin: Path = Path(".")
) -> Recipe:
    """The recipe of a plain table; structure files are relative to ``origin``."""
    if "origin" in table:
        raise RecipeError(f"unknown key 'origin' in {where}")
    return from_table(Recipe, {**table, "origin": str(origin)}, where)
