r"""Descriptors of the reference densities: the last stage that touches a grid.

For each density the bounded descriptors of every grid point are kept, with the exchange energy
:math:`w\,e_x^{LDA}(2\rho_\sigma)/n_{spin}` that it would have in the uniform gas. What a model
learns is a factor on these energies.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from pyscf import dft, gto
from rich.console import Console

from cider.conventions import DENSITY_CUTOFF, LDA_EXCHANGE_PREFACTOR, AnyArray, float64
from cider.density import Density
from cider.descriptors import Descriptors, safe_ingredients, safe_sdmx
from cider.exchange import GRADIENT_CUTOFF, share_of_correction
from cider.features import gaussian_ladder
from cider.features.convolution import GaussianConvolution
from cider.features.nldf import Nldf, NldfExponent
from cider.features.sdmx import LARGEST_RADIUS, Sdmx, SdmxRadii
from cider.training.crystals import crystal_convolution, read_crystal_density
from cider.training.produce import Job, ProductionSummary, with_progress
from cider.training.recipe import FeatureChoice
from cider.training.reference import limit_threads, read_density, reference_key, turned
from cider.training.store import Record, Store, content_hash
from cider.training.systems import System

DROPPED_ENERGY = 1e-7
"""Energy (Ha) of all the points together that are left out of a record because they are tiny."""


class NonlocalMaps(NamedTuple):
    """What a plugin supplies for nonlocal features; functions of modules, to survive pickling."""

    convolution: Callable[[Any, Any, Nldf], GaussianConvolution]
    """The convolution of the built PySCF grids of a molecule, ``(mol, grids, nldf)``."""
    sdmx_features: Callable[..., np.ndarray]
    """Features of density matrices, ``(mol, grids, sdmx, dms, max_memory)``.

    Axes of the matrices are spin, set and orbitals; of the features spin, set, feature and grid.
    """


_BLOCK = 4096
MAX_MEMORY = 1000
"""Of PySCF, in MB, for features of density matrices."""

_SEMILOCAL = {"gga": 1, "mgga": 2}


@dataclasses.dataclass(frozen=True)
class PointSet:
    """The points of one density, both spins in one list.

    ``rho`` is spin-scaled (bohr^-3), ``lda_energy`` in Ha with the quadrature weight.
    """

    rho: Float[np.ndarray, " grid"]
    lda_energy: Float[np.ndarray, " grid"]
    semilocal: Float[np.ndarray, "semilocal grid"]
    nonlocal_: Float[np.ndarray, "nonlocal grid"]


def descriptors_of(choice: FeatureChoice) -> Descriptors:
    """The descriptors that a recipe asks for."""
    nldf = None
    if choice.nldf:
        nldf = Nldf(
            NldfExponent(*choice.source_exponent), tuple(NldfExponent(*e) for e in choice.nldf)
        )
    sdmx = Sdmx(choice.sdmx) if choice.sdmx else None
    return Descriptors(choice.level.upper(), nldf, sdmx=sdmx)


def descriptor_settings(choice: FeatureChoice, references: Store) -> dict[str, Any]:
    """What determines descriptors, for a store's header."""
    settings = {
        "content": "descriptors",
        "version": 3,
        "references": references.recipe_hash,
        **dataclasses.asdict(choice),
    }
    if choice.nldf:
        settings["bounds"] = [NldfExponent.FLOOR, NldfExponent.CEILING]
        settings["ladder"] = [gaussian_ladder.RATIO, gaussian_ladder.ORIGIN]
    if choice.sdmx:
        settings["radii"] = [LARGEST_RADIUS, SdmxRadii().count]
    else:
        del settings["sdmx"]
    return settings


@runtime_checkable
class DescriptorReader(Protocol):
    """Where descriptor records are read from, and the hash of what determines them."""

    @property
    def recipe_hash(self) -> str: ...

    def read(self, key: str) -> Record: ...


