"""A crash-safe store: the folder of one run, with one small HDF5 file per finished record.

HDF5 itself does not survive a process killed in the middle of a write, so no file is ever written
twice. A record is built in memory, written to ``<folder>/<part>/<name>.<process>.partial``, flushed
to the disk and renamed to ``<name>.h5``; a rename is atomic. Whatever happens, a ``.h5`` file is
either absent or complete, other records are never touched, and any number of workers write without
locks. The first 512 bytes of a file (HDF5's user block, which HDF5 readers skip) hold a
checksum of the rest. :meth:`Store.assemble` copies everything into a single HDF5 file, one group
per record, for those who want to pass a run on.
"""

import dataclasses
import errno
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

FORMAT_VERSION = 1
_USER_BLOCK = 512
_MAGIC = b"cider-record sha256="
_KEY = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9_+.-]*/)*[A-Za-z0-9][A-Za-z0-9_+.-]*")


class StoreError(Exception):
    """A store or a record of it cannot be used; the message names the file and the remedy."""


class ForeignStoreError(StoreError):
    """A store or record belongs to another recipe."""


class CorruptedRecordError(StoreError):
    """A record is truncated or altered."""


class DiskFullError(StoreError):
    """The disk is full. Finished records are intact."""


@dataclasses.dataclass(frozen=True)
class Record:
    """Named arrays and JSON-ready facts about one system."""

    key: str
    arrays: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_hash(value: Any) -> str:
    """SHA-256 (16 hexadecimal digits) of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


class Store:
    """The records of one run in ``folder``, made by one recipe.

    ``recipe`` is the JSON-ready description of everything that determines the records' contents;
    a folder that holds another one is refused. Without a recipe an existing store is opened as it
    is.

    Raises:
        ForeignStoreError: The folder's records were made by another recipe, or the folder is
            something else.
        StoreError: The folder holds no store and no recipe was given.
    """

    def __init__(self, folder: str | os.PathLike[str], recipe: Mapping[str, Any] | None = None):
        self.folder = Path(folder)
        header_file = self.folder / "header.json"
        if header_file.exists():
            self.header = self._read_header(header_file)
            if recipe is not None and content_hash(recipe) != self.header["recipe_hash"]:
                raise ForeignStoreError(
                    f"{self.folder} was made by another recipe ({self._differences(recipe)}); "
                    "choose another output folder or delete this one"
                )
        elif recipe is None:
            raise StoreError(f"{self.folder} holds no training store (no header.json)")
        else:
            if self.folder.exists() and next(self.folder.rglob("*.h5"), None) is not None:
                raise ForeignStoreError(
                    f"{self.folder} holds HDF5 files but no header.json, so it is not known which "
                    "recipe made them; choose another output folder"
                )
            self.header = {
                "format": "cider training store",
                "version": FORMAT_VERSION,
                "recipe_hash": content_hash(recipe),
                "recipe": json.loads(canonical_json(recipe)),
            }
            _write_atomically(header_file, json.dumps(self.header, indent=1).encode())

    @property
    def recipe_hash(self) -> str:
        """Hash of the recipe that every record of this store carries."""
        return str(self.header["recipe_hash"])

    def path(self, key: str) -> Path:
        """The file of the record ``key``, written or not."""
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} cannot name a record: use letters, digits and _ + . - /")
        return self.folder / f"{key}.h5"

    def __contains__(self, key: str) -> bool:
        return self.path(key).exists()

    def keys(self, prefix: str = "") -> list[str]:
        """The keys of all finished records that start with ``prefix``, sorted.

        Unfinished ``.partial`` files do not count.
        """
        paths = (path.relative_to(self.folder) for path in self.folder.rglob("*.h5"))
        names = (path.as_posix().removesuffix(".h5") for path in paths)
        return sorted(name for name in names if name.startswith(prefix))

    def __len__(self) -> int:
        return len(self.keys())

    def records(self, prefix: str = "") -> Iterator[Record]:
        """The records of :meth:`keys`, read and verified one by one."""
        return (self.read(key) for key in self.keys(prefix))

    def write(self, record: Record) -> None:
        """Put a record on the disk, whole or not at all.

        Raises:
            DiskFullError: There is no space left; nothing else is lost.
        """
        meta = {"recipe_hash": self.recipe_hash, "key": record.key, "facts": dict(record.facts)}
        buffer = io.BytesIO()
        with h5py.File(buffer, "w", userblock_size=_USER_BLOCK) as file:
            file.attrs["header"] = canonical_json(meta)
            for name, array in record.arrays.items():
                file.create_dataset(name, data=np.asarray(array), track_times=False)
        body = buffer.getvalue()[_USER_BLOCK:]
        block = _MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n"
        _write_atomically(self.path(record.key), block.ljust(_USER_BLOCK, b"\0") + body)

    def read(self, key: str) -> Record:
        """The record ``key``, once its checksum and its recipe have been verified.

        Raises:
            KeyError: There is no such record.
            CorruptedRecordError: The file is truncated or altered.
            ForeignStoreError: The record was copied here from the store of another recipe.
        """
        path = self.path(key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise KeyError(f"{self.folder} has no record {key!r}") from None
        block, body = content[:_USER_BLOCK], content[_USER_BLOCK:]
        if not block.startswith(_MAGIC):
            raise ForeignStoreError(f"{path} was not written by cider-train; remove it")
        written = block[len(_MAGIC) :].split(b"\n")[0].decode("ascii", "replace")
        if hashlib.sha256(body).hexdigest() != written:
            raise CorruptedRecordError(
                f"{path} is truncated or altered; delete it and run again to recompute {key!r}"
            )
        with h5py.File(io.BytesIO(content), "r") as file:
            header = json.loads(file.attrs["header"])
            arrays = {name: dataset[()] for name, dataset in file.items()}
        if header["recipe_hash"] != self.recipe_hash or header["key"] != key:
            raise ForeignStoreError(
                f"{path} is {header['key']!r} of recipe {header['recipe_hash']}, "
                f"not {key!r} of {self.recipe_hash}; remove it and run again"
            )
        return Record(key, arrays, header["facts"])

    def discard(self, key: str) -> None:
        """Remove the record ``key``, so that the next run makes it anew."""
        self.path(key).unlink(missing_ok=True)

    def sweep(self) -> int:
        """Remove what killed writers left behind; the number of files removed.

        Only for a moment at which nobody writes to the store.
        """
        left = list(self.folder.rglob("*.partial"))
        for path in left:
            path.unlink(missing_ok=True)
        return len(left)

    def assemble(self, path: str | os.PathLike[str]) -> None:
        """Copy all records into the single HDF5 file ``path``, one group per record."""
        target = Path(path)
        partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
        with h5py.File(partial, "w") as file:
            file.attrs["header"] = canonical_json(self.header)
            for record in self.records():
                group = file.create_group(record.key)
                group.attrs["facts"] = canonical_json(record.facts)
                for name, array in record.arrays.items():
                    group.create_dataset(name, data=array, track_times=False)
        partial.replace(target)

    def _read_header(self, path: Path) -> dict[str, Any]:
        try:
            header = json.loads(path.read_text())
            version = int(header["version"])
            known = header["format"] == "cider training store" and header["recipe_hash"]
        except (ValueError, KeyError, TypeError):
            raise CorruptedRecordError(f"{path} cannot be read; is it a training store?") from None
        if not known:
            raise ForeignStoreError(f"{path} does not describe a training store")
        if version > FORMAT_VERSION:
            raise ForeignStoreError(
                f"{path} has format version {version}, newer than {FORMAT_VERSION}: update cider"
            )
        return dict(header)

    def _differences(self, recipe: Mapping[str, Any]) -> str:
        ours, theirs = self.header["recipe"], json.loads(canonical_json(recipe))
        names = [n for n in sorted({*ours, *theirs}) if ours.get(n) != theirs.get(n)]
        return ", ".join(f"{n}: {ours.get(n)!r} there, {theirs.get(n)!r} here" for n in names)


def _write_atomically(path: Path, content: bytes) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        # The new name itself must reach the disk before the record counts as finished.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"no space left for {path}; finished systems are intact: free some space and run "
                "the same command again"
            ) from error
        raise
