"""The embedded systems: a sound split, buildable molecules, clear refusals."""

import collections
import dataclasses

import numpy as np
import pytest
from ase.build import molecule
from ase.data import covalent_radii

from cider.training import extras, systems
from cider.training.systems import System


def test_default_set_is_complete_and_split():
    chosen = systems.default_systems()
    kinds = collections.Counter(s.kind for s in chosen)
    assert kinds["atom"] == 36
    assert kinds["molecule"] == 148
    assert kinds["ion"] >= 66
    assert kinds["distorted"] == 30
    assert kinds["synthetic"] >= 280
    roles = collections.Counter(s.role for s in systems.molecules())
    assert roles["ten"] == 10
    assert 0.55 < roles["training"] / 138 < 0.75
    assert 0.18 < roles["test"] / 138 < 0.32
    assert roles["tuning"] >= 10


def test_extras_never_touch_held_out_molecules():
    held_out = {s.formula for s in systems.molecules() if s.role != "training"}
    roles = {s.name: s.role for s in systems.molecules()}
    assert not held_out & {s.formula for s in systems.synthetic() + systems.homologues()}
    for system in systems.distorted():
        assert roles[system.name.rsplit("_", 1)[0]] == "training"
        assert system.role == "training"


def test_crystals_have_cells_that_are_kept():
    found = systems.crystals()
    assert len({s.name for s in found}) == len(found) == 3 * len(extras.CRYSTALS)
    for system in found:
        assert System.from_dict(system.to_dict()) == system
        assert system.to_atoms().get_volume() > 10 and not system.is_atom
    normal, small, large = (s.to_atoms().get_volume() for s in found[:3])
    assert (small / normal, large / normal) == pytest.approx((0.97**3, 1.03**3))
    molecule = systems.molecules()[0]
    assert "cell" not in molecule.to_dict() and System.from_dict(molecule.to_dict()) == molecule


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cell": ()}, "a crystal has a cell, and nothing else has one"),
        ({"kind": "molecule"}, "a crystal has a cell, and nothing else has one"),
        ({"cell": ((1.0, 0.0, 0.0),) * 3}, "three vectors that span a volume"),
        ({"cell": ((1.3, 0.0, 0.0), (0.0, 1.3, 0.0), (0.0, 0.0, 1.3))}, "0.182 angstrom apart"),
        ({"charge": 2}, "closed shells without charge"),
        ({"kpts": (2, 2, 0)}, "must be three positive numbers"),
    ],
)
def test_bad_crystals_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(systems.crystals()[0], **changes)


def test_split_depends_on_the_name_alone():
    assert systems.split_role("H2O") == "ten"
    assert systems.split_role("C6H6") == systems.split_role("C6H6") == "tuning"
    assert {systems.split_role(f"molecule-{i}") for i in range(50)} == {
        "training",
        "tuning",
        "test",
    }


def test_distortions_differ_and_repeat():
    again = systems.distorted.__wrapped__()
    assert again == systems.distorted()
    assert systems.distorted.__wrapped__(seed=1) != again
    for system in again:
        xyz = np.asarray(system.positions)
        closest = min(np.linalg.norm(a - b) for i, a in enumerate(xyz) for b in xyz[:i])
        assert closest > 0.6


def test_homologues_differ_and_keep_valence_and_bond_directions():
    found = systems.homologues()
    assert len({s.formula for s in found}) == len(found) == 100
    methane = molecule("CH4")
    geometries = [extras.homologue(methane, index, seed=0) for index in range(20)]
    assert any(g is None for g in geometries)
    for geometry in filter(None, geometries):
        assert set(geometry.symbols[1:]) <= {"H", "F", "Cl"} and geometry.symbols[0] in ("C", "Si")
        bonds, old = (x.positions[1:] - x.positions[0] for x in (geometry, methane))
        radii, old_radii = (covalent_radii[x.numbers] for x in (geometry, methane))
        longer = (radii[0] + radii[1:]) / (old_radii[0] + old_radii[1:])
        np.testing.assert_allclose(bonds, longer[:, None] * old, rtol=1e-12)


def test_heavier_homologues_have_elements_of_the_fourth_row():
    found = systems.heavier()
    assert len({s.formula for s in found}) == len(found) == 40
    assert all({"K", "Ca", "Ga", "Ge", "As", "Se", "Br"} & set(s.symbols) for s in found)
    assert not {s.formula for s in found} & {s.formula for s in systems.synthetic()}
    ethanol = extras.heavier(molecule("CH3CH2OH"), 0, seed=0)
    assert ethanol is not None and ethanol.get_chemical_formula() == "C2H6Se"
    assert extras.heavier(molecule("CH4"), 0, seed=0) is None


def test_small_set_is_closed_under_atomisation():
    chosen = systems.small_systems()
    atoms = {s.name for s in chosen if s.kind == "atom"}
    assert set().union(*(s.symbols for s in chosen)) == atoms
    assert {"training", "test", "ten"} <= {s.role for s in chosen}


def test_round_trip():
    for system in systems.default_systems():
        assert System.from_dict(system.to_dict()) == system


def test_role_does_not_change_the_calculation():
    water = next(s for s in systems.molecules() if s.name == "H2O")
    assert water.same_calculation(dataclasses.replace(water, role="test"))
    assert not water.same_calculation(dataclasses.replace(water, charge=2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a/b"}, "cannot name a system"),
        ({"kind": "solid"}, "kind 'solid'"),
        ({"role": "holdout"}, "role 'holdout'"),
        ({"symbols": ("H", "Xq")}, "Xq is no chemical element"),
        ({"spin": 1}, "2 electrons cannot have spin 1"),
        ({"charge": 2}, "leaves no electron"),
        ({"positions": ((0.0, 0.0, 0.0), (0.0, 0.0, 0.1))}, "are the coordinates in angstrom"),
        ({"positions": ((0.0, 0.0, 0.0), (0.0, 0.0, float("nan")))}, "finite numbers"),
        ({"positions": ((0.0, 0.0, 0.0),)}, "2 symbols but 1 positions"),
    ],
)
def test_broken_systems_are_refused(changes, message):
    good = System("H2", "molecule", ("H", "H"), ((0.0, 0.0, 0.0), (0.0, 0.0, 0.74)))
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(good, **changes)


def test_equal_names_are_refused():
    atoms = systems.atoms()
    with pytest.raises(ValueError, match="two systems are called 'H'"):
        systems.unique((*atoms, atoms[0]))