@dataclasses.dataclass(frozen=True)
class DescriptorStore:
    """Records of the descriptors ``held``, of which a recipe reads the rows that it asks for."""

    store: Store
    held: FeatureChoice
    semilocal: tuple[int, ...]
    nonlocal_: tuple[int, ...]

    @property
    def recipe_hash(self) -> str:
        """Hash of what determines the rows that are read."""
        nonlocal_ = len(self.held.nldf) + len(self.held.sdmx)
        held = (tuple(range(_SEMILOCAL[self.held.level])), tuple(range(nonlocal_)))
        if (self.semilocal, self.nonlocal_) == held:
            return self.store.recipe_hash
        return content_hash([self.store.recipe_hash, self.semilocal, self.nonlocal_])

    def read(self, key: str) -> Record:
        """The record ``key`` with the chosen rows alone; raises what ``Store.read`` raises."""
        record = self.store.read(key)
        arrays = dict(record.arrays)
        for name in arrays:  # of points, and of how they change with the occupation of an orbital
            if name.startswith("semilocal"):
                arrays[name] = arrays[name][list(self.semilocal)]
            elif name.startswith("nonlocal_"):
                arrays[name] = arrays[name][list(self.nonlocal_)]
        return Record(key, arrays, record.facts)


def open_descriptors(folder: Path, choice: FeatureChoice, references: Store) -> DescriptorStore:
    """The descriptors of ``choice`` in ``folder``, which may hold more features than these.

    Several recipes can so share one costly store. Each feature is the same whichever others were
    computed with it, but for the length of their common ladder (less than 1e-7 of the energy).

    Raises:
        ForeignStoreError: The folder lacks a feature, or its records differ in something else.
    """
    held = choice
    if (folder / "header.json").exists():
        there = Store(folder).header["recipe"]
        exponents = tuple(tuple(e) for e in there.get("nldf", ()))
        terms = tuple(tuple(term) for term in there.get("sdmx", ()))
        richer = {choice.level, there.get("level")} <= {choice.level, "mgga"}
        if richer and set(choice.nldf) <= set(exponents) and set(choice.sdmx) <= set(terms):
            source = choice.source_exponent if choice.nldf else tuple(there["source_exponent"])
            held = dataclasses.replace(
                choice, level=there["level"], nldf=exponents, source_exponent=source, sdmx=terms
            )
    # Whatever else differs is refused here, with the settings that do.
    store = Store(folder, descriptor_settings(held, references))
    return DescriptorStore(
        store,
        held,
        tuple(range(_SEMILOCAL[choice.level])),
        (
            *(held.nldf.index(e) for e in choice.nldf),
            *(len(held.nldf) + held.sdmx.index(term) for term in choice.sdmx),
        ),
    )


def descriptor_key(label: str) -> str:
    """The key in a store of the record of a job: ``descriptors/<density>/<system>``."""
    return f"descriptors/{label}"


@float64
def compute_descriptors(
    reference: Record,
    choice: FeatureChoice,
    maps: NonlocalMaps | None = None,
    orientation: int = 0,
) -> Record:
    """Descriptors of a converged reference density, or of an atom's in another orientation.

    Raises:
        ValueError: The reference has no density, or nonlocal features lack their ``maps``.
    """
    if reference.facts["system"].get("cell"):
        weights, descriptors, density, convolution = _prepare_crystal(reference, choice)
    else:
        mol, dm = read_density(reference)
        if orientation:
            dm = turned(mol, dm, orientation)
        grids, descriptors, density, convolution = prepare(mol, dm, choice, maps)
        weights = grids.weights
    scaled = density.spin_scaled()
    parts = [
        _points_of_spin(descriptors, scaled, spin, weights / density.num_spins, convolution)
        for spin in range(density.num_spins)
    ]
    points = {name: np.concatenate([p[name] for p in parts], axis=-1) for name in parts[0]}
    kept, dropped = worth_keeping(np.abs(points["lda_energy"]))
    arrays = {
        name: values[..., kept].astype(np.float64 if name == "lda_energy" else np.float32)
        for name, values in points.items()
    }
    if not all(np.isfinite(values).all() for values in arrays.values()):
        raise ValueError(f"{reference.key} gives descriptors that are not finite")
    facts = {
        "points": int(kept.sum()),
        "dropped_energy": dropped,
        "names": list(descriptors.names),
        "system": reference.facts["system"],
        "density": reference.facts["density"],
    }
    job = Job(System.from_dict(facts["system"]), facts["density"], orientation)
    return Record(descriptor_key(job.label), arrays, facts)


