"""Published functionals by name: one function resolves a name or a path, and no other does.

``functionals/registry.json`` maps a name to a file with its hash, or to a composition of another
name with semilocal functionals::

    "x-nldf": {"file": "x-nldf.h5", "sha256": "..."}
    "pbe0-x-nldf": {"exchange": "x-nldf", "x_mix": 0.25, "semilocal": "PBE"}
"""

import dataclasses
import difflib
import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from cider.files import FunctionalFileError, load_functional
from cider.learned_functional import LearnedFunctional

FOLDER = Path(__file__).parent / "functionals"
"""Where the shipped files and their registry lie."""


@dataclasses.dataclass(frozen=True)
class Resolved:
    """What a name or path stands for: a functional file, and how it is composed.

    ``x_mix``, ``semilocal`` and ``correlation`` are ``None`` where the name leaves them open.
    """

    name: str
    exchange_name: str
    path: Path
    x_mix: float | None = None
    semilocal: str | None = None
    correlation: str | None = None

    @property
    def is_composed(self) -> bool:
        """Whether the name fixes more than the learned exchange."""
        return any(part is not None for part in (self.x_mix, self.semilocal, self.correlation))

    def composed_with(
        self, x_mix: float | None, semilocal: str | None, correlation: str | None
    ) -> tuple[float | None, str | None, str | None]:
        """The composition of the name, or the one asked for where the name leaves it open.

        Raises:
            ValueError: The name stands for another composition.
        """
        asked = {"x_mix": x_mix, "semilocal": semilocal, "correlation": correlation}
        for key, value in asked.items():
            own = getattr(self, key)
            if self.is_composed and value is not None and str(value).upper() != str(own).upper():
                raise ValueError(
                    f"{self.name!r} is a fixed composition with {key}={own!r}, not {value!r}; "
                    f"compose your own from CiderFunctional({self.exchange_name!r}, ...)"
                )
        if self.is_composed:
            return self.x_mix, self.semilocal, self.correlation
        return x_mix, semilocal, correlation

    def load(self) -> LearnedFunctional:
        """The learned functional of the file."""
        return load_functional(self.path)


def registered_names() -> tuple[str, ...]:
    """Published names, exchange functionals first."""
    entries = _entries(FOLDER)
    return tuple(sorted(entries, key=lambda name: "exchange" in entries[name]))


def resolve(functional: str | os.PathLike[str]) -> Resolved:
    """What a published name, or the path of a functional file, stands for.

    A published name comes before a file of that name in the working directory.

    Raises:
        ValueError: Neither a published name nor an existing file; the message lists near matches.
        FunctionalFileError: A shipped file is missing or is not the published one.
    """
    entries = _entries(FOLDER)
    name = os.fspath(functional)
    if name not in entries:
        if isinstance(functional, os.PathLike) or _looks_like_path(name):
            return Resolved(name, name, Path(name))
        raise ValueError(_unknown(name, registered_names()))
    entry = entries[name]
    if "exchange" not in entry:
        return Resolved(name, name, _shipped_file(name, entry))
    composition = {key: value for key, value in entry.items() if key != "exchange"}
    return dataclasses.replace(resolve(entry["exchange"]), name=name, **composition)


def _looks_like_path(name: str) -> bool:
    return os.sep in name or name.endswith((".h5", ".hdf5")) or Path(name).is_file()


def _shipped_file(name: str, entry: dict[str, Any]) -> Path:
    path = FOLDER / entry["file"]
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise FunctionalFileError(
            f"the file of {name!r} is not installed ({path}: {error.strerror}); reinstall cider"
        ) from None
    if found != entry["sha256"]:
        raise FunctionalFileError(
            f"{path} is not the published {name!r} (its sha256 is {found}); reinstall cider"
        )
    return path


def _unknown(name: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    question = f"; did you mean {' or '.join(near)}?" if near else "."
    listed = ", ".join(known) or "none is installed"
    return (
        f"unknown functional {name!r}{question} Registered: {listed}. The path of a functional "
        "file works as well."
    )


@functools.cache
def _entries(folder: Path) -> dict[str, dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = json.loads((folder / "registry.json").read_text())
    return entries
