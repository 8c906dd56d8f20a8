r"""Integrals of the model's basis functions: what a fit needs of a density, once and for all.

.. math:: M = \sum_g e_g \left[t(x_g)\, t(x_g)^T - t(x_0)\, t(x_0)^T\right]

with :math:`e_g` what the learned factor of a grid point multiplies, t the Chebyshev basis of
``cider.gaussian_process`` and :math:`x_0` the uniform gas. The learned energy of a density is then
:math:`\langle Q, M\rangle`, for any quadratic form Q.
"""

import dataclasses
import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cider.baselines import BASELINES
from cider.conventions import REDUCED_GRADIENT_PREFACTOR, float64
from cider.descriptors import Descriptors
from cider.exchange import GRADIENT_CUTOFF, share_of_correction
from cider.gaussian_process import chebyshev_basis
from cider.input_transform import InputTransform, fit_input_transform
from cider.models import Model
from cider.training.descriptors import DescriptorReader, PointSet, corrected_energy, points_of
from cider.training.orbitals import OrbitalPoints, orbital_points_of
from cider.training.store import Record, Store

POINTS_PER_SYSTEM = 2000
"""Points that each system adds to the sample from which the input transform is fitted."""

LEAST_DENSITY = 1e-3
"""Density (bohr^-3) below which the enhancement factor is of no concern."""

_BLOCK = 8192


@dataclasses.dataclass(frozen=True)
class Integrals:
    """Integrals of many densities and the energies of their baseline (Ha).

    ``keys`` are system keys, ``<density>/<name>``, and keys of spin orbitals
    (:mod:`cider.training.orbitals`), for which there are derivatives by their occupation.
    """

    keys: tuple[str, ...]
    matrices: Float[np.ndarray, "system basis basis"]
    baseline: Float[np.ndarray, " system"]


@float64
def sampled_transform(store: DescriptorReader, keys: Sequence[str], seed: int) -> InputTransform:
    """The input transform of an energy-weighted sample of the points of descriptor records.

    Every system counts the same, whatever its size; its points count by their LDA energy.
    """
    samples = []
    for index, key in enumerate(keys):
        points = points_of(store, key)
        share = np.abs(points.lda_energy)
        random = np.random.default_rng((seed, index))
        chosen = random.choice(share.size, POINTS_PER_SYSTEM, p=share / share.sum())
        samples.append((points.semilocal[:, chosen], points.nonlocal_[:, chosen]))
    semilocal = np.concatenate([s for s, _ in samples], axis=1)
    nonlocal_ = np.concatenate([z for _, z in samples], axis=1)
    return fit_input_transform(semilocal, nonlocal_, np.ones(semilocal.shape[1]))


@float64
def uniform_gas_anchor(
    descriptors: Descriptors, transform: InputTransform
) -> Float[np.ndarray, " input"]:
    """The model's inputs in the uniform gas, where the learned part must vanish."""
    return np.asarray(transform(*map(jnp.asarray, descriptors.ueg)))[:, 0]


@float64
def integrate(
    points: PointSet, transform: InputTransform, anchor: Float[np.ndarray, " input"], degree: int
) -> Float[np.ndarray, "basis basis"]:
    """The integrals M (Ha) of one density."""
    total = np.zeros((1 + anchor.size * degree,) * 2)
    for semilocal, nonlocal_, energy in _blocks(points):
        total += np.asarray(_block_integral(transform, semilocal, nonlocal_, energy, degree))
    return _beside_uniform_gas(total, anchor, degree)


@float64
def integrate_change(
    orbital: OrbitalPoints,
    transform: InputTransform,
    anchor: Float[np.ndarray, " input"],
    degree: int,
) -> Float[np.ndarray, "basis basis"]:
    """Derivative of the integrals M (Ha) by the occupation of an orbital."""
    total = np.zeros((1 + anchor.size * degree,) * 2)
    blocks = zip(_blocks(orbital.points), _blocks(orbital.change), strict=True)
    for points, change in blocks:
        total += np.asarray(_block_integral_change(transform, points, change, degree))
    return _beside_uniform_gas(total, anchor, degree)


@float64
def baseline_change(orbital: OrbitalPoints, baseline: str) -> float:
    """Derivative of the energy (Ha) of the baseline by the occupation of an orbital."""
    blocks = zip(_blocks(orbital.points), _blocks(orbital.change), strict=True)
    return float(sum(_block_baseline_change(baseline, *block) for block in blocks))


@float64
def baseline_energy(points: PointSet, baseline: str) -> float:
    """Energy (Ha) of the baseline that the learned part corrects."""
    blocks = (
        _block_baseline(baseline, semilocal, energy) for semilocal, _, energy in _blocks(points)
    )
    return float(sum(blocks))


