"""What amplitude, mean, n_hard and the replay do: the sweep behind the defaults and the user guide's table.

    python docs/benchmarks/loss_sweep.py FILE.h5ad [...] --labels-key KEY --out sweep.csv [--jobs 2]

The task is that of ``celler benchmark ablation``, on other splits: its seeds are 0 and up, these
start at 100, so that what is tuned here is not tested there.
"""

import argparse
from pathlib import Path

import anndata as ad

from celler.benchmark import Variant, ablation, ablation_table, ablation_text
from celler.losses import HDM, GInf
from celler.mining import Replay

VARIANTS = {
    "GInf + HDM": Variant(HDM()),
    "amplitude 0": Variant(HDM(base=GInf(0.0))),
    "amplitude 0.3": Variant(HDM(base=GInf(0.3))),
    "mean -2": Variant(HDM(base=GInf(0.1, mean=-2.0))),
    "mean -5": Variant(HDM(base=GInf(0.1, mean=-5.0))),
    "n_hard 1": Variant(HDM(n_hard=1)),
    "n_hard all": Variant(HDM(n_hard=1000)),
    "replay, share 0.02": Variant(HDM(), Replay(max_share=0.02)),
    "replay, share 0.1": Variant(HDM(), Replay(max_share=0.1)),
    "replay, share 0.1, 5 a class": Variant(HDM(), Replay(n_per_class=5, max_share=0.1)),
    "replay, share 0.1, patience 6": Variant(HDM(), Replay(max_share=0.1, patience=6)),
    "replay, share 0.3, 50 a class": Variant(HDM(), Replay(n_per_class=50, max_share=0.3)),
    "mean -2, replay, share 0.02": Variant(HDM(base=GInf(0.1, mean=-2.0)), Replay()),
    "mean -2, replay, share 0.005": Variant(HDM(base=GInf(0.1, mean=-2.0)), Replay(max_share=0.005)),
}


def main() -> None:
    """Print the table; differences are to GInf + HDM as in the paper, without replay."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--labels-key", default="cell_type")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    rows = ablation(
        {path.stem: ad.read_h5ad(path) for path in options.files},
        options.labels_key,
        variants=VARIANTS,
        seeds=range(100, 100 + options.seeds),
        file=options.out,
        n_jobs=options.jobs,
    )
    print(ablation_text(ablation_table(rows, baseline="GInf + HDM")))


if __name__ == "__main__":
    main()
