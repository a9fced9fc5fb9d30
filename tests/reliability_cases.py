"""What a process of reliability/test_processes.py does: it trains or labels, and prints how that ended. A script."""

import sys
import threading
import warnings

import numpy as np
import toy

QUICK = {"max_epochs": 2, "batch_size": 64, "show_progress": False, "accelerator": "cpu", "refit": False}


def untrained(adata):
    """Return a small model of an AnnData."""
    from celler.model import Celler

    Celler.setup_anndata(adata, labels_key="cell_type")
    return Celler(adata, **toy.SMALL)


def digest(labels: np.ndarray) -> str:
    """Labels as one text."""
    return ",".join(map(str, labels))


def train(folder: str = "") -> None:
    """Train as a script of a cluster's job does, and load what was saved."""
    model = toy.fit(toy.cells(120), {"labels_key": "cell_type"}, **QUICK)
    print("labels", digest(model.predict(toy.cells(30, seed=1))))
    if folder:
        model.save(folder)
        print("loaded", label(folder))


def children(folder: str) -> None:
    """Label in children of a process that has used its threads, with the model there or loaded anew."""
    import multiprocessing

    import joblib
    import torch

    global inherited
    torch.set_num_threads(2)
    inherited = toy.fit(toy.cells(200), **QUICK)
    expected = propagated(0)
    inherited.save(folder)
    labels = label(folder)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        print("fork", pool.map_async(label, [folder] * 2).get(timeout=60) == [labels] * 2)
        print("inherited", pool.map_async(propagated, range(2)).get(timeout=60) == [expected] * 2)
    # loky's are new interpreters, as those of spawn (test_files.py) and forkserver (test_writers.py).
    for how in ("threading", "loky"):
        n = 2 if how == "threading" else 1
        executor = joblib.Parallel(2, backend=how, timeout=None if how == "threading" else 60)
        print(how, executor(joblib.delayed(label)(folder) for _ in range(n)) == [labels] * n)


inherited = None


def propagated(_: int) -> str:
    """Label with the model of the parent."""
    return digest(inherited.predict(toy.cells(40, seed=1), propagate=True))


def interrupted() -> None:
    """Train until Ctrl-C, twice, and then to the end."""
    import os
    import signal

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    model = untrained(toy.cells(400))
    for _ in range(2):
        threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        try:
            model.train(**QUICK | {"max_epochs": 5000, "early_stopping": False})
        except KeyboardInterrupt:
            print("KeyboardInterrupt", model.is_trained)
    model.train(**QUICK)
    print("trained", model.is_trained)


def endless(path: str, max_epochs: str = "40") -> np.ndarray:
    """Train with a checkpoint, until killed or to the end."""
    model = untrained(toy.cells(200))
    model.train(**QUICK | {"max_epochs": int(max_epochs), "early_stopping": False}, ckpt_path=path)
    return model.predict(toy.cells(30, seed=1), soft=True).to_numpy()


def label(path: str) -> str:
    """Load a model and label cells."""
    from celler.model import Celler

    return digest(Celler.load(path, accelerator="cpu").predict(toy.cells(40, seed=1)))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    {"train": train, "children": children, "interrupted": interrupted, "endless": endless}[sys.argv[1]](*sys.argv[2:])
