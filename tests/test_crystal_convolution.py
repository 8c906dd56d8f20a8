"""The convolution on the atomic grids of crystals, against that of a uniform grid."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from pyscf.pbc import gto
from toy_functionals import toy_nldf

from cider.features.cell_grid import cell_grid_convolution
from cider.features.crystal_convolution import crystal_partition, images_near_cell
from cider.features.periodic_grid import periodic_convolution
from cider.plugins.pyscf.crystal_grids import CrystalGrids, crystal_grids_convolution

LATTICE = np.array([[4.6, 0.3, 0.0], [0.0, 5.0, 0.4], [0.5, 0.0, 4.4]])
NLDF = toy_nldf()


@pytest.fixture(scope="module")
def grids():
    cell = gto.M(a=LATTICE, atom="H 0.2 0 0; He 1.9 1.2 2.1", basis="sto-3g", unit="bohr", spin=1)
    return CrystalGrids(cell).build()


def smooth_density(coords):
    """A periodic density without shells, of waves that a mesh of 12 points has."""
    phases = 2 * np.pi * coords @ np.linalg.inv(LATTICE)
    return 1 + 0.5 * np.cos(phases[:, 0]) + 0.3 * np.sin(phases[:, 1] - 2 * phases[:, 2])


def test_smooth_gaussians_of_points_anywhere(x64):
    """Points of a mesh, moved out of the cell, have what the transform makes of the mesh.

    The window of seven cells has an error of 2e-6.
    """
    exponents = np.array([0.02, 0.1, 0.5]), np.array([0.05, 0.5])
    mesh = np.array([15, 16, 14])
    fractions = np.stack(np.meshgrid(*(np.arange(n) / n for n in mesh), indexing="ij"), axis=-1)
    random = np.random.default_rng(0)
    sources = random.uniform(size=(mesh.prod(), 3))
    expected = np.asarray(periodic_convolution(LATTICE, mesh, *exponents).apply(sources))
    moved = fractions.reshape(-1, 3) + random.integers(-2, 3, size=(mesh.prod(), 3))
    convolution = cell_grid_convolution(LATTICE, moved @ LATTICE, *exponents, 0.5)
    weight = abs(np.linalg.det(LATTICE)) / mesh.prod()
    with ThreadPoolExecutor(2) as pool:
        fields = convolution.apply(weight * sources, pool)
    np.testing.assert_allclose(fields, expected, rtol=1e-5)


def test_images_are_all_that_are_near():
    images = images_near_cell(LATTICE, np.array([0.3, 6.0, -9.0]), 5.0)
    steps = np.stack(np.meshgrid(*[np.arange(-6, 7)] * 3), axis=-1).reshape(-1, 3)
    every = np.array([0.3, 6.0, -9.0]) + steps @ LATTICE
    in_cell = np.random.default_rng(0).uniform(-0.5, 0.5, size=(500, 3)) @ LATTICE
    distance = np.linalg.norm(every[:, None] - in_cell, axis=2).min(axis=1)
    for center in every[distance < 5.0]:
        assert np.linalg.norm(images - center, axis=1).min() < 1e-10


def test_shares_of_all_images_add_up_to_one():
    centers = np.array([[0.2, 0, 0], [1.9, 1.2, 2.1]])
    coords = np.random.default_rng(0).uniform(-0.5, 0.5, size=(10, 3)) @ LATTICE
    total = np.zeros(len(coords))
    for center in centers:
        for image in images_near_cell(LATTICE, center, 17.0):
            own = np.tile(image, (len(coords), 1))
            total += crystal_partition(LATTICE, coords, own, centers)
    np.testing.assert_allclose(total, 1, rtol=1e-11)


def test_weights_integrate_the_cell(grids):
    """A density without atoms, which level 3 integrates to 1e-3."""
    integral = grids.weights @ smooth_density(grids.coords)
    assert integral == pytest.approx(abs(np.linalg.det(LATTICE)), rel=1e-3)


def test_any_cell_of_a_crystal_is_the_same_crystal(grids):
    """Atoms may be anywhere, and lattice vectors be others of the same lattice."""
    cell = gto.M(
        a=np.array([[1, 1, 0], [0, 1, 0], [0, -1, 1]]) @ LATTICE,
        atom=[("H", (0.2, 5.0, 0.4)), ("He", (1.9, 1.2, 2.1))],
        basis="sto-3g",
        unit="bohr",
        spin=1,
    )
    other = CrystalGrids(cell).build()
    assert len(other.weights) == len(grids.weights)
    integrals = [own.weights @ smooth_density(own.coords) ** 2 for own in (grids, other)]
    assert integrals[0] == pytest.approx(integrals[1], rel=1e-11)


def test_fields_of_a_smooth_density(grids, x64):
    """Those of sharp Gaussians too, by expansions about the atoms: 1e-4, as in molecules."""
    exponents = NLDF.source_ladder.exponents, NLDF.target_ladder.exponents
    mesh = np.array([24] * 3)
    fractions = np.stack(np.meshgrid(*[np.arange(24) / 24] * 3, indexing="ij"), axis=-1)
    random = np.random.default_rng(0)
    amplitudes = random.normal(size=len(exponents[0])) * (exponents[0] < 3.0)
    uniform = smooth_density(fractions.reshape(-1, 3) @ LATTICE)[:, None] * amplitudes
    expected = np.asarray(periodic_convolution(LATTICE, mesh, *exponents).apply(uniform))
    sources = smooth_density(grids.coords)[:, None] * amplitudes
    fields = crystal_grids_convolution(grids.cell, grids, NLDF).apply(sources)
    # Both integrals of the fields times the density, for each target exponent of that range.
    by_mesh = abs(np.linalg.det(LATTICE)) / mesh.prod() * uniform[:, 0] @ expected
    by_atoms = grids.weights * sources[:, 0] @ fields
    chosen = exponents[1] < 3.0
    np.testing.assert_allclose(by_atoms[chosen], by_mesh[chosen], rtol=3e-3)


def test_transpose(grids, x64):
    convolution = crystal_grids_convolution(grids.cell, grids, NLDF)
    random = np.random.default_rng(0)
    sources = random.normal(size=(len(grids.weights), len(NLDF.source_ladder.exponents)))
    fields = random.normal(size=(len(grids.weights), len(NLDF.target_ladder.exponents)))
    forward = np.sum(convolution.apply(sources) * fields)
    backward = np.sum(convolution.transpose(fields) * sources)
    assert forward == pytest.approx(backward, rel=1e-10)


def test_points_pruned_by_density_are_missed(grids):
    pruned = CrystalGrids(grids.cell).build()
    pruned._select_grids(np.arange(len(pruned.weights)) % 7 > 0)
    with pytest.raises(ValueError, match="small_rho_cutoff"):
        crystal_grids_convolution(grids.cell, pruned, NLDF)
