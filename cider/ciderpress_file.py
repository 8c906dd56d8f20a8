"""Model files of the package ciderpress, read as data.

Such a file is YAML whose tags name Python classes and functions. Here an explicit list of tags
makes plain records, names and NumPy arrays, also of the tensors of neural networks; every other
tag is refused. Nothing that a file names is imported or called.
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

from cider.torch_storage import read_torch_storage

MAX_BYTES = 64 * 2**20
MAX_DEPTH = 32
MAX_NODES = 20_000
"""Of the file with every alias written out: the largest published model has a thousand."""

_OBJECT = "tag:yaml.org,2002:python/object:"
_NAME = "tag:yaml.org,2002:python/name:"
_APPLY = "tag:yaml.org,2002:python/object/apply:"
_TUPLE = "tag:yaml.org,2002:python/tuple"
_PLAIN = tuple(
    f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "binary")
)

_RECORDS = (
    "ciderpress.dft.xc_evaluator.MappedXC",
    "ciderpress.dft.xc_evaluator.MappedDFTKernel",
    "ciderpress.dft.xc_evaluator.SplineSetEvaluator",
    "ciderpress.dft.xc_evaluator.RBFEvaluator",
    "ciderpress.dft.xc_evaluator.NNEvaluator",
    "ciderpress.dft.xc_evaluator2.MappedXC2",
    "ciderpress.dft.xc_evaluator2.MappedDFTKernel2",
    "ciderpress.dft.xc_torch.XNet",
    "torch.nn.modules.activation.Tanh",
    "torch.nn.modules.container.ModuleList",
    "torch.nn.modules.linear.Linear",
    "ciderpress.dft.transform_data.FeatureList",
    "ciderpress.dft.transform_data.UMap",
    "ciderpress.dft.transform_data.VMap",
    "ciderpress.dft.transform_data.ZMap",
    "ciderpress.dft.transform_data.SLXMap",
    "ciderpress.dft.transform_data.SLTMap",
    "ciderpress.dft.transform_data.SLNMap",
    "ciderpress.dft.settings.FeatureSettings",
    "ciderpress.dft.settings.EmptySettings",
    "ciderpress.dft.settings.SemilocalSettings",
    "ciderpress.dft.settings.NLDFSettingsVJ",
    "ciderpress.dft.settings.SDMXFullSettings",
    "ciderpress.dft.feat_normalizer.FeatNormalizerList",
    "ciderpress.dft.feat_normalizer.ConstantNormalizer",
    "ciderpress.dft.feat_normalizer.DensityNormalizer",
)
_NAMES = (
    "numpy.ndarray",
    "ciderpress.dft.baselines.lda_x",
    "ciderpress.dft.baselines.gga_x_pbe",
    "ciderpress.dft.baselines.gga_x_chachiyo",
    "torch.autograd.grad",
    "torch.cuda.is_available",
    "torch.device",
    "torch.tensor",
)
_NUMPY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_DTYPES: dict[str, np.dtype[Any]] = {
    "f8": np.dtype("<f8"),
    "i8": np.dtype("<i8"),
    "i4": np.dtype("<i4"),
}

_MISSING = {
    "ciderpress.dft.xc_torch.": "neural networks of other kinds",
    "ciderpress.dft.settings.SDMX": "SDMX features of other kinds",
    "ciderpress.dft.settings.SADM": "SDMX features of other kinds",
    "ciderpress.dft.settings.NLDFSettings": "NLDF features of other versions than j",
    "ciderpress.dft.settings.FracLaplSettings": "fractional Laplacian features",
    "ciderpress.dft.settings.HybridSettings": "exact exchange as a feature",
    "ciderpress.dft.feat_normalizer.": "other normalisations than by constants and the density",
    "ciderpress.dft.transform_data.": "other input maps than of single features",
    "ciderpress.dft.xc_evaluator2.": "other energies than MappedDFTKernel2",
    "ciderpress.dft.xc_evaluator.": "other models than splines, networks and sums over points",
    "ciderpress.dft.baselines.": "other baselines than LDA, PBE and Chachiyo exchange",
}
"""What models need that have these names, or names that begin so, and is not there yet."""

_T = TypeVar("_T")


class CiderpressFileError(ValueError):
    """A ciderpress model file that cannot be read; the message says where and why."""


@dataclasses.dataclass(frozen=True)
class Record:
    """An object of a model file: the name of its class, and its fields as data."""

    name: str
    fields: Mapping[str, Any]
    where: str

    def get(self, key: str, kind: type[_T]) -> _T:
        """A field, which must be there and of that type; an int will do for a finite float."""
        value = self.fields.get(key)
        if kind is float and type(value) is int:
            value = float(value)
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise CiderpressFileError(
                f"{self.where}: {self.name} needs a field {key!r} of type {kind.__name__}, but it "
                f"is {type(value).__name__}"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise CiderpressFileError(f"{self.where}: {key!r} is NaN or infinity")
        return value

    def part(self, key: str, name: str) -> "Record":
        """A field, which must be there and an object of that class."""
        return self.checked(self.fields.get(key), name)

    def checked(self, value: Any, name: str) -> "Record":
        """Something that is in it, which must be an object of that class."""
        if not isinstance(value, Record) or value.name != name:
            found = value.name if isinstance(value, Record) else type(value).__name__
            raise CiderpressFileError(f"{self.where}: {self.name} needs {name}, but has {found}")
        return value


def is_tuple_of(kind: type, value: Any) -> bool:
    """Whether it is a tuple of nothing else."""
    return isinstance(value, tuple) and all(type(entry) is kind for entry in value)


def read_ciderpress_file(path: str | os.PathLike[str]) -> Record:
    """The ``MappedXC`` or ``MappedXC2`` of a model file.

    Raises:
        CiderpressFileError: The file is missing, truncated, foreign, or names anything that is
            not a part of a model.
        NotImplementedError: The model needs what is not there yet; the message lists it.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise CiderpressFileError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise CiderpressFileError(f"{path} is larger than {MAX_BYTES} bytes: not a model file")
    try:
        _check_events(path, content)
        model = _construct(path, content)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise CiderpressFileError(
            f"{path} is not a complete YAML file; get it again ({reason})"
        ) from None
    if not isinstance(model, Record) or model.name not in ("MappedXC", "MappedXC2"):
        raise CiderpressFileError(f"{path} is YAML, but not a model file of ciderpress")
    return model


