"""Linear response of learned functionals in periodic cells of PySCF."""

import functools

import numpy as np
import pytest
from pyscf.pbc import dft, gto
from toy_functionals import toy_exchange, toy_nldf

from cider import CiderFunctional
from cider.features.sdmx import Sdmx
from cider.plugins.pyscf.periodic import CiderKNumInt, CiderPeriodicNumInt

ZERO = CiderFunctional(toy_exchange("GGA", size=0.0), correlation="GGA_C_PBE")
NONLOCAL = CiderFunctional(toy_exchange("MGGA", toy_nldf()), x_mix=0.25, semilocal="PBE")
OF_MATRIX = CiderFunctional(
    toy_exchange("GGA", size=0.02, sdmx=Sdmx((("0d", 0), ("1", 2)))), correlation="GGA_C_PBE"
)
FUNCTIONALS = pytest.mark.parametrize("functional", [NONLOCAL, OF_MATRIX], ids=str)

CELL = gto.M(
    a=4.0 * np.eye(3) + 0.2,
    atom="H 0 0 0; H 0.3 0 1.4",
    basis="gth-szv",
    pseudo="gth-pade",
    unit="bohr",
    mesh=[10] * 3,
    verbose=0,
)
KPTS = CELL.make_kpts([2, 1, 1])


@functools.cache
def state(spins):
    """Density matrices near the ground state, and two Hermitian changes of them."""
    density = dft.KRKS(CELL, kpts=KPTS).get_init_guess()
    rng = np.random.default_rng(0)
    dms = density if spins == 1 else np.stack([0.6 * density, 0.4 * density])
    changes = 0.1 * (rng.normal(size=(2, *dms.shape)) + 1j * rng.normal(size=(2, *dms.shape)))
    return dft.UniformGrids(CELL).build(), dms, changes + changes.conj().swapaxes(-1, -2)


def potential(grids, xc, dms):
    integrator = CiderKNumInt()
    method = integrator.nr_rks if dms.ndim == 3 else integrator.nr_uks
    return method(CELL, grids, xc, dms, kpts=KPTS)[2]


def response(grids, xc, dms, changes, integrator=None):
    integrator = integrator or CiderKNumInt()
    method = integrator.nr_rks_fxc if dms.ndim == 3 else integrator.nr_uks_fxc
    return method(CELL, grids, xc, dms, changes, kpts=KPTS)


@FUNCTIONALS
@pytest.mark.parametrize("spins", [1, 2])
def test_response_is_the_derivative_of_the_potential(spins, functional):
    grids, dms, changes = state(spins)
    found = np.stack([response(grids, functional, dms, change) for change in changes])

    def along(step):
        return potential(grids, functional, dms + step * changes[0])

    h = 1e-3
    once, twice = along(h) - along(-h), along(2 * h) - along(-2 * h)
    expected = (8 * once - twice) / (12 * h)
    assert np.linalg.norm(found[0] - expected) < 1e-7 * np.linalg.norm(expected)
    there, back = np.vdot(changes[1], found[0]), np.vdot(changes[0], found[1])
    assert there == pytest.approx(back, rel=1e-10)


@FUNCTIONALS
def test_complex_densities_respond_by_their_real_and_imaginary_parts(functional):
    """As transitions between orbitals have them."""
    grids, dms, changes = state(1)
    found = response(grids, functional, dms, changes[0] + 1j * changes[1])
    real, imaginary = response(grids, functional, dms, changes)
    np.testing.assert_allclose(found, real + 1j * imaginary, atol=1e-12)


def test_shapes_and_lists_are_those_of_pyscf():
    for spins in (1, 2):
        grids, dms, changes = state(spins)
        lists = np.moveaxis(changes, 0, -4)
        for some in (lists, list(lists), changes[0], lists[..., :1, :, :, :]):
            found = response(grids, ZERO, dms, some)
            expected = response(grids, "PBE", dms, np.asarray(some), dft.numint.KNumInt())
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, atol=1e-8)
            own = response(grids, "PBE", dms, np.asarray(some))
            np.testing.assert_array_equal(own, expected)


