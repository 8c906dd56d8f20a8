"""Observations are linear functionals with the values the energies give."""

import dataclasses

import numpy as np
import pytest

from cider.training.observations import (
    Reaction,
    build_observations,
    coefficient_matrix,
    exchange_energies,
    noise_group,
    total_observations,
)
from cider.training.systems import System

ORIGIN = ((0.0, 0.0, 0.0),)
H = System("H", "atom", ("H",), ORIGIN, spin=1)
O = System("O", "atom", ("O",), ORIGIN, spin=2)
CATION = System("O+_4", "ion", ("O",), ORIGIN, charge=1, spin=3)
H2 = System("H2", "molecule", ("H", "H"), ((0.0, 0.0, 0.0), (0.0, 0.0, 0.74)), role="ten")
WATER = System(
    "H2O", "molecule", ("O", "H", "H"), ((0.0, 0.0, 0.0), (0.8, 0.6, 0.0), (-0.8, 0.6, 0.0))
)
ENERGIES = {"PBE/H": -0.3, "PBE/O": -8.2, "PBE/O+_4": -7.6, "PBE/H2": -0.65, "PBE/H2O": -8.9}
SYSTEMS = (H, O, CATION, H2, WATER)


def test_each_kind_of_system_gives_its_observation():
    found, skipped = build_observations(ENERGIES, SYSTEMS, ("PBE",))
    assert not skipped
    values = {o.name: (o.kind, o.noise, o.role, o.value) for o in found}
    assert values["H"] == ("total", "atom", "training", -0.3)
    assert values["H2"] == ("aex", "molecule", "ten", pytest.approx(0.05))
    assert values["H2O"] == ("aex", "molecule", "training", pytest.approx(0.1))
    assert values["O+_4"] == ("difference", "ion", "training", pytest.approx(0.6))
    for observation in found:
        assert observation.of(ENERGIES) == pytest.approx(observation.value)


def test_beyond_argon_noise_is_its_own():
    bromine = System("Br", "atom", ("Br",), ORIGIN, spin=1)
    bromide = System("HBr", "molecule", ("H", "Br"), ((0.0, 0.0, 0.0), (0.0, 0.0, 1.4)))
    groups = [noise_group(s) for s in (H, WATER, bromine, bromide)]
    assert groups == ["atom", "molecule", "atom beyond argon", "molecule beyond argon"]


def test_crystals_differ_from_the_first_of_their_formula():
    cell = ((2.0, 2.0, 0.0), (2.0, 0.0, 2.0), (0.0, 2.0, 2.0))
    sites = ((0.0, 0.0, 0.0), (2.0, 0.0, 0.0))
    normal = System("LiH", "crystal", ("Li", "H"), sites, cell=cell, kpts=(2, 2, 2))
    dense = dataclasses.replace(normal, name="LiH_dense", kpts=(3, 3, 3))
    energies = {"PBE/LiH": -2.2, "PBE/LiH_dense": -2.3}
    (found,), skipped = build_observations(energies, (normal, dense), ("PBE",))
    assert not skipped
    assert (found.name, found.kind, found.noise) == ("LiH_dense", "crystal", "crystal")
    assert found.value == pytest.approx(-0.1)
    # Frozen cores make totals another quantity than those of molecules.
    assert total_observations(energies, (normal, dense), "PBE") == ()


def test_reactions_are_the_users():
    reaction = Reaction("shift", {"H2O": 1.0, "H2": -1.0, "O": -1.0}, role="test")
    found, _ = build_observations(ENERGIES, SYSTEMS, ("PBE",), (reaction,))
    assert found[-1].kind == "reaction" and found[-1].role == "test"
    assert found[-1].value == pytest.approx(-8.9 + 0.65 + 8.2)


def test_the_matrix_is_the_same_linear_map():
    found, _ = build_observations(ENERGIES, SYSTEMS, ("PBE",))
    keys = sorted(ENERGIES)
    matrix = coefficient_matrix(found, keys)
    values = matrix @ np.array([ENERGIES[key] for key in keys])
    np.testing.assert_allclose(values, [o.value for o in found], atol=1e-12)


def test_missing_energies_are_skipped_with_a_reason():
    energies = {k: v for k, v in ENERGIES.items() if k != "PBE/O"}
    found, skipped = build_observations(energies, SYSTEMS, ("PBE", "HF"))
    assert [o.name for o in found] == ["H", "H2"]
    reasons = {s.name: s.reason for s in skipped}
    assert reasons["PBE/O"] == "no converged density"
    assert reasons["PBE/H2O"] == "no energy of PBE/O"
    assert reasons["HF/H2"] == "no converged density"
    _, skipped = build_observations(ENERGIES, (H, WATER), ("PBE",))
    assert skipped[0].reason == "no atom O among the systems"


def test_failed_systems_have_no_energy():
    facts = {
        "PBE/H": {"status": "converged", "exact_exchange": -0.3},
        "PBE/O": {"status": "failed", "reason": "x"},
    }
    assert exchange_energies(facts) == {"PBE/H": -0.3}


def test_total_energies_for_validation():
    found = total_observations(ENERGIES, SYSTEMS, "PBE")
    assert {o.name: o.value for o in found}["H2O"] == -8.9
    assert dataclasses.replace(found[0], value=0.0).of(ENERGIES) == -0.3
