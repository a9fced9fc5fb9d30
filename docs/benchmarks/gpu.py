"""Celler on a GPU beside the CPU of the same machine: labels, cells per second, memory, share of the product ceiling.

    python docs/benchmarks/gpu.py [--out FOLDER] [--cells 20000] [--parts labels,base,latent] [--accelerator auto]

Each part runs in a process of its own, so that one that fails keeps the others, and writes ``PART.csv`` into the
folder. It needs no file and no network. Without a GPU the CPU takes its place, which tries the script.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from speed import measure_speed
from synthetic import synthetic_cells

from celler._utils._devices import choose_device
from celler.datasets import pbmc68k
from celler.model import Celler
from celler.network._base import read_base

SECONDS = 150  #: that a part may take
Rows = list[dict[str, object]]


def labels(accelerator: str, _: int) -> Rows:
    """Share of 350 blood cells with the CPU's label, by encoder and precision, and the largest difference."""
    cells = pbmc68k()
    reference, query = cells[::2].copy(), cells[1::2].copy()
    rows: Rows = []
    for encoder in ("base", "additive", "latent", "transformer"):
        Celler.setup_anndata(reference, labels_key="cell_type")
        model = Celler(reference, encoder=encoder, precision="float32")
        model.train(max_epochs=3, accelerator="cpu", refit=False, show_progress=False)
        expected = model.predict(query, soft=True).to_numpy()
        for precision in ("float32", "bfloat16"):
            model._become(model._state.on(choose_device(accelerator), precision))
            found = model.predict(query, soft=True).to_numpy()
            same = float((found.argmax(1) == expected.argmax(1)).mean())
            rows.append(row(f"{encoder}, {precision}: same labels", same, "share"))
            rows.append(row(f"{encoder}, {precision}: largest difference", float(np.abs(found - expected).max()), "p"))
        model._become(model._state.on(torch.device("cpu"), "float32"))
    return rows


def base(accelerator: str, n_cells: int) -> Rows:
    """Training and prediction of the default, with human gene names, on both devices."""
    cells = named_cells(n_cells)
    Celler.setup_anndata(cells, labels_key="cell_type")
    rows: Rows = []
    found = []
    for where in ("cpu", accelerator):
        model = Celler(cells)
        seconds = timed(lambda model=model, where=where: model.train(accelerator=where, show_progress=False))
        model.predict(cells[:500])
        start = time.perf_counter()
        found.append(model.predict(cells))
        rate = n_cells / (time.perf_counter() - start)
        rows += [row(f"train, {where}", seconds, "s"), row(f"predict, {where}", rate, "cells/s")]
    rows.append(row("same labels by models of both devices", float((found[0] == found[1]).mean()), "share"))
    return [*rows, *peak(accelerator)]


def profiles(accelerator: str, _: int) -> Rows:
    """Time to teach the base: 1,000 profiles of all its genes, an epoch of 100 minibatches of 256."""
    cells = named_cells(2000, n_genes=10_000)
    Celler.setup_anndata(cells, labels_key="cell_type")
    rng = np.random.default_rng(0)
    means = rng.gamma(0.3, 1.0, (1000, cells.n_vars))
    types, sets = ([f"{kind} {k // n}" for k in range(1000)] for kind, n in (("type", 1), ("set", 20)))
    known = AnnData(means, pd.DataFrame({"set": sets}, types), cells.var)
    options = {"accelerator": accelerator, "show_progress": False}
    one, three = (
        timed(lambda n=n: Celler(cells, encoder="base").learn_profiles(known, "set", max_epochs=n, **options))
        for n in (1, 3)
    )
    rows = [row("an epoch", (three - one) / 2, "s"), row("6,000 steps, as the weights took", 30 * (three - one), "s")]
    return [*rows, *peak(accelerator)]


def speed(encoder: str, *, large: bool = False) -> Callable[[str, int], Rows]:
    """Floor and rates of one encoder; see ``speed.py``."""

    def part(accelerator: str, n_cells: int) -> Rows:
        on_gpu = choose_device(accelerator).type != "cpu"
        n_given = None if on_gpu else 32 if encoder == "transformer" else min(n_cells, 1000)
        table = measure_speed(encoder, accelerator=accelerator, large=large, n_threads=None, n_cells=n_given)
        return table.to_dict("records")

    return part


PARTS: dict[str, Callable[[str, int], Rows]] = {
    "labels": labels,
    "base": base,
    "additive": speed("additive"),
    "latent": speed("latent"),
    "transformer": speed("transformer"),
    "scgpt_size": speed("transformer", large=True),
    "profiles": profiles,
}


def named_cells(n_cells: int, n_genes: int = 3000) -> AnnData:
    """Synthetic cells whose genes have names that the base knows."""
    cells = synthetic_cells(n_cells, n_genes=n_genes)
    symbols = read_base().genes.to_numpy()
    cells.var_names = np.random.default_rng(0).choice(symbols, n_genes, replace=False)
    return cells


def timed(run: Callable[[], object]) -> float:
    """Wall seconds of ``run``."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def row(measure: str, value: float, unit: str) -> dict[str, object]:
    """Return a row of the table."""
    return {"measure": measure, "value": value, "unit": unit}


def peak(accelerator: str) -> Rows:
    """Peak of the GPU's memory, where there is one."""
    if choose_device(accelerator).type != "cuda":
        return []
    return [row("peak memory of the GPU", torch.cuda.max_memory_allocated() / 2**20, "MiB")]


def main() -> None:
    """Run the parts one after the other and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="default: gpu")
    parser.add_argument("--cells", type=int, default=20_000, help="default: 20000")
    parser.add_argument("--accelerator", default="auto", help="default: auto")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.part:
        table = pd.DataFrame(PARTS[options.part](options.accelerator, options.cells))
        table.to_csv(options.out / f"{options.part}.csv", index=False)
        return
    device = choose_device(options.accelerator)
    print(torch.cuda.get_device_name(device) if device.type == "cuda" else f"no GPU: {device}", torch.__version__)
    for name in options.parts.split(","):
        command = [sys.executable, __file__, "--part", name, "--out", str(options.out), "--cells", str(options.cells)]
        start = time.perf_counter()
        try:
            subprocess.run([*command, "--accelerator", options.accelerator], check=True, timeout=SECONDS)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            print(f"\n{name}: {type(error).__name__} after {time.perf_counter() - start:.0f} s")
            continue
        print(f"\n{name}, {time.perf_counter() - start:.0f} s")
        table = pd.read_csv(options.out / f"{name}.csv")
        print(table.to_string(index=False, float_format=lambda value: f"{value:,.4g}", na_rep=""))


if __name__ == "__main__":
    main()
