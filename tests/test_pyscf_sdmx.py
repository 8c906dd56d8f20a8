"""Functionals of the smoothed density matrix in PySCF: energies, potentials, what is refused."""

import equinox as eqx
import numpy as np
import pytest
from ase.build import molecule as ase_molecule
from pyscf import dft, gto
from pyscf.pbc import dft as pbcdft
from pyscf.pbc import gto as pbcgto
from toy_functionals import toy_exchange, toy_nldf, toy_sdmx, toy_xc

from cider import CiderFunctional
from cider.files import load_functional, save_functional
from cider.plugins.ase import Cider

ALONE = CiderFunctional(
    toy_exchange("GGA", sdmx=toy_sdmx(), size=0.02), x_mix=0.25, semilocal="R2SCAN"
)
FUNCTIONALS = {
    "alone, mixed with a meta-GGA": ALONE,
    "beside nonlocal density features": CiderFunctional(
        toy_exchange("MGGA", toy_nldf(), 0.02, sdmx=toy_sdmx()), correlation="GGA_C_PBE"
    ),
    "exchange and correlation": CiderFunctional(toy_xc(sdmx=toy_sdmx())),
}
MOLECULES = {
    "H2": dict(atom="H 0 0 0; H 0 0 1.4"),
    "OH": dict(atom="O 0 0 0; H 0 0 1.85", spin=1),
    "BeH": dict(atom="Be 0 0 0; H 0 0 2.5", spin=1),
    "H2O": dict(atom="O 0 0 0; H 0 1.43 1.11; H 0 -1.43 1.11"),
}


def solver(method, name, xc, **settings):
    mol = gto.M(**{"basis": "def2-svp", "unit": "bohr", "verbose": 0, **MOLECULES[name]})
    mf = method(mol, xc=xc).density_fit().set(conv_tol=1e-9, **settings)
    mf.grids.atom_grid = (20, 50)
    return mf


@pytest.mark.parametrize("name", FUNCTIONALS)
def test_potential_matrix_is_the_derivative_of_the_energy(name):
    mf = solver(dft.UKS, "OH", FUNCTIONALS[name])
    mf.grids.build()
    dm = np.asarray(mf.get_init_guess(key="minao"))
    random = np.random.default_rng(1)
    change = random.normal(size=dm.shape)
    change += change.swapaxes(1, 2)
    change *= 0.05

    def energy(step):
        return mf._numint.nr_uks(mf.mol, mf.grids, mf.xc, dm + step * change)[1]

    vmat = mf._numint.nr_uks(mf.mol, mf.grids, mf.xc, dm)[2]
    h = 1e-3
    differences = [(energy(k * h) - energy(-k * h)) / (2 * k * h) for k in (1, 2)]
    extrapolated = (4 * differences[0] - differences[1]) / 3
    assert np.vdot(vmat, change) == pytest.approx(extrapolated, rel=1e-7)


def test_self_consistent_and_closed_shells_have_equal_spins():
    mf = solver(dft.RKS, "H2O", ALONE)
    restricted = mf.kernel()
    assert mf.converged
    unrestricted = mf.to_uks()
    unrestricted.kernel(unrestricted.make_rdm1())
    assert unrestricted.converged
    assert unrestricted.e_tot == pytest.approx(restricted, abs=1e-8)


def test_open_shells():
    unrestricted = solver(dft.UKS, "BeH", ALONE).run()
    restricted = solver(dft.ROKS, "BeH", ALONE).run()
    assert unrestricted.converged and restricted.converged
    assert 0 < restricted.e_tot - unrestricted.e_tot < 0.01


def test_learned_part_zero_is_its_baseline():
    zero = CiderFunctional(toy_exchange("MGGA", size=0.0, sdmx=toy_sdmx()), correlation="GGA_C_PBE")
    found = solver(dft.UKS, "BeH", zero).run()
    expected = solver(dft.UKS, "BeH", "PBE").run()
    assert found.e_tot == pytest.approx(expected.e_tot, abs=1e-8)
    np.testing.assert_allclose(found.mo_energy, expected.mo_energy, atol=1e-6)


