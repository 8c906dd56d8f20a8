"""Tensor storages that PyTorch saved, read as data.

Such a stream (``torch.save`` before PyTorch 1.6, and ``torch.storage._load_from_bytes``) is five
pickles, then the number of elements as int64, then the elements. The pickles hold a magic number,
a version, properties of the machine, a reference to the storage, and the key of the storage. They
are not unpickled: their instructions are listed, and any that does more than hold data is refused.
"""

import io
import itertools
import pickletools
from typing import Any

import numpy as np

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_DTYPES: dict[Any, np.dtype[Any]] = {
    "torch DoubleStorage": np.dtype("<f8"),
    "torch FloatStorage": np.dtype("<f4"),
    "torch LongStorage": np.dtype("<i8"),
}

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = ("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "GLOBAL")
_STRUCTURE = (
    *("PROTO", "STOP", "MARK", "BINPUT", "TUPLE", "BINPERSID"),
    *("EMPTY_DICT", "SETITEMS", "EMPTY_LIST", "APPEND"),
)
"""Instructions of a pickle that hold values or tell how they are nested."""


def read_torch_storage(content: bytes) -> np.ndarray:
    """The elements of the one storage, one-dimensional.

    Raises:
        ValueError: The content is truncated, of another kind, or a pickle in it would do more
            than hold data; the message says what.
    """
    stream = io.BytesIO(content)
    magic, version, machine, reference, keys = (_values(stream) for _ in range(5))
    if magic != [_MAGIC] or version != [_VERSION]:
        raise ValueError("no storage of torch.save")
    if ("little_endian", True) not in itertools.pairwise(machine):
        raise ValueError("a storage of a big-endian machine")
    if len(reference) != 6 or reference[0] != "storage" or reference[1] not in _DTYPES:
        raise ValueError(f"{reference[1:2]} is not one of {', '.join(_DTYPES)}")
    _, kind, key, _, count, view = reference
    if keys != [key] or view is not None or type(count) is not int:
        raise ValueError("the reference to the storage is damaged")
    stored, elements = stream.read(8), stream.read()
    dtype = _DTYPES[kind]
    if (
        int.from_bytes(stored, "little", signed=True) != count
        or len(elements) != count * dtype.itemsize
    ):
        raise ValueError(f"a storage of {count} elements in {len(elements)} bytes")
    return np.frombuffer(elements, dtype)


def _values(stream: io.BytesIO) -> list[Any]:
    """Numbers, text and names of the next pickle, in their order, without their nesting."""
    values = []
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in _CONSTANTS:
            values.append(_CONSTANTS[opcode.name])
        elif opcode.name in _VALUES:
            values.append(argument)
        elif opcode.name not in _STRUCTURE:
            raise ValueError(f"a pickle that does more than hold data ({opcode.name})")
    return values