def test_blocks_of_changes_add_up():
    grids, dms, changes = state(1)
    integrator = CiderKNumInt()
    whole = response(grids, NONLOCAL, dms, changes, integrator)
    parts = integrator.nr_rks_fxc(CELL, grids, NONLOCAL, dms, changes, kpts=KPTS, max_memory=1)
    np.testing.assert_allclose(parts, whole, atol=1e-13)


@FUNCTIONALS
@pytest.mark.parametrize("kpt", [np.zeros(3), np.array([0.1, 0.2, 0.3])], ids=["gamma", "other"])
def test_one_k_point_is_one_of_several(kpt, functional):
    grids, dms, changes = state(1)
    dm, change = dms[0].real + 0j, changes[0][:1]
    one, several = CiderPeriodicNumInt(), CiderKNumInt()
    found = one.nr_rks(CELL, grids, functional, dm, kpt=kpt)
    expected = several.nr_rks(CELL, grids, functional, dm[None], kpts=kpt[None])
    assert found[1] == pytest.approx(expected[1], abs=1e-12)
    np.testing.assert_allclose(found[2], expected[2][0], atol=1e-12)
    kernel = one.cache_xc_kernel1(CELL, grids, functional, dm, kpt=kpt)[2]
    found = one.nr_rks_fxc(CELL, grids, functional, None, change, fxc=kernel, kpts=kpt)
    expected = several.nr_rks_fxc(CELL, grids, functional, dm[None], change, kpts=kpt[None])
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_singlets_and_triplets_are_changes_of_both_spins():
    grids, dms, changes = state(1)
    integrator, halves = CiderKNumInt(), np.stack([dms, dms]) / 2
    for singlet, sign in ((True, 1), (False, -1)):
        found = integrator.nr_rks_fxc_st(
            CELL, grids, NONLOCAL, dms, changes[0], 0, singlet, kpts=KPTS
        )
        both = np.stack([changes[0], sign * changes[0]])
        expected = response(grids, NONLOCAL, halves, both)
        # The correlation of libxc has another density threshold for two spins than for one.
        scale = abs(expected).max()
        np.testing.assert_allclose(found, expected[0], atol=1e-8 * scale)
        np.testing.assert_allclose(found, sign * expected[1], atol=1e-8 * scale)


def solved(method, xc):
    kwargs = {"kpts": KPTS} if method.__name__.startswith("K") else {}
    return method(CELL, xc=xc, **kwargs).run(conv_tol=1e-10)


@pytest.mark.parametrize("method", [dft.UKS, dft.KRKS])
def test_excitations_with_learned_part_zero(method):
    energies = []
    for xc in (ZERO, "PBE"):
        mf = solved(method, xc)
        found = []
        for make in (mf.TDA, mf.TDDFT):
            excited = make().set(nstates=1)
            if method is dft.KRKS:
                excited.singlet = False
            excited.kernel()
            found.append(np.ravel(excited.e))
        energies.append(found)
    np.testing.assert_allclose(*energies, atol=1e-7)


def test_second_order_and_stability():
    mf = solved(dft.KUKS, NONLOCAL)
    second = dft.KUKS(CELL, xc=NONLOCAL, kpts=KPTS).newton().run(conv_tol=1e-10)
    assert second.e_tot == pytest.approx(mf.e_tot, abs=1e-9)
    orbitals = mf.stability()[0]
    np.testing.assert_array_equal(orbitals, mf.mo_coeff)


def test_matrices_of_tddft_at_gamma():
    found, expected = (solved(dft.RKS, xc).TDA().get_ab() for xc in (ZERO, "PBE"))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-7)
    with pytest.raises(NotImplementedError, match="get_ab of k-points"):
        solved(dft.KRKS, ZERO).TDA().get_ab()


def test_restricted_open_shells_have_no_response_in_cells():
    with pytest.raises(NotImplementedError, match="to_uks"):
        dft.ROKS(CELL, xc=ZERO).gen_response()
