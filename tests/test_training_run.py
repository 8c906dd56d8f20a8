"""cider-train end to end, on systems of seconds."""

from pathlib import Path

import numpy as np
import pytest
from pyscf import dft, gto

from cider import CiderFunctional
from cider.files import load_functional, load_posterior, read_header
from cider.learned_functional import LearnedFunctional
from cider.neural_network import NeuralNetworkEnsemble
from cider.training.command_line import main
from cider.training.reference import read_density, turned
from cider.training.store import Store
from cider.training.train import ORIENTATIONS

RECIPE = """
name = "x-tiny"
seed = 1
densities = ["PBE", "HF"]
orbitals = ["HOMO", "LUMO"]

[systems]
set = "none"
files = [
  { path = "H.xyz", spin = 1 },
  { path = "He.xyz" },
  { path = "H2.xyz" },
  { path = "stretched.xyz", role = "test" },
  { path = "squeezed.xyz", role = "tuning" },
  { path = "ion.xyz", charge = 1, spin = 1 },
]

[reference]
basis = "def2-svp"
molecule_grid_level = 0
atom_grid_level = 0

[features]
level = "mgga"
source_exponent = [0.5, 0, 0.015625]
nldf = [[1, 0, 0.03125]]
sdmx = [["0", 1]]
molecule_grid_level = 0
atom_grid_level = 0

[model]
chebyshev_degree = 3
starts = 1
iterations = 20
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    for symbol in ("H", "He"):
        (folder / f"{symbol}.xyz").write_text(f"1\n\n{symbol} 0 0 0\n")
    for name, length in {"H2": 0.74, "stretched": 0.9, "squeezed": 0.65}.items():
        (folder / f"{name}.xyz").write_text(f"2\n\nH 0 0 0\nH 0 0 {length}\n")
    (folder / "ion.xyz").write_text("1\n\nHe 0 0 0\n")
    path = folder / "recipe.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def output(recipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert main([str(recipe), "--output", str(folder)]) == 0
    return folder


def test_functional_and_report(output):
    path = output / "x-tiny.h5"
    assert isinstance(load_functional(path), LearnedFunctional)
    header = read_header(path)["provenance"]
    assert header["densities"] == {"PBE": 6, "HF": 5}  # ions have the first alone
    assert "HF/ion" not in (output / "report" / "report.md").read_text()
    assert {row["part"] for row in header["errors"]} == {"held-out"}
    errors = {(row["density"], row["quantity"]): row for row in header["errors"]}
    assert {q for d, q in errors if d == "PBE"} == {"aex", "total", "orbital", "gap"}
    # HOMO and LUMO of the one held-out molecule, a closed shell, at the first density alone.
    assert [errors["PBE", q]["count"] for q in ("orbital", "gap")] == [2, 1]
    assert errors["PBE", "gap"]["unit"] == "eV" and ("HF", "gap") not in errors
    assert "orbital" in header["hyperparameters"]["noise_mHa"]
    assert {"recipe", "recipe_hash", "data_hash", "versions"} <= header.keys()
    assert {"covariance_factor", "noise", "calibration"} == load_posterior(path).keys()
    report = output / "report"
    for name in ("report.md", "parity.png", "uncertainty.png"):
        assert (report / name).stat().st_size > 500
    text = (report / "report.md").read_text()
    assert "Exchange part of gaps" in text and "stretched LUMO.0" in text


def test_a_second_run_resumes_and_gives_the_same_functional(recipe, output, capsys):
    path = output / "x-tiny.h5"
    before = path.read_bytes()
    lost = output / "descriptors" / "descriptors" / "PBE" / "He.h5"
    kept = output / "descriptors" / "descriptors" / "PBE" / "H2.h5"
    time = kept.stat().st_mtime_ns
    lost.unlink()
    assert main([str(recipe), "--output", str(output)]) == 0
    assert kept.stat().st_mtime_ns == time and lost.exists()
    assert path.read_bytes() == before
    assert "stretched" not in capsys.readouterr().err  # nothing was left out


def test_a_foreign_store_is_refused(recipe, output, capsys):
    other = recipe.with_name("other.toml")
    other.write_text(RECIPE.replace("def2-svp", "def2-svpd"))
    assert main([str(other), "--output", str(output)]) == 2
    error = capsys.readouterr().err
    assert "another recipe" in error and "basis" in error


def test_descriptors_of_another_recipe_serve_a_smaller_one(recipe, output, tmp_path, capsys):
    """With more features than are asked for; what they lack is refused."""
    fewer = recipe.with_name("fewer.toml")
    semilocal = RECIPE.replace("nldf = [[1, 0, 0.03125]]\nsdmx", "sdmx").replace('"mgga"', '"gga"')
    fewer.write_text(semilocal.replace("x-tiny", "x-tinier"))
    stores = ["--references", output / "references", "--descriptors", output / "descriptors"]
    assert main([str(fewer), *map(str, stores), "--output", str(tmp_path / "shared")]) == 0
    assert not (tmp_path / "shared" / "descriptors").exists()
    assert main([str(fewer), *map(str, stores[:2]), "--output", str(tmp_path / "alone")]) == 0
    files = (tmp_path / run / "x-tinier.h5" for run in ("shared", "alone"))
    shared, alone = (load_functional(file).terms[0].model for file in files)
    np.testing.assert_allclose(shared.quadratic_form, alone.quadratic_form, rtol=0, atol=1e-9)
    capsys.readouterr()
    fewer.write_text(RECIPE.replace("0.03125", "0.0625"))
    assert main([str(fewer), *map(str, stores), "--output", str(tmp_path / "more")]) == 2
    assert "nldf" in capsys.readouterr().err


def test_held_orbitals_keep_the_potential_of_the_baseline(recipe, output, tmp_path):
    """What the learned part adds to orbital energies falls with the sigma that holds it."""
    held = recipe.with_name("held.toml")
    stores = ["--references", output / "references", "--descriptors", output / "descriptors"]
    mol = gto.M(atom="He 0 0 0", basis="def2-svp", verbose=0)
    mf = dft.RKS(mol, xc="PBE,")
    mf.grids.level = 0
    mf.kernel()
    dm, orbital = mf.make_rdm1(), mf.mo_coeff[:, 0]
    pbe = mf._numint.nr_rks(mol, mf.grids, "PBE,", dm)[2]
    learned = []
    for sigma in (1e6, 1.0, 1e-3):
        held.write_text(RECIPE + f"orbital_sigma = {sigma}\n")
        folder = tmp_path / str(sigma)
        assert main([str(held), *map(str, stores), "--output", str(folder)]) == 0
        provenance = read_header(folder / "x-tiny.h5")["provenance"]
        assert "orbital" not in provenance["hyperparameters"]["noise_mHa"]
        functional = CiderFunctional(folder / "x-tiny.h5")
        integrator = dft.RKS(mol, xc=functional)._numint
        potential = integrator.nr_rks(mol, mf.grids, functional, dm)[2]
        learned.append(abs(orbital @ (potential - pbe) @ orbital))
    assert learned[0] > 2e-3 and learned[1] < 2e-3 and learned[2] < 1e-4


def test_held_orientations_leave_atoms_where_they_are(tmp_path):
    """What the learned part adds to the energy of boron as it turns falls with its sigma."""
    for symbol in ("H", "He", "B"):
        (tmp_path / f"{symbol}.xyz").write_text(f"1\n\n{symbol} 0 0 0\n")
    (tmp_path / "H2.xyz").write_text("2\n\nH 0 0 0\nH 0 0 0.74\n")
    (tmp_path / "BH.xyz").write_text("2\n\nB 0 0 0\nH 0 0 1.23\n")
    start, files = RECIPE.index("files = ["), RECIPE.index("]\n\n[reference]")
    names = ("H", "He", "B", "H2", "BH")
    systems = "".join(f'  {{ path = "{n}.xyz", spin = {int(n in ("H", "B"))} }},\n' for n in names)
    text = RECIPE[:start] + "files = [\n" + systems + RECIPE[files:]
    text = text.replace('orbitals = ["HOMO", "LUMO"]\n', "").replace("sdmx = ", "# sdmx = ")
    path = tmp_path / "recipe.toml"
    stores = [f"--{name}={tmp_path / name}" for name in ("references", "descriptors")]
    spreads = []
    for sigma in (1e6, 1e-3):
        path.write_text(text + f"orientation_sigma = {sigma}\n")
        folder = tmp_path / str(sigma)
        assert main([str(path), *stores, "--output", str(folder)]) == 0
        functional = CiderFunctional(folder / "x-tiny.h5")
        mol, dm = read_density(Store(tmp_path / "references").read("reference/PBE/B"))
        grids = dft.UKS(mol).grids
        grids.level = 0
        grids.build()
        integrator = dft.UKS(mol, xc=functional)._numint
        energies = [
            integrator.nr_uks(mol, grids, functional, turned(mol, dm, n))[1]
            - dft.numint.NumInt().nr_uks(mol, grids, "PBE,", turned(mol, dm, n))[1]
            for n in range(1, ORIENTATIONS + 1)
        ]
        spreads.append(np.ptp(energies))
    assert spreads[0] > 5e-7 and spreads[1] < 0.1 * spreads[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RECIPE.replace("chebyshev_degree", "chebychev_degree"), "chebyshev_degree"),
        (RECIPE.replace("He.xyz", "absent.xyz"), "absent.xyz"),
        (RECIPE.replace('"PBE", "HF"', "3"), "densities"),
    ],
)
def test_bad_recipes_are_one_line_and_code_2(recipe, tmp_path, capsys, text, message):
    bad = recipe.with_name("bad.toml")
    bad.write_text(text)
    assert main([str(bad), "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_largest_error_bar_is_finite(output):
    posterior = load_posterior(output / "x-tiny.h5")
    assert all(np.isfinite(values).all() for values in posterior.values())


NETWORK = """
enhancement_points = 10
semilocal_slope_sigma = 0.2

