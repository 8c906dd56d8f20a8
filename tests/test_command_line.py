"""The ``cider`` command: what it prints, and what it says about bad input."""

import hashlib
import json
import re
from pathlib import Path

import pytest
from toy_functionals import toy_exchange

from cider import registry
from cider.command_line import main
from cider.files import save_functional
from cider.functional import CiderFunctional
from cider.run import Calculation, Molecule, embedded_molecule, read_molecule, run

PROVENANCE = {
    "recipe": {"name": "made up", "seed": 7},
    "errors": [{"quantity": "aex", "density": "PBE", "part": "held-out", "mae": 1.25, "count": 9}],
}
FAST = ["--basis", "sto-3g", "--grid-level", "0"]
HYDROGEN = "2\nhydrogen molecule\nH 0 0 0\nH 0 0 0.74\n"


@pytest.fixture(autouse=True)
def shipped(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Toy functionals under the published names that the command line uses by default."""
    folder = tmp_path_factory.mktemp("functionals")
    path = folder / "x-nldf.h5"
    save_functional(path, toy_exchange("GGA", name="x-nldf"), PROVENANCE)
    entries = {
        "x-nldf": {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
        "pbe0-x-nldf": {"exchange": "x-nldf", "x_mix": 0.25, "semilocal": "PBE"},
    }
    (folder / "registry.json").write_text(json.dumps(entries))
    monkeypatch.setattr(registry, "FOLDER", folder)
    monkeypatch.setenv("COLUMNS", "100")
    return folder


@pytest.fixture
def hydrogen(tmp_path: Path) -> str:
    (tmp_path / "h2.xyz").write_text(HYDROGEN)
    return str(tmp_path / "h2.xyz")


def _numbers(output: str, label: str) -> list[float]:
    (line,) = (line for line in output.splitlines() if label in line)
    return [float(text) for text in re.findall(r"[-+]?\d+\.\d+|\d+", line.replace(label, ""))]


def test_embedded_default(capsys: pytest.CaptureFixture[str]) -> None:
    """Runs as on a fresh machine; the numbers are those of the same calculations in PySCF."""
    from pyscf import dft, gto

    assert main(["run", *FAST]) == 0
    output = capsys.readouterr().out
    for label in ("pbe0-x-nldf", "PBE0", "HOMO (eV)", "LUMO (eV)", "SCF iterations", "Time (s)"):
        assert label in output

    water = embedded_molecule()
    atoms = list(zip(water.symbols, water.positions, strict=True))
    mol = gto.M(atom=atoms, basis="sto-3g", verbose=0)
    functional = CiderFunctional("x-nldf", x_mix=0.25, semilocal="PBE")
    energies = []
    for xc in (functional, "PBE", "PBE0"):
        mf = dft.RKS(mol, xc=xc)
        mf.grids.level = 0
        energies.append(mf.kernel())
    assert _numbers(output, "Total energy (Ha)") == pytest.approx(energies, abs=1e-6)
    # PBE0 holds a quarter of the exact exchange of its own density matrix.
    exact = _numbers(output, "Exact exchange (Ha)")[2]
    vxc = mf.get_veff(mol, mf.make_rdm1())
    semilocal = dft.numint.NumInt().nr_rks(mol, mf.grids, "0.75*PBE,PBE", mf.make_rdm1())[1]
    assert vxc.exc - semilocal == pytest.approx(0.25 * exact, abs=1e-5)


def test_own_molecule(hydrogen: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", hydrogen, "--functional", "x-nldf", "--correlation", "GGA_C_PBE"]
    assert main([*arguments, "--density-fit", "--alone", *FAST]) == 0
    output = capsys.readouterr().out
    assert "h2: sto-3g, grid level 0, density fitting" in output
    assert "x-nldf + GGA_C_PBE" in output and "PBE0" not in output


def test_one_electron(tmp_path: Path) -> None:
    """The hydrogen atom: no electron of one spin, exact exchange cancels the Hartree energy."""
    (tmp_path / "h.xyz").write_text("1\n\nH 0 0 0\n")
    molecule = read_molecule(tmp_path / "h.xyz", spin=1)
    functional = CiderFunctional("pbe0-x-nldf")
    calculation = Calculation(molecule, functional, "toy", basis="def2-svp", grid_level=3)
    learned, pbe, _ = run(calculation)
    assert learned.converged and learned.homo < 0
    # E_x of the exact density is -5/16 Ha; def2-SVP is 1 % off.
    assert pbe.exact_exchange == pytest.approx(-0.3125, rel=2e-2)
    assert pbe.pbe_exchange == pytest.approx(-0.3125, rel=4e-2)


def test_no_empty_orbital(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "he.xyz").write_text("1\n\nHe 0 0 0\n")
    assert main(["run", str(tmp_path / "he.xyz"), "--alone", *FAST]) == 0
    assert re.search(r"LUMO \(eV\) +│ +– ", capsys.readouterr().out)


def test_progress_names_every_cycle() -> None:
    lines: list[str] = []
    molecule = Molecule("H2", ("H", "H"), ((0, 0, 0), (0, 0, 0.74)))
    functional = CiderFunctional("x-nldf")
    calculation = Calculation(molecule, functional, "toy", "sto-3g", 0, comparison=())
    (result,) = run(calculation, lines.append)
    assert lines[0].startswith("toy: cycle 1, -")
    assert len(lines) == result.iterations + 1


def test_not_converged(capsys: pytest.CaptureFixture[str]) -> None:
    """The table is printed and flagged, and the exit code says it."""
    assert main(["run", "--max-cycles", "2", "--alone", *FAST]) == 1
    captured = capsys.readouterr()
    assert "2, not converged" in captured.out
    assert "SCF of pbe0-x-nldf did not converge in 2 cycles" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--functional", "x-nldff"], "unknown functional 'x-nldff'; did you mean x-nldf"),
        (["--functional", "no.h5"], "no.h5 does not exist"),
        (["--x-mix", "0.5"], "fixed composition with x_mix=0.25"),
        (["--functional", "x-nldf", "--semilocal", "PBF"], "unknown semilocal functional 'PBF'"),
        (["--functional", "x-nldf", "--correlation", "GGA_C_PBF"], "GGA_C_PBF"),
        (["--basis", "def2-svpp"], "no basis 'def2-svpp' for H"),
        (["--charge", "1"], "give an XYZ file"),
        (["--grid-level", "12"], "grid levels go from 0 (coarse) to 9: got 12"),
        (["--max-cycles", "0"], "at least one cycle"),
        (["missing.xyz"], "missing.xyz does not exist"),
        (["H2", "--spin", "1"], "2 electrons, so not 1 unpaired ones; give an even spin"),
        (["H2", "--charge", "2"], "charge 2 leaves no electron"),
        (["H2", "--spin", "4"], "2 electrons cannot have 4 unpaired"),
        (["H2", "--spin", "-2"], "2 electrons cannot have -2 unpaired"),
    ],
)
def test_bad_input(
    arguments: list[str], message: str, hydrogen: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [hydrogen if argument == "H2" else argument for argument in arguments]
    assert main(["run", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("cider: ") and captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it is empty"),
        ("0\n\n", "holds no atom"),
        ("3\nwater\nO 0 0 0\nH 0 0 1\n", "not a readable XYZ file"),
        ("1\n\nO 0 0 zero\n", "not a readable XYZ file"),
        ("1\n\nQq 0 0 0\n", "not a readable XYZ file"),
        ("1\n\nX 0 0 0\n", "X is no chemical element"),
        ("1\n\nO 0 0 nan\n", "not a finite number"),
        ("1\n" + 'Lattice="3 0 0 0 3 0 0 0 3" pbc="T T T"\nO 0 0 0\n', "periodic structure"),
        ("2\n\nO 0 0 0\nO 0 0 0\n", "atoms 1 and 2 are at the same place"),
        ("1\n\nOg 0 0 0\n", "no basis 'def2-svp' for Og"),
    ],
)
def test_bad_molecule(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.xyz").write_text(content)
    assert main(["run", str(tmp_path / "bad.xyz")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


def test_effective_cores(tmp_path: Path) -> None:
    """A def2 basis of a heavy element comes with its core potential: HI has 8 + 18 electrons."""
    from cider.run import _build

    (tmp_path / "hi.xyz").write_text("2\n\nH 0 0 0\nI 0 0 1.61\n")
    molecule = read_molecule(tmp_path / "hi.xyz")
    mol = _build(Calculation(molecule, CiderFunctional("x-nldf"), "toy"))
    assert mol.nelectron == 26


def test_info(capsys: pytest.CaptureFixture[str], shipped: Path) -> None:
    assert main(["info", "pbe0-x-nldf"]) == 0
    output = capsys.readouterr().out
    expected = "0.25*x-nldf + 0.75*GGA_X_PBE", "Features", "uniform gas", "s^2 = 400", "recipe.seed"
    for text in (*expected, "1.25"):
        assert text in output
    assert main(["info", str(shipped / "x-nldf.h5")]) == 0
    assert "GGA_X_PBE" in capsys.readouterr().out
    assert main(["info", "x-mldf"]) == 2
    assert "did you mean x-nldf" in capsys.readouterr().err


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    output = capsys.readouterr().out
    assert "x-nldf" in output and "pbe0-x-nldf" in output


def test_usage_error_exits_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_code:
        main(["run", "--spin", "one"])
    assert exit_code.value.code == 2