# Before anything is built: tags, depth and size, from the events of the parser.


def _check_events(path: Path, content: bytes) -> None:
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []  # anchor and size of unfinished collections
    missing: dict[str, None] = {}  # in the order of the file

    def add(anchor: str | None, size: int) -> None:
        if anchor is not None:
            sizes[anchor] = size
        if open_nodes:
            parent, own = open_nodes[-1]
            open_nodes[-1] = parent, own + size
            size = own + size
        if size > MAX_NODES:
            raise CiderpressFileError(f"{path} is larger than any model with its aliases expanded")

    for event in yaml.parse(content, Loader=_Loader):
        where = _where(path, event)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise CiderpressFileError(f"{where}: *{event.anchor} refers to no finished part")
            add(None, sizes[event.anchor])
        elif isinstance(event, yaml.NodeEvent):
            need = _check_tag(getattr(event, "tag", None), where)
            if need is not None:
                missing[need] = None
            if isinstance(event, yaml.ScalarEvent):
                add(event.anchor, 1)
            else:
                open_nodes.append((event.anchor, 1))
                if len(open_nodes) > MAX_DEPTH:
                    raise CiderpressFileError(f"{where}: nested deeper than any model")
        elif isinstance(event, yaml.CollectionEndEvent):
            add(*open_nodes.pop())
    if missing:
        raise NotImplementedError(
            f"{path} needs {', '.join(missing)}, which cider does not have yet"
        )


def _check_tag(tag: str | None, where: str) -> str | None:
    """What is missing for a tag; None for known ones."""
    if tag is None or tag in _Loader.yaml_constructors:
        return None
    shown = tag.replace("tag:yaml.org,2002:", "!!")
    kind, _, name = shown.rpartition(":")
    calls_ours = kind.endswith("/apply") and name.startswith("ciderpress.")
    for prefix, need in _MISSING.items():
        if name.startswith(prefix) and not calls_ours:
            return need
    raise CiderpressFileError(
        f"{where}: the tag {shown!r} is no part of a model, so the file is refused; nothing in it "
        "was run"
    )


# Building records.


