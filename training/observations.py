r"""Observations: linear functionals of the exchange energies of systems.

Everything a functional is trained on has the form :math:`\sum_s c_s E_x[s]` with a known value and
a noise whose size is fitted for each kind of observation. ``s`` runs over densities: the key
``"PBE/H2O"`` is the PBE density of water.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from ase.data import atomic_numbers
from jaxtyping import Float

from cider.training.produce import Job
from cider.training.store import Store
from cider.training.systems import ROLES, System

ARGON = 18
KINDS = ("total", "aex", "difference", "crystal", "reaction", "orbital", "gap")


@dataclasses.dataclass(frozen=True)
class Reaction:
    """A linear combination of exchange energies, by system name: products minus reactants."""

    name: str
    coefficients: Mapping[str, float]
    role: str = "training"

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"role {self.role!r} is none of {', '.join(ROLES)}")
        if not any(self.coefficients.values()):
            raise ValueError(f"reaction {self.name!r} has no coefficients")


@dataclasses.dataclass(frozen=True)
class Observation:
    """A linear combination of exchange energies with its exact value (Ha).

    ``kind`` says what it is: the "total" exchange energy, the atomisation exchange energy "aex"
    (atoms minus molecule), the "difference" of an ion or excited atom from the ground-state atom,
    that of a "crystal" from one of the same formula, a "reaction", the derivative by the occupation
    of an "orbital", or the "gap" between those of LUMO and HOMO; ``orbital`` names these, with
    their spin. ``noise`` names the group whose noise is fitted together. ``coefficients`` go by
    system key, ``<density>/<name>``, and by ``spin_orbital_key``.
    """

    name: str
    kind: str
    density: str
    role: str
    noise: str
    coefficients: Mapping[str, float]
    value: float
    orbital: str = ""

    @property
    def title(self) -> str:
        """What is observed of which system, for people."""
        return f"{self.name} {self.orbital}".rstrip()

    def of(self, energies: Mapping[str, float]) -> float:
        """The same combination of other energies, by system key."""
        return sum(c * energies[key] for key, c in self.coefficients.items())


@dataclasses.dataclass(frozen=True)
class Skipped:
    """An observation that the data cannot give, and why."""

    name: str
    reason: str


def system_key(density: str, name: str) -> str:
    """The key of a system's density: ``<density>/<name>``."""
    return f"{density}/{name}"


def spin_orbital_key(label: str, name: str, spin: int) -> str:
    """The key of an orbital of one spin of a system's density: ``<density>/<system>/HOMO.0``."""
    return f"{label}/{name}.{spin}"


def reference_facts(store: Store) -> dict[str, dict[str, Any]]:
    """Facts of all reference records of ``store``, by system key, failed ones included."""
    prefix = "reference/"
    return {record.key.removeprefix(prefix): dict(record.facts) for record in store.records(prefix)}


def exchange_energies(
    facts: Mapping[str, Mapping[str, Any]], name: str = "exact_exchange"
) -> dict[str, float]:
    """Exchange energies (Ha) by system key: the exact ones, or "PBE_X", "R2SCAN_X"."""
    return {key: float(f[name]) for key, f in facts.items() if f["status"] == "converged"}


def build_observations(
    energies: Mapping[str, float],
    systems: Sequence[System],
    densities: Iterable[str],
    reactions: Sequence[Reaction] = (),
) -> tuple[tuple[Observation, ...], tuple[Skipped, ...]]:
    """Observations of ``systems`` (and ``reactions``) whose energies (Ha) are known.

    Atoms give their total energy, molecules their atomisation energy, ions and excited atoms the
    difference from the ground-state atom, crystals that from the first one of their formula, always
    at one density. What lacks an energy (its SCF failed, or its density was not asked for) is
    skipped and returned with the reason.
    """
    atoms: dict[str, str] = {}
    crystals: dict[str, str] = {}
    for system in systems:
        if system.kind == "atom":
            atoms.setdefault(system.symbols[0], system.name)
        elif system.kind == "crystal":
            crystals.setdefault(system.formula, system.name)
    found: list[Observation] = []
    skipped: list[Skipped] = []
    for density in densities:
        plans: list[tuple[str, str, str, str, dict[str, float]]] = []
        for system in systems:
            if system_key(density, system.name) not in energies:
                skipped.append(Skipped(f"{density}/{system.name}", "no converged density"))
                continue
            if crystals.get(system.formula) == system.name:
                continue
            try:
                kind, combination = _combination(system, atoms, crystals)
            except KeyError as missing:
                reason = f"no atom {missing.args[0]} among the systems"
                skipped.append(Skipped(f"{density}/{system.name}", reason))
                continue
            plans.append((system.name, kind, system.role, noise_group(system), combination))
        for r in reactions:
            plans.append((r.name, "reaction", r.role, "reaction", dict(r.coefficients)))
        for name, kind, role, noise, combination in plans:
            coefficients = {system_key(density, s): c for s, c in combination.items() if c}
            absent = [key for key in coefficients if key not in energies]
            if absent:
                skipped.append(Skipped(f"{density}/{name}", f"no energy of {', '.join(absent)}"))
                continue
            value = sum(c * energies[key] for key, c in coefficients.items())
            found.append(Observation(name, kind, density, role, noise, coefficients, value))
    return tuple(found), tuple(skipped)


