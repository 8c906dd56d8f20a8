"""Functional files: what was saved comes back bit for bit, and nothing else is accepted."""

import json
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import h5py
import jax
import numpy as np
import pytest
from toy_functionals import (
    toy_exchange,
    toy_network_exchange,
    toy_nldf,
    toy_spline_exchange,
    toy_xc,
)

from cider import files
from cider.features.nldf import NldfExponent
from cider.files import (
    FunctionalFileError,
    load_functional,
    load_posterior,
    read_header,
    save_functional,
)

PROVENANCE = {"recipe": {"seed": 3}, "errors": {"AEX": 1.25}, "systems": ["H2O", "CH4"]}
KINDS = {
    "gga": lambda: toy_exchange("GGA"),
    "mgga": lambda: toy_exchange("MGGA"),
    "nldf": lambda: toy_exchange("MGGA", toy_nldf()),
    "spline": lambda: toy_spline_exchange("MGGA", toy_nldf()),
    "networks": lambda: toy_network_exchange("MGGA", toy_nldf()),
    "exchange and correlation": lambda: toy_xc(toy_nldf()),
}


VERSION_1 = Path(__file__).parent / "files" / "format_version_1.h5"
VERSION_2 = Path(__file__).parent / "files" / "format_version_2.h5"


def _descriptors(header: files.Header) -> files.Header:
    return header["functional"]["descriptors"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "toy.h5"
    posterior = {"factor": np.arange(6.0).reshape(2, 3)}
    save_functional(path, toy_exchange("MGGA", toy_nldf()), PROVENANCE, posterior)
    return path


def _rewrite(path: Path, change_header=None, change_file=None) -> None:
    """Edit a file as someone would who also computes the hash again."""
    with h5py.File(path, "r+") as file:
        if change_file is not None:
            change_file(file)
        header = json.loads(file["header"][()])
        if change_header is not None:
            change_header(header)
        arrays = {}
        file.visititems(
            lambda name, node: (
                arrays.update({name: node[()]})
                if isinstance(node, h5py.Dataset) and name != "header"
                else None
            )
        )
        header["content_sha256"] = files._content_hash(header, arrays)
        del file["header"]
        file["header"] = np.bytes_(json.dumps(header))


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_is_bit_identical(kind: str, tmp_path: Path) -> None:
    exchange = KINDS[kind]()
    save_functional(tmp_path / "f.h5", exchange, PROVENANCE)
    loaded = load_functional(tmp_path / "f.h5")
    assert jax.tree.structure(loaded) == jax.tree.structure(exchange)
    for ours, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(exchange), strict=True):
        assert isinstance(ours, np.ndarray) and ours.dtype == np.float64
        assert ours.tobytes() == theirs.tobytes() and ours.shape == theirs.shape


def test_header_and_posterior(path: Path) -> None:
    header = read_header(path)
    assert header["provenance"] == PROVENANCE
    assert header["functional"]["name"] == "toy"
    assert header["units"] == "Hartree atomic units"
    np.testing.assert_array_equal(load_posterior(path)["factor"], [[0, 1, 2], [3, 4, 5]])


def test_same_content_gives_same_bytes(path: Path, tmp_path: Path) -> None:
    save_functional(tmp_path / "again.h5", load_functional(path), PROVENANCE, load_posterior(path))
    assert (tmp_path / "again.h5").read_bytes() == path.read_bytes()


