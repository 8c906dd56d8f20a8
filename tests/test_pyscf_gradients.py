"""Nuclear gradients: exact derivatives of the energy, on every path of PySCF."""

import io

import numpy as np
import pytest
from molecules import MOLECULES
from pyscf import dft, gto, qmmm, scf
from toy_functionals import toy_exchange, toy_nldf

from cider import CiderFunctional
from cider.features.convolution import DirectConvolution
from cider.plugins.pyscf import numint
from cider.plugins.pyscf.gradients import (
    CiderGradients,
    atom_gradients,
    gradient_matrices,
    point_gradients,
)
from cider.plugins.pyscf.learned_numint import Settings
from cider.plugins.pyscf.numint import CiderNumInt

MEMORY = 2000  # MB
DIRECTION = np.random.default_rng(2).normal(size=(2, 3))

WATER = "O 0 0 0; H 0 -0.757 0.587; H 0.1 0.8 0.62"
AMINE = "N 0 0 0; H 0 -0.7 0.7; H 0.1 0.8 0.62"
"""Without symmetry, and a radical whose open shell is not degenerate."""

BASELINES = {
    "PBE": CiderFunctional(toy_exchange("GGA", size=0.0), correlation="GGA_C_PBE"),
    "0.25*GGA_X_PBE + 0.75*MGGA_X_R2SCAN + MGGA_C_R2SCAN": CiderFunctional(
        toy_exchange("MGGA", size=0.0), x_mix=0.25, semilocal="R2SCAN"
    ),
}
"""Functionals with learned part zero, by what they are then."""

KINDS = {
    "gga": CiderFunctional(toy_exchange("GGA")),
    "mgga": CiderFunctional(toy_exchange("MGGA")),
    "nldf": CiderFunctional(toy_exchange("MGGA", toy_nldf())),
    "with libxc": CiderFunctional(toy_exchange("GGA"), x_mix=0.25, semilocal="R2SCAN"),
}


def molecule(atom, **kwargs):
    return gto.M(atom=atom, **{"basis": "6-31g", "verbose": 0, **kwargs})


def solve(method, mol, xc, fitted=False, **grids):
    mf = method(mol, xc=xc)
    mf = mf.density_fit() if fitted else mf
    mf.grids.set(**{"level": 0, **grids})
    mf.run(conv_tol=1e-12)
    assert mf.converged
    return mf


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("method", [dft.RKS, dft.UKS, dft.ROKS])
def test_learned_part_zero_has_the_gradient_of_its_libxc_baseline(method, baseline, fitted):
    mol = molecule(WATER) if method is dft.RKS else molecule(AMINE, spin=1)
    expected = solve(method, mol, baseline, fitted).nuc_grad_method()
    gradients = solve(method, mol, BASELINES[baseline], fitted).Gradients()
    assert isinstance(gradients, CiderGradients)
    for response in (False, True):
        expected.grid_response = gradients.grid_response = response
        np.testing.assert_allclose(gradients.kernel(), expected.kernel(), atol=1e-9)


def direct_convolution(grids, nldf):
    """The sum over pairs of points, where the points are and wherever the atoms go."""
    return DirectConvolution(
        np.asarray(grids.coords),
        np.asarray(grids.weights),
        nldf.source_ladder.exponents,
        nldf.target_ladder.exponents,
    )


