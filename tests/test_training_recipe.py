"""Recipes are validated, name the nearest key, and hash what determines the result."""

import dataclasses

import pytest
from ase.build import bulk

from cider.training.configuration import RecipeError, from_table, to_table
from cider.training.recipe import Recipe, read_recipe, recipe_from_table
from cider.training.systems import crystals

FULL = """
name = "x-test"
seed = 3
output = "out"
densities = ["PBE", "HF"]

[systems]
set = "small"
files = [{ path = "water.xyz", name = "wet", charge = 1, spin = 1, role = "test" }]

[[reactions]]
name = "synthesis"
coefficients = { H2O = 2, H2 = -2, O2 = -1 }

[reference]
basis = "def2-svp"
molecule_grid_level = 1

[features]
level = "mgga"
nldf = [[0.5, 0, 0.03125], [2, 0, 0.03125]]
source_exponent = [0.5, 0, 0.03125]

[model]
chebyshev_degree = 6
nldf_length_bounds = [0.8, 5]
"""

WATER = """3

O 0.0 0.0 0.0
H 0.76 0.59 0.0
H -0.76 0.59 0.0
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "water.xyz").write_text(WATER)
    (tmp_path / "recipe.toml").write_text(FULL)
    return tmp_path / "recipe.toml"


def test_a_full_recipe(path):
    recipe = read_recipe(path)
    assert recipe.features.nldf == ((0.5, 0.0, 0.03125), (2.0, 0.0, 0.03125))
    assert recipe.model.nldf_length_bounds == (0.8, 5.0)
    wet = recipe.all_systems()[-1]
    assert (wet.name, wet.charge, wet.spin, wet.role) == ("wet", 1, 1, "test")
    assert {job.density for job in recipe.jobs()} == {"PBE", "HF"}
    assert recipe.folder.name == "out"


def test_defaults_are_the_embedded_data():
    recipe = Recipe("x")
    assert len(recipe.all_systems()) > 300
    assert recipe.folder.name == "cider-x"


def test_tables_round_trip(path):
    recipe = read_recipe(path)
    assert from_table(Recipe, to_table(recipe)) == recipe
    assert "network" not in to_table(recipe)
    path.write_text(FULL + "[network]\nhidden = [8]\n")
    networks = read_recipe(path)
    assert networks.network.hidden == (8,) and networks.hash() != recipe.hash()
    assert from_table(Recipe, to_table(networks)) == networks


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("densitys = ['PBE']", "unknown key 'densitys' in recipe; did you mean 'densities'"),
        ("[features]\nlevels = 'gga'", r"'levels' in recipe\.features; did you mean 'level'"),
        ("zzz = 1", "known keys: name, seed"),
        ("seed = 'a'", r"recipe\.seed must be a int, not 'a'"),
        ("seed = true", "must be a int"),
        ("densities = []", "one or more different"),
        ("densities = ['a/b']", "cannot name a density"),
        ("[systems]\nset = 'huge'", "'huge' is none of default, small, none"),
        ("[systems]\nset = 'none'", "no systems"),
        ("[systems]\nfiles = [{ path = 'no.xyz' }]", r"no\.xyz cannot be read"),
        ("[systems]\nfiles = [{ charge = 1 }]", r"files\[0\] needs the key 'path'"),
        ("[reference]\nmolecule_grid_level = 12", "grid level 12"),
        ("[features]\nnldf = [[1, 0]]", "must have 3 entries"),
        ("[features]\nnldf = [[0, 0, 0]]", "needs A > 0"),
        ("[features]\nlevel = 'gga'\nnldf = [[1, 0, 0.1]]", "set level = 'mgga'"),
        ("[features]\nsdmx = [['2', 0]]", "no SDMX feature of family '2'"),
        ("[features]\nlevel = 'lda'", "neither 'gga' nor 'mgga'"),
        ("[model]\nnoise_bounds = [2, 1]", "positive and increasing"),
        ("[model]\nchebyshev_degree = 0", "chebyshev_degree 0"),
        ("[model]\nnldf_slope_sigma = -1", "nldf_slope_sigma must not be negative"),
        ("[model]\norbital_sigma = 40", "holds orbitals: list them"),
        ("orbitals = ['LUMO']\n[model]\norbital_sigma = 40\n[network]", "leave out .network"),
        ("[model]\norientation_sigma = 10\n[network]", "leave out .network"),
        ("[model]\nisoorbital_slope_sigma = 0.1\n[network]", "leave out .network"),
        ("[features]\nlevel = 'gga'\n[model]\nisoorbital_slope_sigma = 1", "needs tau: set level"),
        ("[model]\norientation_sigma = -1", "orientation_sigma must not be negative"),
        ("orbital_kinds = ['solid']", "kind 'solid' is none of"),
        ("[network]\nmembers = 1", "members must be at least 2"),
        ("[network]\nhidden = []", "one or more layers"),
        ("[network]\nbound = 0", "bound must be positive"),
        ("[network]\npatience = 0", "at least 1"),
        ("[network]\nlayers = 2", r"'layers' in recipe\.network"),
        ("[[reactions]]\nname = 'r'\ncoefficients = { XX = 1 }", "no system is called 'XX'"),
        ("[[reactions]]\nname = 'r'\ncoefficients = [1]", "must be a table"),
        ("origin = '/'", "unknown key 'origin'"),
        ("seed = ", "not valid TOML"),
    ],
)
def test_bad_recipes_say_what_is_wrong(tmp_path, line, message):
    path = tmp_path / "recipe"
    path.write_text(f"name = 'x'\n{line}\n")
    with pytest.raises(RecipeError, match=message):
        read_recipe(path)


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"none\.toml cannot be read"):
        read_recipe(tmp_path / "none.toml")


def test_a_molecule_that_cannot_be_built_names_its_file(path):
    path.write_text(FULL.replace("spin = 1,", "spin = 2,"))
    with pytest.raises(RecipeError, match=r"water\.xyz: wet: 9 electrons cannot have spin 2"):
        read_recipe(path)


def test_an_excited_atom_from_a_file_is_no_reference_atom(tmp_path):
    (tmp_path / "n.xyz").write_text("1\n\nN 0 0 0\n")
    table = {"name": "x", "systems": {"set": "none", "files": [{"path": "n.xyz", "spin": 1}]}}
    (system,) = recipe_from_table(table, origin=tmp_path).all_systems()
    assert system.kind == "ion"


def test_structures_with_k_points_are_crystals(tmp_path):
    bulk("LiH", "rocksalt", a=4.0).write(tmp_path / "lih.cif")
    file = {"path": "lih.cif", "kpts": [2, 2, 2]}
    table = {"name": "x", "systems": {"set": "none", "files": [file]}}
    (system,) = recipe_from_table(table, origin=tmp_path).all_systems()
    assert (system.kind, system.kpts) == ("crystal", (2, 2, 2))
    assert system.to_atoms().get_volume() == pytest.approx(16.0, abs=1e-3)
    table["features"] = {"sdmx": [["0", 1]]}
    with pytest.raises(RecipeError, match="crystals have no features of the density matrix"):
        recipe_from_table(table, origin=tmp_path)


def test_embedded_crystals_come_on_top():
    with_crystals = recipe_from_table({"name": "x", "systems": {"crystals": True}})
    assert set(with_crystals.all_systems()) - set(Recipe("x").all_systems()) == set(crystals())


def test_hashes_tell_what_differs(path):
    recipe = read_recipe(path)
    features = dataclasses.replace(recipe.features, level="gga", nldf=())
    other_features = dataclasses.replace(recipe, features=features)
    assert other_features.reference_hash() == recipe.reference_hash()
    assert other_features.hash() != recipe.hash()
    basis = dataclasses.replace(recipe.reference, basis="def2-tzvp")
    other_basis = dataclasses.replace(recipe, reference=basis)
    assert other_basis.reference_hash() != recipe.reference_hash()
    assert dataclasses.replace(recipe, output="elsewhere").hash() == recipe.hash()
    (path.parent / "water.xyz").write_text(WATER.replace("0.76", "0.77"))
    assert read_recipe(path).reference_hash() != recipe.reference_hash()
    assert read_recipe(path).hash() != recipe.hash()
