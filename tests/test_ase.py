"""The calculator of ASE."""

import sys

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import PropertyNotImplementedError, SCFError
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from ase.units import Hartree
from ase.vibrations import Vibrations
from pyscf import dft, gto
from toy_functionals import toy_exchange

from cider import CiderFunctional
from cider.plugins.ase import Cider

FUNCTIONAL = CiderFunctional(toy_exchange("MGGA"), correlation="GGA_C_PBE")
SETTINGS = {"basis": "6-31g", "grid_level": 0}


def test_energy_is_that_of_pyscf():
    atoms = Atoms("CH3", magmoms=[1, 0, 0, 0])
    atoms.positions[1:] = [[1.08, 0, 0], [-0.54, 0.935, 0], [-0.54, -0.935, 0]]
    atoms.calc = Cider(FUNCTIONAL, density_fit=True, **SETTINGS)
    mol = gto.M(
        atom="C 0 0 0; H 1.08 0 0; H -0.54 0.935 0; H -0.54 -0.935 0",
        basis="6-31g",
        spin=1,
        verbose=0,
    )
    mf = dft.UKS(mol, xc=FUNCTIONAL).density_fit().set(conv_tol=1e-10)
    mf.grids.level = 0
    assert atoms.get_potential_energy() == pytest.approx(mf.kernel() * Hartree, abs=1e-5)


def test_forces_are_the_derivative_of_the_energy():
    atoms = Atoms("LiH", [[0, 0, 0], [0.1, 0.3, 1.5]], calculator=Cider(FUNCTIONAL, **SETTINGS))
    forces = atoms.get_forces()
    step, energies = 1e-3, []
    for displacement in (-step, step):
        moved = atoms.copy()
        moved.positions[1, 2] += displacement
        moved.calc = Cider(FUNCTIONAL, **SETTINGS)
        energies.append(moved.get_potential_energy())
    assert forces[1, 2] == pytest.approx((energies[0] - energies[1]) / (2 * step), abs=1e-4)
    np.testing.assert_allclose(forces.sum(axis=0), 0, atol=1e-5)


def test_optimisation():
    """The bond of H2 ends where there is no force, wherever it starts."""
    lengths = []
    for start in (0.7, 0.8):
        atoms = Atoms("H2", [[0, 0, 0], [0, 0, start]], calculator=Cider(FUNCTIONAL, **SETTINGS))
        assert BFGS(atoms, logfile=None).run(fmax=1e-3, steps=20)
        lengths.append(atoms.get_distance(0, 1))
    assert lengths[0] == pytest.approx(lengths[1], abs=1e-4)


def hydrogen(length):
    return Atoms("H2", [[0, 0, 0], [0, 0, length]], calculator=Cider(FUNCTIONAL, **SETTINGS))


def test_vibrations(tmp_path):
    """That of one atom has the force constant that the energies give."""
    step = 0.01
    vibrations = Vibrations(hydrogen(0.75), indices=[1], name=str(tmp_path / "h2"), delta=step)
    vibrations.run()
    energies = [hydrogen(0.75 + k * step).get_potential_energy() for k in (-2, -1, 0, 1, 2)]
    expected = np.dot([-1, 16, -30, 16, -1], energies) / (12 * step**2)
    found = vibrations.get_vibrations().get_hessian_2d()[2, 2]
    # Differences of forces are of second order in the step.
    assert found == pytest.approx(expected, rel=5e-3)


def test_dynamics_conserve_the_energy():
    """What kinetic energy there is comes from the potential; the integrator is of second order."""
    deviations, atoms = [], None
    for step in (0.4, 0.2):  # fs
        atoms = hydrogen(0.85)
        start = atoms.get_total_energy()
        VelocityVerlet(atoms, step * units.fs).run(round(2.4 / step))
        deviations.append(atoms.get_total_energy() - start)
    assert atoms.get_kinetic_energy() > 0.1
    assert deviations[1] == pytest.approx(deviations[0] / 4, abs=0.1 * abs(deviations[0]))
    assert abs(deviations[1]) < 0.01 * atoms.get_kinetic_energy()


CRYSTAL = {"basis": "gth-szv", "pseudo": "gth-pade", "mesh": [14] * 3, "kpts": (2, 1, 1)}


def test_crystal():
    """Forces and stress are the derivatives of the energy, in the units of ASE."""
    atoms = Atoms("H2", [[0, 0, 0], [0.1, 0.05, 0.75]], cell=[2.2, 2.1, 2.3], pbc=True)
    atoms.calc = Cider(FUNCTIONAL, **CRYSTAL)

    def energy(displacement=0.0, expansion=0.0):
        changed = atoms.copy()
        changed.positions[1, 2] += displacement
        changed.set_cell((1 + expansion) * atoms.cell, scale_atoms=True)
        changed.calc = Cider(FUNCTIONAL, **CRYSTAL)
        return changed.get_potential_energy()

    step = 1e-3
    slope = (energy(step) - energy(-step)) / (2 * step)
    assert atoms.get_forces()[1, 2] == pytest.approx(-slope, abs=1e-4)
    slope = (energy(expansion=step) - energy(expansion=-step)) / (2 * step)
    stress = atoms.get_stress()
    assert atoms.get_volume() * stress[:3].sum() == pytest.approx(slope, abs=1e-3)
    atoms.positions[1, 2] += step  # from the orbitals of before
    assert atoms.get_potential_energy() == pytest.approx(energy(), abs=1e-6)


def test_unpaired_electrons_are_those_of_one_cell():
    """Whatever the number of k-points, which a large cell does not need."""
    energies = []
    for kpts in ((1, 1, 1), (2, 1, 1)):
        atoms = Atoms("H", cell=[5, 5, 5], pbc=True, magmoms=[1])
        atoms.calc = Cider(FUNCTIONAL, **{**CRYSTAL, "mesh": [36] * 3, "kpts": kpts})
        energies.append(atoms.get_potential_energy())
    assert energies[0] == pytest.approx(energies[1], abs=0.02)


def test_another_molecule_starts_anew():
    calculator = Cider(FUNCTIONAL, **SETTINGS)
    energies = [
        Atoms(name, calculator=calculator).get_potential_energy() for name in ("He", "Be", "He")
    ]
    assert energies[0] == pytest.approx(energies[2], abs=1e-7)


def test_what_it_cannot_do():
    with pytest.raises(ValueError, match="host='vasp' is not available"):
        Cider(FUNCTIONAL, host="vasp")
    for pbc, settings, error, message in (
        (True, {}, ValueError, "H2O is periodic: give pseudo"),
        (True, {"density_fit": True}, NotImplementedError, "density fitting"),
        ([True, True, False], {}, NotImplementedError, "H2O is periodic in some directions"),
    ):
        atoms = molecule("H2O", vacuum=3, pbc=pbc)
        atoms.calc = Cider(FUNCTIONAL, **settings)
        with pytest.raises(error, match=message):
            atoms.get_potential_energy()
    with pytest.raises(PropertyNotImplementedError, match="no stress"):
        molecule("H2O", calculator=Cider(FUNCTIONAL)).get_stress()


def test_no_convergence(monkeypatch):
    monkeypatch.setattr(dft.rks.RKS, "max_cycle", 1)
    with pytest.raises(SCFError, match=r"H2O \(charge 0, 0 unpaired.*1 cycles"):
        atoms = molecule("H2O", calculator=Cider(FUNCTIONAL, **SETTINGS))
        atoms.get_potential_energy()


def test_gpaw_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "gpaw", None)
    with pytest.raises(ImportError, match=r"cider-xc\[gpaw\]"):
        Cider(FUNCTIONAL, host="gpaw")
