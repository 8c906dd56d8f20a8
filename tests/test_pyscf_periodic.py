"""Learned functionals in periodic cells, at one k-point and at several."""

import pickle

import numpy as np
import pytest
from pyscf import dft as molecular_dft
from pyscf import gto as molecular_gto
from pyscf.pbc import dft, gto
from pyscf.pbc.tools import super_cell
from toy_functionals import toy_exchange, toy_nldf

from cider import CiderFunctional
from cider.features.sdmx import Sdmx

ZERO = CiderFunctional(toy_exchange("GGA", size=0.0), correlation="GGA_C_PBE")
SEMILOCAL = CiderFunctional(toy_exchange("MGGA"), correlation="GGA_C_PBE")
NONLOCAL = CiderFunctional(toy_exchange("MGGA", toy_nldf()), x_mix=0.25, semilocal="PBE")
OF_MATRIX = CiderFunctional(
    toy_exchange("GGA", size=0.02, sdmx=Sdmx((("0", 1), ("0d", 0), ("1", 2), ("1d", 1)))),
    x_mix=0.25,
    semilocal="PBE",
)
SHIPPED = CiderFunctional("x-nldf", correlation="GGA_C_PBE")

METHODS = {"RKS": dft.RKS, "UKS": dft.UKS, "ROKS": dft.ROKS}
K_METHODS = {"KRKS": dft.KRKS, "KUKS": dft.KUKS, "KROKS": dft.KROKS}


@pytest.fixture(scope="module")
def cell():
    return gto.M(
        a=4.0 * np.eye(3) + 0.2,
        atom="H 0 0 0; H 0.3 0 1.4",
        basis="gth-szv",
        pseudo="gth-pade",
        unit="bohr",
        mesh=[12] * 3,
        verbose=0,
    )


def solve(mf, xc):
    mf.xc = xc
    mf.conv_tol = 1e-10
    mf.kernel()
    assert mf.converged
    return mf


def two_k_points(method, cell):
    return method(cell, kpts=cell.make_kpts([2, 1, 1]))


@pytest.mark.parametrize("method", METHODS)
def test_learned_part_zero_is_its_libxc_baseline(cell, method):
    expected = solve(METHODS[method](cell), "PBE")
    found = solve(METHODS[method](cell), ZERO)
    assert found.e_tot == pytest.approx(expected.e_tot, abs=1e-8)


@pytest.mark.parametrize("method", K_METHODS)
def test_several_k_points_with_learned_part_zero(cell, method):
    expected = solve(two_k_points(K_METHODS[method], cell), "PBE")
    found = solve(two_k_points(K_METHODS[method], cell), ZERO)
    assert found.e_tot == pytest.approx(expected.e_tot, abs=1e-8)


@pytest.mark.parametrize("method", ["RKS", "UKS", "KRKS", "KUKS"])
def test_bands(cell, method):
    bands = []
    for xc in (ZERO, "PBE"):
        several = K_METHODS.get(method)
        mf = solve(two_k_points(several, cell) if several else METHODS[method](cell), xc)
        bands.append(mf.get_bands(np.array([[0.1, 0.2, 0.3], [0.0, 0.0, 0.5]]))[0])
    np.testing.assert_allclose(*bands, atol=1e-7)


@pytest.mark.parametrize("method", [dft.KRKS, dft.KUKS])
def test_irreducible_k_points(method):
    """Of a cubic crystal; they give the energy of all."""
    helium = gto.M(
        a=4.0 * np.eye(3),
        atom="He 0 0 0",
        basis="gth-szv",
        pseudo="gth-pade",
        unit="bohr",
        mesh=[12] * 3,
        space_group_symmetry=True,
        verbose=0,
    )
    symmetries = {"space_group_symmetry": True, "time_reversal_symmetry": True}
    kpts = helium.make_kpts([3, 1, 1], **symmetries)
    assert kpts.nkpts_ibz < kpts.nkpts
    some = solve(method(helium, kpts=kpts), NONLOCAL)
    expected = solve(method(helium, kpts=kpts.kpts), NONLOCAL)
    assert some.e_tot == pytest.approx(expected.e_tot, abs=1e-9)
    for feature in (some.gen_response, some.nuc_grad_method):
        with pytest.raises(NotImplementedError, match="to_khf"):
            feature()
    change = np.zeros_like(expected.make_rdm1())
    assert some.to_khf().gen_response()(change).shape == change.shape


@pytest.mark.parametrize(
    "functional",
    [SEMILOCAL, pytest.param(NONLOCAL, marks=pytest.mark.slow), SHIPPED, OF_MATRIX],
    ids=str,
)
def test_supercell_equals_mesh_of_k_points(cell, functional):
    by_k = solve(two_k_points(dft.KRKS, cell), functional)
    larger = super_cell(cell, [2, 1, 1])
    larger.mesh = [24, 12, 12]
    at_gamma = solve(dft.RKS(larger), functional)
    assert at_gamma.e_tot / 2 == pytest.approx(by_k.e_tot, abs=1e-9)


