"""Density to energy to potential matrix: exact derivatives, spin, memory, broken input."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from pyscf import dft, gto, lib
from toy_functionals import toy_exchange, toy_nldf

from cider import CiderFunctional
from cider.features import threads
from cider.features.convolution import DirectConvolution
from cider.plugins.pyscf import numint
from cider.plugins.pyscf.numint import CiderNumInt

SEMILOCAL = {level: toy_exchange(level) for level in ("GGA", "MGGA")}
KINDS = {
    "gga": CiderFunctional(SEMILOCAL["GGA"]),
    "mgga": CiderFunctional(SEMILOCAL["MGGA"]),
    "nldf": CiderFunctional(toy_exchange("MGGA", toy_nldf())),
    "with libxc": CiderFunctional(SEMILOCAL["GGA"], x_mix=0.25, semilocal="R2SCAN"),
}


def brute_force(mol, grids, nldf):
    """The exact sum over pairs of points: small grids, and fast to compile."""
    return DirectConvolution(
        *map(np.asarray, (grids.coords, grids.weights)),
        nldf.source_ladder.exponents,
        nldf.target_ladder.exponents,
    )


@pytest.fixture
def molecule():
    """A polar one without symmetry, its grid, and density matrices of a perturbed state."""
    mol = gto.M(atom="Li 0 0 0; H 0.2 0.3 1.6", basis="6-31g", verbose=0)
    grids = dft.Grids(mol)
    grids.atom_grid = (8, 26)
    grids.prune = None
    grids.build(with_non0tab=True)
    random = np.random.default_rng(3)
    orbitals = dft.UKS(mol).run(xc="PBE", max_cycle=2, grids=grids).mo_coeff
    orbitals = orbitals + 0.05 * random.normal(size=orbitals.shape)
    occupied = orbitals[:, :, :2] * np.sqrt([1.0, 0.9])
    return mol, grids, occupied @ occupied.swapaxes(1, 2)


def _integrate(mol, grids, functional, dms, **kwargs):
    """With a leading spin axis, whatever its length."""
    method = "nr_rks" if len(dms) == 1 else "nr_uks"
    dm = dms[0] if len(dms) == 1 else dms
    nelec, exc, vmat = getattr(CiderNumInt(), method)(mol, grids, functional, dm, **kwargs)
    return np.atleast_1d(nelec), exc, vmat.reshape(dms.shape)


@pytest.mark.parametrize("spins", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_potential_matrix_is_the_derivative_of_the_energy(molecule, monkeypatch, kind, spins):
    monkeypatch.setattr(numint, "becke_convolution", brute_force)
    mol, grids, dms = molecule
    if spins == 1:
        dms = dms.sum(axis=0, keepdims=True)
    random = np.random.default_rng(5)
    # Within the occupied space and out of it, as a change of the orbitals would be.
    rotation = 0.1 * random.normal(size=(mol.nao, mol.nao))
    change = rotation @ dms + dms @ rotation.T

    ni, functional = CiderNumInt(), KINDS[kind]

    def energy(step):
        moved = dms + step * change
        if spins == 1:
            return ni.nr_rks(mol, grids, functional, moved[0])[1]
        return ni.nr_uks(mol, grids, functional, moved)[1]

    _, _, vmat = _integrate(mol, grids, functional, dms)
    h = 1e-3  # fourth order: error h^4, rounding 1e-15/h
    slope = (8 * (energy(h) - energy(-h)) - (energy(2 * h) - energy(-2 * h))) / (12 * h)
    np.testing.assert_allclose(np.sum(vmat * change), slope, rtol=1e-7)
    np.testing.assert_allclose(vmat, vmat.swapaxes(1, 2), atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_closed_shell_is_the_same_for_one_and_two_spins(molecule, monkeypatch, kind):
    monkeypatch.setattr(numint, "becke_convolution", brute_force)
    mol, grids, dms = molecule
    total = 2 * dms[:1]
    n1, e1, v1 = _integrate(mol, grids, KINDS[kind], total)
    n2, e2, v2 = _integrate(mol, grids, KINDS[kind], np.concatenate([total, total]) / 2)
    np.testing.assert_allclose(n2.sum(), n1[0], rtol=1e-13)
    np.testing.assert_allclose(e2, e1, atol=1e-11)
    np.testing.assert_allclose(v2, np.concatenate([v1, v1]), atol=1e-11)


def test_spin_swap(molecule):
    mol, grids, dms = molecule
    _, energy, vmat = _integrate(mol, grids, KINDS["with libxc"], dms)
    _, swapped_energy, swapped = _integrate(mol, grids, KINDS["with libxc"], dms[::-1])
    np.testing.assert_allclose(swapped_energy, energy, rtol=1e-13)
    np.testing.assert_allclose(swapped[::-1], vmat, atol=1e-12)


def test_one_spin_without_electrons(molecule):
    mol, grids, dms = molecule
    dms[1] = 0
    for functional in KINDS.values():
        if not functional.is_nonlocal:
            nelec, energy, vmat = _integrate(mol, grids, functional, dms)
            assert nelec[1] == 0
            assert np.isfinite(energy) and np.isfinite(vmat).all()


@pytest.mark.parametrize("level", ["GGA", "MGGA"])
def test_learned_part_zero_is_libxc_to_rounding(molecule, level):
    mol, grids, dms = molecule
    functional = CiderFunctional(toy_exchange(level, size=0.0), correlation="GGA_C_PBE")
    for spin_dms in (dms, dms.sum(axis=0, keepdims=True)):
        method = "nr_rks" if len(spin_dms) == 1 else "nr_uks"
        dm = spin_dms[0] if len(spin_dms) == 1 else spin_dms
        expected = getattr(dft.numint.NumInt(), method)(mol, grids, "PBE", dm)
        found = getattr(CiderNumInt(), method)(mol, grids, functional, dm)
        for a, b in zip(found, expected, strict=True):
            assert np.shape(a) == np.shape(b)
            np.testing.assert_allclose(a, b, atol=1e-9)  # libxc's density threshold


def test_lists_of_density_matrices_have_the_shapes_of_pyscf(molecule):
    mol, grids, dms = molecule
    ours, theirs, functional = CiderNumInt(), dft.numint.NumInt(), KINDS["gga"]
    sets = np.array([dms[0], dms[1], dms[0] + dms[1]])
    for dm in (sets, list(sets), sets[:1], [sets[0]]):
        found = ours.nr_rks(mol, grids, functional, dm)
        expected = theirs.nr_rks(mol, grids, "PBE", dm)
        assert [np.shape(a) for a in found] == [np.shape(a) for a in expected]
    for dm in (np.array([sets, sets]), np.array([sets[:1], sets[:1]]), dms, sets[0]):
        found = ours.nr_uks(mol, grids, functional, dm)
        expected = theirs.nr_uks(mol, grids, "PBE", dm)
        assert [np.shape(a) for a in found] == [np.shape(a) for a in expected]
    single = ours.nr_rks(mol, grids, functional, sets[1])
    np.testing.assert_allclose(ours.nr_rks(mol, grids, functional, sets)[2][1], single[2])
    np.testing.assert_allclose(ours.nr_vxc(mol, grids, functional, sets[1])[1], single[1])
    np.testing.assert_allclose(
        ours.nr_rks(mol, grids, "PBE", sets[1])[1], theirs.nr_rks(mol, grids, "PBE", sets[1])[1]
    )


def test_unsymmetric_density_matrix_is_symmetrised(molecule):
    mol, grids, dms = molecule
    skew = np.triu(np.ones((mol.nao, mol.nao)), 1)
    ni = CiderNumInt()
    expected = ni.nr_rks(mol, grids, KINDS["mgga"], dms[0])
    found = ni.nr_rks(mol, grids, KINDS["mgga"], dms[0] + skew - skew.T, hermi=0)
    np.testing.assert_allclose(found[2], expected[2], atol=1e-12)


def test_memory_limit_changes_nothing():
    """One row of PySCF's screening at a time, some of which hold no orbital, or all together."""
    compact = [[0, [3.0, 1.0]], [1, [2.0, 1.0]]]
    mol = gto.M(atom="He 0 0 0; He 0 0 2; He 0 0 30", basis={"He": compact}, verbose=0)
    grids = dft.Grids(mol).set(level=0)
    grids.build(with_non0tab=True)
    assert not grids.non0tab.any(axis=1).all()
    dm = dft.RKS(mol).get_init_guess()
    results = [
        CiderNumInt().nr_rks(mol, grids, KINDS["mgga"], dm, max_memory=limit)
        for limit in (0.001, 0.5, 2000)
    ]
    grids.non0tab = None
    results.append(CiderNumInt().nr_rks(mol, grids, KINDS["mgga"], dm))
    for found in results[1:]:
        np.testing.assert_allclose(found[1], results[0][1], rtol=1e-12)
        np.testing.assert_allclose(found[2], results[0][2], atol=1e-11)


