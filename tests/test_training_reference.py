"""Reference data obeys what is known of exact exchange, and records what went wrong."""

import dataclasses
import types

import numpy as np
import pytest
from pyscf import dft, scf

from cider.training import reference
from cider.training.reference import (
    ReferenceSettings,
    compute_reference,
    is_round,
    read_density,
    turned,
)
from cider.training.systems import System

SETTINGS = ReferenceSettings(basis="6-31g", molecule_grid_level=0, atom_grid_level=1)
H = System("H", "atom", ("H",), ((0.0, 0.0, 0.0),), spin=1)
HE = System("He", "atom", ("He",), ((0.0, 0.0, 0.0),))
H2 = System("H2", "molecule", ("H", "H"), ((0.0, 0.0, 0.0), (0.0, 0.0, 0.74)))
LI = System("Li", "atom", ("Li",), ((0.0, 0.0, 0.0),), spin=1)


@pytest.mark.parametrize("density", ["PBE", "R2SCAN", "HF"])
@pytest.mark.parametrize("system", [H, HE, H2, LI], ids=lambda s: s.name)
def test_density_matrix_is_that_of_the_system(system, density):
    record = compute_reference(system, density, SETTINGS)
    mol, dm = read_density(record)
    assert len(dm) == (2 if system.spin else 1)
    electrons = np.einsum("spq,pq->s", dm, mol.intor("int1e_ovlp"))
    up = (system.electrons + system.spin) / 2
    expected = [up, system.electrons - up] if system.spin else [system.electrons]
    np.testing.assert_allclose(electrons, expected, atol=1e-10)
    # Semilocal exchange is within 5 % of the exact one for any atom, grid level 0 included.
    for name in reference.SEMILOCAL_EXCHANGE:
        assert record.facts[name] == pytest.approx(record.facts["exact_exchange"], rel=0.05)
    assert record.facts["grid_electrons"] == pytest.approx(system.electrons, abs=5e-3)


@pytest.mark.parametrize("system", [H, HE, H2], ids=lambda s: s.name)
def test_exchange_cancels_self_repulsion(system):
    """One electron of each spin at most: E_x = -sum_sigma U[n_sigma] exactly."""
    record = compute_reference(system, "PBE", SETTINGS)
    mol, dm = read_density(record)
    per_spin = dm if len(dm) == 2 else np.concatenate([dm, dm]) / 2
    coulomb = scf.hf.get_jk(mol, per_spin, with_k=False)[0]
    repulsion = 0.5 * np.einsum("spq,spq->", per_spin, coulomb)
    assert record.facts["exact_exchange"] == pytest.approx(-repulsion, abs=1e-9)


def test_closed_shell_equals_two_equal_spins():
    mol, dm = read_density(compute_reference(H2, "HF", SETTINGS))
    closed = reference.exact_exchange_potential(mol, dm)[0]
    for spin in reference.exact_exchange_potential(mol, np.concatenate([dm, dm]) / 2):
        np.testing.assert_allclose(spin, closed, rtol=0, atol=1e-10)


@pytest.mark.parametrize("system", [H2, LI], ids=lambda s: s.name)
def test_exchange_by_occupation_is_that_of_changed_occupations(system):
    """Of a quadratic energy, against differences of its values at changed density matrices."""
    record = compute_reference(system, "PBE", SETTINGS)
    mol, dm = read_density(record)
    for spin in range(len(dm)):
        occupied = record.arrays[f"occupied_orbitals_{spin}"]
        unoccupied = record.arrays[f"unoccupied_orbitals_{spin}"]
        orbitals = np.concatenate([occupied, unoccupied], axis=1)
        assert (
            unoccupied.shape[1] == 1
            and occupied.shape[1] == (record.arrays["occupations"][spin] > 0).sum()
        )
        for orbital, expected in zip(
            orbitals.T, record.arrays[f"exchange_by_occupation_{spin}"], strict=True
        ):
            energies = []
            for step in (0.5, -0.5):
                changed = dm.copy()
                changed[spin] += step * np.outer(orbital, orbital)
                potential = reference.exact_exchange_potential(mol, changed)
                energies.append(0.5 * np.vdot(changed, potential))
            assert energies[0] - energies[1] == pytest.approx(expected, abs=1e-9)


def test_semilocal_energies_are_those_of_pyscf():
    record = compute_reference(LI, "PBE", SETTINGS)
    mol, dm = read_density(record)
    mf = dft.UKS(mol, xc="MGGA_X_R2SCAN,")
    mf.grids.level = SETTINGS.atom_grid_level
    mf.grids.build()
    expected = mf._numint.nr_uks(mol, mf.grids, mf.xc, dm)[1]
    assert record.facts["R2SCAN_X"] == pytest.approx(expected, abs=1e-8)


def test_exchange_follows_scaled_exponents():
    """E_x of the hydrogen density is -5/16 Ha; a decent basis comes close."""
    settings = dataclasses.replace(SETTINGS, basis="def2-tzvpd")
    assert compute_reference(H, "HF", settings).facts["exact_exchange"] == pytest.approx(
        -5 / 16, abs=2e-4
    )


def test_no_convergence_is_an_error_with_a_reason(monkeypatch):
    stubborn = types.SimpleNamespace(
        converged=False, kernel=lambda **start: None, make_rdm1=lambda: None
    )
    monkeypatch.setattr(reference, "_solver", lambda *arguments: stubborn)
    monkeypatch.setattr(reference, "_take_second_order_steps", lambda mf: None)
    with pytest.raises(reference.UnconvergedError, match="PBE SCF of He"):
        compute_reference(HE, "PBE", SETTINGS)
    failed = reference.failed_reference(HE, "PBE", "no luck")
    with pytest.raises(ValueError, match="no luck"):
        read_density(failed)


def test_an_unknown_basis_names_the_system():
    with pytest.raises(ValueError, match="He cannot be built in no-such-basis"):
        reference.build_molecule(HE, "no-such-basis")


@pytest.mark.parametrize(
    "changes", [{"molecule_grid_level": 10}, {"energy_tolerance": 0.0}, {"atom_grid_level": -1}]
)
def test_settings_are_validated(changes):
    with pytest.raises(ValueError, match=r"grid level|energy_tolerance"):
        dataclasses.replace(SETTINGS, **changes)


def test_turned_atoms_keep_their_energies():
    """The exchange of a turned density is the same; that of a round one does not change at all."""
    boron = compute_reference(
        System("B", "atom", ("B",), ((0.0, 0.0, 0.0),), spin=1), "HF", SETTINGS
    )
    mol, dm = read_density(boron)
    other = turned(mol, dm, 1)
    assert np.abs(other - dm).max() > 0.1 and not is_round(boron)
    energies = [np.einsum("spq,sqp->", scf.UHF(mol).get_k(mol, d), d) for d in (dm, other)]
    assert energies[1] == pytest.approx(energies[0], rel=1e-12)
    assert is_round(compute_reference(LI, "HF", SETTINGS))
    with pytest.raises(ValueError, match="has 2 atoms"):
        turned(*read_density(compute_reference(H2, "HF", SETTINGS)), 1)
