"""Functionals of the smoothed density matrix in PySCF: energies, potentials, what is refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import molecule as ase_molecule
from pyscf import dft, gto
from pyscf.pbc import dft as pbcdft
from pyscf.pbc import gto as pbcgto
from toy_functionals import toy_exchange, toy_nldf, toy_sdmx, toy_xc

from cider import CiderFunctional
from cider.features.convolution import DirectConvolution
from cider.features.sdmx import Sdmx
from cider.files import load_functional, save_functional
from cider.plugins.ase import Cider
from cider.plugins.pyscf import numint
from cider.registry import registered_names, resolve

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
SHIPPED = [
    name
    for name in registered_names()
    if not resolve(name).is_composed and CiderFunctional(name).reads_density_matrix
]
ALL_FAMILIES = Sdmx((("0", 1), ("0d", 0), ("1", 2), ("1d", 1), ("1rd", 1)))
WITH_ALL_FAMILIES = {
    "GGA": CiderFunctional(toy_exchange("GGA", size=0.02, sdmx=ALL_FAMILIES)),
    "surrogate of a hybrid": CiderFunctional(
        toy_exchange("GGA", size=0.02, sdmx=ALL_FAMILIES), x_mix=0.25, semilocal="R2SCAN"
    ),
    "exchange and correlation": CiderFunctional(toy_xc(sdmx=ALL_FAMILIES)),
}
MOLECULES = {
    "H2": dict(atom="H 0 0 0; H 0 0 1.4"),
    "OH": dict(atom="O 0 0 0; H 0 0 1.85", spin=1),
    "BeH": dict(atom="Be 0 0 0; H 0 0 2.5", spin=1),
    "H2O": dict(atom="O 0 0 0; H 0 1.43 1.11; H 0 -1.43 1.11"),
    "bent H2O": dict(atom="O 0 0 0; H 0 1.43 1.11; H 0.1 -1.5 1.2", basis="6-31g"),
    "NH2": dict(atom="N 0 0 0; H 0 1.43 1.11; H 0.1 -1.5 1.2", basis="6-31g", spin=1),
}


def solver(method, name, xc, **settings):
    mol = gto.M(**{"basis": "def2-svp", "unit": "bohr", "verbose": 0, **MOLECULES[name]})
    return prepared(method(mol, xc=xc).density_fit(), **settings)


def prepared(mf, **settings):
    mf.grids.atom_grid = (20, 50)
    return mf.set(**{"conv_tol": 1e-9, **settings})


@pytest.mark.parametrize("name", [*FUNCTIONALS, *SHIPPED])
def test_potential_matrix_is_the_derivative_of_the_energy(name):
    mf = solver(dft.UKS, "OH", FUNCTIONALS.get(name) or CiderFunctional(name))
    mf.grids.build()
    dm = np.asarray(mf.get_init_guess(key="minao"))
    random = np.random.default_rng(1)
    change = random.normal(size=dm.shape)
    change += change.swapaxes(1, 2)
    change *= 0.05

    def energy(step):
        return mf._numint.nr_uks(mf.mol, mf.grids, mf.xc, dm + step * change)[1]

    vmat = mf._numint.nr_uks(mf.mol, mf.grids, mf.xc, dm)[2]
    h = 5e-4  # at 1e-3 fourth-order differences are off by 2e-7
    differences = [(energy(k * h) - energy(-k * h)) / (2 * k * h) for k in (1, 2)]
    extrapolated = (4 * differences[0] - differences[1]) / 3
    assert np.vdot(vmat, change) == pytest.approx(extrapolated, rel=1e-7)


@pytest.mark.parametrize("name", SHIPPED)
def test_exchange_energy_scales_as_the_density(name):
    """:math:`E_x[\\rho_\\gamma] = \\gamma E_x[\\rho]`, for water by scaled exponents."""
    xc, gamma = CiderFunctional(name), 1.3
    mf = solver(dft.RKS, "H2O", xc)
    mf.grids.build()
    dm = mf.get_init_guess(key="minao")
    scaled = mf.mol.copy()
    scaled.basis = {
        element: [
            [l, *((gamma**2 * p[0], *p[1:]) for p in primitives)] for l, *primitives in shells
        ]
        for element, shells in mf.mol._basis.items()
    }
    scaled.set_geom_(mf.mol.atom_coords() / gamma, unit="bohr").build()
    grids = mf.grids.copy().set(mol=scaled, non0tab=None)
    grids.coords, grids.weights = mf.grids.coords / gamma, mf.grids.weights / gamma**3
    grids.quadrature_weights = mf.grids.quadrature_weights / gamma**3
    energy = mf._numint.nr_rks(mf.mol, mf.grids, xc, dm)[1]
    after = mf._numint.nr_rks(scaled, grids, xc, dm)[1]
    # Scaling moves the quadrature over R along R: features change by 2e-5.
    assert after == pytest.approx(gamma * energy, rel=2e-5)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_uniform_gas_is_exact(name):
    learned = CiderFunctional(name).learned
    (exchange,) = learned.terms
    with jax.enable_x64(True):
        inputs = exchange.transform(*map(jnp.asarray, learned.descriptors.ueg))
        assert float(jnp.abs(exchange.model(inputs))[0]) < 1e-14


@pytest.mark.parametrize("name", SHIPPED)
def test_spins_of_what_is_shipped(name):
    """A closed shell has equal spins; exchange of spins changes nothing."""
    xc = CiderFunctional(name)
    mf = solver(dft.UKS, "OH", xc)
    grids = mf.grids.build(with_non0tab=True)
    up, down = np.asarray(mf.get_init_guess(key="minao"))
    integrate = mf._numint.nr_uks
    energy = integrate(mf.mol, grids, xc, np.array([1.1 * up, 0.9 * down]))[1]
    swapped = integrate(mf.mol, grids, xc, np.array([0.9 * down, 1.1 * up]))[1]
    assert swapped == pytest.approx(energy, rel=1e-13)
    closed = mf._numint.nr_rks(mf.mol, grids, xc, 2 * down)[1]
    equal = integrate(mf.mol, grids, xc, np.array([down, down]))[1]
    assert equal == pytest.approx(closed, rel=1e-12)


@pytest.mark.parametrize(
    "name", [name for name in SHIPPED if not CiderFunctional(name).is_nonlocal]
)
def test_turning_a_molecule_with_its_grid(name):
    xc = CiderFunctional(name)
    mf = solver(dft.UKS, "OH", xc)
    grids = mf.grids.build(with_non0tab=True)
    down = np.asarray(dft.UKS(mf.mol).get_init_guess(key="minao"))[1]
    closed = mf._numint.nr_rks(mf.mol, grids, xc, 2 * down)[1]
    rotation = np.linalg.qr(np.random.default_rng(8).normal(size=(3, 3)))[0]
    turned = mf.mol.copy().set_geom_(mf.mol.atom_coords() @ rotation.T, unit="bohr")
    other = mf.grids.copy().set(mol=turned, coords=grids.coords @ rotation.T, non0tab=None)
    there = 2 * np.asarray(dft.UKS(turned).get_init_guess(key="minao"))[1]
    assert mf._numint.nr_rks(turned, other, xc, there)[1] == pytest.approx(closed, rel=1e-9)


@pytest.mark.parametrize("name", [name for name in SHIPPED if CiderFunctional(name).is_nonlocal])
def test_turning_a_molecule_against_its_grid(name):
    """That of nonlocal density features cannot be turned; as in ``test_functional_laws.py``."""
    xc = CiderFunctional(name)
    rotation = np.linalg.qr([[1.0, 2, 3], [0, 1, 4], [5, 6, 0]])[0]
    energies = []
    for turn in (np.eye(3), rotation):
        water = solver(dft.RKS, "H2O", xc).mol
        mf = dft.RKS(water.set_geom_(water.atom_coords() @ turn.T, unit="bohr"), xc=xc)
        dm = mf.get_init_guess(key="minao")
        energies.append(mf._numint.nr_rks(mf.mol, mf.grids.build(), xc, dm)[1])
    assert energies[1] == pytest.approx(energies[0], abs=1e-5)


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


def moved(mol, step, direction):
    return mol.set_geom_(mol.atom_coords() + step * direction, unit="Bohr", inplace=False)


def slope(function, h):
    once, twice = function(h) - function(-h), function(2 * h) - function(-2 * h)
    return (8 * once - twice) / (12 * h)


def by_atoms(mf, dm, grid_response):
    """Derivative of the exchange-correlation energy at a fixed density matrix."""
    mol = mf.mol
    gradients = mf.nuc_grad_method().set(grid_response=grid_response)
    veff, coulomb = gradients.get_veff(mol, dm), gradients.get_j(mol, dm)
    vxc = veff - (coulomb if dm.ndim == 2 else coulomb.sum(axis=0))
    dms = dm.reshape(-1, mol.nao, mol.nao)
    by_orbital = 2 * np.einsum("sxij,sij->ix", vxc.reshape(len(dms), 3, *dms.shape[1:]), dms)
    slices = mol.aoslice_by_atom()[:, 2:]
    by_atom = np.array([by_orbital[start:stop].sum(axis=0) for start, stop in slices])
    return by_atom + veff.exc1_grid if grid_response else by_atom


@pytest.mark.parametrize("grid_response", [False, True])
@pytest.mark.parametrize(
    ("method", "name", "functional"),
    [
        (dft.RKS, "bent H2O", "surrogate of a hybrid"),
        (dft.UKS, "NH2", "GGA"),
        pytest.param(dft.UKS, "NH2", "exchange and correlation", marks=pytest.mark.slow),
    ],
)
def test_what_moves_at_a_fixed_density_matrix(method, name, functional, grid_response):
    """Orbitals with their atoms, and the grid with them or not."""
    mf = solver(method, name, WITH_ALL_FAMILIES[functional])
    grids = mf.grids.build(with_non0tab=True)
    dm = np.asarray(mf.get_init_guess(key="minao"))
    if method is dft.UKS:
        dm *= np.array([1.1, 0.9])[:, None, None]
    found = by_atoms(mf, dm, grid_response)
    direction = np.random.default_rng(2).normal(size=found.shape)
    integrate = mf._numint.nr_rks if method is dft.RKS else mf._numint.nr_uks

    def energy(step):
        other = moved(mf.mol, step, direction)
        if grid_response:
            moving = prepared(method(other)).grids.build(with_non0tab=True)
            return integrate(other, moving, mf.xc, dm)[1]
        return integrate(other, grids, mf.xc, dm)[1]

    # Fourth order in the step, of 3e-8 here.
    assert np.vdot(found, direction) == pytest.approx(slope(energy, 5e-4), rel=1e-7)
    if grid_response:
        np.testing.assert_allclose(found.sum(axis=0), 0, atol=1e-11)


def test_what_moves_beside_nonlocal_density_features(monkeypatch):
    """Whose convolution stays where it is, as does the grid."""
    mf = solver(dft.RKS, "H2", FUNCTIONALS["beside nonlocal density features"])
    mf.grids.atom_grid = (8, 26)
    grids = mf.grids.build(with_non0tab=True)
    ladders = toy_nldf().source_ladder, toy_nldf().target_ladder
    where = np.asarray(grids.coords), np.asarray(grids.weights)
    frozen = DirectConvolution(*where, *(ladder.exponents for ladder in ladders))
    monkeypatch.setattr(numint, "becke_convolution", lambda *args: frozen)
    dm = mf.get_init_guess(key="minao")
    found = by_atoms(mf, dm, grid_response=False)
    direction = np.random.default_rng(2).normal(size=found.shape)

    def energy(step):
        return mf._numint.nr_rks(moved(mf.mol, step, direction), grids, mf.xc, dm)[1]

    # As above.
    assert np.vdot(found, direction) == pytest.approx(slope(energy, 1e-3), rel=1e-7)


@pytest.mark.parametrize(
    ("method", "name", "fitted"),
    [
        (dft.ROKS, "BeH", True),
        pytest.param(dft.RKS, "bent H2O", True, marks=pytest.mark.slow),
        pytest.param(dft.UKS, "NH2", False, marks=pytest.mark.slow),
        pytest.param(dft.ROKS, "NH2", True, marks=pytest.mark.slow),
    ],
)
def test_gradient_is_the_derivative_of_the_energy(method, name, fitted):
    start = solver(method, name, WITH_ALL_FAMILIES["surrogate of a hybrid"])

    def solved(mol, dm=None):
        mf = method(mol, xc=start.xc)
        mf = prepared(mf.density_fit() if fitted else mf, conv_tol=1e-11, conv_tol_grad=1e-6)
        mf.kernel(dm)
        assert mf.converged
        return mf

    mf = solved(start.mol)
    gradient = mf.nuc_grad_method().set(grid_response=True).kernel()
    direction = np.random.default_rng(2).normal(size=gradient.shape)

    def energy(step):
        return solved(moved(mf.mol, step, direction), mf.make_rdm1()).e_tot

    # Fourth order in the step; energies are converged to 1e-11.
    assert np.vdot(gradient, direction) == pytest.approx(slope(energy, 4e-3), abs=5e-7)
    np.testing.assert_allclose(gradient.sum(axis=0), 0, atol=1e-9)


@pytest.mark.parametrize("grid_response", [False, True])
def test_gradient_of_a_learned_part_zero_is_that_of_its_baseline(grid_response):
    zero = toy_exchange("GGA", size=0.0, sdmx=ALL_FAMILIES)
    found = []
    for xc in ("PBE", CiderFunctional(zero, correlation="GGA_C_PBE")):
        mf = solver(dft.UKS, "BeH", xc, conv_tol=1e-11).run()
        found.append(mf.nuc_grad_method().set(grid_response=grid_response).kernel())
    np.testing.assert_allclose(*found, atol=1e-9)


def test_vibration_of_a_diatomic_molecule():
    """The second difference of the energy, along the bond."""
    mol = gto.M(**MOLECULES["H2"], basis="sto-3g", unit="bohr", verbose=0)

    def solved(step):
        bond = step * np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
        return prepared(
            dft.RKS(mol.set_geom_(mol.atom_coords() + bond, inplace=False), xc=ALONE),
            conv_tol=1e-12,
        ).run()

    h = 0.02  # fourth order
    energies = [solved(k * h).e_tot for k in (-2, -1, 0, 1, 2)]
    expected = np.dot([-1, 16, -30, 16, -1], energies) / (12 * h**2)
    hessian = solved(0.0).Hessian().kernel(atmlst=[1])
    assert hessian[0, 0, 2, 2] == pytest.approx(expected, rel=1e-3)


def test_what_is_not_available_yet_raises_by_name():
    cell = pbcgto.M(atom="He", a=4 * np.eye(3), basis="6-31g", mesh=[9] * 3, verbose=0)
    path = pbcdft.KRKS(cell, xc=ALONE, kpts=cell.get_abs_kpts([[0, 0, 0], [0.1, 0.2, 0]]))
    with pytest.raises(NotImplementedError, match="regular mesh of k-points"):
        path.kernel()
    excited = solver(dft.RKS, "H2", ALONE).TDA()
    with pytest.raises(NotImplementedError, match=r"gradients of excited.*toy"):
        excited.nuc_grad_method()


def test_forces_of_ase():
    atoms = ase_molecule("H2")
    atoms.calc = Cider(ALONE, basis="sto-3g", grid_level=0)
    np.testing.assert_allclose(atoms.get_forces().sum(axis=0), 0, atol=1e-8)