def read_points(record: Record) -> PointSet:
    """The points of a record, in double precision."""
    arrays = {name: np.asarray(values, np.float64) for name, values in record.arrays.items()}
    return PointSet(arrays["rho"], arrays["lda_energy"], arrays["semilocal"], arrays["nonlocal_"])


def points_of(store: DescriptorReader, label: str) -> PointSet:
    """The points of the density ``<density>/<system>`` in a store, in double precision."""
    return read_points(store.read(descriptor_key(label)))


class Prepared(NamedTuple):
    """A density on the grid that integrates it, and what makes nonlocal features of it."""

    grids: dft.gen_grid.Grids
    descriptors: Descriptors
    density: Density
    convolution: GaussianConvolution | None


def prepare(
    mol: gto.Mole,
    dm: Float[np.ndarray, "spin ao ao"],
    choice: FeatureChoice,
    maps: NonlocalMaps | None,
) -> Prepared:
    """What descriptors are made of. Spin length 1 is the total density matrix of a closed shell.

    Raises:
        ValueError: Nonlocal features lack their ``maps``.
    """
    descriptors = descriptors_of(choice)
    if maps is None and (choice.nldf or choice.sdmx):
        raise ValueError("nonlocal features need the maps of a plugin")
    grids = dft.gen_grid.Grids(mol)
    grids.level = choice.atom_grid_level if mol.natm == 1 else choice.molecule_grid_level
    grids.build()
    density = density_on_grid(mol, grids.coords, dm)
    convolution = None
    if maps is not None and descriptors.nldf is not None:
        convolution = maps.convolution(mol, grids, descriptors.nldf)
    if maps is not None and descriptors.sdmx is not None:
        sdmx = maps.sdmx_features(mol, grids, descriptors.sdmx, dm[:, None], MAX_MEMORY)[:, 0]
        density = dataclasses.replace(density, sdmx=sdmx)
    return Prepared(grids, descriptors, density, convolution)


def _prepare_crystal(
    reference: Record, choice: FeatureChoice
) -> tuple[Float[np.ndarray, " grid"], Descriptors, Density, GaussianConvolution | None]:
    """Weights, and what descriptors are made of, at the points of a crystal's record."""
    if choice.sdmx:
        raise ValueError("features of the density matrix are not available for crystals")
    descriptors = descriptors_of(choice)
    density, weights = read_crystal_density(reference)
    convolution = None
    if descriptors.nldf is not None:
        convolution = crystal_convolution(reference, descriptors.nldf)
    return weights, descriptors, density, convolution


def density_on_grid(
    mol: Any, coords: Float[np.ndarray, "grid xyz"], dm: Float[np.ndarray, "spin ao ao"]
) -> Density:
    """Density with its gradient and tau; spin length 1 is the total of a closed shell."""
    integrator = dft.numint.NumInt()
    blocks = []
    for start in range(0, len(coords), 4 * _BLOCK):
        ao = integrator.eval_ao(mol, coords[start : start + 4 * _BLOCK], deriv=1)
        blocks.append(
            [integrator.eval_rho(mol, ao, d, xctype="MGGA", hermi=1, with_lapl=False) for d in dm]
        )
    rho = np.concatenate(blocks, axis=-1)
    return Density(rho[:, 0], rho[:, 1:4], rho[:, 4])


def produce_descriptors(
    store: Store,
    references: Store,
    jobs: Sequence[Job],
    choice: FeatureChoice,
    maps: NonlocalMaps | None = None,
    workers: int = 1,
    console: Console | None = None,
) -> ProductionSummary:
    """Make the descriptor records that ``store`` does not hold yet.

    A system that fails is reported and counted, and tried again by the next run.

    Raises:
        DiskFullError: There is no space left; finished records are intact.
    """
    keys = {job.label: descriptor_key(job.label) for job in jobs}
    present = tuple(label for label, key in keys.items() if key in store)
    missing = [job for job in jobs if keys[job.label] not in store]
    function = functools.partial(_make, str(store.folder), str(references.folder), choice, maps)

    def describe(facts: dict[str, Any]) -> str:
        return f"{facts['points']} points"

    outcomes = with_progress(function, missing, workers, "descriptors", describe, console)
    return ProductionSummary.of(outcomes, present)


