"""The store loses no finished record and refuses what is not its own."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from cider.training.store import (
    CorruptedRecordError,
    DiskFullError,
    ForeignStoreError,
    Record,
    Store,
    StoreError,
)

RECIPE = {"basis": "sto-3g", "level": 1}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "run", RECIPE)


def record(key="reference/PBE/H2", value=1.0):
    return Record(key, {"dm": np.full((1, 2, 2), value)}, {"status": "converged", "e": value})


def test_round_trip_is_exact(store):
    store.write(record(value=np.pi))
    read = Store(store.folder).read("reference/PBE/H2")
    np.testing.assert_array_equal(read.arrays["dm"], np.full((1, 2, 2), np.pi))
    assert read.facts == {"status": "converged", "e": np.pi}
    assert "reference/PBE/H2" in store and store.keys("reference/HF") == []


def test_records_are_plain_hdf5(store):
    store.write(record())
    with h5py.File(store.path("reference/PBE/H2")) as file:
        assert file["dm"].shape == (1, 2, 2)
        assert json.loads(file.attrs["header"])["key"] == "reference/PBE/H2"


def test_equal_records_are_equal_bytes(store):
    store.write(record())
    first = store.path("reference/PBE/H2").read_bytes()
    store.write(record())
    assert store.path("reference/PBE/H2").read_bytes() == first


def test_another_recipe_is_refused(store):
    with pytest.raises(ForeignStoreError, match="basis: 'sto-3g' there, 'def2-svp' here"):
        Store(store.folder, {**RECIPE, "basis": "def2-svp"})
    assert Store(store.folder, RECIPE).recipe_hash == store.recipe_hash


def test_folders_that_are_no_store_are_refused(tmp_path):
    with pytest.raises(StoreError, match="holds no training store"):
        Store(tmp_path)
    (tmp_path / "a.h5").write_bytes(b"")
    with pytest.raises(ForeignStoreError, match="no header"):
        Store(tmp_path, RECIPE)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "x", "version": 1}'])
def test_broken_headers_are_refused(tmp_path, content):
    (tmp_path / "header.json").write_text(content)
    with pytest.raises(StoreError, match=r"header\.json"):
        Store(tmp_path, RECIPE)


def test_newer_stores_are_refused(store):
    header = store.folder / "header.json"
    header.write_text(json.dumps({**json.loads(header.read_text()), "version": 99}))
    with pytest.raises(ForeignStoreError, match="newer"):
        Store(store.folder)


@pytest.mark.parametrize("length", [0, 100, 600, -1])
def test_truncated_records_are_named(store, length):
    store.write(record())
    path = store.path("reference/PBE/H2")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(StoreError, match=r"H2\.h5"):
        store.read("reference/PBE/H2")


def test_altered_records_are_named(store):
    store.write(record())
    path = store.path("reference/PBE/H2")
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptedRecordError, match=r"H2\.h5 is truncated or altered"):
        store.read("reference/PBE/H2")


def test_records_of_another_store_are_refused(store, tmp_path):
    other = Store(tmp_path / "other", {**RECIPE, "level": 2})
    other.write(record())
    path = store.path("reference/PBE/H2")
    path.parent.mkdir(parents=True)
    path.write_bytes(other.path("reference/PBE/H2").read_bytes())
    with pytest.raises(ForeignStoreError, match=f"of recipe {other.recipe_hash}"):
        store.read("reference/PBE/H2")


def test_a_renamed_record_is_refused(store):
    store.write(record())
    store.path("reference/PBE/H2").rename(store.path("reference/PBE/N2"))
    with pytest.raises(ForeignStoreError, match="not 'reference/PBE/N2'"):
        store.read("reference/PBE/N2")


def test_a_missing_record_is_named(store):
    with pytest.raises(KeyError, match="no record 'reference/PBE/H2'"):
        store.read("reference/PBE/H2")


@pytest.mark.parametrize("key", ["../H2", "a//b", "/H2", "a b", ""])
def test_keys_stay_inside_the_folder(store, key):
    with pytest.raises(ValueError, match="cannot name a record"):
        store.path(key)


def test_a_full_disk_loses_nothing(store, monkeypatch):
    store.write(record())

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskFullError, match="finished systems are intact"):
            store.write(record("reference/PBE/N2"))
    assert store.keys() == ["reference/PBE/H2"]
    assert store.read("reference/PBE/H2").facts["e"] == 1.0
    assert not list(store.folder.rglob("*.partial"))


def test_killed_in_the_middle_of_writes(store):
    """A process that writes without pause is killed again and again: every record is whole."""
    script = (
        "import sys, numpy as np\n"
        "from cider.training.store import Record, Store\n"
        "store = Store(sys.argv[1])\n"
        "for i in range(10**6):\n"
        "    array = np.random.default_rng(i).random((200, 200))\n"
        "    store.write(Record(f'r/{i % 7}', {'a': array}, {'i': i}))\n"
        "    if i == 0:\n"
        "        print('ready', flush=True)\n"
    )
    for pause in (0.05, 0.11, 0.17):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(store.folder)], stdout=subprocess.PIPE
        )
        process.stdout.readline()
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert store.keys()
        for read in store.records():
            expected = np.random.default_rng(read.facts["i"]).random((200, 200))
            np.testing.assert_array_equal(read.arrays["a"], expected)
    store.sweep()
    assert not list(store.folder.rglob("*.partial"))


def test_assembly_into_one_file(store, tmp_path):
    store.write(record())
    store.write(record("reference/PBE/N2", 2.0))
    store.assemble(tmp_path / "all.h5")
    with h5py.File(tmp_path / "all.h5") as file:
        group = file["reference/PBE/N2"]
        assert group["dm"][0, 0, 0] == 2.0
        assert json.loads(group.attrs["facts"])["status"] == "converged"
        assert json.loads(file.attrs["header"])["recipe_hash"] == store.recipe_hash
