"""Every example of README is executed, and its table is that of the shipped files."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cider import CiderFunctional, command_line
from cider.description import shipped_table
from cider.files import FunctionalFileError
from cider.registry import registered_names

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
SET_UP = r"python3 -m venv \.venv && \.venv/bin/pip install \S+ && "

shipped = pytest.mark.skipif(
    "pbe0-x-nldf" not in registered_names(), reason="no functional is shipped yet"
)


def test_all_examples_are_known_here() -> None:
    """A new kind of example needs a test of its own."""
    assert {kind for kind, _ in BLOCKS} == {"sh", "python"}
    for command in COMMANDS:
        assert re.match(rf"{SET_UP}|cider |cider-train --small", command), command


@shipped
@pytest.mark.parametrize("code", [block for kind, block in BLOCKS if kind == "python"])
def test_python(code: str) -> None:
    """Five lines, in a process of its own as a user has it."""
    assert len(code.strip().splitlines()) == 5
    if "gpaw" in code:
        pytest.importorskip("gpaw", reason="GPAW is not installed: pip install 'cider-xc[gpaw]'")
    if "mf.kernel()" in code:
        code += "assert mf.converged\n"
    subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], check=True)


@shipped
@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("cider ")])
def test_cider(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("molecule.xyz").write_text("1\nhelium\nHe 0 0 0\n")
    assert command_line.main(shlex.split(command)[1:]) == 0


@shipped
def test_main_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first command, after its set-up."""
    main_job = COMMANDS[0].split(" && ")[-1]
    assert main_job == ".venv/bin/cider run"
    monkeypatch.chdir(tmp_path)
    assert command_line.main(["run"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("cider-train")])
def test_training(command: str, tmp_path: Path) -> None:
    """Trains for real, in minutes, and leaves a functional that loads."""
    main = "import sys; from cider.training.command_line import main; sys.exit(main())"
    arguments = shlex.split(command)[1:]
    subprocess.run([sys.executable, "-c", main, *arguments], check=True, cwd=tmp_path)
    files = list(tmp_path.rglob("*.h5"))
    assert any(_is_functional(path) for path in files), files


def _is_functional(path: Path) -> bool:
    try:
        CiderFunctional(path)
    except FunctionalFileError:
        return False
    return True


def test_test_command_is_what_ci_runs() -> None:
    (command,) = (c for c in COMMANDS if "pytest" in c)
    assert command in (ROOT / ".ci" / "run").read_text()


def test_table_is_that_of_the_files() -> None:
    """Regenerate with: python -c "from cider.description import *; print(shipped_table())"."""
    (table,) = re.findall(r"<!-- shipped functionals -->\n(.*?)<!-- end -->", README, re.DOTALL)
    assert table.strip() == shipped_table()
