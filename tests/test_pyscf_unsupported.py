"""What is not available yet raises by name, on every path to it; nothing falls back in silence."""

from pathlib import Path

import numpy as np
import pytest
from pyscf import dft, gto, tdscf
from toy_functionals import toy_exchange

from cider import CiderFunctional
from cider.registry import registered_names

FUNCTIONAL = CiderFunctional(toy_exchange("GGA"), correlation="GGA_C_PBE")
NAMED = r"CiderFunctional\(toy \+ GGA_C_PBE\)"


@pytest.fixture(scope="module")
def converged():
    mol = gto.M(atom="H 0 0 0; H 0 0 1.4", basis="6-31g", unit="bohr", verbose=0)
    solved = {}
    for method in (dft.RKS, dft.UKS):
        mf = method(mol, xc=FUNCTIONAL)
        mf.grids.level = 0
        solved[method] = mf.run()
    return solved


METHODS = {
    "generalised Kohn-Sham": ("to_gks", "to_ghf"),
    "gpu4pyscf": ("to_gpu",),
}


@pytest.mark.parametrize("feature", METHODS)
@pytest.mark.parametrize("method", [dft.RKS, dft.UKS])
@pytest.mark.parametrize("fitted", [False, True])
def test_methods_name_the_feature_and_the_functional(converged, feature, method, fitted):
    mf = converged[method]
    if fitted:
        mf = mf.density_fit()
    for name in METHODS[feature]:
        with pytest.raises(NotImplementedError, match=f"{feature}.*{NAMED}.*mf.xc = 'PBE'"):
            getattr(mf, name)()


AROUND = {
    "gradients": lambda mf: _gradients(mf).kernel(),
    "hessian": lambda mf: _hessian(mf).kernel(),
    "TDDFT matrices": lambda mf: _excitations(mf).get_ab(),
    "TDDFT gradients": lambda mf: _excitations(mf).run().nuc_grad_method().kernel(),
    "point by point": lambda mf: mf._numint.eval_xc_eff(mf.xc, np.ones((4, 5))),
}


def _gradients(mf):
    from pyscf.grad import rks, uks

    return (rks if isinstance(mf, dft.rks.RKS) else uks).Gradients(mf)


def _hessian(mf):
    from pyscf.hessian import rks, uks

    return (rks if isinstance(mf, dft.rks.RKS) else uks).Hessian(mf)


def _excitations(mf):
    return (tdscf.rks if isinstance(mf, dft.rks.RKS) else tdscf.uks).TDA(mf)


@pytest.mark.parametrize("name", AROUND)
@pytest.mark.parametrize("method", [dft.RKS, dft.UKS])
def test_ways_around_the_methods_end_in_an_error_too(converged, name, method):
    with pytest.raises(NotImplementedError, match=NAMED):
        AROUND[name](converged[method])


@pytest.mark.parametrize("kind", ["TDA", "TDDFT", "CasidaTDDFT"])
def test_excited_states(converged, kind):
    for mf in converged.values():
        td = getattr(mf, kind)()
        for method in (td.nuc_grad_method, td.Gradients):
            with pytest.raises(NotImplementedError, match=f"gradients of excited.*{NAMED}"):
                method()
        with pytest.raises(NotImplementedError, match=f"gpu4pyscf.*{NAMED}"):
            td.to_gpu()
    with pytest.raises(NotImplementedError, match=rf"{kind}.*to_uks\(\)"):
        getattr(dft.ROKS(mf.mol, xc=FUNCTIONAL), kind)()


def test_assignment_after_newton(converged):
    """PySCF takes the energy from the object below, which has another functional."""
    newton = dft.RKS(converged[dft.RKS].mol, xc="PBE").newton()
    with pytest.raises(NotImplementedError, match=f"{NAMED}.*before newton"):
        newton.xc = FUNCTIONAL
    assert newton.xc == "PBE"


def test_other_kinds_of_kohn_sham():
    mol = gto.M(atom="He 0 0 0", basis="6-31g", verbose=0)
    message = f"{NAMED}.*RKS, UKS and ROKS"
    for method in (dft.GKS, dft.UDKS, dft.X2C):
        with pytest.raises(NotImplementedError, match=message):
            method(mol).xc = FUNCTIONAL
    with pytest.raises(NotImplementedError, match=message):
        dft.GKS(mol, xc=FUNCTIONAL)
    mf = dft.GKS(mol, xc="PBE")
    with pytest.raises(NotImplementedError, match=message):
        mf.xc = FUNCTIONAL
    assert mf.xc == "PBE"  # a refused assignment changes nothing


def test_other_integrators():
    from pyscf.dft import numint2c
    from pyscf.pbc.dft import numint as periodic

    mf = dft.RKS(gto.M(atom="He", basis="6-31g", verbose=0), xc=FUNCTIONAL)
    for numint in (numint2c.NumInt2C(), periodic.NumInt()):
        with pytest.raises(NotImplementedError, match="cannot be integrated"):
            mf._numint = numint
    with pytest.raises(NotImplementedError, match="remainder from libxc"):
        mf._numint.libxc = dft.xcfun
    with pytest.raises(NotImplementedError, match="user-defined"):
        mf.define_xc_("PBE")
    plain = dft.RKS(mf.mol)
    plain._numint = numint2c.NumInt2C()
    with pytest.raises(NotImplementedError, match="cannot be integrated"):
        plain.xc = FUNCTIONAL


def test_what_only_molecules_have():
    from pyscf.pbc import dft as pbcdft
    from pyscf.pbc import gto as pbcgto

    cell = pbcgto.M(atom="He", a=4 * np.eye(3), basis="6-31g", mesh=[9] * 3, verbose=0)
    for method in (pbcdft.RKS, pbcdft.KUKS):
        mf = method(cell, xc=FUNCTIONAL).set(disp="d4:pbe", nlc="vv10")
        for name in ("Hessian", "do_disp", "do_nlc"):
            with pytest.raises(NotImplementedError, match=f"periodic cells.*{NAMED}"):
                getattr(mf, name)()


def test_range_separation():
    mf = dft.RKS(gto.M(atom="He", basis="6-31g", verbose=0), xc=FUNCTIONAL)
    with pytest.raises(NotImplementedError, match="range separation"):
        mf.omega = 0.3


@pytest.mark.parametrize("correlation", ["PBE", "GGA_C_PBF", "B3LYP", "HYB_GGA_XC_B3LYP"])
def test_remainder_must_be_a_semilocal_libxc_name(correlation):
    functional = CiderFunctional(toy_exchange("GGA"), correlation=correlation)
    mf = dft.RKS(gto.M(atom="He", basis="6-31g", verbose=0), xc="PBE")
    with pytest.raises(ValueError, match=f"{correlation}.*GGA_C_PBE"):
        mf.xc = functional
    assert mf.xc == "PBE" and type(mf) is dft.rks.RKS


def test_things_that_are_not_functionals():
    mf = dft.RKS(gto.M(atom="He", basis="6-31g", verbose=0))
    names = registered_names()[:1]
    for wrong in (toy_exchange("GGA"), CiderFunctional, Path("x-toy.h5"), *names):
        with pytest.raises(TypeError, match=r"mf\.xc.*CiderFunctional\("):
            mf.xc = wrong
    for right in ("PBE", 101, ("GGA_X_PBE", "GGA_C_PBE"), None):
        mf.xc = right
