"""Linear response in PySCF: f_xc, second-order SCF, TDDFT, stability, polarisabilities."""

import functools
import pickle

import numpy as np
import pytest
from pyscf import dft, gto, lib, scf, tdscf
from pyscf.scf import cphf
from toy_functionals import toy_exchange, toy_nldf, toy_xc

from cider import CiderFunctional
from cider.plugins.pyscf.numint import CiderNumInt
from cider.registry import registered_names, resolve

ZERO = CiderFunctional(toy_exchange("GGA", size=0.0), correlation="GGA_C_PBE")
"""PBE by another way."""

TOY = CiderFunctional(toy_exchange("MGGA"), x_mix=0.25, semilocal="R2SCAN")
SMOOTH = CiderFunctional(toy_exchange("GGA"), x_mix=0.25, semilocal="PBE")
"""Without tau, of which the density of one orbital leaves nothing but rounding."""


SHIPPED = [name for name in registered_names() if not resolve(name).is_composed]
FUNCTIONALS = {
    **{name: lambda name=name: CiderFunctional(name) for name in SHIPPED},
    **{
        f"0.25 {name}": lambda name=name: CiderFunctional(name, x_mix=0.25, semilocal="PBE")
        for name in SHIPPED
    },
    "semilocal xc": lambda: CiderFunctional(toy_xc()),
    "nonlocal xc": lambda: CiderFunctional(toy_xc(toy_nldf())),
}
SEMILOCAL = [
    name
    for name in SHIPPED
    if (read := resolve(name).load().descriptors).nldf is None and read.sdmx is None
]
DIFFERENTIATED = [
    # Mixed with a semilocal functional, a nonlocal one differs from one alone as semilocal ones do.
    *(
        pytest.param(
            name, spins, marks=[pytest.mark.slow] * (name in set(SHIPPED) - set(SEMILOCAL))
        )
        for name in FUNCTIONALS
        if "xc" not in name
        for spins in (1, 2)
    ),
    ("semilocal xc", 2),
    pytest.param("nonlocal xc", 2, marks=pytest.mark.slow),  # to compile
]


@functools.cache
def functional(name):
    return FUNCTIONALS[name]()


def molecule(atom, **kwargs):
    return gto.M(atom=atom, **{"basis": "6-31g", "verbose": 0, **kwargs})


WATER = molecule("O 0 0 0; H 0 -0.757 0.587; H 0 0.757 0.587")
HYDROXYL = molecule("O 0 0 0; H 0 0.3 0.92", spin=1)
HYDROGEN = molecule("H 0 0 0; H 0 0 0.74")
HYDROGEN_FLUORIDE = molecule("H 0 0 0; F 0 0 0.92")
LITHIUM = molecule("Li 0 0 0", spin=1, basis="def2-svp")


@functools.cache
def coarse_grids(mol):
    """Few points: what is a derivative of the sum over points is so on every grid."""
    grids = dft.Grids(mol)
    grids.atom_grid, grids.prune = (20, 50), None
    grids.build(with_non0tab=True)
    return grids


@functools.cache
def state(spins):
    """A molecule, its grid, density matrices near the ground state and two changes of them."""
    mol = WATER if spins == 1 else HYDROXYL
    mf = (dft.RKS if spins == 1 else dft.UKS)(mol, xc="PBE")
    mf.set(grids=coarse_grids(mol), max_cycle=4).kernel()
    dm = mf.make_rdm1()
    rotations = 0.1 * np.random.default_rng(5).normal(size=(2, *dm.shape))
    changes = rotations @ dm
    return mol, mf.grids, dm, changes + changes.swapaxes(-1, -2)


def potential_matrix(integrator, mol, grids, xc, dm):
    method = integrator.nr_rks if dm.ndim == 2 else integrator.nr_uks
    return method(mol, grids, xc, dm)[2]


def slope(function, h):
    """Derivative at zero: fourth order in the step."""
    return (8 * (function(h) - function(-h)) - (function(2 * h) - function(-2 * h))) / (12 * h)


