"""Crystals to train on: exact exchange of orbitals, and points that integrate their density."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("gpaw", reason="GPAW is not installed: pip install 'cider-xc[gpaw]'")

from ase import Atoms
from ase.build import bulk
from toy_functionals import toy_exchange, toy_nldf

from cider import CiderFunctional
from cider.plugins.gpaw.crystals import crystal_density
from cider.training import command_line
from cider.training.crystals import (
    compute_crystal_reference,
    crystal_convolution,
    read_crystal_density,
)
from cider.training.descriptors import compute_descriptors, read_points
from cider.training.integrals import baseline_energy, integrate
from cider.training.recipe import FeatureChoice
from cider.training.reference import ReferenceSettings, UnconvergedError, compute_reference
from cider.training.systems import System, from_atoms

SETTINGS = ReferenceSettings(plane_wave_cutoff=300.0)
LITHIUM_HYDRIDE = bulk("LiH", "rocksalt", a=4.0)


@pytest.fixture(scope="module")
def crystal():
    system = from_atoms(LITHIUM_HYDRIDE, "LiH_rocksalt", "crystal", kpts=(2, 2, 2))
    return compute_crystal_reference(system, "PBE", SETTINGS, crystal_density)


def test_a_supercell_is_its_k_points(crystal):
    found = crystal_density(LITHIUM_HYDRIDE.repeat(2), "PBE", 300.0, (1, 1, 1), 1e-6)
    assert found.exact_exchange == pytest.approx(8 * crystal.facts["exact_exchange"], abs=2e-4)


def test_an_atom_in_a_box_has_the_exchange_of_the_atom():
    settings = ReferenceSettings(basis="aug-cc-pv5z", plane_wave_cutoff=500.0)
    helium = System("He", "atom", ("He",), ((0.0, 0.0, 0.0),))
    expected = compute_reference(helium, "PBE", settings).facts
    box = from_atoms(Atoms("He", cell=[6.0] * 3, pbc=True), "He_box", "crystal")
    found = compute_crystal_reference(box, "PBE", settings, crystal_density).facts
    for name in ("exact_exchange", "PBE_X", "R2SCAN_X"):
        assert found[name] == pytest.approx(expected[name], abs=1e-3)


def test_descriptors_integrate_to_the_energy_of_the_functional(crystal):
    nldf = toy_nldf()
    toy = toy_exchange("MGGA", nldf, size=1e-2)
    density, weights = read_crystal_density(crystal)
    expected = CiderFunctional(toy).learned_energy(
        density, weights, crystal_convolution(crystal, nldf)
    )
    source, *exponents = map(dataclasses.astuple, (nldf.source_exponent, *nldf.exponents))
    choice = FeatureChoice("mgga", tuple(exponents), source)
    points = read_points(compute_descriptors(crystal, choice))
    baseline = baseline_energy(points, "GGA_X_PBE")
    assert baseline == pytest.approx(crystal.facts["PBE_X"], abs=1e-5)
    (term,) = toy.terms
    integrals = integrate(points, term.transform, term.model.anchor, term.model.degree)
    learned = np.vdot(term.model.quadratic_form, integrals)
    assert abs(learned) > 1e-2
    assert baseline + learned == pytest.approx(expected, abs=1e-5)


def test_features_of_the_density_matrix_are_refused(crystal):
    with pytest.raises(ValueError, match="not available for crystals"):
        compute_descriptors(crystal, FeatureChoice("mgga", sdmx=(("0", 1),)))


def test_metals_are_refused():
    aluminium = bulk("Al", "fcc", a=4.05).repeat((2, 1, 1))
    with pytest.raises(ValueError, match="Al2 is a metal with PBE"):
        crystal_density(aluminium, "PBE", 200.0, (2, 2, 2), 1e-3)


def test_methods_that_are_no_functionals_are_refused(crystal):
    system = System.from_dict(crystal.facts["system"])
    with pytest.raises(ValueError, match="HF"):
        compute_crystal_reference(system, "HF", SETTINGS, crystal_density)


def test_what_does_not_converge_is_told():
    def unconverged(*_):
        raise RuntimeError("too many steps")

    system = from_atoms(LITHIUM_HYDRIDE, "LiH_rocksalt", "crystal", kpts=(2, 2, 2))
    with pytest.raises(UnconvergedError, match="LiH_rocksalt: too many steps"):
        compute_crystal_reference(system, "PBE", SETTINGS, unconverged)


RECIPE = """
name = "x-solid"
densities = ["PBE"]

[systems]
set = "none"
files = [
  { path = "H.xyz", spin = 1 },
  { path = "H2.xyz" },
  { path = "normal.cif", kpts = [2, 2, 2] },
  { path = "dense.cif", kpts = [2, 2, 2] },
]

[reference]
basis = "def2-svp"
plane_wave_cutoff = 200.0

[features]
level = "gga"

[model]
chebyshev_degree = 3
noise_bounds = [0.01, 0.02]
starts = 1
iterations = 20
"""


def test_a_functional_learns_from_crystals(tmp_path, monkeypatch, capsys):
    for name, length in {"H": (), "H2": (0.74,)}.items():
        lines = [f"H 0 0 {z}" for z in (0.0, *length)]
        (tmp_path / f"{name}.xyz").write_text("\n".join([str(len(lines)), "", *lines, ""]))
    for name, constant in {"normal": 4.0, "dense": 3.8}.items():
        bulk("LiH", "rocksalt", a=constant).write(tmp_path / f"{name}.cif")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    arguments = [str(tmp_path / "recipe.toml"), "--output", str(tmp_path / "run")]
    with monkeypatch.context() as without:
        without.setattr(command_line, "_crystal_densities", lambda: None)
        assert command_line.main(arguments) == 2
    assert "crystals need GPAW" in capsys.readouterr().err
    assert command_line.main(arguments) == 0
    report = (tmp_path / "run" / "report" / "report.md").read_text()
    (row,) = [line.split("|") for line in report.splitlines() if line.startswith("| dense ")]
    error, semilocal = abs(float(row[5])), abs(float(row[7]))
    assert error < 0.1 < semilocal  # mHa
