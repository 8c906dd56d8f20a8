"""Reference data of crystals, and the points of their densities.

A plugin gives the density of all electrons at the points that integrate it, some of them with
negative weights (:mod:`cider.features.augmented_convolution`), and its exact exchange energy. The
record holds these points with all that nonlocal features need of them: no later stage asks for the
plugin again.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from ase.units import Bohr
from jaxtyping import Float

from cider.density import Density
from cider.features.augmented_convolution import AugmentedConvolution, augmented_convolution
from cider.features.nldf import Nldf
from cider.features.spherical_shells import SphericalShells
from cider.training.reference import (
    ReferenceSettings,
    UnconvergedError,
    reference_key,
    require_density,
    semilocal_exchange,
)
from cider.training.store import Record
from cider.training.systems import System

CrystalDensities = Callable[..., Any]
"""``(atoms, functional, cutoff, kpts, tolerance)`` to a ``plugins.gpaw.crystals.CrystalDensity``.

A function of a module, to survive pickling.
"""

_TOLERANCE = 1e-6
"""Of the density, in electrons per valence electron."""


def compute_crystal_reference(
    system: System, density: str, settings: ReferenceSettings, densities: CrystalDensities
) -> Record:
    """The density of ``system`` with the functional ``density``, and its exchange energies (Ha).

    Raises:
        ValueError: The method is no functional of the density, or the crystal is a metal.
        UnconvergedError: The SCF does not converge.
    """
    started = time.perf_counter()
    try:
        found = densities(
            system.to_atoms(), density, settings.plane_wave_cutoff, system.kpts, _TOLERANCE
        )
    except RuntimeError as error:
        raise UnconvergedError(f"{density} SCF of {system.name}: {error}") from error
    rho, grad_rho, tau = found.density.rho, found.density.grad_rho, found.density.tau
    kinds = {id(own): own for own in found.shells}
    arrays = {
        "rho": rho,
        "grad_rho": grad_rho,
        "tau": tau,
        "weights": found.weights,
        "mesh": np.array(found.mesh),
        "kinds": np.array([list(kinds).index(id(own)) for own in found.shells]),
    }
    for kind, shells in enumerate(kinds.values()):
        arrays[f"radii_{kind}"] = shells.radii
        arrays[f"directions_{kind}"] = shells.directions
        arrays[f"shell_weights_{kind}"] = shells.weights
    ingredients = np.concatenate([rho[:, None], grad_rho, tau[:, None]], axis=1)
    facts = {
        "status": "converged",
        "system": system.to_dict(),
        "density": density,
        "exact_exchange": found.exact_exchange,
        **semilocal_exchange(ingredients, found.weights),
        "total_energy": found.total_energy,
        "scf_and_exchange_seconds": round(time.perf_counter() - started, 3),
    }
    return Record(reference_key(system, density), arrays, facts)


def read_crystal_density(record: Record) -> tuple[Density, Float[np.ndarray, " grid"]]:
    """The density of a record at its points, and their weights (bohr^3).

    Raises:
        ValueError: The record is that of a failed system.
    """
    require_density(record)
    arrays = record.arrays
    return Density(arrays["rho"], arrays["grad_rho"], arrays["tau"]), arrays["weights"]


def crystal_convolution(record: Record, nldf: Nldf) -> AugmentedConvolution:
    """What makes nonlocal features at the points of a record."""
    system, arrays = System.from_dict(record.facts["system"]), record.arrays
    kinds = [
        SphericalShells(
            arrays[f"radii_{kind}"], arrays[f"directions_{kind}"], arrays[f"shell_weights_{kind}"]
        )
        for kind in range(arrays["kinds"].max() + 1)
    ]
    return augmented_convolution(
        np.array(system.cell) / Bohr,
        arrays["mesh"],
        np.array(system.positions) / Bohr,
        [kinds[kind] for kind in arrays["kinds"]],
        nldf.source_ladder.exponents,
        nldf.target_ladder.exponents,
    )