@float64
def integrate_all(
    folder: Path,
    descriptors: DescriptorReader,
    keys: Sequence[str],
    transform: InputTransform,
    anchor: Float[np.ndarray, " input"],
    baseline: str,
    degree: int,
    orbitals: Collection[str] = (),
) -> Integrals:
    """The integrals of many descriptor records, kept in a store in ``folder``.

    ``orbitals`` are keys of spin orbitals. Each transform, baseline and degree has a store of its
    own; finished records are not computed again.
    """
    digest = hashlib.sha256()
    for array in (*_arrays(transform), anchor):
        digest.update(np.ascontiguousarray(array).tobytes())
    settings = {
        "content": "integrals",
        "version": 3,
        "descriptors": descriptors.recipe_hash,
        "transform": digest.hexdigest()[:16],
        "baseline": baseline,
        "degree": degree,
        "gradient_cutoff": GRADIENT_CUTOFF,
    }
    store = Store(folder / f"{settings['transform']}-{baseline}-{degree}", settings)

    def of_density(key: str) -> tuple[np.ndarray, float]:
        points = points_of(descriptors, key)
        return integrate(points, transform, anchor, degree), baseline_energy(points, baseline)

    def of_orbital(key: str) -> tuple[np.ndarray, float]:
        orbital = orbital_points_of(descriptors, key)
        change = integrate_change(orbital, transform, anchor, degree)
        return change, baseline_change(orbital, baseline)

    matrices, energies = [], []
    for key in (*keys, *orbitals):
        name = f"integrals/{key}"
        if name not in store:
            matrix, energy = of_orbital(key) if key in orbitals else of_density(key)
            store.write(Record(name, {"matrix": matrix}, {"baseline": energy}))
        record = store.read(name)
        matrices.append(record.arrays["matrix"])
        energies.append(record.facts["baseline"])
    return Integrals((*keys, *orbitals), np.array(matrices), np.array(energies))


@float64
def enhancement_range(
    points: PointSet,
    baseline: str,
    transform: InputTransform,
    model: Model,
    least_density: float = LEAST_DENSITY,
) -> tuple[float, float]:
    """Least and largest enhancement factor where the density is above ``least_density``."""
    chosen = points.rho > least_density
    dense = PointSet(
        points.rho[chosen],
        points.lda_energy[chosen],
        points.semilocal[:, chosen],
        points.nonlocal_[:, chosen],
    )
    values = [
        np.asarray(_block_enhancement(transform, model, baseline, semilocal, nonlocal_))
        for semilocal, nonlocal_, _ in _blocks(dense)
    ]
    if not values:
        return np.nan, np.nan
    factors = np.concatenate(values)[: dense.rho.size]
    return float(factors.min()), float(factors.max())


def _blocks(points: PointSet) -> list[tuple[Array, Array, Array]]:
    """Blocks of one size; the last is filled up with copies of a point without energy."""
    blocks = []
    for start in range(0, points.rho.size, _BLOCK):
        index = np.arange(start, start + _BLOCK)
        inside = index < points.rho.size
        index = np.where(inside, index, 0)
        energy = np.where(inside, points.lda_energy[index], 0.0)
        semilocal, nonlocal_ = points.semilocal[:, index], points.nonlocal_[:, index]
        blocks.append((jnp.asarray(semilocal), jnp.asarray(nonlocal_), jnp.asarray(energy)))
    return blocks


def _beside_uniform_gas(
    total: Float[np.ndarray, "basis basis"], anchor: Float[np.ndarray, " input"], degree: int
) -> Float[np.ndarray, "basis basis"]:
    """Integrals of t tᵀ without its value at the anchor: the first of t is one everywhere."""
    at_anchor = np.asarray(chebyshev_basis(jnp.asarray(anchor)[:, None], degree))[0]
    return total - total[0, 0] * np.outer(at_anchor, at_anchor)


@eqx.filter_jit
def _block_integral(
    transform: InputTransform, semilocal: Array, nonlocal_: Array, energy: Array, degree: int
) -> Array:
    t = chebyshev_basis(transform(semilocal, nonlocal_), degree)
    return (t * corrected_energy(energy, semilocal)[:, None]).T @ t


@eqx.filter_jit
def _block_integral_change(
    transform: InputTransform,
    points: tuple[Array, Array, Array],
    change: tuple[Array, Array, Array],
    degree: int,
) -> Array:
    def integral(semilocal: Array, nonlocal_: Array, energy: Array) -> Array:
        return _block_integral(transform, semilocal, nonlocal_, energy, degree)

    return jax.jvp(integral, points, change)[1]


@eqx.filter_jit
def _block_enhancement(
    transform: InputTransform,
    model: Model,
    baseline: str,
    semilocal: Array,
    nonlocal_: Array,
) -> Array:
    share = share_of_correction(semilocal[0], GRADIENT_CUTOFF)
    return _baseline(baseline, semilocal[0]) + share * model(transform(semilocal, nonlocal_))


_BELOW_ONE = 1 - 2.0**-25
"""Rounded to single precision, what is more is one."""


@eqx.filter_jit
def _block_baseline(baseline: str, semilocal: Array, energy: Array) -> Array:
    return energy @ _baseline(baseline, semilocal[0])


@eqx.filter_jit
def _block_baseline_change(
    baseline: str, points: tuple[Array, Array, Array], change: tuple[Array, Array, Array]
) -> Array:
    def total(semilocal: Array, nonlocal_: Array, energy: Array) -> Array:
        return _block_baseline(baseline, semilocal, energy)

    return jax.jvp(total, points, change)[1]


def _baseline(name: str, bounded_gradient: Float[Array, " point"]) -> Float[Array, " point"]:
    """Enhancement factor of a baseline, which depends on the density's gradient alone.

    Where one orbital is left in a tail the bounded gradient is one to single precision: nothing
    changes there.
    """
    bounded = jnp.minimum(bounded_gradient, _BELOW_ONE)
    p = 4 * (1 + bounded) / (1 - bounded)
    return BASELINES[name](jnp.ones_like(p), p / REDUCED_GRADIENT_PREFACTOR)


def _arrays(transform: InputTransform) -> tuple[np.ndarray, ...]:
    return (
        transform.semilocal_mean,
        transform.semilocal_scale,
        transform.regression,
        transform.whitening,
    )
