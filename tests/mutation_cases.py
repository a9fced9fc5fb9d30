"""Mutations of files, read in processes that may die: what each reader makes of a file that was damaged.

As a script, ``python tests/mutation_cases.py 500`` prints the figures of every reader.
"""

import multiprocessing
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import anndata as ad
import numpy as np

#: What becomes of a mutated file. Only the last two are faults.
REFUSED, SAME, ITS_OWN, RAW, WRONG = "refused", "same result", "its own values", "raw error", "wrong result"
SECONDS = 300


def mutate(path: Path, rng: np.random.Generator) -> None:
    """Flip a few bits of a file, overwrite a piece of it, cut it, or delete it where it is one of several."""
    data = bytearray(path.read_bytes())
    kind = rng.choice(["flip", "flips", "piece", "cut", "zeros"])
    place = int(rng.integers(len(data)))
    if kind == "cut":
        data = data[:place]
    elif kind in ("flip", "flips"):
        for spot in [place, *rng.integers(len(data), size=9 if kind == "flips" else 0)]:
            data[spot] ^= 1 << int(rng.integers(8))
    else:
        n = int(rng.integers(1, 64))
        data[place : place + n] = bytes(n) if kind == "zeros" else rng.bytes(n)
    path.write_bytes(bytes(data))


def files_of(place: Path) -> list[Path]:
    return [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())


def make_h5ad(folder: Path) -> Path:
    import toy

    place = folder / "cells.h5ad"
    toy.cells(60, seed=1).write_h5ad(place)
    toy.trained().save(folder / "model")
    return place


def read_h5ad(place: Path, root: Path) -> list:
    """Labels, beside the values and names that they are for."""
    from celler.data._read import read_cells
    from celler.model import Celler

    adata = read_cells(place)
    labels = Celler.load(root / "model").predict(adata)
    return [labels.tolist(), adata.X.toarray().tolist(), list(adata.obs_names), list(adata.var_names)]


def is_its_own_h5ad(place: Path, found: list) -> bool:
    """Whether the labels are those of the values that another reader finds in the file: it has no checksums."""
    import toy

    theirs = ad.read_h5ad(place)
    X = np.array(found[1], theirs.X.dtype)
    same = np.array_equal(X, theirs.X.toarray(), equal_nan=True) and list(theirs.obs_names) == found[2]
    return same and toy.trained().predict(theirs).tolist() == found[0]


def make_model(folder: Path) -> Path:
    import toy

    toy.cells(60, seed=1).write_h5ad(folder / "cells.h5ad")
    toy.trained().save(folder / "model")
    return folder / "model"


def read_model(place: Path, root: Path) -> list:
    from celler.model import Celler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a changed card
        return Celler.load(place).predict(ad.read_h5ad(root / "cells.h5ad"), soft=True).to_numpy().tolist()


def make_checkpoint(folder: Path) -> Path:
    _train(folder / "last.ckpt")
    return folder / "last.ckpt"


def _train(path: Path) -> list:
    import toy

    model = toy.fit(toy.cells(120), max_epochs=2, ckpt_path=path)
    return model.predict(toy.cells(60, seed=1), soft=True).to_numpy().tolist()


def read_checkpoint(place: Path, root: Path) -> list:
    return _train(place)


def make_store(folder: Path) -> Path:
    import stores

    for seed in range(2):
        stores.make_cells(seed, donors="DE"[seed]).write_h5ad(folder / f"s{seed}.h5ad")
    stores.build([folder / "s0.h5ad", folder / "s1.h5ad"], folder / "store")
    return folder / "store"


def read_store(place: Path, root: Path) -> list:
    from celler.atlas import DataModule, summary

    data = DataModule(place, labels_key="cell_type")
    blocks = [
        (names.tolist(), cells.X.toarray().tolist(), list(cells.obs_names))
        for names, cells in data.inference_dataloader()
    ]
    return [blocks, data.classes, data.labels.tolist(), data.store.genes, summary(place).counts.to_numpy().tolist()]


#: How to make a file, how to read it, and whether what was read is at least what the file says.
READERS: dict[str, tuple[Callable, Callable, Callable]] = {
    "h5ad": (make_h5ad, read_h5ad, is_its_own_h5ad),
    "model": (make_model, read_model, lambda *_: False),
    "checkpoint": (make_checkpoint, read_checkpoint, lambda *_: False),
    "store": (make_store, read_store, lambda *_: False),
}


def outcome(name: str, root: Path, expected: list, seed: int) -> tuple[str, str]:
    """What a reader makes of a copy of its file with the mutation of this seed, and its words."""
    rng = np.random.default_rng([seed, len(name)])
    original = READERS[name][0].place
    with tempfile.TemporaryDirectory(dir=root) as folder:
        place = Path(folder) / original.name
        shutil.copytree(original, place) if original.is_dir() else shutil.copy(original, place)
        files = files_of(place)
        sizes = np.array([path.stat().st_size for path in files], float)
        # Small files, which say what the others are, as often as large ones.
        mutate(files[rng.choice(len(files), p=sizes / sizes.sum() if seed % 2 else None)], rng)
        try:
            found = READERS[name][1](place, root)
        except (ValueError, OSError) as error:
            text = str(error)
            ours = folder in text or "adata." in text or "cells" in text or "genes" in text
            return REFUSED if ours else RAW, f"{type(error).__name__}: {text}"
        except Exception as error:  # noqa: BLE001
            return RAW, f"{type(error).__name__}: {error}"
        if repr(found) == repr(expected):
            return SAME, ""
        return (ITS_OWN if READERS[name][2](place, found) else WRONG), ""


def _work(jobs: list[tuple[str, int]], folder: str, pipe) -> None:
    warnings.simplefilter("ignore")
    expected: dict[str, list] = {}
    for name, seed in jobs:
        root = Path(folder) / name
        if name not in expected:
            root.mkdir()
            READERS[name][0].place = READERS[name][0](root)
            expected[name] = READERS[name][1](READERS[name][0].place, root)
        pipe.send((name, seed, *outcome(name, root, expected[name], seed)))
    pipe.close()


def outcomes(names: list[str], seeds: range, folder: Path) -> Iterator[tuple[str, int, str, str]]:
    """The outcome of each seed; a process that died, or hung, is one, and another goes on after it."""
    context, left = multiprocessing.get_context("spawn"), [(name, seed) for name in names for seed in seeds]
    while left:
        ours, theirs = context.Pipe(duplex=False)
        root = tempfile.mkdtemp(dir=folder)
        process = context.Process(target=_work, args=(left, root, theirs))
        process.start()
        theirs.close()
        try:
            while left and ours.poll(SECONDS):
                found = ours.recv()
                left.remove(found[:2])
                yield found
            if left:
                process.kill()
                yield *left.pop(0), "hang", ""
        except EOFError:
            process.join()
            if left:
                yield *left.pop(0), f"died ({process.exitcode})", ""
        process.join()
        shutil.rmtree(root, ignore_errors=True)


def main(n: int, names: list[str]) -> None:
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            found = list(outcomes([name], range(n), Path(folder)))
        print(name, dict(Counter(kind for *_, kind, _ in found)), flush=True)
        for _, seed, kind, words in found:
            if kind not in (REFUSED, SAME, ITS_OWN):
                print("   ", seed, kind, words[:300], flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:] or list(READERS))