[network]
hidden = [5, 4]
members = 2
iterations = 15
patience = 5
"""


@pytest.fixture(scope="module")
def network_run(recipe, output, tmp_path_factory):
    """Semilocal networks on the data of the other run; what writes them again elsewhere."""
    path = recipe.with_name("network.toml")
    semilocal = RECIPE.replace("nldf = [[1, 0, 0.03125]]\nsdmx", "#").replace("x-tiny", "x-network")
    path.write_text(semilocal + NETWORK)
    stores = ["--references", output / "references", "--descriptors", output / "descriptors"]

    def run() -> Path:
        folder = tmp_path_factory.mktemp("network")
        assert main([str(path), *map(str, stores), "--output", str(folder)]) == 0
        return folder

    return run


@pytest.fixture(scope="module")
def network_output(network_run) -> Path:
    return network_run()


def test_networks_instead_of_a_gaussian_process(network_output):
    """The report compares both on equal data; the functional is the networks'."""
    path = network_output / "x-network.h5"
    model = load_functional(path).terms[0].model
    assert isinstance(model, NeuralNetworkEnsemble) and model.readout.shape == (2, 4)
    provenance = read_header(path)["provenance"]
    assert provenance["recipe"]["network"]["hidden"] == [5, 4]
    assert len(provenance["steps"]) == 2
    # The noise of observations is at least this (ModelChoice).
    assert provenance["merging_error_mHa"] < 0.3
    assert load_posterior(path).keys() == {"noise", "calibration"}
    text = (network_output / "report" / "report.md").read_text()
    assert "| Gaussian process | Gaussian process within 1σ | neural networks |" in text
    assert "steps of the networks" in text