def _construct(path: Path, content: bytes) -> Any:
    loader = _Loader(content)
    loader.name = str(path)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Builds what is registered below, and nothing else."""

    yaml_constructors: dict[str, Any] = {}  # noqa: RUF012
    yaml_multi_constructors: dict[str, Any] = {}  # noqa: RUF012


def _where(path: Any, part: Any) -> str:
    return f"{path}, line {part.start_mark.line + 1}"


def _plain(loader: Any, node: yaml.Node) -> Any:
    """Numbers, text and the like, as YAML itself has them."""
    build = yaml.SafeLoader.yaml_constructors[node.tag]
    try:
        return build(loader, node)
    except ValueError:
        raise CiderpressFileError(f"{_where(loader.name, node)}: not a number") from None


def _list(loader: Any, node: yaml.Node) -> list[Any]:
    if not isinstance(node, yaml.SequenceNode):
        raise CiderpressFileError(f"{_where(loader.name, node)}: a sequence is expected")
    return [loader.construct_object(child, deep=True) for child in node.value]


def _tuple(loader: Any, node: yaml.Node) -> tuple[Any, ...]:
    return tuple(_list(loader, node))


def _mapping(loader: Any, node: yaml.Node) -> dict[str, Any]:
    """Fields by name, without YAML's merging of mappings."""
    if not isinstance(node, yaml.MappingNode):
        raise CiderpressFileError(f"{_where(loader.name, node)}: a mapping is expected")
    fields: dict[str, Any] = {}
    for key, value in node.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else None
        if name is None or name in fields:
            raise CiderpressFileError(
                f"{_where(loader.name, key)}: the key {name!r} is not expected"
            )
        fields[name] = loader.construct_object(value, deep=True)
    return fields


def _record(loader: Any, node: yaml.Node) -> Record:
    name = node.tag.rpartition(".")[2]
    return Record(name, _mapping(loader, node), _where(loader.name, node))


def _name(loader: Any, node: yaml.Node) -> str:
    if node.value != "":
        raise CiderpressFileError(f"{_where(loader.name, node)}: a name alone is expected")
    return node.tag.removeprefix(_NAME)


def _arguments(loader: Any, node: yaml.Node) -> tuple[list[Any], Any]:
    """What a call would get, and the state that its result would be given."""
    if isinstance(node, yaml.SequenceNode):
        return _list(loader, node), None
    fields = _mapping(loader, node)
    args = fields.pop("args", None)
    state = fields.pop("state", None)
    if fields or not isinstance(args, list):
        raise CiderpressFileError(f"{_where(loader.name, node)}: only args and state are expected")
    return args, state


def _dtype(loader: Any, node: yaml.Node) -> np.dtype[Any]:
    args, state = _arguments(loader, node)
    code = args[0] if args else None
    plain = (3, "<", None, None, None, -1, -1, 0)
    known = _DTYPES.get(code) if isinstance(code, str) else None
    if known is None or args[1:] != [False, True] or state != plain:
        raise CiderpressFileError(
            f"{_where(loader.name, node)}: a data type {code!r}; models have little-endian "
            f"{' and '.join(_DTYPES)}"
        )
    return known


def _scalar(loader: Any, node: yaml.Node) -> int | float:
    args, state = _arguments(loader, node)
    if len(args) != 2 or state is not None:
        raise CiderpressFileError(
            f"{_where(loader.name, node)}: a scalar is a data type and its bytes"
        )
    number: int | float = _from_bytes(_where(loader.name, node), (), *args).item()
    return number


def _array(loader: Any, node: yaml.Node) -> np.ndarray:
    args, state = _arguments(loader, node)
    where = _where(loader.name, node)
    if args != ["numpy.ndarray", (0,), b"b"] or not isinstance(state, tuple) or len(state) != 5:
        raise CiderpressFileError(f"{where}: the parts of an array are incomplete")
    version, shape, dtype, is_fortran, content = state
    if version != 1 or type(is_fortran) is not bool:
        raise CiderpressFileError(f"{where}: an array of an unknown version")
    if is_fortran and isinstance(shape, tuple):
        return _from_bytes(where, shape[::-1], dtype, content).T
    return _from_bytes(where, shape, dtype, content)


