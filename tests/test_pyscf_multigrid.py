"""Multigrid integration of learned functionals: that of the uniform grid, by PySCF's fast way."""

import pickle

import numpy as np
import pytest
from pyscf.pbc import dft, gto
from pyscf.pbc.dft.multigrid import MultiGridNumInt
from test_pyscf_periodic import K_METHODS, METHODS, NONLOCAL, OF_MATRIX, ZERO, solve, two_k_points

from cider.plugins.pyscf.gradient_basis import gradient_basis
from cider.plugins.pyscf.multigrid import CiderMultiGridNumInt


@pytest.fixture(scope="module")
def cell():
    """Contracted shells, vectors at odd angles, and a mesh that represents all of the density."""
    return gto.M(
        a=6.0 * np.eye(3) + 0.3,
        atom="H 0 0 0; H 0.3 0 1.7",
        basis={"H": [[0, [0.8, 0.5], [0.3, 0.6]], [1, [0.5, 1.0]]]},
        pseudo="gth-pade",
        unit="bohr",
        mesh=[24] * 3,
        verbose=0,
    )


def made(method, cell, xc):
    several = K_METHODS.get(method)
    mf = two_k_points(several, cell) if several else METHODS[method](cell)
    mf.xc = xc
    return mf


@pytest.mark.parametrize("cart", [False, True])
def test_gradients_of_orbitals(cart):
    cell = gto.M(
        a=5 * np.eye(3),
        atom="C 0 0 0; Ghost-H 0.5 1 2",
        basis={"C": "gth-dzvp", "Ghost-H": [[2, [0.9, 0.4], [0.3, 0.7]], [3, [0.9, 1.0]]]},
        pseudo="gth-pade",
        cart=cart,
        verbose=0,
    )
    basis = gradient_basis(cell)
    points = np.random.default_rng(2).uniform(0, 5, (20, 3))
    kpts = cell.make_kpts([2, 2, 1])
    kind = "GTOval_cart" if cart else "GTOval_sph"
    expected = cell.pbc_eval_gto(f"{kind}_deriv1", points, kpts=kpts)
    gaussians = basis.cell.pbc_eval_gto("GTOval_cart", points, kpts=kpts)
    for own, values in zip(expected, gaussians, strict=True):
        found = np.einsum("gi,xij->xgj", values, basis.derivatives)
        np.testing.assert_allclose(found, own[1:4], atol=1e-7)  # images beyond the cutoff


CASES = [(method, NONLOCAL) for method in [*METHODS, *K_METHODS]] + [("RKS", OF_MATRIX)]


@pytest.mark.parametrize(("method", "xc"), CASES)
def test_energy_and_potential_are_those_of_the_uniform_grid(cell, method, xc):
    plain = made(method, cell, xc)
    multigrid = plain.multigrid_numint()
    dm = plain.get_init_guess(key="1e")
    expected, found = plain.get_veff(dm=dm), multigrid.get_veff(dm=dm)
    np.testing.assert_allclose(found, expected, atol=1e-8)
    assert found.exc == pytest.approx(expected.exc, abs=1e-9)
    assert multigrid.energy_elec(dm)[0] == pytest.approx(plain.energy_elec(dm)[0], abs=1e-9)


@pytest.mark.parametrize("method", ["RKS", "KUKS"])
def test_learned_part_zero_is_the_multigrid_baseline(cell, method):
    """On a mesh too coarse for the uniform grid to agree."""
    expected = made(method, cell, "PBE")
    expected._numint = MultiGridNumInt(cell)
    found = made(method, cell, ZERO).multigrid_numint()
    for mf in (expected, found):
        mf._numint.mesh = [14] * 3
    energies = [solve(mf, mf.xc).e_tot for mf in (expected, found)]
    assert energies[1] == pytest.approx(energies[0], abs=1e-8)


RESPONSES = {
    "RKS": [{"singlet": True}, {"singlet": False}],
    "KRKS": [{"singlet": None}],
    "KUKS": [{"hermi": 1}],
}


@pytest.mark.parametrize("method", RESPONSES)
def test_response_and_bands_are_those_of_the_uniform_grid(cell, method):
    """Second derivatives are rough: 5e-6 away with 24 points along each vector, 9e-8 with 32."""
    cell = cell.copy()
    cell.mesh = [32] * 3
    plain = made(method, cell, NONLOCAL).set(max_cycle=0).run()
    multigrid = plain.multigrid_numint()
    rng = np.random.default_rng(5)
    dm = plain.make_rdm1()
    change = rng.normal(size=dm.shape).astype(dm.dtype)
    if np.iscomplexobj(dm):
        change += 1j * rng.normal(size=dm.shape)
    for kind in RESPONSES[method]:
        if kind.get("hermi") == 1:
            change = change + change.conj().swapaxes(-1, -2)
        responses = [mf.gen_response(**kind)(change) for mf in (plain, multigrid)]
        np.testing.assert_allclose(*responses, atol=2e-7 * abs(responses[0]).max())
    kpts = np.array([[0.1, 0.2, 0.3], [0.0, 0.0, 0.5]])
    bands = [mf.get_bands(kpts)[0] for mf in (plain, multigrid)]
    np.testing.assert_allclose(*bands, atol=1e-7)


def test_irreducible_k_points(cell):
    kpts = cell.make_kpts([3, 1, 1])
    symmetric = cell.copy()
    symmetric.build(space_group_symmetry=True)
    reduced = dft.KRKS(symmetric, kpts=symmetric.make_kpts([3, 1, 1], time_reversal_symmetry=True))
    assert len(reduced.kpts.kpts_ibz) == 2
    energies = [
        solve(mf.multigrid_numint(), NONLOCAL).e_tot for mf in (reduced, dft.KRKS(cell, kpts=kpts))
    ]
    assert energies[0] == pytest.approx(energies[1], abs=1e-8)


def test_before_and_after_the_functional(cell):
    """PySCF's integration, and its mesh, take ours and come back."""
    mf = dft.RKS(cell).multigrid_numint(mesh=[20] * 3)
    for xc, kind in ((NONLOCAL, CiderMultiGridNumInt), ("PBE", MultiGridNumInt)):
        mf.xc = xc
        assert type(mf._numint) is kind
        assert mf._numint.mesh == [20] * 3
    mf.xc = NONLOCAL
    mf.kernel()
    energy = mf.get_veff().exc
    assert pickle.loads(pickle.dumps(mf)).get_veff().exc == pytest.approx(energy, abs=1e-12)
    moved = cell.copy()
    moved.set_geom_("H 0 0 0; H 0.3 0 1.8", unit="bohr")
    fresh = dft.RKS(moved, xc=NONLOCAL).multigrid_numint(mesh=[20] * 3)
    dm = mf.make_rdm1()
    expected = fresh.get_veff(dm=dm).exc
    assert mf.reset(moved).get_veff(dm=dm).exc == pytest.approx(expected, abs=1e-12)


def test_forces_raise(cell):
    """PySCF has none of crystals with this integration."""
    with pytest.raises(NotImplementedError, match="multigrid"):
        two_k_points(dft.KRKS, cell).set(xc=NONLOCAL).multigrid_numint().nuc_grad_method()
