"""Lattice constants and bulk moduli of solids with true PBE0 and with its learned surrogates.

All are evaluated at PBE's densities in GPAW: what surrogates differ by from PBE0 is their exchange
alone. Volumes at which PBE has no gap are left out. The reference is the file of ``solids.py``.
Densities with their exact exchange are kept in ``--densities`` and serve for any functional;
``cider-train`` makes such records of other crystals.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
import numpy as np
from ase.build import bulk
from ase.units import Hartree
from solids import SOLIDS, equilibrium

from cider import CiderFunctional
from cider.plugins.gpaw.crystals import crystal_density
from cider.training.crystals import crystal_convolution, read_crystal_density
from cider.training.produce import Job, produce_references
from cider.training.reference import ReferenceSettings, reference_key
from cider.training.store import Record, Store
from cider.training.systems import System, from_atoms

SCALES = (1.0, 0.97, 0.985, 1.015, 1.03)
"""Lattice constants of the equation of state, beside that of experiment, which is first."""

INSULATORS = [name for name in SOLIDS if name != "Al"]
SHARE = 0.25
"""Of exact exchange in PBE0."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reference", type=Path, help="JSON file of experimental values")
    parser.add_argument("--solids", nargs="+", choices=INSULATORS, default=INSULATORS)
    parser.add_argument("--functionals", nargs="+", default=["x-nldf"], help="names or files")
    parser.add_argument("--kpts", type=int, default=4, help="along each reciprocal vector")
    parser.add_argument("--densities", type=Path, default=Path("hybrid-solids"))
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()

    experiment = {
        row["name"]: row for row in json.loads(options.reference.read_text())["lattice58"]
    }
    systems = {
        solid: [system_of(experiment[SOLIDS[solid].name], scale, options) for scale in SCALES]
        for solid in options.solids
    }
    settings = ReferenceSettings()
    store = Store(options.densities, settings.to_dict())
    jobs = [Job(system, "PBE") for own in systems.values() for system in own]
    produce_references(store, jobs, settings, options.workers, None, crystal_density)
    functionals = {name: CiderFunctional(name) for name in options.functionals}
    columns: dict[str, list[tuple[float, float]]] = {}
    for solid, planned in systems.items():
        read = [(system, store.read(reference_key(system, "PBE"))) for system in planned]
        kept = [pair for pair in read if pair[1].facts["status"] == "converged"]
        own, records = zip(*kept, strict=True)
        lattice = experiment[SOLIDS[solid].name]["a0"]
        for name, exchange in exchanges(records, functionals).items():
            scale, modulus = with_share(own, records, exchange)
            columns.setdefault(name, []).append((scale * lattice, modulus))
    report(options, columns, experiment)


def system_of(row: dict[str, Any], scale: float, options: argparse.Namespace) -> System:
    """A solid at a multiple of its experimental lattice constant."""
    atoms = bulk(row["symbols"], row["structure"], a=scale * row["a0"])
    return from_atoms(atoms, f"{row['name']}_{scale:g}", "crystal", kpts=(options.kpts,) * 3)


def exchanges(
    records: Sequence[Record], functionals: dict[str, CiderFunctional]
) -> dict[str, np.ndarray]:
    """Exchange energies (Ha) in the order of the records: PBE's, exact ones, learned ones."""
    found = {
        "PBE": np.array([record.facts["PBE_X"] for record in records]),
        "PBE0": np.array([record.facts["exact_exchange"] for record in records]),
    }
    for name, functional in functionals.items():
        nldf = functional.learned.descriptors.nldf
        found[name] = np.array(
            [
                functional.learned_energy(
                    *read_crystal_density(record),
                    None if nldf is None else crystal_convolution(record, nldf),
                )
                for record in records
            ]
        )
    return found


def with_share(
    systems: Sequence[System], records: Sequence[Record], exchange: np.ndarray
) -> tuple[float, float]:
    """Lattice constant over that of experiment, bulk modulus (GPa), with a share of exchange."""
    volumes = [system.to_atoms().get_volume() for system in systems]
    total = np.array([record.facts["total_energy"] for record in records])
    semilocal = np.array([record.facts["PBE_X"] for record in records])
    energies = (total + SHARE * (exchange - semilocal)) * Hartree
    return equilibrium(volumes, energies, volumes[0])


def report(
    options: argparse.Namespace,
    columns: dict[str, list[tuple[float, float]]],
    experiment: dict[str, dict[str, Any]],
) -> None:
    """A table beside experiment, and how far each functional is from PBE0."""
    machine = harness.machine((*harness.PACKAGES, "gpaw"))
    facts = ", ".join(f"{key} {value}" for key, value in machine.items())
    print(f"PBE densities, PW({ReferenceSettings().plane_wave_cutoff:g}), {options.kpts} k-points")
    print(f"along each vector, exact exchange where it says PBE0. {facts}.")
    values = {name: np.array(own) for name, own in columns.items()}
    for quantity, (title, key, digits) in enumerate(
        (("lattice constant (angstrom)", "a0", 3), ("bulk modulus (GPa)", "b0", 1))
    ):
        print(f"\n| {title} | experiment | {' | '.join(values)} |")
        print(f"|{' --- |' * (len(values) + 2)}")
        for place, solid in enumerate(options.solids):
            cells = [experiment[SOLIDS[solid].name][key]]
            cells += [own[place, quantity] for own in values.values()]
            print(f"| {solid} | {' | '.join(f'{cell:.{digits}f}' for cell in cells)} |")
        for name, own in values.items():
            away = np.abs(own[:, quantity] - values["PBE0"][:, quantity])
            print(
                f"\n{name}: {away.mean():.{digits}f} from PBE0 on average, {away.max():.{digits}f} "
                "at most"
            )


if __name__ == "__main__":
    main()