@pytest.mark.parametrize(("name", "spins"), DIFFERENTIATED)
def test_response_is_the_derivative_of_the_potential(name, spins):
    """Finite differences; and it is symmetric, as a second derivative."""
    mol, grids, dm, changes = state(spins)
    integrator, xc = CiderNumInt(), functional(name)
    method = integrator.nr_rks_fxc if spins == 1 else integrator.nr_uks_fxc
    responses = method(mol, grids, xc, dm, np.moveaxis(changes, 0, -3))
    responses = np.moveaxis(responses, -3, 0)

    def along(step):
        return potential_matrix(integrator, mol, grids, xc, dm + step * changes[0])

    expected = slope(along, 1e-3)  # error h^4 of 1e-9, rounding of nonlocal features 1e-8
    assert np.linalg.norm(responses[0] - expected) < 1e-7 * np.linalg.norm(expected)
    np.testing.assert_allclose(responses, responses.swapaxes(-1, -2), atol=1e-12)
    there, back = np.sum(changes[1] * responses[0]), np.sum(changes[0] * responses[1])
    assert there == pytest.approx(back, rel=1e-8)


@pytest.mark.parametrize("name", ["0.25 x-sl-mgga", "semilocal xc"])
def test_singlets_and_triplets_are_changes_of_both_spins(name):
    """Of a closed shell: as the response of two equal spin densities."""
    mol, grids, dm, changes = state(1)
    integrator, xc = CiderNumInt(), functional(name)
    halves = np.stack([dm, dm]) / 2
    for singlet, sign in ((True, 1), (False, -1)):
        found = integrator.nr_rks_fxc_st(mol, grids, xc, dm, changes[0], 1, singlet)
        both = np.stack([changes[0], sign * changes[0]])
        expected = integrator.nr_uks_fxc(mol, grids, xc, halves, both)
        # The correlation of libxc has another density threshold for two spins than for one.
        scale = abs(expected).max()
        np.testing.assert_allclose(found, expected[0], atol=1e-8 * scale)
        np.testing.assert_allclose(found, sign * expected[1], atol=1e-8 * scale)


def test_shapes_and_lists_are_those_of_pyscf():
    for spins in (1, 2):
        mol, grids, dm, changes = state(spins)
        ours, theirs = CiderNumInt(), dft.numint.NumInt()
        lists = np.moveaxis(changes, 0, -3)
        for dms in (lists, list(lists), changes[0], lists[..., :1, :, :]):
            found = ours.nr_fxc(mol, grids, ZERO, dm, dms, spins - 1)
            expected = theirs.nr_fxc(mol, grids, "PBE", dm, dms, spins - 1)
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, atol=1e-8)
            strings = ours.nr_fxc(mol, grids, "PBE", dm, dms, spins - 1)
            np.testing.assert_array_equal(strings, expected)


def test_of_unsymmetric_changes_the_symmetric_part_counts():
    mol, grids, dm, changes = state(1)
    skew = np.triu(np.ones((mol.nao, mol.nao)), 1)
    skew = skew - skew.T
    for integrator, xc in ((CiderNumInt(), ZERO), (dft.numint.NumInt(), "PBE")):
        expected = integrator.nr_rks_fxc(mol, grids, xc, dm, changes[0], hermi=1)
        found = integrator.nr_rks_fxc(mol, grids, xc, dm, changes[0] + skew, hermi=0)
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_memory_limit_changes_nothing():
    mol, grids, dm, changes = state(1)
    results = [
        CiderNumInt().nr_rks_fxc(mol, grids, TOY, dm, changes, max_memory=limit)
        for limit in (0.001, 2000)
    ]
    np.testing.assert_allclose(results[0], results[1], atol=1e-12)


def test_kernels_that_do_not_fit_are_named():
    mol, grids, dm, changes = state(1)
    integrator = CiderNumInt()
    kernel = integrator.cache_xc_kernel1(mol, grids, TOY, dm)[2]
    with pytest.raises(TypeError, match="cache_xc_kernel"):
        integrator.nr_rks_fxc(mol, grids, TOY, dm, changes, fxc=np.ones((4, 4, 9)))
    with pytest.raises(ValueError, match=r"1 spin densities.*of 2"):
        integrator.nr_uks_fxc(mol, grids, TOY, dm, changes, fxc=kernel)
    with pytest.raises(NotImplementedError, match="real density matrices"):
        integrator.nr_rks_fxc(mol, grids, TOY, dm, changes.astype(complex), fxc=kernel)


