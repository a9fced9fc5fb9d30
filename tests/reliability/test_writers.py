"""Writers that are killed, out of room, without rights, or two at once; and outputs that nobody asked to replace."""

import json
import multiprocessing
import os
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import stores
import toy
from writer_cases import WRITERS, write_on, write_without_rights, write_without_room

import celler as cl
from celler._utils import _owner
from celler._utils._lock import LockedError, locked
from celler._utils._owner import Owner, owner_of, this_process
from celler._utils._write import append_rows, check_figure, part_of, remove_left_behind, whole_rows, write_h5ad
from celler.cli._main import main

#: Kills of each writer.
N_KILLS = int(os.environ.get("CELLER_KILLS", 4))


@pytest.fixture(scope="module")
def context():
    """Processes that fork from one which has loaded everything."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["writer_cases", "toy", "celler.model"])
    return found


def started(context, target, *arguments):
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(*arguments, theirs))
    process.start()
    theirs.close()
    return process, ours


def hidden(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_killed_writers_leave_a_whole_file(tmp_path, context, rng, name):
    write, read, called = WRITERS[name]
    place = tmp_path / called
    for _ in range(N_KILLS):
        process, pipe = started(context, write_on, name, str(place), 10_000)
        assert pipe.poll(100)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.join()
        assert read(place) >= 1
    write(place, 77)
    assert read(place) >= 77
    assert hidden(tmp_path) == []
    assert not place.is_dir() or hidden(place) == []


@pytest.mark.parametrize("name", WRITERS)
def test_two_writers_at_once(tmp_path, context, name):
    write, read, called = WRITERS[name]
    place = tmp_path / called
    write(place, 1)
    n = 15
    both = [started(context, write_on, name, str(place), n) for _ in range(2)]
    n_read = 0
    while any(process.is_alive() for process, _ in both):
        if name != "model":  # of three files
            assert 1 <= read(place) <= n
        n_read += 1
    assert [process.exitcode for process, _ in both] == [0, 0]
    assert n_read > 0
    assert read(place) == n
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("name", WRITERS)
def test_full_disk_changes_nothing(tmp_path, context, name):
    write, read, called = WRITERS[name]
    place = tmp_path / called
    write(place, 1)
    size = place.stat().st_size if name == "rows" else 0
    process, pipe = started(context, write_without_room, name, str(place), size + 40)
    kind, words, is_room = pipe.recv()
    process.join()
    assert (kind, is_room) == ("OSError", True), words
    assert str(place) in words
    assert "no room is left" in words
    assert read(place) == 1
    assert hidden(tmp_path) == []


def test_full_disk_of_its_own(tmp_path, context):
    """A disk of 200 kB, which another program fills."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("no disk can be made here; the limit of a file's size is tried above")
    try:
        write, read, called = WRITERS["h5ad"]
        write(disk / called, 1)
        process, pipe = started(context, write_without_room, "h5ad", str(disk / called), None)
        kind, words, is_room = pipe.recv()
        process.join()
        assert (process.exitcode, kind, is_room) == (0, "OSError", True), words
        assert "no room is left" in words
        assert read(disk / called) == 1
        assert [path.name for path in disk.iterdir()] == [called]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("name", WRITERS)
def test_read_only_folder(context, name):
    """In a folder of its own: pytest's cannot be entered by another user."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "read only"
        folder.mkdir()
        for path, mode in ((Path(root), 0o777), (folder, 0o555)):
            path.chmod(mode)
        process, pipe = started(context, write_without_rights, name, str(folder / WRITERS[name][2]))
        kind, words, _ = pipe.recv()
        process.join()
        assert kind == "PermissionError"
        assert "may not be written" in words
        assert str(folder) in words
        assert list(folder.iterdir()) == []


# ---- outputs that nobody asked to replace ----
@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A model, a query and a reference."""
    folder = tmp_path_factory.mktemp("given")
    toy.trained().save(folder / "model")
    toy.cells(40, seed=2).write_h5ad(folder / "query.h5ad")
    toy.cells(60).write_h5ad(folder / "reference.h5ad")
    (folder / "thesis.docx").write_text("mine")
    os.link(folder / "query.h5ad", folder / "hard.h5ad")
    (folder / "soft.h5ad").symlink_to(folder / "reference.h5ad")
    (folder / "nothing.h5ad").symlink_to(folder / "missing.h5ad")
    return folder


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


