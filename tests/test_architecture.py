"""The folders are the architecture: who may import whom, read from the source text."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = {"cider": "cider", "features": "cider.features", "training": "cider.training"}
FOLDERS |= {
    f"plugins{suffix}": f"cider.plugins{suffix.replace('/', '.')}"
    for suffix in ("", *(f"/{path.name}" for path in ROOT.glob("plugins/[a-z]*/")))
}

GROUND = {"cider.conventions", "cider.density"}
"""Units and the density: import nothing else of ours."""

SUMMIT = {"cider", "cider.command_line", "cider.run", "cider.description"}
SUMMIT |= {"cider.training.command_line"}
"""The commands and what they call: see everything."""

HOSTS = {
    "pyscf": {"cider.plugins.pyscf", "cider.plugins.ase", "cider.training", "cider.run"},
    "gpaw": {"cider.plugins.gpaw", "cider.plugins.ase"},
}
"""Who may import a host program; training makes its reference data with PySCF."""


def _modules() -> dict[str, Path]:
    """Every module of ours by its import name; the links inside cider/ are left aside."""
    modules = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).glob("*.py")):
            modules[package if path.stem == "__init__" else f"{package}.{path.stem}"] = path
    return modules


MODULES = _modules()


def _imports(path: Path) -> Iterator[str]:
    """Names of the modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: write imports in full, not relative ones"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else str(node.module)


def _within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _may_import(module: str, other: str) -> bool:
    if module in SUMMIT:
        return True
    if module in GROUND:
        return other in GROUND - {module}
    if _within(module, "cider.features"):
        return other in GROUND or _within(other, "cider.features")
    parts = ("cider.training", "cider.plugins.pyscf", "cider.plugins.gpaw")
    own_part = [part for part in parts if _within(module, part)]
    outside = other in SUMMIT or _within(other, "cider.training", "cider.plugins")
    return not outside or _within(other, *own_part)


def test_packages_are_the_folders() -> None:
    setuptools = PROJECT["tool"]["setuptools"]
    packages = {FOLDERS[folder] for folder in FOLDERS if (ROOT / folder / "__init__.py").is_file()}
    assert set(setuptools["packages"]) == packages
    for package, folder in setuptools["package-dir"].items():
        assert FOLDERS[folder] == package
    for link in ("features", "training", "plugins"):
        assert (ROOT / "cider" / link).resolve() == ROOT / link


def test_every_module_belongs_to_a_package() -> None:
    found = {path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    found = {path for path in found if path.resolve() == path}  # without the links
    assert found == set(MODULES.values())


@pytest.mark.parametrize("module", MODULES)
def test_import_direction(module: str) -> None:
    ours = {name for name in _imports(MODULES[module]) if _within(name, "cider")}
    wrong = {other for other in ours if not _may_import(module, other)}
    assert not wrong, f"{module} must not import {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("module", MODULES)
def test_hosts_stay_in_their_plugins(module: str) -> None:
    imported = {name.split(".")[0] for name in _imports(MODULES[module])}
    for host, allowed in HOSTS.items():
        assert host not in imported or _within(module, *allowed), f"{module} imports {host}"


@pytest.mark.parametrize("module", MODULES)
def test_no_module_reads_code_from_data(module: str) -> None:
    """Files are arrays and text: nothing of ours runs what it reads."""
    assert not {"pickle", "joblib", "marshal", "shelve", "dill"} & set(_imports(MODULES[module]))


def test_console_scripts_exist() -> None:
    for target in PROJECT["project"]["scripts"].values():
        assert target.split(":")[0] in MODULES
