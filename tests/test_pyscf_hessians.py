"""Hessians by differences of gradients, where PySCF has its analytic ones."""

import io

import numpy as np
import pytest
from pyscf import dft, gto
from pyscf.hessian import thermo
from toy_functionals import toy_exchange

from cider import CiderFunctional
from cider.plugins.pyscf.hessians import CiderHessian, infrared_intensities

PBE = CiderFunctional(toy_exchange("GGA", size=0.0), correlation="GGA_C_PBE")
"""With learned part zero."""

LEARNED = CiderFunctional(toy_exchange("MGGA"), correlation="GGA_C_PBE")


def solve(mol, xc, fitted=False, **grids):
    mf = dft.UKS(mol, xc=xc) if mol.spin else dft.RKS(mol, xc=xc)
    mf = mf.density_fit() if fitted else mf
    mf.grids.set(**{"level": 0, **grids})
    mf.run(conv_tol=1e-11)
    assert mf.converged
    return mf


def molecule(atom, **kwargs):
    return gto.M(atom=atom, **{"basis": "sto-3g", "verbose": 0, **kwargs})


def test_learned_part_zero_has_the_frequencies_of_its_libxc_baseline():
    """PySCF's is without the response of the grid."""
    mol = molecule("H 0 0 0; F 0 0 0.95")
    found = []
    for xc in ("PBE", PBE):
        hessian = solve(mol, xc, level=3).Hessian()
        found.append(thermo.harmonic_analysis(mol, hessian.kernel())["freq_wavenumber"])
    assert isinstance(hessian, CiderHessian) and len(found[0]) == 1
    np.testing.assert_allclose(*found, atol=0.5)


@pytest.mark.parametrize("charge", [0, 1])
def test_second_differences_of_the_energy(charge):
    mol = molecule("He 0 0 0; H 0.1 0.2 0.8", charge=charge, spin=1 - charge)
    few_points = {"atom_grid": (20, 50), "prune": None}
    mf = solve(mol, LEARNED, **few_points)
    direction = np.random.default_rng(1).normal(size=(2, 3))

    def energy(step):
        coords = mol.atom_coords() + step * direction
        moved = mol.set_geom_(coords, unit="Bohr", inplace=False)
        return solve(moved, LEARNED, **few_points).e_tot

    h = 0.02  # fourth order; the energy is converged to 1e-11
    once, twice = (
        sum(energy(s * k * h) - mf.e_tot for s in (-1, 1)) / (k * h) ** 2 for k in (1, 2)
    )
    hessian = mf.Hessian().kernel()
    found = np.einsum("ax,abxy,by->", direction, hessian, direction)
    assert found == pytest.approx((4 * once - twice) / 3, rel=1e-3)
    np.testing.assert_allclose(hessian.sum(axis=1), 0, atol=1e-4)


def test_object_stays_as_it_is():
    mol = molecule("H 0 0 0; H 0 0 0.8", symmetry=True)
    mf = solve(mol, PBE, fitted=True)
    before = [mf.mol, mf.e_tot, mf.mo_coeff, mf.with_df.mol, mf.grids.coords, mf.verbose]
    saved = mf.from_chk(mf.chkfile)
    hessian = mf.Hessian()
    whole = hessian.kernel()
    after = [mf.mol, mf.e_tot, mf.mo_coeff, mf.with_df.mol, mf.grids.coords, mf.verbose]
    assert all(a is b for a, b in zip(before, after, strict=True))
    np.testing.assert_array_equal(mf.from_chk(mf.chkfile), saved)
    np.testing.assert_array_equal(hessian.kernel(atmlst=[1]), whole[1:, 1:])


def test_dipole_derivatives_and_infrared_intensities():
    """Of an ion, whose translation moves its charge; H2 is dark."""
    hessian = solve(molecule("He 0 0 0; H 0 0 0.8", charge=1), PBE).Hessian()
    hessian.kernel()
    np.testing.assert_allclose(hessian.dipole_derivatives.sum(axis=0), np.eye(3), atol=1e-6)

    mol = molecule("H 0 0 0; H 0 0 0.8")
    hessian = solve(mol, PBE).Hessian()
    modes = thermo.harmonic_analysis(mol, hessian.kernel())["norm_mode"]
    np.testing.assert_allclose(
        infrared_intensities(modes, hessian.dipole_derivatives), 0, atol=1e-6
    )
    # A charge of 1 e on a mass of 1 amu absorbs 974.88 km/mol (Gaussian's conversion factor).
    one = np.zeros((1, 1, 3))
    one[..., 0] = 1
    np.testing.assert_allclose(infrared_intensities(one, np.eye(3)[None]), 974.88, rtol=1e-5)


def test_log_says_how():
    hessian = solve(molecule("H 0 0 0; H 0 0 0.8"), PBE).Hessian()
    hessian.set(verbose=4, stdout=io.StringIO()).kernel()
    lines = hessian.stdout.getvalue().splitlines()
    assert len(lines) == 8
    assert "central differences of 12 gradients" in lines[0]
    assert all("done" in line for line in lines[1:-1]) and "asymmetric by" in lines[-1]


def test_self_consistent_fields_that_fail():
    mf = solve(molecule("H 0 0 0; H 0 0 0.8"), PBE)
    with pytest.raises(RuntimeError, match=r"no convergence with atom 0 \(H\) along x"):
        mf.set(max_cycle=1).Hessian().kernel()
    mf.set(max_cycle=50).e_tot += 1e-3
    with pytest.raises(RuntimeError, match=r"atom 0 \(H\) along x.*mf.stability"):
        mf.Hessian().kernel()


def test_what_is_not_available():
    mf = solve(molecule("H 0 0 0; H 0 0 0.8", symmetry=True), PBE)
    with pytest.raises(NotImplementedError, match="in a solvent"):
        mf.PCM().run().Hessian().kernel()
    hessian = mf.Hessian()
    for method in (hessian.make_h1, hessian.hess_elec, hessian.gen_hop, hessian.to_gpu):
        with pytest.raises(NotImplementedError, match=r"CiderFunctional\(toy"):
            method()
    mf.irrep_nelec = {"A1g": 2}
    with pytest.raises(NotImplementedError, match="irrep_nelec"):
        hessian.kernel()