WITH = ["--propagate", "--reference", "{}/reference.h5ad"]
#: Where an annotation may not go: the options, and words of the message.
OUTS = [
    (["query.h5ad"], "is the query itself"),
    (["./model/../query.h5ad"], "is the query itself"),
    (["query.h5ad", "--overwrite"], "is the query itself"),
    (["hard.h5ad"], "is a file of .*query.h5ad, which is read"),
    (["hard.h5ad", "--overwrite"], "is a file of .*query.h5ad, which is read"),
    (["reference.h5ad", *WITH], "which is read"),
    (["reference.h5ad", "--overwrite", *WITH], "which is read"),
    (["soft.h5ad", "--overwrite", *WITH], "which is read"),
    (["model/model.safetensors"], "which is read"),
    (["model/model.safetensors", "--overwrite"], "which is read"),
    (["model/config.json", "--overwrite"], "which is read"),
    (["model"], "is a file of|is a folder"),
    (["thesis.docx"], "exists; pass --overwrite"),
    (["reference.h5ad"], "exists; pass --overwrite"),
    (["nothing.h5ad"], "exists; pass --overwrite"),
    (["thesis.docx/out.h5ad"], "is a file, so .* cannot be written"),
    (["."], "is a folder"),
    (["new.zarr"], "cells are written as .h5ad"),
    (["new.h5ad", "--key-added", "a/b"], "--key-added='a/b' cannot be the name of a column"),
    (["new.h5ad", "--key-added", ""], "cannot be the name of a column"),
    (["new.h5ad", "--key-added", "."], "cannot be the name of a column"),
]


@pytest.mark.parametrize(("options", "words"), OUTS)
def test_annotate_replaces_nothing_unasked(given, capsys, monkeypatch, options, words):
    monkeypatch.setattr(cl.model.Celler, "load", lambda *_, **__: pytest.fail("only said after work"))
    before = contents(given)
    out, *others = [option.format(given) for option in options]
    arguments = ["annotate", given / "model", given / "query.h5ad", "--out", given / out, *others]
    assert main(list(map(str, arguments))) in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert pd.Series([line]).str.contains(words).all(), line
    assert contents(given) == before


def test_annotate_does_not_replace_a_device(given, capsys):
    arguments = ["annotate", given / "model", given / "query.h5ad", "--overwrite", "--out", "/dev/null"]
    assert main(list(map(str, arguments))) == 1
    assert "is a device or pipe" in capsys.readouterr().err
    assert Path("/dev/null").is_char_device()


def test_annotate_overwrites_where_it_is_told_to(given, tmp_path, capsys):
    out = tmp_path / "out.h5ad"
    out.write_text("mine")
    arguments = ["annotate", given / "model", given / "query.h5ad", "--out", out]
    assert main(list(map(str, arguments))) == 1
    assert out.read_text() == "mine"
    assert main([*map(str, arguments), "--overwrite"]) == 0
    assert "celler" in ad.read_h5ad(out).obs


def test_annotate_refuses_a_key_that_no_file_holds():
    query = toy.cells(20)
    before = query.copy()
    with pytest.raises(ValueError, match="key_added='a/b' was given; .*'/', which files cannot hold"):
        toy.trained().annotate(query, key_added="a/b")
    assert list(query.obs) == list(before.obs)


def test_write_h5ad_of_what_cannot_be_written(tmp_path):
    adata = ad.AnnData(np.ones((3, 2), np.float32))
    adata.uns["x"] = object()
    write_h5ad(toy.cells(20), tmp_path / "x.h5ad", overwrite=False)
    with pytest.raises(ValueError, match="x.h5ad cannot be written as .h5ad"):
        write_h5ad(adata, tmp_path / "x.h5ad", overwrite=True)
    assert ad.read_h5ad(tmp_path / "x.h5ad").n_obs == 20
    assert [path.name for path in tmp_path.iterdir()] == ["x.h5ad"]


@pytest.mark.parametrize("before", ["name,grade\nme,1\n", "mine", "name,grade"])
def test_append_rows_leaves_a_table_of_others(tmp_path, before):
    (tmp_path / "runs.csv").write_text(before)
    with pytest.raises(ValueError, match="runs.csv has other columns"):
        append_rows(tmp_path / "runs.csv", pd.DataFrame({"method": ["a"]}))
    assert (tmp_path / "runs.csv").read_text() == before


@pytest.mark.parametrize("cut", range(1, 12))
def test_whole_rows_of_a_table_cut_short(tmp_path, cut):
    table = pd.DataFrame({"method": ["a", "b\nc, d"], "score": [1, 2]})
    append_rows(tmp_path / "runs.csv", table)
    text = (tmp_path / "runs.csv").read_bytes()
    (tmp_path / "runs.csv").write_bytes(text[:-cut])
    assert whole_rows(tmp_path / "runs.csv") == b"method,score\na,1\n"
    append_rows(tmp_path / "runs.csv", table[1:])
    assert (tmp_path / "runs.csv").read_bytes() == text


def test_check_figure_of_others(tmp_path):
    (tmp_path / "mine.png").write_bytes(b"\x89PNG")
    with pytest.raises(FileExistsError, match="no figure of Celler"):
        check_figure(tmp_path / "mine.png")