def total_observations(
    energies: Mapping[str, float], systems: Sequence[System], density: str
) -> tuple[Observation, ...]:
    """The total exchange energy of every system at ``density``, for validation.

    Not of crystals, whose frozen cores add what differs from all-electron energies.
    """
    found = []
    for system in systems:
        key = system_key(density, system.name)
        if key in energies and system.kind != "crystal":
            found.append(
                Observation(
                    system.name,
                    "total",
                    density,
                    system.role,
                    system.kind,
                    {key: 1.0},
                    energies[key],
                )
            )
    return tuple(found)


def orbital_observations(
    derivatives: Mapping[str, float], systems: Sequence[System], density: str
) -> tuple[Observation, ...]:
    """Derivatives (Ha) by occupations, whose keys are of spin orbitals, and the gaps among them.

    A gap is that between LUMO and HOMO of one spin; its noise is not fitted.
    """
    found = []
    for system in systems:
        prefix = system_key(density, system.name) + "/"
        own = {k.removeprefix(prefix): v for k, v in derivatives.items() if k.startswith(prefix)}
        plans = [("orbital", name, {name: 1.0}) for name in own]
        for name in own:
            orbital, _, spin = name.partition(".")
            if orbital == "HOMO" and f"LUMO.{spin}" in own:
                plans.append(("gap", f"gap.{spin}", {f"LUMO.{spin}": 1.0, name: -1.0}))
        for kind, name, combination in plans:
            coefficients = {prefix + key: c for key, c in combination.items()}
            value = sum(c * derivatives[key] for key, c in coefficients.items())
            found.append(
                Observation(
                    system.name, kind, density, system.role, "orbital", coefficients, value, name
                )
            )
    return tuple(found)


def orientation_differences(jobs: Sequence[Job]) -> list[Observation]:
    """What the energies of each density in several orientations differ by from their mean: zero."""
    found = []
    for (density, name), group in itertools.groupby(jobs, lambda j: (j.density, j.system.name)):
        labels = [job.label for job in group]
        for own in labels:
            combination = {label: (label == own) - 1 / len(labels) for label in labels}
            found.append(Observation(name, "difference", density, "training", "", combination, 0.0))
    return found


def noise_group(system: System) -> str:
    """The systems whose observations have the same noise: those of a kind.

    Beyond argon they have one of their own, but for crystals, whose cores stay what they are: what
    a model leaves open of 3d shells and of larger cores is more.
    """
    if system.kind == "crystal":
        return system.kind
    beyond = any(atomic_numbers[symbol] > ARGON for symbol in system.symbols)
    return f"{system.kind} beyond argon" if beyond else system.kind


def coefficient_matrix(
    observations: Sequence[Observation], keys: Sequence[str]
) -> Float[np.ndarray, "observation system"]:
    """Coefficients as a matrix; times per-system integrals it gives those of the observations."""
    column = {key: index for index, key in enumerate(keys)}
    matrix = np.zeros((len(observations), len(keys)))
    for row, observation in enumerate(observations):
        for key, coefficient in observation.coefficients.items():
            matrix[row, column[key]] = coefficient
    return matrix


def _combination(
    system: System, atoms: Mapping[str, str], crystals: Mapping[str, str]
) -> tuple[str, dict[str, float]]:
    if system.kind == "atom":
        return "total", {system.name: 1.0}
    if system.kind == "crystal":
        return "crystal", {system.name: 1.0, crystals[system.formula]: -1.0}
    if system.is_atom:
        return "difference", {system.name: 1.0, atoms[system.symbols[0]]: -1.0}
    combination = {system.name: -1.0}
    for symbol in system.symbols:
        atom = atoms[symbol]
        combination[atom] = combination.get(atom, 0.0) + 1.0
    return "aex", combination
