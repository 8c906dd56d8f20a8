"""Functional files: plain arrays and one JSON header in HDF5, safe to read from anyone.

Layout of format version 3::

    header                  JSON text
    terms/0/transform/...   arrays of float64 of each energy term, as ``schema`` names them
    terms/0/model/...
    posterior/...           optional: arrays for error bars

The header holds ``format`` and ``format_version``, ``units``, ``functional`` (the specification
of features and energy terms), ``provenance`` (how it was trained and how well it does), and
``content_sha256`` of all the rest and of every array.

A change of the layout raises ``FORMAT_VERSION``, adds a function to ``_UPGRADES`` and an old file
to the tests. Version 1 held one term of exchange, and its arrays without ``terms/0/``; version 2
held the ladder of Gaussians too, which is how features are computed, not what they are.
"""

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cider.learned_functional import LearnedFunctional
from cider.models import KINDS
from cider.schema import Arrays, Header, arrays_of, build, specification_of

FORMAT = "cider-functional"
FORMAT_VERSION = 3
UNITS = "Hartree atomic units"

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_POSTERIOR = "posterior/"


def _terms_of_version_1(header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    """One exchange energy becomes the only one of a tuple of terms."""
    old = header["functional"]
    descriptors = {**old["descriptors"], "kinetic": "alpha"}
    term = {"kind": "exchange", **{key: old[key] for key in ("baseline", "transform", "model")}}
    functional = {"name": old["name"], "descriptors": descriptors, "terms": [term]}
    moved = {
        name if name.startswith(_POSTERIOR) else f"terms/0/{name}": values
        for name, values in arrays.items()
    }
    return header | {"functional": functional}, moved


def _features_of_version_2(header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    """Without the ladder that the functional was trained with."""
    functional = header["functional"]
    nldf = functional["descriptors"]["nldf"]
    if nldf is not None:
        nldf = {key: nldf[key] for key in nldf.keys() - {"ladder_ratio", "ladder_origin"}}
    descriptors = {**functional["descriptors"], "nldf": nldf}
    return header | {"functional": {**functional, "descriptors": descriptors}}, arrays


_UPGRADES: dict[int, Callable[[Header, Arrays], tuple[Header, Arrays]]] = {
    1: _terms_of_version_1,
    2: _features_of_version_2,
}
"""What turns the content of a file of that version into the content of the next one."""


class FunctionalFileError(ValueError):
    """A functional file that cannot be used; the message says why and what to do."""


def save_functional(
    path: str | os.PathLike[str],
    functional: LearnedFunctional,
    provenance: Mapping[str, Any],
    posterior: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write a functional file; the same content gives the same bytes.

    ``provenance`` is anything that JSON can say: recipe, data, versions. Its optional ``errors``
    is a list of rows of equal keys, which ``cider info`` and README print, such as
    ``{"quantity": "aex", "density": "PBE", "part": "held-out", "count": 52, "mae": 1.3, "unit":
    "kcal/mol"}``; ``"total"`` is in mHa.
    ``posterior`` names the arrays that error bars need. An existing file is replaced in one step:
    a full disk or a kill leaves the old one whole.

    Raises:
        ValueError: The provenance is not plain JSON, or an array is not finite.
        OSError: The file cannot be written.
    """
    arrays = arrays_of(functional)
    for name, values in (posterior or {}).items():
        if not name.isidentifier():
            raise ValueError(f"{name!r} cannot name a posterior array: use letters, digits and _")
        arrays[_POSTERIOR + name] = np.asarray(values, dtype=np.float64)
    for name, values in arrays.items():
        if not np.all(np.isfinite(values)):
            raise ValueError(f"{functional.name}: {name} holds NaN or infinity; nothing is written")
    header: Header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "units": UNITS,
        "functional": specification_of(functional),
        "provenance": dict(provenance),
    }
    try:
        header["content_sha256"] = _content_hash(header, arrays)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{functional.name}: the provenance must be plain JSON (text, finite numbers, lists "
            f"and tables): {error}"
        ) from None
    _write_atomically(Path(path), header, arrays)


def load_functional(path: str | os.PathLike[str]) -> LearnedFunctional:
    """The functional of a file, bit for bit as it was saved: numpy arrays of float64.

    Raises:
        FunctionalFileError: The file is missing, truncated, changed, foreign, of a newer format,
            or of features that this version computes with other constants.
    """
    header, arrays = _read(Path(path))
    return _build(Path(path), header["functional"], arrays)


def read_header(path: str | os.PathLike[str]) -> Header:
    """The header of a file, after the same checks as in ``load_functional``."""
    header, arrays = _read(Path(path))
    _build(Path(path), header["functional"], arrays)
    return header


def load_posterior(path: str | os.PathLike[str]) -> Arrays:
    """The arrays for error bars, by name; empty if the file has none.

    Raises:
        FunctionalFileError: As ``load_functional``.
    """
    _, arrays = _read(Path(path))
    return {
        name.removeprefix(_POSTERIOR): values
        for name, values in arrays.items()
        if name.startswith(_POSTERIOR)
    }


def _build(path: Path, specification: Header, arrays: Arrays) -> LearnedFunctional:
    try:
        own = {name: a for name, a in arrays.items() if not name.startswith(_POSTERIOR)}
        functional = build(specification, own)
    except (KeyError, TypeError, AttributeError) as error:
        raise FunctionalFileError(
            f"{path}: the specification of the functional is incomplete or of another kind "
            f"({error!r}); this version of cider reads exchange and correlation with models of the "
            f"kinds {', '.join(KINDS)}"
        ) from None
    except ValueError as error:
        raise FunctionalFileError(f"{path}: {error}") from None
    rebuilt = specification_of(functional)
    if rebuilt != specification:
        difference = "; ".join(_differences(specification, rebuilt))
        raise FunctionalFileError(
            f"{path}: this version of cider evaluates the functional differently ({difference}); "
            "use the version it was trained with, or train it again"
        )
    return functional


def _differences(stored: Any, built: Any, where: str = "") -> list[str]:
    if isinstance(stored, dict) and isinstance(built, dict):
        return [
            line
            for key in sorted(stored.keys() | built.keys())
            for line in _differences(stored.get(key), built.get(key), f"{where}.{key}".strip("."))
        ]
    return [] if stored == built else [f"{where}: {stored!r} in the file, {built!r} here"]


# Reading and writing, the same for every schema.


def _read(path: Path) -> tuple[Header, Arrays]:
    header, arrays = _read_hdf5(path)
    if header.get("format") != FORMAT:
        raise FunctionalFileError(f"{path} is an HDF5 file, but not a functional file of cider")
    version = header.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise FunctionalFileError(f"{path}: {version!r} is no format version; the file is damaged")
    if version > FORMAT_VERSION:
        raise FunctionalFileError(
            f"{path} has format version {version}, but this version of cider reads up to "
            f"{FORMAT_VERSION}; update it: pip install --upgrade cider-xc"
        )
    if header.get("content_sha256") != _content_hash(header, arrays):
        raise FunctionalFileError(
            f"{path}: the content does not match its hash; the file is damaged or was edited, get "
            "it again"
        )
    if not isinstance(header.get("functional"), dict):
        raise FunctionalFileError(f"{path}: the header describes no functional")
    for step in range(version, FORMAT_VERSION):
        try:
            header, arrays = _UPGRADES[step](header, arrays)
        except (KeyError, TypeError, AttributeError) as error:
            raise FunctionalFileError(
                f"{path}: the specification of the functional is incomplete ({error!r})"
            ) from None
    return header, arrays


def _read_hdf5(path: Path) -> tuple[Header, Arrays]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise FunctionalFileError(
            f"{path} does not exist; give the path of a functional file or a name that "
            "`cider list` shows"
        ) from None
    except OSError as error:
        raise FunctionalFileError(f"{path} cannot be read: {error.strerror}") from None
    if not content.startswith(_HDF5_SIGNATURE):
        raise FunctionalFileError(f"{path} is not an HDF5 file, so not a functional file")
    arrays: Arrays = {}
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            header = _parse_header(path, file)

            def collect(name: str, node: h5py.Group | h5py.Dataset) -> None:
                if isinstance(node, h5py.Dataset) and name != "header":
                    arrays[name] = _read_array(path, name, node)

            # Visits hard links only: nothing outside the file is ever opened.
            file.visititems(collect)
    except FunctionalFileError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise FunctionalFileError(
            f"{path} is truncated or damaged; get it again ({error})"
        ) from None
    return header, arrays


def _parse_header(path: Path, file: h5py.File) -> Header:
    foreign = FunctionalFileError(f"{path} is an HDF5 file, but not a functional file of cider")
    node = file.get("header")
    if not isinstance(node, h5py.Dataset) or node.shape != () or node.dtype.kind != "S":
        raise foreign
    try:
        header = json.loads(node[()].decode("ascii"))
    except (ValueError, RecursionError):
        raise foreign from None
    if not isinstance(header, dict):
        raise foreign
    return header


def _read_array(path: Path, name: str, node: h5py.Dataset) -> np.ndarray:
    contained = not node.is_virtual and not node.external and node.chunks is None
    # Contiguous storage of full size: a small file cannot ask for a huge array.
    if (
        node.dtype != np.dtype("<f8")
        or not contained
        or node.id.get_storage_size() != 8 * node.size
    ):
        raise FunctionalFileError(
            f"{path}: {name} is not a plain array of 64-bit numbers; the file was not written by "
            "cider"
        )
    values = np.asarray(node[()], dtype=np.float64)
    if not np.all(np.isfinite(values)):
        raise FunctionalFileError(f"{path}: {name} holds NaN or infinity; get the file again")
    return values


def _content_hash(header: Header, arrays: Arrays) -> str:
    text = {key: value for key, value in header.items() if key != "content_sha256"}
    digest = hashlib.sha256(_json(text, sort_keys=True))
    for name in sorted(arrays):
        digest.update(_json([name, list(arrays[name].shape)]))
        digest.update(np.ascontiguousarray(arrays[name], dtype="<f8").tobytes())
    return digest.hexdigest()


def _json(value: Any, **options: Any) -> bytes:
    return json.dumps(value, allow_nan=False, **options).encode("ascii")


def _write_atomically(path: Path, header: Header, arrays: Arrays) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with h5py.File(temporary, "w") as file:
            file["header"] = np.bytes_(_json(header, indent=1))
            for name, values in arrays.items():
                file[name] = np.asarray(values, dtype="<f8", order="C")
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