def test_pyscfs_number_of_threads_holds(monkeypatch):
    mol = gto.M(atom="H 0 0 0; H 0 0 0.74", verbose=0)
    mf = dft.RKS(mol, xc=KINDS["nldf"])
    mf.grids.level = 0
    numbers = []

    class Recorder(ThreadPoolExecutor):
        def __init__(self, number: int) -> None:
            numbers.append(number)
            super().__init__(number)

    monkeypatch.setattr(threads, "ThreadPoolExecutor", Recorder)
    for number in (1, 3):
        with lib.with_omp_threads(number):
            mf._numint.nr_rks(mol, mf.grids, mf.xc, mf.get_init_guess())
    assert numbers == [1] * 4 + [3] * 4  # density, forth and back, matrix


def test_orbitals_of_another_matrix_are_not_believed(molecule):
    """PySCF tags density matrices with orbitals, also where code has changed them since."""
    mol, grids, dms = molecule
    tagged = lib.tag_array(dms[0], mo_coeff=np.eye(mol.nao), mo_occ=np.ones(mol.nao))
    expected = CiderNumInt().nr_rks(mol, grids, KINDS["mgga"], dms[0])
    found = CiderNumInt().nr_rks(mol, grids, KINDS["mgga"], tagged)
    np.testing.assert_array_equal(found[2], expected[2])