@pytest.mark.parametrize("spins", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_moving_orbitals_under_a_frozen_grid(monkeypatch, kind, spins):
    mol = molecule("Li 0 0 0; H 0.2 0.3 1.6")
    grids = dft.Grids(mol)
    grids.atom_grid, grids.prune = (8, 26), None
    grids.build(with_non0tab=True)
    dms = dft.UKS(mol).run(xc="PBE", max_cycle=2, grids=grids).make_rdm1()
    dms = dms * np.array([1.0, 0.9])[:, None, None]
    if spins == 1:
        dms = dms.sum(axis=0, keepdims=True)
    functional, integrator = KINDS[kind], CiderNumInt()
    frozen = functional.is_nonlocal and direct_convolution(
        grids, functional.learned.descriptors.nldf
    )
    monkeypatch.setattr(numint, "becke_convolution", lambda *args: frozen)

    def energy(step):
        return integrate(integrator, moved(mol, step), grids, functional, dms)

    potential = integrator.potential(mol, grids, functional, tuple(dms), Settings())
    gradient = by_orbitals(mol, grids, dms, potential)
    h = 1e-3  # fourth order: error h^4, rounding 1e-15/h
    assert np.sum(gradient * DIRECTION) == pytest.approx(slope(energy, h), abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_moving_orbitals_and_grid(kind):
    """All that a nucleus moves at a fixed density matrix, on the real convolution."""
    mol = molecule("He 0 0 0; H 0.1 0.2 0.7", charge=1)
    functional, integrator = KINDS[kind], CiderNumInt()

    def grids_of(mol):
        grids = dft.Grids(mol).set(level=0)
        return grids.build(with_non0tab=True)

    def energy(step):
        other = moved(mol, step)
        return integrate(CiderNumInt(), other, grids_of(other), functional, dms)

    grids = grids_of(mol)
    dms = 0.5 * dft.UKS(mol).run(xc="PBE", max_cycle=2, grids=grids).make_rdm1()
    dms[1] *= 0.9
    where = mol, grids, functional, tuple(dms), Settings()
    potential, by_weights, by_centers = integrator.potential_and_grid_derivative(*where)
    by_points = point_gradients(mol, grids, tuple(dms), potential, MEMORY)
    gradient = by_orbitals(mol, grids, dms, potential) + by_centers
    gradient += atom_gradients(grids, by_weights, by_points)
    assert np.sum(gradient * DIRECTION) == pytest.approx(slope(energy, 2e-3), abs=1e-8)
    np.testing.assert_allclose(gradient.sum(axis=0), 0, atol=1e-7)


def moved(mol, step):
    return mol.set_geom_(mol.atom_coords() + step * DIRECTION, unit="Bohr", inplace=False)


def integrate(integrator, mol, grids, functional, dms):
    """The energy; ``dms`` has one or two spins."""
    nr, dm = (integrator.nr_rks, dms[0]) if len(dms) == 1 else (integrator.nr_uks, dms)
    return nr(mol, grids, functional, dm)[1]


def by_orbitals(mol, grids, dms, potential):
    """The gradient (atom, xyz) due to the orbitals alone."""
    matrices = gradient_matrices(mol, grids, potential, MEMORY)
    gradient = 2 * np.einsum("sxij,sij->ix", matrices, dms)
    return np.array([gradient[start:stop].sum(0) for *_, start, stop in mol.aoslice_by_atom()])


def slope(function, h):
    once, twice = function(h) - function(-h), function(2 * h) - function(-2 * h)
    return (8 * once - twice) / (12 * h)


def test_blocks_add_up():
    mf = solve(dft.RKS, molecule(WATER), BASELINES["PBE"])
    dms = (mf.make_rdm1(),)
    potential = mf._numint.potential(mf.mol, mf.grids, mf.xc, dms, Settings())
    whole = gradient_matrices(mf.mol, mf.grids, potential, MEMORY)
    np.testing.assert_allclose(
        gradient_matrices(mf.mol, mf.grids, potential, 1e-3), whole, atol=1e-13
    )


def test_symmetries(toy_functional):
    """Spin, translation, and rotation by a right angle, which Lebedev's grids have too."""
    mol = molecule("He 0 0 0; H 0.1 0.2 0.7", charge=1)
    few_points = {"atom_grid": (10, 26), "prune": None}
    restricted = solve(dft.RKS, mol, toy_functional, **few_points).nuc_grad_method()
    unrestricted = restricted.base.to_uks().run().nuc_grad_method()
    for response in (False, True):
        restricted.grid_response = unrestricted.grid_response = response
        np.testing.assert_allclose(unrestricted.kernel(), restricted.kernel(), atol=1e-7)
    np.testing.assert_allclose(restricted.de.sum(axis=0), 0, atol=1e-7)

    rotation = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    coords = mol.atom_coords() @ rotation.T
    rotated = mol.set_geom_(coords, unit="Bohr", inplace=False)
    gradients = solve(dft.RKS, rotated, toy_functional, **few_points).nuc_grad_method()
    gradients.grid_response = True
    np.testing.assert_allclose(gradients.kernel(), restricted.de @ rotation.T, atol=1e-7)


def test_scanner_follows_the_molecule():
    mol, moved = molecule("H 0 0 0; F 0 0 0.9"), molecule("H 0 0 0; F 0 0 1.0")
    for fitted in (False, True):
        scanner = solve(dft.RKS, mol, KINDS["mgga"], fitted).nuc_grad_method().as_scanner()
        energy, gradient = scanner(moved)
        expected = solve(dft.RKS, moved, KINDS["mgga"], fitted)
        assert abs(energy - expected.e_tot) < 1e-9
        np.testing.assert_allclose(gradient, expected.nuc_grad_method().kernel(), atol=1e-6)


def test_optimisation():
    mf = solve(dft.RKS, molecule("H 0 0 0; H 0 0 0.9"), KINDS["mgga"])
    optimizer = mf.nuc_grad_method().optimizer(solver="ase").set(logfile=io.StringIO())
    coords = optimizer.kernel().atom_coords()
    assert optimizer.converged

    def energy(scale):
        return solve(dft.RKS, mf.mol.set_geom_(scale * coords, unit="Bohr"), KINDS["mgga"]).e_tot

    assert energy(1) < min(energy(0.98), energy(1.02))


def test_grids_without_derivatives_of_their_weights():
    mf = dft.RKS(molecule("H 0 0 0; F 0 0 0.9"), xc=KINDS["mgga"]).set(small_rho_cutoff=1e-6)
    mf.grids.level = 0
    gradients = mf.run().nuc_grad_method()
    assert np.isfinite(gradients.kernel()).all()
    gradients.grid_response = True
    with pytest.raises(NotImplementedError, match=r"small_rho_cutoff.*grid_response = False"):
        gradients.kernel()


def test_effective_core_potentials():
    mol = molecule("Na 0 0 0; H 0.1 0.2 1.9", basis="lanl2dz", ecp={"Na": "lanl2dz"})
    functional = CiderFunctional(toy_exchange("GGA"), correlation="GGA_C_PBE")
    solved = solve(dft.RKS, mol, functional).run(conv_tol_grad=1e-8)
    gradients = solved.nuc_grad_method().set(grid_response=True)

    def energy(step):
        return solve(dft.RKS, moved(mol, step), functional).e_tot

    found = np.sum(gradients.kernel() * DIRECTION)
    assert found == pytest.approx(slope(energy, 2e-3), abs=1e-8)


def test_functional_taken_back():
    mf = solve(dft.RKS, molecule("H 0 0 0; F 0 0 0.9"), BASELINES["PBE"])
    gradients = mf.nuc_grad_method()
    mf.xc = "PBE"
    expected = mf.nuc_grad_method()
    assert not isinstance(expected, CiderGradients)
    np.testing.assert_array_equal(gradients.kernel(), expected.kernel())


WRAPPERS = {
    "solvent": lambda mf: mf.PCM(),
    "solvent of a fitted density": lambda mf: mf.density_fit().PCM(),
    "scalar relativity": lambda mf: mf.x2c(),
    "point charges": lambda mf: qmmm.mm_charge(mf, np.array([[0.0, 0.0, 3.0]]), [0.3]),
    "smearing": lambda mf: scf.addons.smearing(mf, sigma=0.01, method="fermi"),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_of_pyscf_around_it(wrapper):
    mol = molecule("H 0 0 0; F 0 0 0.95")
    found = []
    for xc in ("PBE", BASELINES["PBE"]):
        mf = WRAPPERS[wrapper](dft.RKS(mol, xc=xc))
        mf.grids.level = 0
        found.append(mf.run(conv_tol=1e-11).nuc_grad_method().kernel())
    np.testing.assert_allclose(*found, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SO2", "zinc complex"])
def test_shipped_functional_at_the_quality_of_the_default_grid(name):
    """Of sharp densities: the bar is 2e-6 Ha/bohr."""
    core = {"basis": {"Zn": "lanl2dz", "default": "def2-svp"}, "ecp": {"Zn": "lanl2dz"}}
    settings = MOLECULES[name] | (core if name == "zinc complex" else {"basis": "def2-svp"})
    mol = gto.M(verbose=0, **settings)
    coords = mol.atom_coords() + 0.05 * np.random.default_rng(3).normal(size=(mol.natm, 3))

    def solved(step):
        displaced = coords.copy()
        displaced[0, 2] += step
        mf = dft.RKS(mol.set_geom_(displaced, unit="Bohr", inplace=False))
        mf.xc = CiderFunctional("pbe0-x-nldf")
        return mf.density_fit().run(conv_tol=1e-11, conv_tol_grad=1e-7)

    gradients = solved(0.0).nuc_grad_method().set(grid_response=True).kernel()
    expected = slope(lambda step: solved(step).e_tot, 0.008)  # in which the energy is to 1e-9
    assert gradients[0, 2] == pytest.approx(expected, abs=2e-6)