def test_saving_replaces_in_one_step(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_functional(path, toy_exchange("GGA"), {})
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_loading_leaves_jax_as_it_was(path: Path) -> None:
    """Double precision in a fresh process, where JAX's default is single."""
    code = f"""
import jax
from cider.files import load_functional
leaves = jax.tree.leaves(load_functional({str(path)!r}))
assert all(leaf.dtype == "float64" for leaf in leaves)
assert not jax.config.jax_enable_x64
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_provenance_must_be_json(tmp_path: Path) -> None:
    for provenance in ({"error": float("nan")}, {"data": {1, 2}}, {"array": np.zeros(2)}):
        with pytest.raises(ValueError, match="provenance must be plain JSON"):
            save_functional(tmp_path / "f.h5", toy_exchange("GGA"), provenance)
    assert not list(tmp_path.iterdir())


def test_infinite_weights_are_not_written(tmp_path: Path) -> None:
    exchange = toy_exchange("GGA")
    broken = eqx.tree_at(
        lambda e: e.terms[0].model.quadratic_form, exchange, replace_fn=lambda q: q * np.nan
    )
    with pytest.raises(ValueError, match=r"terms/0/model/quadratic_form holds NaN"):
        save_functional(tmp_path / "f.h5", broken, {})


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FunctionalFileError, match=r"does not exist.*cider list"):
        load_functional(tmp_path / "no.h5")
    with pytest.raises(FunctionalFileError, match="cannot be read"):
        load_functional(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"version https://git-lfs"])
def test_not_hdf5(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "f.h5").write_bytes(content)
    with pytest.raises(FunctionalFileError, match="not an HDF5 file"):
        load_functional(tmp_path / "f.h5")


@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.7, 0.999])
def test_truncated(fraction: float, path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(FunctionalFileError, match="truncated or damaged"):
        load_functional(path)


def test_every_changed_byte_is_noticed_or_harmless(path: Path) -> None:
    """Flipped bits are refused, or lie where the file stores nothing."""
    content, original = path.read_bytes(), load_functional(path)
    for position in np.random.default_rng(1).integers(len(content), size=60):
        changed = bytearray(content)
        changed[position] ^= 0x10
        path.write_bytes(bytes(changed))
        try:
            loaded = load_functional(path)
        except FunctionalFileError:
            continue
        assert eqx.tree_equal(loaded, original)


def test_foreign_hdf5(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["density"] = np.zeros(3)
    with pytest.raises(FunctionalFileError, match="not a functional file of cider"):
        load_functional(tmp_path / "f.h5")
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["header"] = np.bytes_(b'{"format": "something else"}')
    with pytest.raises(FunctionalFileError, match="not a functional file of cider"):
        read_header(tmp_path / "f.h5")


def test_newer_format_version(path: Path) -> None:
    _rewrite(path, lambda header: header.update(format_version=files.FORMAT_VERSION + 1))
    with pytest.raises(FunctionalFileError, match=r"reads up to 3; update it"):
        load_functional(path)


def test_file_of_version_1() -> None:
    """One exchange energy; the file was written by the code that had no other."""
    expected = toy_exchange("GGA", toy_nldf(), gradient_cutoff=None)
    assert eqx.tree_equal(load_functional(VERSION_1), expected)
    np.testing.assert_array_equal(load_posterior(VERSION_1)["factor"], [0, 1])


def test_file_of_version_2() -> None:
    """The functional is the same whatever ladder the file was made with."""
    with h5py.File(VERSION_2) as file:
        assert _descriptors(json.loads(file["header"][()]))["nldf"]["ladder_ratio"] == 1.8
    expected = toy_exchange("MGGA", toy_nldf(), gradient_cutoff=None)
    assert eqx.tree_equal(load_functional(VERSION_2), expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda functional: functional.pop("baseline"),
        lambda functional: functional.pop("name"),
        lambda functional: functional.update(descriptors=None),
        lambda functional: functional.update(transform=[]),
    ],
)
def test_damaged_file_of_version_1(change, tmp_path: Path) -> None:
    (tmp_path / "f.h5").write_bytes(VERSION_1.read_bytes())
    _rewrite(tmp_path / "f.h5", lambda header: change(header["functional"]))
    with pytest.raises(FunctionalFileError):
        load_functional(tmp_path / "f.h5")


@pytest.mark.parametrize("nldf", [[], "none", {}])
def test_damaged_file_of_version_2(nldf, tmp_path: Path) -> None:
    (tmp_path / "f.h5").write_bytes(VERSION_2.read_bytes())
    _rewrite(tmp_path / "f.h5", lambda header: _descriptors(header).update(nldf=nldf))
    with pytest.raises(FunctionalFileError):
        load_functional(tmp_path / "f.h5")


def test_older_format_version_is_upgraded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(header: files.Header, arrays: files.Arrays) -> tuple[files.Header, files.Arrays]:
        return header | {"functional": header["functional"] | {"name": "upgraded"}}, arrays

    monkeypatch.setattr(files, "FORMAT_VERSION", 4)
    monkeypatch.setattr(files, "_UPGRADES", {3: rename})
    assert load_functional(path).name == "upgraded"


def test_hash_mismatch(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["terms/0/model/anchor"][0] += 1e-3
    with pytest.raises(FunctionalFileError, match="does not match its hash"):
        load_functional(path)


def test_other_constants_of_the_code(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NldfExponent, "FLOOR", 0.005)
    with pytest.raises(FunctionalFileError, match=r"descriptors.nldf.floor: 0.004 in the file"):
        load_functional(path)


def test_wrong_shape(path: Path) -> None:
    def shorten(file: h5py.File) -> None:
        values = file["terms/0/transform/semilocal_mean"][:1]
        del file["terms/0/transform/semilocal_mean"]
        file["terms/0/transform/semilocal_mean"] = values

    _rewrite(path, change_file=shorten)
    with pytest.raises(FunctionalFileError, match=r"semilocal_mean has shape \(1,\).* need \(2,\)"):
        load_functional(path)


def test_missing_or_surplus_array(path: Path) -> None:
    _rewrite(
        path, change_file=lambda file: file.move("terms/0/model/anchor", "terms/0/model/anker")
    )
    with pytest.raises(FunctionalFileError, match=r"do not fit.*model/anchor.*model/anker"):
        load_functional(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda functional: functional.pop("terms"),
        lambda functional: functional.update(name=3),
        lambda functional: functional["terms"][0].update(baseline="B3LYP"),
        lambda functional: functional["terms"][0].update(gradient_cutoff=0.0),
        lambda functional: functional["terms"][0].update(gradient_cutoff="400"),
        lambda functional: functional["descriptors"].update(level="LDA"),
        lambda functional: functional["descriptors"]["nldf"].update(exponents=[]),
        lambda functional: functional["descriptors"]["nldf"]["exponents"][0].update(A=-1.0),
        lambda functional: functional["descriptors"]["nldf"]["exponents"][0].update(D=1.0),
        lambda functional: functional["descriptors"]["nldf"].update(version="k"),
        lambda functional: functional["terms"][0]["model"].update(kind="decision tree"),
    ],
)
def test_other_specification(change, path: Path) -> None:
    _rewrite(path, lambda header: change(header["functional"]))
    with pytest.raises(FunctionalFileError):
        load_functional(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda functional: functional["terms"][0]["transform"].update(powers=[1, 2]),
        lambda functional: functional["terms"][0]["transform"].update(powers=[1, 3, 1, 1, 1]),
        lambda functional: functional["terms"][0]["model"]["knots"].pop(),
        lambda functional: functional["terms"][0]["model"]["knots"][0].update(count=4),
        lambda functional: functional["terms"][0]["model"]["knots"][0].update(count=5.0),
        lambda functional: functional["terms"][0]["model"]["knots"][0].update(low=2.0),
        lambda functional: functional["terms"][0]["model"]["terms"].pop(),
        lambda functional: functional["terms"][0]["model"]["terms"].append([5]),
        lambda functional: functional["terms"][0]["model"]["terms"].__setitem__(0, [0.0]),
    ],
)
def test_other_specification_of_a_spline(change, tmp_path: Path) -> None:
    save_functional(tmp_path / "f.h5", toy_spline_exchange("MGGA", toy_nldf()), {})
    _rewrite(tmp_path / "f.h5", lambda header: change(header["functional"]))
    with pytest.raises(FunctionalFileError):
        load_functional(tmp_path / "f.h5")


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.update(members=2),
        lambda model: model.update(members=0),
        lambda model: model.update(members=3.0),
        lambda model: model.update(hidden=[5]),
        lambda model: model.update(hidden=[]),
        lambda model: model.update(hidden=[5, 4.0]),
        lambda model: model.update(bound=-1.0),
        lambda model: model.update(bound="1"),
        lambda model: model.pop("bound"),
    ],
)
def test_other_specification_of_networks(change, tmp_path: Path) -> None:
    save_functional(tmp_path / "f.h5", toy_network_exchange(), {})
    _rewrite(tmp_path / "f.h5", lambda header: change(header["functional"]["terms"][0]["model"]))
    with pytest.raises(FunctionalFileError):
        load_functional(tmp_path / "f.h5")


@pytest.mark.parametrize(
    "change",
    [
        lambda functional: functional.update(terms=[]),
        lambda functional: functional.update(terms={}),
        lambda functional: functional["terms"].pop(),
        lambda functional: functional["terms"].append({}),
        lambda functional: functional["terms"].reverse(),
        lambda functional: functional["descriptors"].update(kinetic="beta"),
        lambda functional: functional["descriptors"].pop("kinetic"),
        lambda functional: functional["terms"][0].update(kind="dispersion"),
        lambda functional: functional["terms"][0].update(kind="correlation"),
        lambda functional: functional["terms"][1].update(kind="exchange"),
        lambda functional: functional["terms"][1].update(baseline="GGA_X_PBE"),
        lambda functional: functional["terms"][1].update(density_scale=-1.0),
        lambda functional: functional["terms"][1].update(density_scale="2.5"),
        lambda functional: functional["terms"][1].pop("density_scale"),
        lambda functional: functional["terms"][1]["model"].update(control_points=8),
        lambda functional: functional["terms"][1]["model"].update(control_points=9.0),
        lambda functional: functional["terms"][1]["model"].update(control_points=0),
        lambda functional: functional["terms"][1]["model"].pop("control_points"),
    ],
)
def test_other_specification_of_exchange_and_correlation(change, tmp_path: Path) -> None:
    save_functional(tmp_path / "f.h5", toy_xc(), {})
    _rewrite(tmp_path / "f.h5", lambda header: change(header["functional"]))
    with pytest.raises(FunctionalFileError):
        load_functional(tmp_path / "f.h5")


def test_exponents_of_a_radial_basis_are_positive(tmp_path: Path) -> None:
    save_functional(tmp_path / "f.h5", toy_xc(), {})

    def turn(file: h5py.File) -> None:
        file["terms/1/model/exponents"][0] *= -1

    _rewrite(tmp_path / "f.h5", change_file=turn)
    with pytest.raises(FunctionalFileError, match="must be positive"):
        load_functional(tmp_path / "f.h5")


def test_nothing_outside_the_file_is_read(path: Path, tmp_path: Path) -> None:
    """A link to another file is as good as no array."""
    other = tmp_path / "other.h5"
    other.write_bytes(path.read_bytes())

    def link(file: h5py.File) -> None:
        del file["terms/0/model/anchor"]
        file["terms/0/model/anchor"] = h5py.ExternalLink(str(other), "terms/0/model/anchor")

    _rewrite(path, change_file=link)
    with pytest.raises(FunctionalFileError, match="model/anchor"):
        load_functional(path)


def test_small_file_cannot_ask_for_much_memory(path: Path) -> None:
    def declare(file: h5py.File) -> None:
        file.create_dataset("posterior/bomb", shape=(10**6, 10**6), dtype="<f8", chunks=(100, 100))

    with h5py.File(path, "r+") as file:
        declare(file)
    with pytest.raises(FunctionalFileError, match="posterior/bomb is not a plain array"):
        load_functional(path)
