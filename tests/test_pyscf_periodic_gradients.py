"""Forces and stress of learned functionals in periodic cells of PySCF."""

import functools

import numpy as np
import pytest
from pyscf.pbc import dft, gto
from toy_functionals import toy_exchange, toy_nldf, toy_sdmx

from cider import CiderFunctional

FUNCTIONALS = {
    "PBE": "PBE",
    "zero": CiderFunctional(toy_exchange("GGA", size=0.0), correlation="GGA_C_PBE"),
    "nonlocal": CiderFunctional(toy_exchange("MGGA", toy_nldf()), x_mix=0.25, semilocal="PBE"),
    "of the density matrix": CiderFunctional(
        toy_exchange("MGGA", sdmx=toy_sdmx(), size=0.02), x_mix=0.25, semilocal="PBE"
    ),
    "of both": CiderFunctional(
        toy_exchange("MGGA", toy_nldf(), sdmx=toy_sdmx(), size=0.02), x_mix=0.25, semilocal="PBE"
    ),
}
ZERO = FUNCTIONALS["zero"]

LATTICE = np.array([[4.2, 0.2, 0.1], [0.2, 4.0, 0.3], [0.1, 0.0, 4.4]])
COORDS = np.array([[0.0, 0.0, 0.0], [0.3, 0.2, 1.4]])
DIRECTION = np.array([[0.3, -0.2, 0.5], [-0.1, 0.4, 0.7]])
STRAIN = np.array([[0.3, 0.2, -0.4], [0.2, -0.5, 0.1], [-0.4, 0.1, 0.6]])
SPINS = {dft.KRKS: 0, dft.KUKS: 2}


@functools.cache
def solved(method, name, shift=0.0, strain=0.0):
    """H2 at two k-points, moved by a direction and then strained together with the grid."""
    deformation = np.eye(3) + strain * STRAIN
    cell = gto.M(
        a=LATTICE @ deformation.T,
        atom=list(zip("HH", (COORDS + shift * DIRECTION) @ deformation.T, strict=True)),
        basis="gth-szv",
        pseudo="gth-pade",
        spin=SPINS[method],
        unit="bohr",
        mesh=[12] * 3,
        precision=1e-10,
        verbose=0,
    )
    mf = method(cell, kpts=cell.make_kpts([2, 1, 1]), xc=FUNCTIONALS[name]).run(
        conv_tol=1e-11, conv_tol_grad=1e-7
    )
    assert mf.converged
    return mf


def slope(energy, h):
    """Derivative at zero: fourth order in the step."""
    return (8 * (energy(h) - energy(-h)) - (energy(2 * h) - energy(-2 * h))) / (12 * h)


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (dft.KRKS, "of the density matrix"),
        (dft.KUKS, "of both"),
        pytest.param(dft.KRKS, "nonlocal", marks=pytest.mark.slow),
        pytest.param(dft.KUKS, "nonlocal", marks=pytest.mark.slow),
        pytest.param(dft.KUKS, "of the density matrix", marks=pytest.mark.slow),
    ],
)
def test_forces_and_stress_are_the_derivatives_of_the_energy(method, name):
    """Atoms move while the crystal is strained."""
    gradients = solved(method, name).nuc_grad_method()
    stress = gradients.get_stress()
    np.testing.assert_allclose(stress, stress.T, atol=1e-9)
    found = np.sum(gradients.kernel() * DIRECTION)
    found += gradients.cell.vol * np.sum(stress * STRAIN)
    expected = slope(lambda step: solved(method, name, step, step).e_tot, 4e-3)
    assert found == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("method", [dft.KRKS, dft.KUKS])
def test_learned_part_zero_is_its_libxc_baseline(method):
    found, expected = (solved(method, name).Gradients() for name in ("zero", "PBE"))
    np.testing.assert_allclose(found.kernel(), expected.kernel(), atol=1e-8)
    np.testing.assert_allclose(found.get_stress(), expected.get_stress(), atol=1e-9)


def test_scanner():
    cell = solved(dft.KRKS, "zero").cell
    moved = cell.set_geom_(cell.atom_coords() + 0.05 * DIRECTION, unit="Bohr", inplace=False)
    energy, gradient = solved(dft.KRKS, "zero").nuc_grad_method().as_scanner()(moved)
    expected = solved(dft.KRKS, "zero", shift=0.05)
    assert energy == pytest.approx(expected.e_tot, abs=1e-8)
    np.testing.assert_allclose(gradient, expected.nuc_grad_method().kernel(), atol=1e-6)


def test_functional_taken_back():
    mf = solved(dft.KRKS, "zero").copy()
    gradients = mf.nuc_grad_method()
    mf.xc = "PBE"
    expected = mf.nuc_grad_method()
    assert type(expected) is not type(gradients)
    np.testing.assert_array_equal(gradients.kernel(), expected.kernel())
    np.testing.assert_array_equal(gradients.get_stress(), expected.get_stress())


def test_what_is_not_available():
    cell, kpts = solved(dft.KRKS, "zero").cell, np.zeros((1, 3))
    for mf in (dft.RKS(cell, xc=ZERO), dft.KROKS(cell, kpts=kpts, xc=ZERO)):
        with pytest.raises(NotImplementedError, match="KRKS and KUKS"):
            mf.nuc_grad_method()
    gradients = solved(dft.KRKS, "zero").nuc_grad_method().set(grid_response=True)
    with pytest.raises(NotImplementedError, match="leave it False"):
        gradients.kernel()
    fitted = dft.KRKS(cell, kpts=kpts, xc=ZERO).density_fit()
    with pytest.raises(NotImplementedError, match=r"FFTDF.*without density_fit"):
        fitted.nuc_grad_method()
