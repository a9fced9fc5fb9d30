"""Processes of one machine: an epoch of training and labels from a store by one process, and by several.

    python docs/benchmarks/ranks.py atlas/store [--labels-key cell_type] [--processes 1,2]

torchrun starts them, on CPUs. Prints wall seconds without the start, and labels that differ from those of one process'
model. Needs the atlas extra.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

import celler as cl


def measure(options: argparse.Namespace) -> None:
    """Train and predict as one of the processes that torchrun started; the first writes the figures."""
    warnings.simplefilter("ignore")
    dm = cl.atlas.DataModule(options.store, labels_key=options.labels_key)
    model = cl.model.Celler(registry=dm.registry)
    start = time.perf_counter()
    model.train(1, datamodule=dm, accelerator="cpu", show_progress=False)
    trained = time.perf_counter()
    if options.model.exists():  # the same model for all, as minibatches and so weights depend on the processes
        model = cl.model.Celler.load(options.model)
    began = time.perf_counter()
    labels = np.asarray(model.predict(dataloader=dm.inference_dataloader())).astype(str)
    figures = {"train": trained - start, "predict": time.perf_counter() - began}
    if os.environ.get("RANK", "0") != "0":
        return
    if not options.model.exists():
        model.save(options.model)
        np.save(options.model / "labels.npy", labels)
    figures["differ"] = int((labels != np.load(options.model / "labels.npy")).sum())
    (options.model / "figures.json").write_text(json.dumps(figures))


def main() -> None:
    """Measure each number of processes in turn and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", help="folder that cl.atlas.build wrote")
    parser.add_argument("--labels-key", default="cell_type")
    parser.add_argument("--processes", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2])
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.model is not None:
        measure(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        for n in options.processes:
            run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n), __file__]
            subprocess.run([*run, options.store, "--labels-key", options.labels_key, "--model", model], check=True)
            figures = json.loads((model / "figures.json").read_text())
            print(n, {name: round(value, 1) for name, value in figures.items()})


if __name__ == "__main__":
    main()