def _from_bytes(where: str, shape: Any, dtype: Any, content: Any) -> np.ndarray:
    if not isinstance(dtype, np.dtype) or not isinstance(content, bytes):
        raise CiderpressFileError(f"{where}: an array is a shape, a data type and bytes")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise CiderpressFileError(f"{where}: {shape!r} is no shape")
    if math.prod(shape) * dtype.itemsize != len(content):
        raise CiderpressFileError(
            f"{where}: an array of shape {shape} needs {math.prod(shape) * dtype.itemsize} bytes, "
            f"but there are {len(content)}"
        )
    values = np.frombuffer(content, dtype).reshape(shape)
    if not np.all(np.isfinite(values)):
        raise CiderpressFileError(f"{where}: NaN or infinity")
    return values


# Neural networks: modules are records; what follows makes their tensors arrays.


def _device(loader: Any, node: yaml.Node) -> str:
    args, state = _arguments(loader, node)
    if args != ["cpu"] or state is not None:
        raise CiderpressFileError(f"{_where(loader.name, node)}: {args!r} is no device")
    return "cpu"


def _ordered_dict(loader: Any, node: yaml.Node) -> dict[str, Any]:
    args, state = _arguments(loader, node)
    pairs = args[0] if len(args) == 1 and state is None else None
    if not isinstance(pairs, list) or not all(_is_pair(pair) for pair in pairs):
        raise CiderpressFileError(f"{_where(loader.name, node)}: no ordered dictionary")
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise CiderpressFileError(f"{_where(loader.name, node)}: a key is not expected twice")
    return fields


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def _storage(loader: Any, node: yaml.Node) -> np.ndarray:
    where = _where(loader.name, node)
    args, state = _arguments(loader, node)
    if len(args) != 1 or not isinstance(args[0], bytes) or state is not None:
        raise CiderpressFileError(f"{where}: a storage of a tensor is given by bytes")
    try:
        return read_torch_storage(args[0])
    except ValueError as error:
        raise CiderpressFileError(f"{where}: {error}; nothing in it was run") from None


def _tensor(loader: Any, node: yaml.Node) -> np.ndarray:
    """A tensor that fills its storage, row after row, as the parameters of a network do."""
    where = _where(loader.name, node)
    args, state = _arguments(loader, node)
    if len(args) != 6 or not isinstance(args[0], np.ndarray) or state is not None:
        raise CiderpressFileError(f"{where}: the parts of a tensor are incomplete")
    storage, offset, shape, strides, _, _ = args
    values = _from_bytes(where, shape, storage.dtype, storage.tobytes())
    if offset != 0 or strides != tuple(step // values.itemsize for step in values.strides):
        raise CiderpressFileError(f"{where}: a tensor of strides {strides!r} from {offset!r} on")
    return values


def _parameter(loader: Any, node: yaml.Node) -> np.ndarray:
    args, state = _arguments(loader, node)
    if len(args) != 3 or not isinstance(args[0], np.ndarray) or state is not None:
        raise CiderpressFileError(f"{_where(loader.name, node)}: a parameter is a tensor")
    return args[0]


for _tag in _PLAIN:
    _Loader.add_constructor(_tag, _plain)
_Loader.add_constructor("tag:yaml.org,2002:seq", _list)
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_constructor("tag:yaml.org,2002:set", _mapping)
_Loader.add_constructor(_TUPLE, _tuple)
_Loader.add_constructor(f"{_APPLY}numpy.dtype", _dtype)
for _module in _NUMPY_MODULES:
    _Loader.add_constructor(f"{_APPLY}{_module}._reconstruct", _array)
    _Loader.add_constructor(f"{_APPLY}{_module}.scalar", _scalar)
_Loader.add_constructor(f"{_APPLY}collections.OrderedDict", _ordered_dict)
_Loader.add_constructor(f"{_APPLY}torch.device", _device)
_Loader.add_constructor(f"{_APPLY}torch.storage._load_from_bytes", _storage)
_Loader.add_constructor(f"{_APPLY}torch._utils._rebuild_tensor_v2", _tensor)
_Loader.add_constructor(f"{_APPLY}torch._utils._rebuild_parameter", _parameter)
for _known in _RECORDS:
    _Loader.add_constructor(f"{_OBJECT}{_known}", _record)
for _known in _NAMES:
    _Loader.add_constructor(f"{_NAME}{_known}", _name)
