"""Whether the genes that a model goes by are those that biologists know.

    python docs/benchmarks/gene_importance.py DATA_FOLDER [--seeds 3]

On ``pbmc3k_annotated.h5ad`` the ten best genes of each type are asked for one of two canonical markers. Both kinds of
CD4 T cell count by CD3D/IL7R, the pair of T cells: nine types, eight pairs.
"""

import argparse
import sys
import time
from pathlib import Path

import anndata as ad
import pandas as pd

import celler as cl

FILE = "pbmc3k_annotated.h5ad"
MARKERS = {
    "B": {"MS4A1", "CD79A"},
    "Naive CD4 T": {"CD3D", "IL7R"},
    "Memory CD4 T": {"CD3D", "IL7R"},
    "CD8 T": {"CD8A", "CD8B"},
    "NK": {"GNLY", "NKG7"},
    "CD14+ Mono": {"LYZ", "CD14"},
    "FCGR3A+ Mono": {"FCGR3A", "MS4A7"},
    "DC": {"FCER1A", "CST3"},
    "Platelet": {"PPBP", "PF4"},
}


def row(method: str, seed: int, table: pd.DataFrame, seconds: float) -> dict[str, object]:
    """How many types have a canonical marker among their genes, and which have none."""
    genes = {name: set(found) for name, found in table.groupby("group")["gene"]}
    without = [name for name, known in MARKERS.items() if not known & genes.get(name, set())]
    n_types = len(MARKERS) - len(without)
    return {
        "method": method,
        "seed": seed,
        "types": n_types,
        "without": ", ".join(without),
        "seconds": seconds,
    }


def main() -> None:
    """Print a row per method and seed, and the genes of the first seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--encoders", nargs="+", default=["additive"])
    options = parser.parse_args()
    if not (options.folder / FILE).is_file():
        sys.exit(f"{options.folder / FILE} is not there; nothing was measured.")
    adata = ad.read_h5ad(options.folder / FILE)
    start = time.perf_counter()
    tables = {"rank_markers": cl.tl.rank_markers(adata, "cell_type")}
    rows = [row("rank_markers", 0, tables["rank_markers"], time.perf_counter() - start)]
    cl.model.Celler.setup_anndata(adata, labels_key="cell_type")
    for encoder in options.encoders:
        for seed in range(options.seeds):
            model = cl.model.Celler(adata, encoder=encoder)
            model.train(seed=seed, show_progress=False)
            for method in ("evidence", "gradient"):
                start = time.perf_counter()
                table = model.get_gene_importance(groupby="cell_type", method=method)
                seconds = time.perf_counter() - start
                rows.append(row(f"{encoder}, {method}", seed, table, seconds))
                tables.setdefault(f"{encoder}, {method}", table)
    print(pd.DataFrame(rows).round(1).to_string(index=False))
    for method, table in tables.items():
        print(f"\n{method}")
        for name, genes in table.groupby("group")["gene"]:
            print(f"  {name}: {' '.join(genes)}")


if __name__ == "__main__":
    main()
