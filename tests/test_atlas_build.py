"""A build that is killed goes on, and one that cannot succeed says why and leaves nothing half-valid."""

import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import anndata
import numpy as np
import pytest
from stores import assert_equal_stores, cut_small, make_cells, use_any_engine, write_zarr

import celler as cl
from celler.atlas import _build as building
from celler.atlas import _write as shuffling
from celler.atlas._store import read_manifest


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    use_any_engine(monkeypatch)
    cut_small(monkeypatch)


def write_sources(folder):
    found = []
    for seed in range(3):
        found.append(folder / f"s{seed}.h5ad")
        make_cells(seed, donors="DEF"[seed]).write_h5ad(found[-1])
    return found


@pytest.fixture
def paths(tmp_path):
    return write_sources(tmp_path)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """For tests that change none of them."""
    return write_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def whole(sources, tmp_path_factory):
    """The store of ``sources``, built in one go."""
    out = tmp_path_factory.mktemp("whole") / "store"
    with pytest.MonkeyPatch.context() as patch:
        use_any_engine(patch)
        cut_small(patch)
        build(sources, out)
    return out


def build(sources, out, **options):
    return cl.atlas.build(sources, out, **{"labels_key": "label"} | options)


class Killed(BaseException):
    """What no handler of the package may catch."""


def kill_at(monkeypatch, place, name, n_call, *, after):
    """Stop the process, as it were, at the n-th call of a function: before or after its work."""
    whole, n_done = getattr(place, name), [0]

    def dying(*args, **kwargs):
        n_done[0] += 1
        if n_done[0] == n_call and not after:
            raise Killed
        result = whole(*args, **kwargs)
        if n_done[0] == n_call:
            raise Killed
        return result

    monkeypatch.setattr(place, name, dying)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("place", "name", "n_call"),
    [
        ("celler.atlas._plan", "curate", 2),
        ("celler.atlas._plan", "gene_space", 1),
        ("celler.atlas._write", "write_block", 3),
        ("celler.atlas._write", "_write_zarr", 2),
        ("celler.atlas._build", "close_collection", 1),
        ("celler.atlas._build", "count_cells", 1),
        ("celler.atlas._build", "write_json", 2),
        ("celler.atlas._build.shutil", "rmtree", 1),
    ],
)
def test_a_killed_build_goes_on_to_the_same_store(
    sources, whole, tmp_path, monkeypatch, place, name, n_call, after
):
    with monkeypatch.context() as patch:
        module, _, attribute = place.rpartition(".")
        target = getattr(sys.modules[module], attribute)
        kill_at(patch, target, name, n_call, after=after)
        with pytest.raises(Killed):
            build(sources, tmp_path / "out")
    if not (tmp_path / "out" / "manifest.json").exists():
        with pytest.raises(FileNotFoundError, match="is no store"):
            read_manifest(tmp_path / "out")
    if name == "rmtree" and after:
        return
    build(sources, tmp_path / "out")
    assert_equal_stores(whole, tmp_path / "out")
    assert read_manifest(whole) == read_manifest(tmp_path / "out")
    assert not (tmp_path / "out" / "unfinished").exists()