@pytest.mark.parametrize("functional", [SEMILOCAL, NONLOCAL, SHIPPED, OF_MATRIX], ids=str)
def test_unrestricted_closed_shell_is_restricted(cell, functional):
    restricted = solve(two_k_points(dft.KRKS, cell), functional)
    density = restricted.make_rdm1()
    unrestricted = two_k_points(dft.KUKS, cell)
    grids, ni = restricted.grids, restricted._numint
    nelec, exc, vmat = ni.nr_rks(cell, grids, functional, density, kpts=restricted.kpts)
    pair = np.stack([density / 2, density / 2])
    unrestricted.xc = functional
    found = unrestricted._numint.nr_uks(cell, grids, functional, pair, kpts=restricted.kpts)
    assert found[1] == pytest.approx(exc, abs=1e-12)
    np.testing.assert_allclose(found[0], nelec / 2, rtol=1e-12)
    np.testing.assert_allclose(found[2], [vmat, vmat], atol=1e-10)


@pytest.mark.parametrize("functional", [SEMILOCAL, NONLOCAL, SHIPPED, OF_MATRIX], ids=str)
def test_potential_is_the_derivative_of_the_energy(cell, functional):
    """By complex density matrices of two k-points, in a random Hermitian direction."""
    mf = two_k_points(dft.KRKS, cell)
    mf.xc = functional
    density = mf.get_init_guess()
    rng = np.random.default_rng(0)
    direction = rng.normal(size=density.shape) + 1j * rng.normal(size=density.shape)
    direction = direction + direction.conj().swapaxes(-1, -2)

    def integrate(step):
        return mf._numint.nr_rks(
            cell, mf.grids, functional, density + step * direction, kpts=mf.kpts
        )

    step = 2e-4
    central = [(integrate(h)[1] - integrate(-h)[1]) / (2 * h) for h in (step, 2 * step)]
    numeric = (4 * central[0] - central[1]) / 3
    analytic = np.einsum("kij,kji->", integrate(0.0)[2], direction).real / len(mf.kpts)
    assert analytic == pytest.approx(numeric, rel=1e-6)


@pytest.mark.parametrize(
    "functional", [NONLOCAL, pytest.param(OF_MATRIX, marks=pytest.mark.slow)], ids=str
)
def test_molecule_in_a_large_cell(functional):
    """At one density matrix, it has the energy and the potential of the isolated molecule.

    PBE's energy differs by 4e-6 Ha: the atom-centred grid has no finer shells.
    """
    atom = "H 0 0 -0.7; H 0 0 0.7"
    cell = gto.M(
        a=12.0 * np.eye(3),
        atom=atom,
        basis="gth-szv",
        pseudo="gth-pade",
        unit="bohr",
        mesh=[54] * 3,
        verbose=0,
    )
    mol = molecular_gto.M(atom=atom, basis=cell._basis, unit="bohr", verbose=0)
    density = np.full((2, 2), 2 / mol.intor("int1e_ovlp").sum())
    isolated = molecular_dft.RKS(mol, xc=functional)
    isolated.grids.level = 4
    isolated.grids.build()
    expected = isolated._numint.nr_rks(mol, isolated.grids, functional, density)
    mf = dft.RKS(cell, xc=functional)
    found = mf._numint.nr_rks(cell, mf.grids, functional, density)
    assert found[1] == pytest.approx(expected[1], abs=5e-6)
    np.testing.assert_allclose(found[2], expected[2], atol=5e-6)


def test_assignment_copies_and_pickle(cell):
    mf = two_k_points(dft.KRKS, cell)
    mf.xc = NONLOCAL
    copy = pickle.loads(pickle.dumps(mf))
    energies = [solve(calculation, NONLOCAL).e_tot for calculation in (mf, copy)]
    assert energies[0] == pytest.approx(energies[1], abs=1e-10)
    mf.xc = "PBE"
    assert type(mf) is dft.krks.KRKS and type(mf._numint) is dft.numint.KNumInt


def test_what_is_not_available(cell):
    fitted = dft.RKS(cell, xc=OF_MATRIX).density_fit()
    with pytest.raises(NotImplementedError, match=r"uniform grids.*UniformGrids"):
        fitted.kernel()
    built = dft.BeckeGrids(cell).build()
    with pytest.raises(NotImplementedError, match=r"whole atomic shells.*CrystalGrids"):
        fitted._numint.nr_rks(cell, built, NONLOCAL, fitted.get_init_guess())
    slab = gto.M(
        a=30.0 * np.eye(3), atom="He 0 0 0", basis="gth-szv", dimension=2, mesh=[5] * 3, verbose=0
    )
    with pytest.raises(NotImplementedError, match="three dimensions, not in 2"):
        dft.RKS(slab, xc=NONLOCAL).kernel()
    for method in (dft.KGKS, dft.GKS):
        with pytest.raises(NotImplementedError, match="RKS, UKS and ROKS"):
            method(cell, xc=NONLOCAL)
    with pytest.raises(NotImplementedError, match="KRKSpU"):
        dft.KRKSpU(cell, kpts=cell.make_kpts([2, 1, 1]), xc=NONLOCAL)
