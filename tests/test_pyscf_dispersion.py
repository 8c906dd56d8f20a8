"""Dispersion corrections and VV10, as PySCF adds them to a libxc functional."""

import numpy as np
import pytest
from pyscf import dft, gto
from toy_functionals import toy_exchange

from cider import CiderFunctional

SURROGATE = CiderFunctional(toy_exchange("GGA", size=0.0), x_mix=0.25, semilocal="PBE")
"""PBE by itself, as its learned part is zero; of PBE0 by what it declares."""

UNDECLARED = CiderFunctional(toy_exchange("GGA", size=0.0), correlation="GGA_C_PBE")


def solve(xc, charge=0, **attributes):
    mol = gto.M(
        atom="F 0 0 0; H 0.1 0.2 0.92",
        basis="sto-3g",
        charge=charge,
        spin=abs(charge),
        verbose=0,
    )
    mf = (dft.UKS if mol.spin else dft.RKS)(mol, xc=xc).set(**attributes)
    mf.grids.level = mf.nlcgrids.level = 0
    return mf.run(conv_tol=1e-11)


@pytest.mark.parametrize("model", ["d3bj", "d3zero", "d3bjatm", "d4"])
def test_parameters_that_the_functional_declares(model):
    pytest.importorskip("pyscf.dispersion")
    bare = solve(SURROGATE)
    expected, found = solve("PBE", disp=f"{model}:pbe0"), solve(SURROGATE, disp=model)
    assert found.scf_summary["dispersion"] == pytest.approx(found.e_tot - bare.e_tot, abs=1e-9)
    assert found.e_tot == pytest.approx(expected.e_tot, abs=1e-10)
    gradient = found.nuc_grad_method().kernel()
    np.testing.assert_allclose(gradient, expected.nuc_grad_method().kernel(), atol=1e-9)
    assert np.max(np.abs(gradient - bare.nuc_grad_method().kernel())) > 1e-7


def test_parameters_that_the_user_gives():
    pytest.importorskip("pyscf.dispersion")
    found = solve(UNDECLARED, disp="d4:pbe")
    assert found.e_tot == pytest.approx(solve("PBE", disp="d4").e_tot, abs=1e-10)


@pytest.mark.parametrize("semilocal, x_mix", [("r2scan", 0.25), ("TPSS", 0.1)])
def test_other_hybrids(semilocal, x_mix):
    pytest.importorskip("pyscf.dispersion")
    functional = CiderFunctional(toy_exchange("GGA"), x_mix=x_mix, semilocal=semilocal)
    mf = dft.RKS(gto.M(atom="He 0 0 0; He 0 0 3", verbose=0), xc=functional)
    for model in ("d3bj", "d4"):
        assert mf.get_dispersion(model) < 0
    assert CiderFunctional(toy_exchange("GGA"), x_mix=0.5, semilocal=semilocal).hybrid is None


def test_nobody_chose_parameters():
    with pytest.raises(ValueError, match=r"declares no parameters.*mf\.disp = 'd3bj:pbe0'"):
        solve(UNDECLARED, disp="d3bj")
    with pytest.raises(ValueError, match="Unknown dispersion version"):
        solve(SURROGATE, disp="d3nonsense")


@pytest.mark.parametrize("charge", [0, 1])
def test_vv10(charge):
    bare = solve(UNDECLARED, charge)
    expected, found = (solve(xc, charge, nlc="vv10") for xc in ("PBE", UNDECLARED))
    assert abs(found.e_tot - bare.e_tot) > 1e-3
    assert found.e_tot == pytest.approx(expected.e_tot, abs=1e-9)
    for response in (False, True):
        gradients = [mf.nuc_grad_method().set(grid_response=response) for mf in (found, expected)]
        np.testing.assert_allclose(*(g.kernel() for g in gradients), atol=1e-8)


def test_another_nonlocal_correlation():
    with pytest.raises(ValueError, match=r"rvv10.*only 'vv10'"):
        solve(UNDECLARED, nlc="rvv10")
