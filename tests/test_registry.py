"""Names of functionals: what they stand for, and what a wrong one says."""

import hashlib
import json
from pathlib import Path

import equinox as eqx
import pytest
from toy_functionals import toy_exchange

from cider import registry
from cider.files import FunctionalFileError, load_functional, save_functional
from cider.functional import CiderFunctional
from cider.registry import registered_names, resolve


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry of toy functionals in place of the shipped one."""
    folder = tmp_path / "functionals"
    folder.mkdir()
    path = folder / "x-toy.h5"
    save_functional(path, toy_exchange("GGA", name="x-toy"), {})
    entries = {
        "pbe0-x-toy": {"exchange": "x-toy", "x_mix": 0.25, "semilocal": "PBE"},
        "x-toy": {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
    }
    (folder / "registry.json").write_text(json.dumps(entries))
    monkeypatch.setattr(registry, "FOLDER", folder)
    return folder


def test_name_path_and_object_are_the_same(folder: Path) -> None:
    exchange = load_functional(folder / "x-toy.h5")
    for functional in ("x-toy", folder / "x-toy.h5", str(folder / "x-toy.h5"), exchange):
        assert eqx.tree_equal(CiderFunctional(functional), CiderFunctional(exchange))


def test_composition(folder: Path) -> None:
    ready_made = CiderFunctional("pbe0-x-toy")
    assert eqx.tree_equal(ready_made, CiderFunctional("x-toy", x_mix=0.25, semilocal="PBE"))
    assert eqx.tree_equal(ready_made, CiderFunctional("pbe0-x-toy", x_mix=0.25, semilocal="pbe"))


@pytest.mark.parametrize(
    "keywords", [{"x_mix": 0.5}, {"semilocal": "SCAN"}, {"correlation": "GGA_C_PBE"}]
)
def test_contradicted_composition(keywords: dict, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"fixed composition.*CiderFunctional\('x-toy'"):
        CiderFunctional("pbe0-x-toy", **keywords)


def test_names_list_exchange_first(folder: Path) -> None:
    assert registered_names() == ("x-toy", "pbe0-x-toy")


@pytest.mark.parametrize("name", ["x-toi", "X-TOY", "xtoy"])
def test_unknown_name_lists_near_matches(name: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown functional.*did you mean.*x-toy"):
        CiderFunctional(name)


def test_unknown_name_lists_all(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"Registered: x-toy, pbe0-x-toy"):
        CiderFunctional("b3lyp")


def test_file_in_the_working_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "mine").write_bytes((folder / "x-toy.h5").read_bytes())
    assert CiderFunctional("mine").learned.name == "x-toy"


def test_missing_path(folder: Path) -> None:
    with pytest.raises(FunctionalFileError, match="does not exist"):
        CiderFunctional("no-such-file.h5")


def test_damaged_installation(folder: Path) -> None:
    save_functional(folder / "x-toy.h5", toy_exchange("MGGA", name="x-toy"), {})
    with pytest.raises(FunctionalFileError, match=r"not the published 'x-toy'.*reinstall"):
        CiderFunctional("pbe0-x-toy")
    (folder / "x-toy.h5").unlink()
    with pytest.raises(FunctionalFileError, match="not installed"):
        CiderFunctional("x-toy")


@pytest.mark.parametrize("name", registered_names())
def test_shipped_functional(name: str) -> None:
    """The registry, the file's own name and its hash agree."""
    functional = CiderFunctional(name)
    assert functional.learned.name == resolve(name).exchange_name
    assert resolve(name).path.is_file()