def _make(
    folder: str,
    reference_folder: str,
    choice: FeatureChoice,
    maps: NonlocalMaps | None,
    job: Job,
) -> dict[str, Any]:
    limit_threads(1)
    reference = Store(reference_folder).read(reference_key(job.system, job.density))
    record = compute_descriptors(reference, choice, maps, job.orientation)
    Store(folder).write(record)
    return dict(record.facts)


def _points_of_spin(
    descriptors: Descriptors,
    scaled: Density,
    spin: int,
    weights: Float[np.ndarray, " grid"],
    convolution: GaussianConvolution | None,
) -> dict[str, np.ndarray]:
    rho, sigma, tau = map(np.asarray, safe_ingredients(scaled, spin))
    weights = occupied_weights(np.asarray(scaled.rho[spin]), weights)
    fields = None
    if convolution is not None:
        fields = np.asarray(convolution.apply(in_blocks(_sources, descriptors, rho, sigma, tau).T))
    sdmx = safe_sdmx(scaled, spin)
    by_point = None if sdmx is None else np.asarray(sdmx).T
    return in_blocks(_point_functions, descriptors, weights, rho, sigma, tau, fields, by_point)


def occupied_weights(
    rho: Float[np.ndarray, " grid"], weights: Float[np.ndarray, " grid"]
) -> Float[np.ndarray, " grid"]:
    """Quadrature weights, zero where there is no density."""
    return np.where(rho > DENSITY_CUTOFF, weights, 0.0)


def sources(descriptors: Descriptors, rho: Array, sigma: Array, tau: Array) -> Array:
    """Sources of nonlocal density features, one row each."""
    assert descriptors.nldf is not None
    return descriptors.nldf.sources(rho, sigma, tau).T


def point_functions(
    descriptors: Descriptors,
    weights: Array,
    rho: Array,
    sigma: Array,
    tau: Array,
    fields: Array | None,
    sdmx: Array | None,
) -> dict[str, Array]:
    """The arrays of ``PointSet`` for spin-scaled ingredients and nonlocal features by point."""
    features = None if sdmx is None else sdmx.T
    semilocal, nonlocal_ = descriptors(rho, sigma, tau, fields, features)
    lda_energy = weights * LDA_EXCHANGE_PREFACTOR * rho ** (4 / 3)
    return {"rho": rho, "lda_energy": lda_energy, "semilocal": semilocal, "nonlocal_": nonlocal_}


_sources, _point_functions = eqx.filter_jit(sources), eqx.filter_jit(point_functions)


def corrected_energy(
    lda_energy: Float[AnyArray, " grid"], semilocal: Float[AnyArray, "semilocal grid"]
) -> Float[AnyArray, " grid"]:
    """What the learned factor of points multiplies in their energy (Ha)."""
    return lda_energy * share_of_correction(semilocal[0], GRADIENT_CUTOFF)


def in_blocks(function: Callable[..., Any], descriptors: Descriptors, *arrays: Any) -> Any:
    """``function`` on blocks of one size, so that it is compiled once for all molecules."""
    size = len(arrays[0])
    results = []
    for start in range(0, size, _BLOCK):
        # Points of an earlier kind fill up the last block; they are cut off again.
        index = np.minimum(np.arange(start, start + _BLOCK), size - 1)
        block = (None if a is None else jnp.asarray(a[index]) for a in arrays)
        results.append(jax.tree.map(np.asarray, function(descriptors, *block)))
    return jax.tree.map(lambda *parts: np.concatenate(parts, axis=-1)[..., :size], *results)


def worth_keeping(size: Float[np.ndarray, " grid"]) -> tuple[np.ndarray, float]:
    """Which points are kept, by the size of their energies (Ha), and the energy of the others."""
    order = np.argsort(size, kind="stable")
    total = np.cumsum(size[order])
    count = int(np.searchsorted(total, DROPPED_ENERGY))
    kept = np.ones(len(size), dtype=bool)
    kept[order[:count]] = False
    return kept, float(total[count - 1]) if count else 0.0