def solve(method, mol, xc, fitted=False, **kwargs):
    mf = method(mol, xc=xc)
    mf = mf.density_fit() if fitted else mf
    mf.grids.level = 0
    mf.set(conv_tol=1e-11, **kwargs).kernel()
    assert mf.converged
    return mf


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("method", [dft.RKS, dft.UKS, dft.ROKS])
def test_second_order_scf_finds_the_same_state(method, fitted):
    mol = HYDROGEN_FLUORIDE if method is dft.RKS else LITHIUM
    expected = solve(method, mol, TOY, fitted)
    newton = method(mol, xc=TOY)
    newton = (newton.density_fit() if fitted else newton).newton()
    newton.grids.level = 0
    newton.set(conv_tol=1e-11).kernel()
    assert newton.converged
    assert newton.e_tot == pytest.approx(expected.e_tot, abs=1e-9)


def test_second_order_scf_with_nonlocal_features():
    """In as many steps as with PBE: an inexact second derivative would take more."""
    energies, steps = [], []
    learned = functional("0.25 x-nldf")
    for xc in ("PBE", learned):
        newton = dft.RKS(HYDROGEN, xc=xc).newton()
        newton.grids.level = 0
        count = []
        newton.callback = lambda env, count=count: count.append(env["imacro"])
        newton.kernel()
        energies.append(newton.e_tot)
        steps.append(len(count))
    assert abs(steps[1] - steps[0]) <= 1
    assert energies[1] == pytest.approx(solve(dft.RKS, HYDROGEN, learned).e_tot, abs=1e-9)


def test_response_of_restricted_open_shells_is_that_of_their_spin_densities():
    mf = dft.ROKS(HYDROXYL, xc=TOY).set(grids=coarse_grids(HYDROXYL), max_cycle=4)
    mf.kernel()
    dms = mf.make_rdm1()
    rotation = 0.1 * np.random.default_rng(5).normal(size=dms.shape)
    change = rotation @ dms + dms @ rotation.swapaxes(1, 2)

    def veff(step):
        return np.asarray(dft.uks.get_veff(mf, mf.mol, dms + step * change))

    expected = slope(veff, 1e-3)
    found = mf.gen_response(hermi=1)(change)
    assert np.linalg.norm(found - expected) < 1e-7 * np.linalg.norm(expected)


EXCITATIONS = {
    "singlets": (dft.RKS, HYDROGEN_FLUORIDE, {"singlet": True}),
    "triplets": (dft.RKS, HYDROGEN_FLUORIDE, {"singlet": False}),
    "open shell": (dft.UKS, LITHIUM, {}),
}


@pytest.mark.parametrize(
    ("kind", "fitted"),
    [("singlets", False), ("triplets", False), ("open shell", False), ("singlets", True)],
)
def test_excitations_of_zero_learned_part_are_those_of_libxc(kind, fitted):
    method, mol, settings = EXCITATIONS[kind]
    energies = []
    for xc in ("PBE", ZERO):
        mf = solve(method, mol, xc, fitted)
        calculations = [mf.TDA(), mf.TDDFT(), mf.CasidaTDDFT(), mf.dRPA()]
        energies.append(
            [td.set(conv_tol=1e-9, nstates=3, **settings).kernel()[0] for td in calculations]
        )
    np.testing.assert_allclose(energies[1], energies[0], atol=1e-7)


@pytest.mark.parametrize(
    "name", ["0.25 x-sl-mgga", pytest.param("semilocal xc", marks=pytest.mark.slow)]
)
def test_excitations_of_closed_shells_are_singlets_and_triplets(name):
    mf = solve(dft.RKS, HYDROGEN, functional(name))
    parts = [
        mf.TDA().set(singlet=singlet, nstates=3, conv_tol=1e-9).kernel()[0]
        for singlet in (True, False)
    ]
    together = mf.to_uks().TDA().set(nstates=6, conv_tol=1e-9).kernel()[0]
    np.testing.assert_allclose(together, np.sort(np.concatenate(parts)), atol=1e-7)


def test_matrices_have_the_excitations_as_eigenvalues():
    mf = solve(dft.RKS, HYDROGEN_FLUORIDE, TOY)
    a, b = mf.TDDFT().get_ab()
    size = a.shape[0] * a.shape[1]
    a, b = a.reshape(size, size), b.reshape(size, size)
    np.testing.assert_allclose(a, a.T, atol=1e-10)
    expected = mf.TDDFT().set(nstates=3, conv_tol=1e-10).kernel()[0]
    found = np.sqrt(np.sort(np.linalg.eigvals((a - b) @ (a + b)).real))[:3]
    np.testing.assert_allclose(found, expected, atol=1e-8)