# ---- locks and leftovers ----
def dead():
    """A process that ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return this_process()._replace(pid=process.pid)


def test_lock_of_a_killed_process_is_taken_over(tmp_path):
    (tmp_path / "lock").write_text(json.dumps(dead()._asdict()))
    with locked(tmp_path / "lock", "the store"):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (json.dumps(this_process()._asdict()), f"process {os.getpid()} on "),
        (json.dumps(this_process()._replace(host="node7")._asdict()), "on node7.* delete .*lock"),
        ("no lock", "another process.* delete .*lock"),
    ],
    ids=["own", "other host", "no lock"],
)
def test_lock_of_another_is_respected(tmp_path, text, words):
    (tmp_path / "lock").write_text(text)
    with pytest.raises(LockedError, match=words), locked(tmp_path / "lock", "the store"):
        pass
    assert (tmp_path / "lock").read_text() == text


def test_owner_with_a_number_that_came_again():
    own = this_process()
    assert own.lives() is True
    assert own._replace(started="1").lives() is False
    assert owner_of(own.token).lives() is True
    assert Owner("node7", 1, "1").lives() is None
    assert owner_of("a-b-c") is None


def test_leftovers_of_living_writers_stay(tmp_path, monkeypatch):
    place = tmp_path / "a-b.h5ad"
    living = part_of(place)
    living.touch()
    with monkeypatch.context() as patch:
        patch.setattr("celler._utils._write.this_process", dead)
        part_of(place).touch()
        patch.setattr("celler._utils._write.this_process", lambda: Owner("node7", 1, "1"))
        foreign = part_of(place)
        foreign.touch()
    (tmp_path / ".a-b.part.h5ad").touch()  # not ours
    remove_left_behind(place)
    assert {path.name for path in tmp_path.iterdir()} == {living.name, foreign.name, ".a-b.part.h5ad"}
    monkeypatch.setattr(_owner, "FOREIGN_SECONDS", -1)
    remove_left_behind(place)
    assert not foreign.exists()


# ---- stores ----
@pytest.fixture
def sources(tmp_path, monkeypatch):
    stores.use_any_engine(monkeypatch)
    return stores.write_sources(tmp_path)


@pytest.mark.parametrize(
    "others",
    [
        ["unfinished/thesis.txt"],
        ["unfinished/settings.json"],
        ["unfinished/plan.json"],
        ["unfinished/thesis.txt", "manifest.json"],
        ["manifest.json"],
        ["cells.zarr/x"],
    ],
)
def test_build_deletes_nothing_of_a_user(sources, tmp_path, others):
    out = tmp_path / "project"
    for name in [*others, "notes.txt"]:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("{}")
    before = contents(out)
    with pytest.raises(FileExistsError, match="holds other files, such as"):
        stores.build(sources, out)
    assert contents(out) == before


def test_build_leaves_an_empty_folder_of_a_user(sources, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(KeyError):
        stores.build(sources, tmp_path / "mine", labels_key="nothing")
    assert list((tmp_path / "mine").iterdir()) == []


def test_build_with_a_file_of_a_user_in_its_own_folder(sources, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stores.kill_at(patch, stores.celler.atlas._write, "_write_zarr", 1, after=False)
        with pytest.raises(stores.Killed):
            stores.build(sources, tmp_path / "out")
    (tmp_path / "out" / "unfinished" / "thesis.txt").write_text("mine")
    stores.build(sources, tmp_path / "out")
    assert [path.read_text() for path in (tmp_path / "out").rglob("thesis.txt")] == ["mine"]


def test_build_while_another_builds(sources, tmp_path, monkeypatch):
    """The second is refused at once, and the first finishes."""
    write = stores.celler.atlas._write.write_block

    def meet(*arguments):
        with pytest.raises(LockedError, match=rf"the store .*out is being written by process {os.getpid()}"):
            stores.build(sources, tmp_path / "out")
        return write(*arguments)

    monkeypatch.setattr(stores.celler.atlas._write, "write_block", meet)
    assert stores.build(sources, tmp_path / "out").manifest["n_cells"] == 360
    assert not (tmp_path / "out" / "unfinished").exists()


def test_build_with_a_cut_plan_keeps_the_work(sources, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stores.kill_at(patch, stores.celler.atlas._write, "_write_zarr", 1, after=False)
        with pytest.raises(stores.Killed):
            stores.build(sources, tmp_path / "out")
    plan = tmp_path / "out" / "unfinished" / "plan.json"
    plan.write_text(plan.read_text()[:-9])
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError, match=r"plan.json cannot be read: .*Delete the folder") as caught:
        stores.build(sources, tmp_path / "out")
    assert "The work so far is kept" in caught.value.__notes__[-1]
    assert contents(tmp_path / "out") == before


@pytest.mark.skipif(find_spec("annbatch") is None, reason="stores need annbatch")
def test_build_of_other_formats(tmp_path):
    adata = stores.make_cells(1)
    adata.write_h5ad(tmp_path / "one.h5ad")
    columns = {"CellID": adata.obs_names, "label": adata.obs["label"]}
    with h5py.File(tmp_path / "two.loom", "w") as file:
        file["matrix"] = adata.X.toarray().T
        file.create_group("row_attrs")["Gene"] = np.array([name.encode() for name in adata.var_names])
        for name, values in columns.items():
            file.require_group("col_attrs")[name] = np.array([str(value).encode() for value in values])
    found = stores.build([tmp_path / "one.h5ad", tmp_path / "two.loom"], tmp_path / "out")
    assert found.manifest["datasets"] is not None
    assert [source["n_cells"] for source in found.manifest["sources"]] == [120, 120]
