"""Make the cell types of Celler-base, for use without a reference: names, ontology ids, tissues and mean expression.

    python docs/benchmarks/base_types.py profiles.npz [--out celler/data/atlas_types.npz]

``profiles.npz`` is that of ``base.py``, which makes the weights of the base from it; types and genes are those of the
base in the package. ``base_types.tsv``, beside this script, says what each atlas's own names mean, and
``base_tissues.tsv`` which tissues a data set is of. Clusters whose type is unclear are left out.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from base import read_atlases

from celler.data._atlas_types import FILE, AtlasTypes, write_atlas_types
from celler.network._base import read_base

STEP = 0.1  #: levels are a tenth of a natural logarithm apart
HERE = Path(__file__).parent


def atlas_types(profiles: Path) -> AtlasTypes:
    """Collect the types of the base that have a clear name."""
    base, atlases = read_base(), read_atlases(profiles)
    share, datasets = atlases.profiles.share, atlases.about["name"].to_numpy()
    if list(atlases.profiles.types) != list(base.types) or not atlases.profiles.genes.equals(base.genes):
        raise ValueError("the base was made from other profiles; make it anew with base.py first.")
    meanings = pd.read_csv(HERE / "base_types.tsv", sep="\t", keep_default_na=False)
    meanings = meanings.drop_duplicates(["dataset", "original"]).set_index(["dataset", "original"])
    table = meanings.loc[list(zip(datasets[base.datasets], base.types, strict=True))].reset_index()
    table = table.assign(row=np.arange(len(table)), dataset=base.datasets.astype(int))
    kept = np.flatnonzero(table["kind"] == "type")
    levels = np.round(np.log1p(1e4 * np.nan_to_num(share[kept])) / STEP).clip(0, 255).astype(np.uint8)
    measured = np.stack([~np.isnan(share[base.datasets == code][0]) for code in range(len(datasets))])
    about = pd.read_csv(HERE / "base_tissues.tsv", sep="\t", keep_default_na=False).set_index("dataset")
    about = about.loc[datasets].rename_axis("name").reset_index()[["name", "tissues", "organism", "stage"]]
    citations = atlases.about["citation"].str.replace("\n", " ")
    about["citation"] = citations.str.replace("Litvi?uková", "Litviňuková", regex=False).to_numpy()
    return AtlasTypes(table.iloc[kept], about, base.genes, np.ascontiguousarray(levels.T), STEP, measured)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profiles", type=Path)
    parser.add_argument("--out", type=Path, default=FILE)
    args = parser.parse_args()
    types = atlas_types(args.profiles)
    write_atlas_types(args.out, types)
    print(f"{args.out}: {len(types):,} types, {len(set(types.keys))} names, {args.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