def test_what_is_done_is_not_done_again(paths, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_at(patch, shuffling, "_write_zarr", 2, after=False)
        with pytest.raises(Killed):
            build(paths, tmp_path / "out")
    monkeypatch.setattr(shuffling, "write_block", lambda *_: pytest.fail("blocks are there"))
    build(paths, tmp_path / "out")


@contextmanager
def counted_calls():
    """The number of calls and returns that were made since, in the one item."""
    n_calls = [0]

    def count(*_):
        n_calls[0] += 1

    sys.setprofile(count)
    try:
        yield n_calls
    finally:
        sys.setprofile(None)


def start(sources, out, last_call):
    """A process that builds and is killed at the call or return of this number."""
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import pytest
from stores import cut_small, use_any_engine
patch = pytest.MonkeyPatch(); use_any_engine(patch); cut_small(patch)
import celler as cl
n_calls = 0
def count(*_):
    global n_calls
    n_calls += 1
    if n_calls == {last_call}:
        os.kill(os.getpid(), signal.SIGKILL)
sys.setprofile(count)
cl.atlas.build({list(map(str, sources))!r}, {str(out)!r}, labels_key="label")
"""
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


@pytest.mark.slow
def test_a_process_killed_at_random_moments_goes_on_to_the_same_store(
    sources, whole, tmp_path, rng
):
    """The signal that no process can catch, three times, wherever the build happens to be.

    A moment is a share of the calls that a whole build makes: a clock would say something else each time.
    """
    with counted_calls() as n_calls:
        build(sources, tmp_path / "again")
    killed = []
    for moment in rng.uniform(0.1, 0.7, 3):
        if not (tmp_path / "out" / "manifest.json").exists():
            process = start(sources, tmp_path / "out", int(moment * n_calls[0]))
            assert process.returncode in (0, -signal.SIGKILL), process.stderr
            killed.append(process.returncode != 0)
    assert killed[0]
    is_store = (tmp_path / "out" / "manifest.json").exists()
    if not is_store or (tmp_path / "out" / "unfinished").exists():
        build(sources, tmp_path / "out")
    assert_equal_stores(whole, tmp_path / "out")


def corrupt(path):
    path.write_bytes(b"no HDF5 at all" * 100)


def cut_off(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose_rows(path):
    adata = anndata.read_h5ad(path)
    adata.write_h5ad(path)
    import h5py

    with h5py.File(path, "a") as file:
        kept = file["X/data"][:-100]
        del file["X/data"]
        file["X/data"] = kept


def change(**what):
    """An edit of the AnnData in a file."""

    def edit(path):
        adata = anndata.read_h5ad(path)
        for name, value in what.items():
            if name == "X":
                adata.X[7, np.flatnonzero(adata.X[7].toarray())[0]] = value
            elif name == "genes":
                adata.var_names = [f"{value}{i}" for i in range(adata.n_vars)]
            else:
                adata.obs[name] = value
        adata.write_h5ad(path)

    return edit


@pytest.mark.parametrize(
    ("spoil", "options", "error", "match"),
    [
        (corrupt, {}, ValueError, r"source 's1' \(.*s1.h5ad\) cannot be read.*corrupt"),
        (cut_off, {}, ValueError, r"source 's1' .*cannot be read.*truncated.*half-written"),
        (lose_rows, {}, ValueError, r"source 's1'.*should hold 120 rows.*half-written"),
        (os.remove, {}, FileNotFoundError, r"source 's1' .* does not exist"),
        (change(genes="Z"), {}, ValueError, r"source 's1' shares under 20% .*'Z0'.*'G0'"),
        (change(X=1.5), {}, ValueError, r"cell 'AC0007-1' of source 's1' .*value 1\.5 in X.*whole"),
        (change(X=-2.0), {}, ValueError, r"cell 'AC0007-1' of source 's1' .*value -2"),
        (change(X=np.nan), {}, ValueError, r"cell 'AC0007-1' of source 's1' .*value nan"),
        (change(label=0.5), {}, ValueError, r"obs\['label'\] of source 's1' .*numbers such as 0.5"),
        (
            None,
            {"labels_key": "lable"},
            KeyError,
            r"labels_key='lable'.*source 's0'.*Closest: 'label'",
        ),
        (None, {"labels_key": {"s0": "label"}}, ValueError, r"lacks the source 's1'"),
        (None, {"labels_key": {"x": "label"}}, ValueError, r"names the source 'x'.*Sources"),
        (None, {"columns": {"organ": "tissue"}}, ValueError, r"columns names 'organ'.*Columns"),
        (None, {"columns": {"tissue": "tisue"}}, KeyError, r"'tisue'.*Closest: 'tissue'"),
        (None, {"layer": "count"}, KeyError, r"layer='count' is not in source 's0'.*\['X'\]"),
        (None, {"drop": ["rar"]}, ValueError, r"drop names 'rar'.*Closest: 'rare'"),
        (None, {"drop": "rare"}, TypeError, r"drop='rare' is one string"),
        (None, {"genes": "all"}, ValueError, r"genes='all'"),
        (None, {"test_size": 1.0}, ValueError, r"test_size=1.0"),
        (None, {"mapping": "no.csv"}, FileNotFoundError, r"mapping='no.csv'"),
        (None, {"parents": {"B": "x"}}, ValueError, r"parents has no entry for"),
        (None, {"parents": "parent"}, TypeError, r"parents is a str"),
        (None, {"gene_key": "symbol"}, KeyError, r"source 's0': gene_key='symbol'"),
        (None, {"drop": ["B", "NK", "T", "rare"]}, ValueError, r"none of the 360 cells is left"),
    ],
)
def test_what_cannot_be_built_is_said_and_leaves_nothing(
    paths, tmp_path, spoil, options, error, match
):
    if spoil is not None:
        spoil(paths[1])
    with pytest.raises(error, match=match):
        build(paths, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [KeyError, TypeError, ValueError, FileNotFoundError])
def test_an_error_after_the_plan_removes_nothing(sources, whole, tmp_path, monkeypatch, error):
    """Such as a bug, or a source that is for the moment not there: hours of work are kept."""
    writes, n_calls = shuffling.write_block, [0]

    def failing(*args):
        n_calls[0] += 1
        if n_calls[0] == 5:
            raise error("a mistake")
        writes(*args)

    with monkeypatch.context() as patch:
        patch.setattr(shuffling, "write_block", failing)
        with pytest.raises(error, match="a mistake") as caught:
            build(sources, tmp_path / "out")
    assert "The work so far is kept" in caught.value.__notes__[-1]
    assert len(list((tmp_path / "out" / "unfinished").glob("block_*"))) == 4
    build(sources, tmp_path / "out")
    assert_equal_stores(whole, tmp_path / "out")


def test_a_count_that_does_not_fit_is_refused_and_the_work_is_kept(paths, tmp_path):
    change(X=70000.0)(paths[1])
    with pytest.raises(ValueError, match=r"cell 'AC0007-1' .*count 70000; uint16.*dtype='uint32'"):
        build(paths, tmp_path / "out")
    assert (tmp_path / "out" / "unfinished" / "plan.json").exists()
    wide = cl.atlas.Storage(dtype="uint32")
    with pytest.raises(ValueError, match=r"other options: dtype 'uint16' -> 'uint32'.*or delete"):
        build(paths, tmp_path / "out", storage=wide)


def test_a_wide_count_is_taken_as_uint32(paths, tmp_path):
    change(X=70000.0)(paths[1])
    build(paths, tmp_path / "out", storage=cl.atlas.Storage(dtype="uint32"))
    parts = [anndata.read_zarr(p) for p in (tmp_path / "out" / "cells.zarr").glob("dataset_*")]
    assert {part.X.dtype for part in parts} == {np.dtype(np.uint32)}
    assert max(part.X.max() for part in parts) == 70000


@pytest.mark.parametrize("options", [{"dtype": "float32"}, {"memory_gb": 0.5}])
def test_storage_is_checked(options):
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        cl.atlas.Storage(**options)


def test_a_zarr_store_that_lacks_a_chunk_is_refused(tmp_path):
    write_zarr(tmp_path / "s.zarr", make_cells(1))
    chunk = next(p for p in (tmp_path / "s.zarr" / "X" / "indices").rglob("*") if p.name == "0")
    chunk.unlink()
    with pytest.raises(ValueError, match=r"source 's'.*0 of 1 chunks of X/indices are there"):
        build([tmp_path / "s.zarr"], tmp_path / "out")


@pytest.mark.parametrize("place", ["write_block", "_write_zarr"])
def test_a_full_disk_is_said_and_the_build_goes_on_with_room(paths, tmp_path, monkeypatch, place):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shuffling, place, full)
        with pytest.raises(OSError, match=r"no room left on the disk.*no store yet.*Make room"):
            build(paths, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"no store.*A build was begun there"):
        read_manifest(tmp_path / "out")
    build(paths, tmp_path / "out")
    assert read_manifest(tmp_path / "out")["n_cells"] == 360


def test_too_little_room_is_said_before_the_shuffle(paths, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(building.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"GB are needed for the shuffle"):
        build(paths, tmp_path / "out")


def test_the_folder_is_guarded(paths, tmp_path, monkeypatch):
    build(paths, tmp_path / "out")
    with pytest.raises(FileExistsError, match="finished store"):
        build(paths, tmp_path / "out")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(FileExistsError, match="holds other files"):
        build(paths, tmp_path / "other")
    with monkeypatch.context() as patch:
        kill_at(patch, shuffling, "_write_zarr", 1, after=True)
        with pytest.raises(Killed):
            build(paths, tmp_path / "half")
    with pytest.raises(ValueError, match=r"unfinished build with other options: seed 0 -> 1"):
        build(paths, tmp_path / "half", seed=1)
    with pytest.raises(ValueError, match=r"unfinished build of other sources; changed: \['s2'\]"):
        build(paths[:2], tmp_path / "half")
    make_cells(9).write_h5ad(paths[0])
    with pytest.raises(ValueError, match=r"other sources; changed: \['s0'\]"):
        build(paths, tmp_path / "half")


def test_an_iterator_must_come_in_the_same_order(tmp_path, monkeypatch):
    one, two = make_cells(1), make_cells(2)
    with monkeypatch.context() as patch:
        kill_at(patch, shuffling, "_write_zarr", 1, after=True)
        with pytest.raises(Killed):
            build(iter([one, two]), tmp_path / "out")
    with pytest.raises(ValueError, match=r"source 0 was .*same order"):
        build(iter([two, one]), tmp_path / "out")


@pytest.mark.parametrize(
    ("sources", "error", "match"),
    [
        ([], ValueError, "sources is empty"),
        ("one.h5ad", TypeError, "sources is one str"),
        ([3], TypeError, "sources holds a int"),
        (["a/x.h5ad", "b/x.h5ad"], ValueError, r"several sources are named \['x'\]"),
    ],
)
def test_sources_are_checked(tmp_path, sources, error, match):
    with pytest.raises(error, match=match):
        build(sources, tmp_path / "out")


def test_no_bars_where_scvi_is_silent(paths, tmp_path, capsys):
    build(paths, tmp_path / "loud")
    assert "Shuffle" in capsys.readouterr().err
    logger = logging.getLogger("scvi")  # scvi.settings.verbosity sets its level
    before = logger.level
    try:
        logger.setLevel(logging.WARNING)
        build(paths, tmp_path / "quiet")
    finally:
        logger.setLevel(before)
    assert capsys.readouterr().err == ""
