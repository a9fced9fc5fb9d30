"""A build that stopped goes on to the same store; a folder with other work is guarded."""

import errno
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from stores import (
    Killed,
    assert_equal_stores,
    build,
    change,
    cut_small,
    kill_at,
    make_cells,
    use_any_engine,
    write_sources,
)

import celler as cl
from celler.atlas import _build, _write
from celler.atlas._store import read_manifest


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
def test_build_killed_goes_on_to_the_same_store(sources, whole, tmp_path, monkeypatch, place, name, n_call, after):
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


def test_build_killed_does_not_repeat_what_is_written(paths, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_at(patch, _write, "_write_zarr", 2, after=False)
        with pytest.raises(Killed):
            build(paths, tmp_path / "out")
    monkeypatch.setattr(_write, "write_block", lambda *_: pytest.fail("blocks are there"))
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
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
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
def test_build_killed_by_the_system_at_random_moments(sources, whole, tmp_path, rng):
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


@pytest.mark.parametrize("error", [KeyError, TypeError, ValueError, FileNotFoundError])
def test_build_with_an_error_after_the_plan_keeps_the_work(sources, whole, tmp_path, monkeypatch, error):
    """Such as a bug, or a source that is for the moment not there: hours of work are kept."""
    writes, n_calls = _write.write_block, [0]

    def failing(*args):
        n_calls[0] += 1
        if n_calls[0] == 5:
            raise error("a mistake")
        writes(*args)

    with monkeypatch.context() as patch:
        patch.setattr(_write, "write_block", failing)
        with pytest.raises(error, match="a mistake") as caught:
            build(sources, tmp_path / "out")
    assert "The work so far is kept" in caught.value.__notes__[-1]
    assert len(list((tmp_path / "out" / "unfinished").glob("block_*"))) == 4
    build(sources, tmp_path / "out")
    assert_equal_stores(whole, tmp_path / "out")


def test_build_with_a_count_that_does_not_fit_keeps_the_work(paths, tmp_path):
    change(X=70000.0)(paths[1])
    with pytest.raises(ValueError, match=r"cell 'AC0007-1' .*count 70000; uint16.*dtype='uint32'"):
        build(paths, tmp_path / "out")
    assert (tmp_path / "out" / "unfinished" / "plan.json").exists()
    wide = cl.atlas.Storage(dtype="uint32")
    with pytest.raises(ValueError, match=r"other options: dtype 'uint16' -> 'uint32'.*or delete"):
        build(paths, tmp_path / "out", storage=wide)


@pytest.mark.parametrize("place", ["write_block", "_write_zarr"])
def test_build_on_a_full_disk_goes_on_with_room(paths, tmp_path, monkeypatch, place):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(_write, place, full)
        with pytest.raises(OSError, match=r"no room left on the disk.*no store yet.*Make room"):
            build(paths, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"no store.*A build was begun there"):
        read_manifest(tmp_path / "out")
    build(paths, tmp_path / "out")
    assert read_manifest(tmp_path / "out")["n_cells"] == 360


def test_build_with_too_little_room_for_the_shuffle(paths, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(_build.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"GB are needed for the shuffle"):
        build(paths, tmp_path / "out")


def test_build_guards_its_folder(paths, tmp_path, monkeypatch):
    build(paths, tmp_path / "out")
    with pytest.raises(FileExistsError, match="finished store"):
        build(paths, tmp_path / "out")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(FileExistsError, match="holds other files"):
        build(paths, tmp_path / "other")
    with monkeypatch.context() as patch:
        kill_at(patch, _write, "_write_zarr", 1, after=True)
        with pytest.raises(Killed):
            build(paths, tmp_path / "half")
    with pytest.raises(ValueError, match=r"unfinished build with other options: seed 0 -> 1"):
        build(paths, tmp_path / "half", seed=1)
    with pytest.raises(ValueError, match=r"unfinished build of other sources; changed: \['s2'\]"):
        build(paths[:2], tmp_path / "half")
    make_cells(9).write_h5ad(paths[0])
    with pytest.raises(ValueError, match=r"other sources; changed: \['s0'\]"):
        build(paths, tmp_path / "half")


def test_build_resumed_with_another_order_of_an_iterator(tmp_path, monkeypatch):
    one, two = make_cells(1), make_cells(2)
    with monkeypatch.context() as patch:
        kill_at(patch, _write, "_write_zarr", 1, after=True)
        with pytest.raises(Killed):
            build(iter([one, two]), tmp_path / "out")
    with pytest.raises(ValueError, match=r"source 0 was .*same order"):
        build(iter([two, one]), tmp_path / "out")
