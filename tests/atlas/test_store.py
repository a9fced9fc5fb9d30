"""Reading a store: rows as they were written, in bounded blocks, without the builder."""

import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_cases import reference, write_store

from celler.atlas._store import GAP, Store, pieces, read_manifest, require_engine


@pytest.fixture(scope="module")
def cells():
    return reference(1500, ["a", "b"])


@pytest.fixture(scope="module")
def store(cells, tmp_path_factory):
    pytest.importorskip("annbatch")
    return Store(write_store(tmp_path_factory.mktemp("store"), cells, n_datasets=3))


def test_opening_a_store_does_not_load_the_builder():
    code = """
import sys
import celler.atlas._datamodule, celler.atlas._annotations
print("loaded:", *sorted(name for name in sys.modules if name.startswith("celler.atlas._")))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = {name.removeprefix("celler.atlas.") for name in done.stdout.split()[1:]}
    assert loaded == {"_annotations", "_checksums", "_datamodule", "_place", "_store"}


def test_parts_are_the_rows_of_each_part_in_its_order(store, cells, rng):
    """Blocks that cross the three datasets, in parts that overlap, repeat rows and go backwards."""
    blocks = [
        [rng.permutation(1500)[:200], np.array([1499, 0, 700])],
        [np.array([5])],
        [np.arange(900, 300, -7), np.array([600, 600, 2]), rng.integers(0, 1500, 50)],
    ]
    found = list(store.parts(blocks))
    for part, index in zip(found, [part for block in blocks for part in block], strict=True):
        np.testing.assert_array_equal(part.index, index)
        np.testing.assert_array_equal(part.X.toarray(), cells.X[index].toarray())


def test_parts_of_several_threads_are_each_their_own(store, cells):
    found = {}

    def read(number):
        rng = np.random.default_rng(number)
        wanted = [rng.integers(0, 1500, 30) for _ in range(20)]
        parts = list(store.stream(wanted))
        found[number] = all(
            np.array_equal(part.index, index) and np.array_equal(part.X.toarray(), cells.X[index].toarray())
            for part, index in zip(parts, wanted, strict=True)
        )

    threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(4), True)


def test_parts_without_blocks_are_none(store):
    assert list(store.parts([])) == []
    assert store.counts(np.empty(0, np.int64)).shape == (0, len(store.genes))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 500), st.integers(0, 1000))
def test_pieces_cover_the_rows_in_bounded_blocks(n, step, seed):
    index = np.cumsum(np.random.default_rng(seed).integers(1, step + 1, n))
    found = list(pieces(index, 700))
    np.testing.assert_array_equal(np.concatenate(found), index)
    for part in found:
        gaps = np.diff(part)
        assert 1 + np.where(gaps <= GAP, gaps, 1).sum() <= 700 + GAP


def test_pieces_of_no_rows():
    assert list(pieces(np.empty(0, np.int64))) == []


def test_read_manifest_of_another_format(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no store.*cl\.atlas\.build writes one"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": "celler-atlas", "version": 3}')
    with pytest.raises(ValueError, match=r"version 3; this celler .*reads 'celler-atlas', version up to 2"):
        read_manifest(tmp_path)


def test_require_engine_names_what_to_install(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 11, 9))
    with pytest.raises(ImportError, match=r'3\.11 was found.*3\.12 or newer.*"celler\[atlas\]"'):
        require_engine()
    monkeypatch.setattr(sys, "version_info", (3, 12, 1))
    monkeypatch.setattr("celler.atlas._store.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'not annbatch: pip install "celler\[atlas\]"'):
        require_engine()
