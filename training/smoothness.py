r"""What keeps a fit smooth: combinations of its parameters that shall vanish within one.

Energies alone leave the enhancement factor free to be steep: slopes by one feature and by its like
cancel in the energies of molecules, but not in the errors of features, nor in the potential. Two
terms bind it. At points far from one another the learned factor g itself is
held. And its mean square slope is, over a sample of points,

.. math:: \Big\langle \sum_i \frac{1}{\sigma_i^2}
          \left(\frac{\partial g}{\partial \ln G_i}\right)^2 \Big\rangle
          + \Big\langle \sum_j \frac{1}{\sigma_j^2}
          \left(\frac{\partial g}{\partial u_j}\right)^2 \Big\rangle

with nonlocal features G and bounded semilocal descriptors u: minus half of this is the logarithm of
its prior probability. Both are quadratic forms of the parameters.

Slopes by the iso-orbital indicator are held more tightly where one orbital is alone. Energies say
nothing of them there, for the indicator stays zero however the orbital changes. But empty orbitals
would raise it: their energies follow the slope, and with them the steps of a self-consistent field.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cider.conventions import float64
from cider.gaussian_process import chebyshev_basis
from cider.input_transform import InputTransform
from cider.training.descriptors import DescriptorReader, PointSet, points_of
from cider.training.fit import num_parameters, parameter_features

LEAST_DENSITY = 1e-5
"""Density (bohr^-3) down to which a fit is kept smooth: outer electrons have a potential too."""

ISOORBITAL = 1
"""Place of the iso-orbital indicator among semilocal descriptors."""

ONE_ORBITAL = -0.98
"""Bounded iso-orbital indicator up to which one orbital is alone: alpha of 0.01."""

_POOL_PER_SYSTEM = 200
_SLOPES_PER_SYSTEM = 40
_BLOCK = 512


@float64
def spread_points(
    store: DescriptorReader, keys: Sequence[str], transform: InputTransform, seed: int, count: int
) -> Float[np.ndarray, "input point"]:
    """Model inputs of ``count`` points that cover what densities reach where they matter.

    Greedily the farthest from those already chosen, among a random sample of points above
    ``LEAST_DENSITY``; the first is the one farthest from the origin.
    """
    pool = []
    for index, key in enumerate(keys):
        points = points_of(store, key)
        dense = np.flatnonzero(points.rho > LEAST_DENSITY)
        random = np.random.default_rng((seed, index, 1))
        chosen = random.choice(dense, min(dense.size, _POOL_PER_SYSTEM), replace=False)
        semilocal, nonlocal_ = points.semilocal[:, chosen], points.nonlocal_[:, chosen]
        pool.append(np.asarray(transform(jnp.asarray(semilocal), jnp.asarray(nonlocal_))))
    inputs = np.concatenate(pool, axis=1)
    chosen_points = [int(np.argmax(np.sum(inputs**2, axis=0)))]
    distance = np.full(inputs.shape[1], np.inf)
    while len(chosen_points) < min(count, inputs.shape[1]):
        latest = inputs[:, chosen_points[-1]]
        distance = np.minimum(distance, np.sum((inputs - latest[:, None]) ** 2, axis=0))
        chosen_points.append(int(np.argmax(distance)))
    return inputs[:, chosen_points]


@float64
def values_at_points(
    inputs: Float[np.ndarray, "input point"], anchor: Float[np.ndarray, " input"], degree: int
) -> Float[np.ndarray, "point basis basis"]:
    """What the integrals M are for single points of unit LDA energy: the learned factor there."""
    t = np.asarray(chebyshev_basis(jnp.asarray(inputs), degree))
    at_anchor = np.asarray(chebyshev_basis(jnp.asarray(anchor)[:, None], degree))[0]
    return t[:, :, None] * t[:, None, :] - np.outer(at_anchor, at_anchor)


@float64
def slope_points(
    store: DescriptorReader, keys: Sequence[str], seed: int
) -> tuple[Float[np.ndarray, "semilocal point"], Float[np.ndarray, "nonlocal point"]]:
    """Bounded descriptors of points where slopes count, as many of each system.

    Half of them are chosen by their energy; the others, which speak for the potential, are any
    above ``LEAST_DENSITY``.
    """
    half = _SLOPES_PER_SYSTEM // 2

    def chosen(points: PointSet, random: np.random.Generator) -> Int[np.ndarray, " point"]:
        share = np.abs(points.lda_energy)
        by_energy = random.choice(share.size, half, p=share / share.sum())
        dense = np.flatnonzero(points.rho > LEAST_DENSITY)
        return np.concatenate([by_energy, random.choice(dense, half)])

    return _drawn(store, keys, (seed, 2), chosen)


@float64
def one_orbital_points(
    store: DescriptorReader, keys: Sequence[str], seed: int
) -> tuple[Float[np.ndarray, "semilocal point"], Float[np.ndarray, "nonlocal point"]]:
    """Bounded descriptors of points where one orbital is alone, as many of each system.

    They are any above ``LEAST_DENSITY``; a system without such points adds none.
    """

    def chosen(points: PointSet, random: np.random.Generator) -> Int[np.ndarray, " point"]:
        alone = (points.semilocal[ISOORBITAL] < ONE_ORBITAL) & (points.rho > LEAST_DENSITY)
        places = np.flatnonzero(alone)
        return random.choice(places, _SLOPES_PER_SYSTEM) if places.size else places

    return _drawn(store, keys, (seed, 3), chosen)


def _drawn(
    store: DescriptorReader,
    keys: Sequence[str],
    stream: tuple[int, int],
    chosen: Callable[[PointSet, np.random.Generator], Int[np.ndarray, " point"]],
) -> tuple[Float[np.ndarray, "semilocal point"], Float[np.ndarray, "nonlocal point"]]:
    """Bounded descriptors of the points ``chosen`` of each system; ``stream``: seed, purpose."""
    seed, purpose = stream
    samples = []
    for index, key in enumerate(keys):
        points = points_of(store, key)
        places = chosen(points, np.random.default_rng((seed, index, purpose)))
        samples.append((points.semilocal[:, places], points.nonlocal_[:, places]))
    return np.concatenate([u for u, _ in samples], 1), np.concatenate([z for _, z in samples], 1)


def slope_sigmas(
    semilocal_sigma: float, nldf_sigma: float, num_semilocal: int, num_nonlocal: int
) -> dict[int, float]:
    """Sigmas of slopes by descriptor, semilocal ones first; those of 0 leave slopes free."""
    sigmas = [semilocal_sigma] * num_semilocal + [nldf_sigma] * num_nonlocal
    return {descriptor: sigma for descriptor, sigma in enumerate(sigmas) if sigma}


@float64
def slope_form(
    semilocal: Float[np.ndarray, "semilocal point"],
    nonlocal_: Float[np.ndarray, "nonlocal point"],
    transform: InputTransform,
    degree: int,
    sigmas: Mapping[int, float],
) -> Float[np.ndarray, "parameter parameter"]:
    """The quadratic form of the parameters that is the mean square slope.

    ``sigmas`` go by descriptor, semilocal ones first; those without one do not count.
    """
    num_inputs = len(semilocal) + len(nonlocal_)
    moment = np.zeros((num_parameters(num_inputs, degree),) * 2)
    for descriptor, sigma in sigmas.items():
        for matrices in _slope_matrices(semilocal, nonlocal_, transform, degree, descriptor):
            rows = parameter_features(matrices, num_inputs, degree) / sigma
            moment += rows.T @ rows / semilocal.shape[1]
    return moment


def _slope_matrices(
    semilocal: Float[np.ndarray, "semilocal point"],
    nonlocal_: Float[np.ndarray, "nonlocal point"],
    transform: InputTransform,
    degree: int,
    descriptor: int,
) -> Iterator[Float[np.ndarray, "point basis basis"]]:
    """Blocks of matrices whose products with Q are slopes of the learned factor."""
    for start in range(0, semilocal.shape[1], _BLOCK):
        descriptors = (
            jnp.asarray(semilocal[:, start : start + _BLOCK]),
            jnp.asarray(nonlocal_[:, start : start + _BLOCK]),
        )
        along = slope_direction(*descriptors, descriptor)
        yield np.asarray(_slopes(transform, degree, descriptors, along))


def slope_direction(
    semilocal: Float[Array, "semilocal point"],
    nonlocal_: Float[Array, "nonlocal point"],
    descriptor: int,
) -> tuple[Float[Array, "semilocal point"], Float[Array, "nonlocal point"]]:
    """Derivatives of bounded descriptors by one of them: u itself, or ln G behind z.

    Of z = tanh(ln(G/G_0)/2) it is dz/dlnG = (1 - z²)/2.
    """
    along = jnp.concatenate([jnp.ones_like(semilocal), (1 - nonlocal_**2) / 2])
    only = jnp.zeros_like(along).at[descriptor].set(along[descriptor])
    return only[: len(semilocal)], only[len(semilocal) :]


@eqx.filter_jit
def _slopes(
    transform: InputTransform,
    degree: int,
    descriptors: tuple[Array, Array],
    along: tuple[Array, Array],
) -> Array:
    def basis(semilocal: Array, nonlocal_: Array) -> Array:
        return chebyshev_basis(transform(semilocal, nonlocal_), degree)

    t, slope = jax.jvp(basis, descriptors, along)
    return slope[:, :, None] * t[:, None, :] + t[:, :, None] * slope[:, None, :]