def test_networks_are_deterministic(network_output, network_run):
    first, second = (f / "x-network.h5" for f in (network_output, network_run()))
    assert first.read_bytes() == second.read_bytes()


def test_networks_in_pyscf(network_output):
    """A self-consistent run; its potential against finite differences of the energy."""
    functional = CiderFunctional(network_output / "x-network.h5")
    exchange = functional.learned
    assert abs(exchange.terms[0].uniform_gas_correction(exchange.descriptors)) < 1e-14
    mol = gto.M(atom="O 0 0 0; H 0 0.7 0.6; H 0 -0.7 0.6", basis="sto-3g", verbose=0)
    mf = dft.RKS(mol, xc=functional)
    mf.grids.level = 0
    mf.kernel()
    assert mf.converged
    dm, step = mf.make_rdm1(), 1e-4
    change = np.random.default_rng(0).normal(size=dm.shape)
    change = 0.1 * (change + change.T)
    high, low = (
        mf._numint.nr_rks(mol, mf.grids, mf.xc, dm + sign * step * change)[1] for sign in (1, -1)
    )
    _, _, potential = mf._numint.nr_rks(mol, mf.grids, mf.xc, dm)
    # The error of central differences, of the order of step^2.
    expected = (high - low) / (2 * step)
    assert np.sum(potential * change) == pytest.approx(expected, rel=1e-7)
