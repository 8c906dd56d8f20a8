r"""Changes of descriptors with the occupations of orbitals.

The exchange part of an orbital energy is the derivative of the energy by an occupation, with fixed
orbitals (:mod:`cider.training.reference`). For a model it is linear in the parameters as an energy
is: each point's descriptors and energy change at first order with the occupation, and so do the
integrals that the fit sees.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from pyscf import dft, gto
from rich.console import Console

from cider.conventions import float64
from cider.density import Density
from cider.descriptors import Descriptors, safe_ingredients, safe_sdmx
from cider.features.convolution import GaussianConvolution
from cider.training.descriptors import (
    MAX_MEMORY,
    DescriptorReader,
    NonlocalMaps,
    PointSet,
    density_on_grid,
    in_blocks,
    occupied_weights,
    point_functions,
    prepare,
    sources,
    worth_keeping,
)
from cider.training.produce import Job, ProductionSummary, with_progress
from cider.training.recipe import FeatureChoice
from cider.training.reference import (
    SEMILOCAL_EXCHANGE,
    limit_threads,
    orbital_index,
    read_density,
    reference_key,
)
from cider.training.store import Record, Store

_PREFIX = "orbitals/"


@dataclasses.dataclass(frozen=True)
class OrbitalPoints:
    """The points of one spin, and how they change with the occupation of one of its orbitals."""

    points: PointSet
    change: PointSet


def orbital_key(label: str, name: str) -> str:
    """The key of the orbital ``name`` of a density ``<density>/<system>``, in both spins."""
    return f"{_PREFIX}{label}/{name}"


def orbital_points_of(store: DescriptorReader, key: str) -> OrbitalPoints:
    """The points of a spin orbital; ``key`` is a ``spin_orbital_key`` of the observations."""
    name, spin = key.rsplit(".", 1)
    return read_orbital(store.read(_PREFIX + name), int(spin))


@float64
def compute_orbitals(
    reference: Record, choice: FeatureChoice, names: Sequence[str], maps: NonlocalMaps | None = None
) -> tuple[Record, ...]:
    """A record for each of the orbitals ``names``, with those of its spins that there are.

    A spin without electrons has none, and no descriptors. The facts hold, spin by spin, the
    derivatives (Ha) of exact exchange and of ``SEMILOCAL_EXCHANGE`` by the occupation.

    Raises:
        ValueError: The reference has no density, or nonlocal features lack their ``maps``.
    """
    mol, dm = read_density(reference)
    label = reference.key.removeprefix("reference/")
    chosen = [
        _SpinOrbital(name, spin, index)
        for name in names
        for spin in range(len(dm))
        if (index := orbital_index(reference, name, spin)) is not None
    ]
    grids, descriptors, density, convolution = prepare(mol, dm, choice, maps)
    projectors = np.stack([_projector(reference, orbital) for orbital in chosen])
    changes = density_on_grid(mol, grids.coords, projectors)
    if maps is not None and descriptors.sdmx is not None:
        # Features are quadratic in the density matrix: this difference is their derivative.
        step = 0.5 * np.linalg.norm(dm)
        unchanged = np.stack([dm[orbital.spin] for orbital in chosen])
        sides = np.concatenate([unchanged + step * projectors, unchanged - step * projectors])
        features = maps.sdmx_features(mol, grids, descriptors.sdmx, sides[None], MAX_MEMORY)[0]
        high, low = np.split(features, 2)
        changes = dataclasses.replace(changes, sdmx=(high - low) / (2 * step))
    arrays: dict[str, dict[str, np.ndarray]] = {name: {} for name in names}
    facts: dict[str, dict[str, list[Any]]] = {
        name: {key: [] for key in ("spins", "exact_exchange", *SEMILOCAL_EXCHANGE)}
        for name in names
    }
    for number, orbital in enumerate(chosen):
        change = _of_spin_orbital(changes, number, orbital.spin, len(dm))
        own, spin = facts[orbital.name], orbital.spin
        own["spins"].append(spin)
        exact = reference.arrays[f"exchange_by_occupation_{spin}"][orbital.index]
        own["exact_exchange"].append(float(exact))
        for name, derivative in _semilocal_derivatives(mol, density, change, grids).items():
            own[name].append(derivative)
        points = _points_and_change(
            descriptors,
            density.spin_scaled().of_spin(spin),
            change.spin_scaled().of_spin(spin),
            grids.weights / density.num_spins,
            convolution,
        )
        arrays[orbital.name] |= {f"{part}.{spin}": values for part, values in points.items()}
    shared = {name: reference.facts[name] for name in ("system", "density")}
    return tuple(
        Record(orbital_key(label, name), arrays[name], {**shared, **facts[name]}) for name in names
    )


def read_orbital(record: Record, spin: int) -> OrbitalPoints:
    """The points of a record and their change, in double precision."""

    def part(suffix: str) -> PointSet:
        names = (field.name for field in dataclasses.fields(PointSet))
        return PointSet(
            *(np.asarray(record.arrays[f"{name}{suffix}.{spin}"], np.float64) for name in names)
        )

    return OrbitalPoints(part(""), part("_change"))


def produce_orbitals(
    store: Store,
    references: Store,
    jobs: Sequence[Job],
    choice: FeatureChoice,
    names: Sequence[str],
    maps: NonlocalMaps | None = None,
    workers: int = 1,
    console: Console | None = None,
) -> ProductionSummary:
    """Make the orbital records of the densities ``jobs`` that ``store`` does not hold yet.

    Raises:
        DiskFullError: There is no space left; finished records are intact.
    """

    def missing(job: Job) -> bool:
        return any(orbital_key(job.label, name) not in store for name in names)

    function = functools.partial(
        _make, str(store.folder), str(references.folder), choice, tuple(names), maps
    )
    todo = [job for job in jobs if missing(job)]
    present = tuple(job.label for job in jobs if not missing(job))

    def describe(result: dict[str, Any]) -> str:
        return f"{result['orbitals']} spin orbitals"

    outcomes = with_progress(function, todo, workers, "orbitals", describe, console)
    return ProductionSummary.of(outcomes, present)


@dataclasses.dataclass(frozen=True)
class _SpinOrbital:
    """An orbital of one spin; ``index`` counts the occupied ones, then the unoccupied one."""

    name: str
    spin: int
    index: int


def _projector(reference: Record, orbital: _SpinOrbital) -> Float[np.ndarray, "ao ao"]:
    vectors = np.concatenate(
        [
            reference.arrays[f"{part}_orbitals_{orbital.spin}"]
            for part in ("occupied", "unoccupied")
        ],
        axis=1,
    )
    vector = vectors[:, orbital.index]
    return np.outer(vector, vector)


def _of_spin_orbital(changes: Density, number: int, spin: int, num_spins: int) -> Density:
    """One of several changes of a density, that of one of its spins alone."""
    return jax.tree.map(
        lambda x: np.stack([x[number] * (spin == own) for own in range(num_spins)]), changes
    )


def _semilocal_derivatives(
    mol: gto.Mole, density: Density, change: Density, grids: dft.gen_grid.Grids
) -> dict[str, float]:
    """Derivatives (Ha) of ``SEMILOCAL_EXCHANGE`` along a change of the density."""
    integrator = dft.numint.NumInt()
    rho, along = _libxc_rows(density), _libxc_rows(change)
    derivatives = {}
    for name, code in SEMILOCAL_EXCHANGE.items():
        kind, rows = ("MGGA", 5) if code.startswith("MGGA") else ("GGA", 4)
        argument = rho[:, :rows] if len(rho) == 2 else rho[0, :rows]
        potential = integrator.eval_xc_eff(code, argument, deriv=1, xctype=kind)[1]
        by_point = np.sum(potential.reshape(along[:, :rows].shape) * along[:, :rows], axis=(0, 1))
        derivatives[name] = float(grids.weights @ by_point)
    return derivatives


def _libxc_rows(density: Density) -> Float[np.ndarray, "spin ingredient grid"]:
    assert density.tau is not None
    parts = density.rho[:, None], density.grad_rho, density.tau[:, None]
    return np.concatenate([np.asarray(part) for part in parts], axis=1)


def _points_and_change(
    descriptors: Descriptors,
    density: Density,
    change: Density,
    weights: Float[np.ndarray, " grid"],
    convolution: GaussianConvolution | None,
) -> dict[str, np.ndarray]:
    """Arrays of ``PointSet`` of one spin-scaled density, and behind "_change" their derivatives."""

    def ingredients(density: Density) -> tuple[Array | None, ...]:
        return *safe_ingredients(density, 0), safe_sdmx(density, 0)

    (rho, sigma, tau, sdmx), (by_rho, by_sigma, by_tau, by_sdmx) = (
        [None if x is None else np.asarray(x) for x in side]
        for side in jax.jvp(
            ingredients, (jax.tree.map(jnp.asarray, density),), (jax.tree.map(jnp.asarray, change),)
        )
    )
    local, by_local = (rho, sigma, tau), (by_rho, by_sigma, by_tau)
    fields, by_fields = None, None
    if convolution is not None:
        of_points, of_change = in_blocks(_sources_and_change, descriptors, *local, *by_local)
        fields = np.asarray(convolution(of_points.T))
        by_fields = np.asarray(convolution(of_change.T))
    weights = occupied_weights(np.asarray(density.rho[0]), weights)
    features, by_features = (None if x is None else x.T for x in (sdmx, by_sdmx))
    points, by_points = in_blocks(
        _points_and_their_change,
        descriptors,
        weights,
        *(*local, fields, features),
        *(*by_local, by_fields, by_features),
    )
    kept, _ = worth_keeping(np.abs(points["lda_energy"]) + np.abs(by_points["lda_energy"]))
    both = points | {f"{name}_change": values for name, values in by_points.items()}
    return {
        name: values[..., kept].astype(np.float64 if "energy" in name else np.float32)
        for name, values in both.items()
    }


@eqx.filter_jit
def _sources_and_change(descriptors: Descriptors, *arrays: Array) -> tuple[Array, Array]:
    local, change = arrays[:3], arrays[3:]
    return jax.jvp(functools.partial(sources, descriptors), local, change)


@eqx.filter_jit
def _points_and_their_change(
    descriptors: Descriptors, weights: Array, *arrays: Array | None
) -> tuple[dict[str, Array], dict[str, Array]]:
    half = len(arrays) // 2
    function = functools.partial(point_functions, descriptors, weights)
    return jax.jvp(function, arrays[:half], arrays[half:])


def _make(
    folder: str,
    reference_folder: str,
    choice: FeatureChoice,
    names: tuple[str, ...],
    maps: NonlocalMaps | None,
    job: Job,
) -> dict[str, Any]:
    limit_threads(1)
    reference = Store(reference_folder).read(reference_key(job.system, job.density))
    store, count = Store(folder), 0
    for record in compute_orbitals(reference, choice, names, maps):
        store.write(record)
        count += len(record.facts["spins"])
    return {"orbitals": count}
