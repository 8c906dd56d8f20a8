"""The atom-centred convolution on Becke grids against brute-force integrals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from molecules import DIFFUSE, MOLECULES, molecule_density
from threadpoolctl import threadpool_limits

from cider.descriptors import safe_ingredients
from cider.features.atomic_shells import partition_of_unity
from cider.features.nldf import Nldf, NldfExponent
from cider.plugins.pyscf.grids import becke_convolution

NLDF = Nldf(
    NldfExponent(0.5, 0.0, 0.5 / 32),
    tuple(NldfExponent(a, 0.0, a / 32) for a in (0.5, 1.0, 2.0, 4.0)),
)

LARGE = ("benzene", "8 waters")
"""Left to the slow tests: four water molecules have as many atoms around each other."""


def ingredients(density):
    return tuple(np.asarray(x) for x in safe_ingredients(density, 0))


def map_features(convolution, density, targets):
    """The features at some grid points, through the map."""
    fields = convolution.apply(NLDF.sources(*map(jnp.asarray, ingredients(density))))
    own = (jnp.asarray(x[targets]) for x in ingredients(density))
    return np.asarray(NLDF.features(*own, jnp.asarray(fields[targets])))


def exact_features(source_coords, source_weights, sources, targets_coords, targets):
    """The features by direct quadrature of their definition, without any ladder."""
    rho = sources[0]
    charges = jnp.asarray(source_weights * np.where(rho > 1e-12, rho, 0.0))
    source_exponent = NLDF.source_exponent(*map(jnp.asarray, sources))
    target_exponents = jnp.stack([a(*map(jnp.asarray, targets)) for a in NLDF.exponents], axis=1)
    coords = jnp.asarray(source_coords)

    @jax.jit
    def at_point(point):
        position, exponents = point
        distance_squared = jnp.sum((coords - position[None]) ** 2, axis=1)
        sharpness = exponents[:, None] + source_exponent[None]
        return jnp.exp(-sharpness * distance_squared[None]) @ charges

    points = (jnp.asarray(targets_coords), target_exponents)
    return np.asarray(jax.lax.map(at_point, points)).T


def energy_sample(density, weights, count):
    """Grid points drawn with a probability that follows their exchange energy."""
    energy = np.abs(weights) * np.maximum(density.rho[0], 0.0) ** (4 / 3)
    return np.random.default_rng(0).choice(len(energy), count, p=energy / energy.sum())


def outer_sample(density, grids, center, count):
    """Points 4 to 8 bohr from the centre, drawn with a probability that follows their charge."""
    distance = np.linalg.norm(grids.coords - center, axis=1)
    charge = np.abs(grids.weights) * density.rho[0] * (distance > 4) * (distance < 8)
    return np.random.default_rng(0).choice(len(charge), count, p=charge / charge.sum())


def both_features(molecule, grids, density, reference, chosen):
    """Features through the map and by direct integrals, at the chosen points.

    ``reference`` are the grid and density of the direct integrals.
    """
    fine, fine_density = reference
    exact = exact_features(
        fine.coords,
        fine.weights,
        ingredients(fine_density),
        grids.coords[chosen],
        [x[chosen] for x in ingredients(density)],
    )
    convolution = becke_convolution(molecule.mol, grids, NLDF)
    return map_features(convolution, density, chosen), exact


def relative_rms(features, exact):
    return np.sqrt(np.mean((features / exact - 1) ** 2, axis=1)).max()


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in LARGE else ()) for n in MOLECULES],
)
def test_features_of_molecules(name, x64):
    """Relative rms of every feature, weighted by energy, below 2e-4 at the default setting, and
    the energy of a plain function of them right to 1e-6.

    The reference integrates the definition on a finer, unpruned grid: with the default one the
    direct sum is itself off by 4e-3 where a sharp feature meets the core of a heavy atom, which
    the angular integrals of the map are not.
    """
    molecule = molecule_density(name)
    grids, density = molecule.on_grid(level=3)
    reference = molecule.on_grid(level=4, prune=None)
    chosen = energy_sample(density, grids.weights, 300)
    features, exact = both_features(molecule, grids, density, reference, chosen)
    assert relative_rms(features, exact) < 2e-4
    # Enhancement factors 1 + 0.3 <G / (G + G_ueg)>, at points of equal energy.
    energies = [1 + 0.3 * np.mean(g / (g + NLDF.ueg[:, None])) for g in (features, exact)]
    assert energies[0] == pytest.approx(energies[1], rel=1e-6)


@pytest.mark.parametrize("name", DIFFUSE)
def test_features_far_out(name, x64):
    """Where weakly bound electrons are, the uniform grids still reach."""
    molecule = molecule_density(name)
    grids, density = molecule.on_grid(level=3)
    chosen = outer_sample(density, grids, molecule.mol.atom_coord(0), 300)
    reference = molecule.on_grid(level=4, prune=None)
    features, exact = both_features(molecule, grids, density, reference, chosen)
    assert relative_rms(features, exact) < 1e-3


@pytest.mark.parametrize(
    "settings",
    [dict(level=0), dict(level=1), dict(level=5), dict(level=2, prune=None)],
    ids=str,
)
def test_any_grid(settings, x64):
    """On coarse, fine and unpruned grids the map follows the direct sum on the same grid.

    The tolerance of level 0 is the error of its own quadrature.
    """
    molecule = molecule_density("water")
    own = grids, density = molecule.on_grid(**settings)
    chosen = energy_sample(density, grids.weights, 200)
    rms = relative_rms(*both_features(molecule, *own, own, chosen))
    assert rms < {0: 1e-2, 1: 1e-3}.get(settings["level"], 3e-4)


def test_points_pruned_by_density_are_missed():
    """Their Becke weight is small, not their share of the sources: features were off by 1 %."""
    molecule = molecule_density("water")
    grids, density = molecule.on_grid(level=1)
    grids.prune_by_density_(density.rho[0].copy(), 1e-6)
    with pytest.raises(ValueError, match="small_rho_cutoff"):
        becke_convolution(molecule.mol, grids, NLDF)


def test_transpose_is_the_transpose(x64):
    molecule = molecule_density("water")
    grids, _ = molecule.on_grid(level=1)
    convolution = becke_convolution(molecule.mol, grids, NLDF)
    rng = np.random.default_rng(0)
    sources = rng.normal(size=(len(grids.weights), len(NLDF.source_ladder.exponents)))
    fields = rng.normal(size=(len(grids.weights), len(NLDF.target_ladder.exponents)))
    forward = np.sum(convolution.apply(sources) * fields)
    backward = np.sum(convolution.transpose(fields) * sources)
    assert forward == pytest.approx(backward, rel=1e-10)


def test_number_of_threads_changes_nothing(x64):
    molecule = molecule_density("water")
    grids, _ = molecule.on_grid(level=0)
    convolution = becke_convolution(molecule.mol, grids, NLDF)
    num_sources = len(NLDF.source_ladder.exponents)
    sources = np.random.default_rng(0).normal(size=(len(grids.weights), num_sources))
    fields, charges = [], []
    for number in (1, 3):
        with threadpool_limits(number, user_api="blas"):
            fields.append(convolution.apply(sources))
            charges.append(convolution.transpose(fields[0]))
    np.testing.assert_array_equal(*fields)
    np.testing.assert_array_equal(*charges)


def test_partition_of_unity():
    """The shares of all atoms add up to one; a nucleus keeps its surroundings."""
    centers = np.array([[0.0, 0, 0], [0, 0, 2.0], [1.5, 0, 0]])
    coords = np.random.default_rng(1).normal(size=(50, 3))
    shares = [partition_of_unity(coords, np.tile(center, (50, 1)), centers) for center in centers]
    np.testing.assert_allclose(sum(shares), 1, rtol=1e-13)
    near = centers[1] + np.array([[0.2, 0, 0]])
    share = partition_of_unity(near, centers[:1], centers)
    assert share[0] < 2e-6


def test_grids_that_are_not_atomic_are_refused():
    molecule = molecule_density("water")
    grids, _ = molecule.on_grid(level=0)
    grids.coords = grids.coords + np.random.default_rng(0).normal(size=grids.coords.shape)
    with pytest.raises(ValueError, match="Lebedev"):
        becke_convolution(molecule.mol, grids, NLDF)
    grids.atm_idx = None
    with pytest.raises(ValueError, match=r"grids\.build"):
        becke_convolution(molecule.mol, grids, NLDF)
