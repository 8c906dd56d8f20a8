"""Orbital energies are derivatives of energies by occupations, for exact exchange and models."""

import dataclasses

import jax
import numpy as np
import pytest

from cider.input_transform import fit_input_transform
from cider.plugins.pyscf.grids import becke_convolution
from cider.plugins.pyscf.smoothed_density_matrix import sdmx_features
from cider.training.descriptors import (
    NonlocalMaps,
    PointSet,
    compute_descriptors,
    descriptors_of,
    read_points,
)
from cider.training.integrals import (
    baseline_change,
    baseline_energy,
    integrate,
    integrate_change,
    uniform_gas_anchor,
)
from cider.training.orbitals import OrbitalPoints, compute_orbitals, read_orbital
from cider.training.recipe import FeatureChoice
from cider.training.reference import ReferenceSettings, check_orbital, compute_reference
from cider.training.systems import System

FEATURES = FeatureChoice(
    "mgga",
    ((0.5, 0.0, 0.015625),),
    (0.5, 0.0, 0.015625),
    molecule_grid_level=0,
    atom_grid_level=0,
    sdmx=(("0", 1), ("1", 0)),
)
MAPS = NonlocalMaps(becke_convolution, sdmx_features)
OH = System("OH", "molecule", ("O", "H"), ((0.0, 0.0, 0.0), (0.0, 0.0, 0.97)), spin=1)
H = System("H", "atom", ("H",), ((0.0, 0.0, 0.0),), spin=1)
SETTINGS = ReferenceSettings("def2-svp", 0, 0)
DEGREE = 3


@pytest.fixture(scope="module")
def reference():
    return compute_reference(OH, "PBE", SETTINGS)


def _occupied(reference, spin, orbital, occupation):
    """The reference with another occupation of the highest occupied or lowest unoccupied one."""
    occupations = reference.arrays["occupations"].copy()
    count = int((occupations[spin] > 0).sum())
    arrays = dict(reference.arrays)
    if orbital == "LUMO":
        both = [reference.arrays[f"{part}_orbitals_{spin}"] for part in ("occupied", "unoccupied")]
        arrays[f"occupied_orbitals_{spin}"] = np.concatenate(both, axis=1)
        occupations[spin, count] = occupation
    else:
        occupations[spin, count - 1] = occupation
    return dataclasses.replace(reference, arrays={**arrays, "occupations": occupations})


def _integrals(points, transform, anchor):
    matrix = integrate(points, transform, anchor, DEGREE)
    return np.append(matrix, baseline_energy(points, "GGA_X_PBE"))


def test_integrals_change_with_occupations(reference):
    """Against differences of the integrals of densities with other occupations.

    Where an empty orbital is filled, differences converge slowly: its density exceeds that of the
    molecule in the tail.
    """
    at_rest = read_points(compute_descriptors(reference, FEATURES, MAPS))
    with jax.enable_x64(True):
        transform = fit_input_transform(
            at_rest.semilocal, at_rest.nonlocal_, np.abs(at_rest.lda_energy)
        )
        anchor = uniform_gas_anchor(descriptors_of(FEATURES), transform)
    records = compute_orbitals(reference, FEATURES, ("HOMO", "LUMO"), MAPS)
    cases = [(0, "HOMO", 1.0, 0.01, 2e-4), (1, "LUMO", 0.0, 0.0025, 1e-3)]
    for spin, name, occupation, step, tolerance in cases:

        def at(
            count: int,
            spin: int = spin,
            name: str = name,
            start: float = occupation + 1e-12,
            step: float = step,
        ):
            changed = _occupied(reference, spin, name, start + count * step)
            points = read_points(compute_descriptors(changed, FEATURES, MAPS))
            return _integrals(points, transform, anchor)

        if occupation:
            expected = (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)
        else:
            expected = (4 * at(1) - at(2) - 3 * at(0)) / (2 * step)
        orbital = read_orbital(records[name == "LUMO"], spin)
        found = np.append(
            integrate_change(orbital, transform, anchor, DEGREE),
            baseline_change(orbital, "GGA_X_PBE"),
        )
        # Of at most 4 Ha.
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
        facts = records[name == "LUMO"].facts
        place = facts["spins"].index(spin)
        assert found[-1] == pytest.approx(facts["PBE_X"][place], abs=1e-6)
        exact = reference.arrays[f"exchange_by_occupation_{spin}"]
        assert facts["exact_exchange"][place] == exact[-1 if name == "LUMO" else -2]


def test_a_spin_without_electrons_has_no_orbitals():
    records = compute_orbitals(
        compute_reference(H, "PBE", SETTINGS), FeatureChoice("gga"), ("HOMO", "HOMO-1", "LUMO")
    )
    assert [record.facts["spins"] for record in records] == [[0], [], [0]]
    # One electron: exchange undoes its own repulsion, whose derivative is twice the energy.
    assert records[0].facts["exact_exchange"][0] == pytest.approx(-5 / 8, abs=5e-3)


def test_the_baseline_of_a_tail_of_one_orbital():
    """Its bounded gradient rounds to one: there the enhancement factor has reached its limit."""
    nothing = np.zeros((0, 1))
    points = PointSet(np.full(1, 1e-9), np.full(1, -1e-12), np.ones((1, 1)), nothing)
    change = PointSet(np.ones(1), np.full(1, -1e-5), np.full((1, 1), 1e15), nothing)
    derivative = baseline_change(OrbitalPoints(points, change), "GGA_X_PBE")
    assert derivative == pytest.approx(-1.804e-5, rel=1e-6)


@pytest.mark.parametrize("name", ["homo", "HOMO-0", "HOMO+1", "LUMO+1", ""])
def test_names_of_orbitals(name):
    check_orbital("HOMO-12")
    with pytest.raises(ValueError, match="none of HOMO"):
        check_orbital(name)