def test_several_density_matrices_and_little_memory():
    mf = solver(dft.RKS, "H2O", ALONE)
    mf.grids.build()
    dm = mf.get_init_guess(key="minao")
    settings = mf.mol, mf.grids, mf.xc
    nelec, exc, vmat = mf._numint.nr_rks(*settings, [dm, 0.9 * dm])
    for i, own in enumerate((dm, 0.9 * dm)):
        single = mf._numint.nr_rks(*settings, own, max_memory=0)
        assert nelec[i] == pytest.approx(single[0], rel=1e-12)
        assert exc[i] == pytest.approx(single[1], rel=1e-12)
        np.testing.assert_allclose(vmat[i], single[2], atol=1e-11)


def test_files(tmp_path):
    for name, functional in FUNCTIONALS.items():
        path = tmp_path / f"{name}.h5"
        save_functional(path, functional.learned, {})
        loaded = load_functional(path)
        assert eqx.tree_equal(loaded, functional.learned)
        assert loaded.descriptors.sdmx == toy_sdmx()


def random_change(dm, seed):
    change = np.random.default_rng(seed).normal(size=np.shape(dm))
    return 0.05 * (change + change.swapaxes(-1, -2))


@pytest.mark.parametrize(
    "xc", [ALONE, pytest.param(list(FUNCTIONALS.values())[1], marks=pytest.mark.slow)]
)
def test_response_is_the_derivative_of_the_potential(xc):
    """Of two spins, and of several changes at once."""
    mf = solver(dft.UKS, "OH", xc)
    mf.grids.build()
    dm = np.asarray(mf.get_init_guess(key="minao"))
    changes = np.stack([random_change(dm, seed) for seed in (2, 3)], axis=1)
    settings = mf.mol, mf.grids, mf.xc
    found = mf._numint.nr_uks_fxc(*settings, dm, changes)
    h = 1e-4
    for i in range(2):
        high, low = (
            mf._numint.nr_uks(*settings, dm + sign * h * changes[:, i])[2] for sign in (1, -1)
        )
        expected = (high - low) / (2 * h)
        # The difference is off by its third order.
        np.testing.assert_allclose(found[:, i], expected, atol=2e-6 * abs(expected).max())


@pytest.mark.parametrize(
    "xc", [ALONE, pytest.param(list(FUNCTIONALS.values())[2], marks=pytest.mark.slow)]
)
def test_singlets_and_triplets_are_changes_of_both_spins(xc):
    mf = solver(dft.RKS, "H2O", xc)
    mf.grids.build()
    dm = mf.get_init_guess(key="minao")
    change = random_change(dm, 4)
    settings = mf.mol, mf.grids, mf.xc
    halves = np.array([dm, dm]) / 2
    for singlet, other in ((True, change), (False, -change)):
        closed = mf._numint.nr_rks_fxc_st(*settings, dm, change, singlet=singlet)
        both = mf._numint.nr_uks_fxc(*settings, halves, np.array([change, other]))
        scale = abs(closed).max()
        np.testing.assert_allclose(closed, both[0], atol=1e-9 * scale)
    total = mf._numint.nr_rks_fxc(*settings, dm, 2 * change)
    singlet = mf._numint.nr_rks_fxc_st(*settings, dm, change)
    np.testing.assert_allclose(total, singlet, atol=1e-10 * abs(total).max())


def test_excitations_and_second_order():
    mf = solver(dft.RKS, "H2", ALONE)
    newton = mf.newton().run()
    assert newton.converged
    assert newton.e_tot == pytest.approx(mf.run().e_tot, abs=1e-8)
    (energy,) = mf.TDA().run(nstates=1).e
    assert 0.4 < energy < 0.7


def test_what_is_not_available_yet_raises_by_name():
    mf = solver(dft.RKS, "H2O", ALONE)
    names = {
        "nuclear gradients": lambda: mf.nuc_grad_method(),
        "nuclear Hessians": lambda: mf.Hessian(),
    }
    for name, call in names.items():
        with pytest.raises(NotImplementedError, match=rf"{name}.*toy.*density matrix"):
            call()
    cell = pbcgto.M(atom="He", a=4 * np.eye(3), basis="6-31g", mesh=[9] * 3, verbose=0)
    for method in (pbcdft.RKS, pbcdft.KUKS):
        with pytest.raises(NotImplementedError, match=r"cells.*toy.*density matrix"):
            method(cell, xc=ALONE)
    atoms = ase_molecule("H2")
    atoms.calc = Cider(ALONE, basis="sto-3g")
    with pytest.raises(NotImplementedError, match=r"nuclear gradients.*density matrix"):
        atoms.get_forces()