def test_broken_density_matrices_are_named(molecule):
    mol, grids, dms = molecule
    ni, functional = CiderNumInt(), KINDS["gga"]
    broken = dms[0].copy()
    broken[0, 0] = np.nan
    with pytest.raises(ValueError, match=r"NaN or infinity.*get_init_guess"):
        ni.nr_rks(mol, grids, functional, broken)
    with pytest.raises(ValueError, match="NaN or infinity"):
        ni.nr_uks(mol, grids, functional, np.array([dms[0], broken]))
    with pytest.raises(ValueError, match=r"negative over 2\.2"):
        ni.nr_rks(mol, grids, functional, -dms[0])
    with pytest.raises(NotImplementedError, match="real density matrices over the 11 orbitals"):
        ni.nr_rks(mol, grids, functional, dms[0].astype(complex))
    with pytest.raises(NotImplementedError, match="GKS"):
        ni.nr_rks(mol, grids, functional, np.kron(np.eye(2), dms[0]))


def test_convolution_follows_grid_and_geometry(molecule, monkeypatch):
    built = []

    def counting(mol, grids, nldf):
        built.append(len(grids.weights))
        return brute_force(mol, grids, nldf)

    monkeypatch.setattr(numint, "becke_convolution", counting)
    mol, grids, _ = molecule
    ni, functional = CiderNumInt(), KINDS["nldf"]
    for _ in range(2):
        ni._convolution_of(mol, grids, functional.learned.descriptors.nldf)
    assert len(built) == 1
    grids.coords[0, 0] += 1e-3
    ni._convolution_of(mol, grids, functional.learned.descriptors.nldf)
    assert len(built) == 2
    grids.atom_grid = (10, 14)
    grids.build(with_non0tab=True)
    ni._convolution_of(mol, grids, functional.learned.descriptors.nldf)
    assert len(built) == 3 and built[2] < built[1]