@pytest.mark.parametrize("settings", [{}, {"frozen": [0]}])
@pytest.mark.parametrize("kind", ["singlets", "open shell"])
def test_matrices_of_zero_learned_part_are_those_of_libxc(kind, settings):
    method, mol, _ = EXCITATIONS[kind]
    mf = solve(method, mol, "PBE")
    expected = mf.TDA(**settings).get_ab()
    mf.xc = ZERO
    found = mf.TDA(**settings).get_ab()
    for ours, theirs in zip(found, expected, strict=True):
        pairs = [(ours, theirs)] if method is dft.RKS else zip(ours, theirs, strict=True)
        for own, other in pairs:
            np.testing.assert_allclose(own, other, atol=1e-8)


def test_every_way_to_excitations_and_their_copies():
    mf = solve(dft.RKS, HYDROGEN, SMOOTH)
    td = mf.TDA().set(conv_tol=1e-9)
    expected = td.kernel()[0]
    for other in (tdscf.TDA(mf), mf.newton().TDA(), pickle.loads(pickle.dumps(td))):
        assert type(other).__name__ == "CiderTDA"
        np.testing.assert_allclose(other.set(conv_tol=1e-9).kernel()[0], expected, atol=1e-8)
    scanner = td.as_scanner()
    np.testing.assert_allclose(scanner(mf.mol), mf.e_tot + expected, atol=1e-8)
    opened = tdscf.TDA(solve(dft.ROKS, LITHIUM, SMOOTH))
    assert isinstance(opened._scf, dft.uks.UKS) and np.all(opened.kernel()[0] > 0)
    mf.xc = "PBE"
    assert type(mf.TDA()) is tdscf.rks.TDA


def test_polarisability_is_that_of_finite_fields():
    """The response of the orbitals to a field, and the dipole that it induces."""
    mol = HYDROGEN_FLUORIDE
    dipole = mol.intor("int1e_r")[2]
    core = scf.hf.get_hcore(mol)

    def in_field(field):
        mf = dft.RKS(mol, xc=TOY).set(conv_tol=1e-12)
        mf.get_hcore = lambda *args: core + field * dipole
        mf.grids.level = 0
        return mf.run()

    mf = in_field(0.0)
    occupied, virtual = mf.mo_coeff[:, mf.mo_occ > 0], mf.mo_coeff[:, mf.mo_occ == 0]
    response = mf.gen_response(hermi=1)

    def of_orbitals(change):
        dm = 2 * virtual @ change.reshape(virtual.shape[1], -1) @ occupied.T
        return (virtual.T @ response(dm + dm.T) @ occupied).ravel()

    perturbation = virtual.T @ dipole @ occupied
    change = cphf.solve(of_orbitals, mf.mo_energy, mf.mo_occ, perturbation, tol=1e-10)[0]
    induced = slope(lambda field: -np.sum(in_field(field).make_rdm1() * dipole), 2e-3)
    assert -4 * np.sum(perturbation * change) == pytest.approx(induced, rel=1e-5)


def test_stability():
    """A bond is stable; a stretched one is not, and leads to a lower energy with two spins."""
    results = solve(dft.RKS, HYDROGEN, SMOOTH).stability(external=True, return_status=True)
    assert results[2:] == (True, True)
    assert solve(dft.ROKS, LITHIUM, SMOOTH).stability(return_status=True)[2]
    stretched = solve(dft.RKS, molecule("H 0 0 0; H 0 0 2.5"), SMOOTH)
    _, orbitals, stable, stable_to_spins = stretched.stability(external=True, return_status=True)
    assert stable and not stable_to_spins
    broken = stretched.to_uks()
    broken.kernel(broken.make_rdm1(orbitals, np.array([stretched.mo_occ / 2] * 2)))
    assert broken.e_tot < stretched.e_tot - 1e-3
    assert broken.stability(return_status=True)[2]


def test_threads_of_pyscf_hold():
    mol, grids, dm, changes = state(1)
    results = []
    for number in (1, 2):
        with lib.with_omp_threads(number):
            results.append(CiderNumInt().nr_rks_fxc(mol, grids, TOY, dm, changes[0]))
    np.testing.assert_allclose(results[0], results[1], atol=1e-10)
