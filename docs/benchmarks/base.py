"""Make Celler-base, the pretrained encoder in the package, from mean expression profiles of public atlases.

    python docs/benchmarks/base.py profiles.npz [--out celler/network/base.safetensors] [--epochs 80] [--seed 0]
        [--without Lung,Kidney] [--organism human] [--no-masked] [--no-attention] [--loss cross-entropy]

``profiles.npz`` holds the mean expression of 1,196 cell types of 81 atlases, human and mouse, from Nanostring's
CellProfileLibrary (CC BY 4.0) and rnabioco's clustifyrdata (MIT); its entry ``about`` describes the form. Genes are
brought to today's human symbols, those of mice through one-to-one orthologs. ``--without`` holds back data sets whose
name contains one of the words, to measure how the encoder does on atlases that it has not seen. Where
``--out`` has a model card, such as ``base_card.md``, its last part is written anew.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from celler.data._gene_table import human_symbols
from celler.data._pseudo_cells import CellProfiles, PseudoCellLoader, Simulation
from celler.losses import HDM, CrossEntropy
from celler.network._base import read_base, write_base
from celler.network._config import NetworkConfig
from celler.network._encoders import BaseEncoder
from celler.training._plan import PretrainingConfig
from celler.training._profiles import EPOCH, ProfileTasks, fit_profiles

#: Data sets that must have measured a gene of the base.
MIN_DATASETS = 12
SIZES = {"d_model": 384, "n_latents": 6, "n_layers": 1, "n_heads": 2}
#: Heading of the part of the model card that the file of weights tells itself.
CONTENTS = "## Contents\n"


@dataclass(frozen=True)
class Atlases:
    """Profiles of all data sets in human symbols, and what is known of each data set."""

    profiles: CellProfiles
    about: pd.DataFrame  # a row per data set


def read_atlases(path: Path, organisms: tuple[str, ...] = ("human", "mouse"), without: tuple[str, ...] = ()) -> Atlases:
    """Read the data sets that can be used, without those whose name contains one of the words ``without``."""
    with np.load(path, allow_pickle=False) as file:
        stored = {name: file[name] for name in file.files}
    about = pd.DataFrame(
        {name.removeprefix("dataset_"): text(stored[name]) for name in stored if stored[name].dtype == np.uint8
         and name.startswith("dataset_") and name != "dataset_ok"}
    )  # fmt: skip
    about["is_used"] = (stored["dataset_ok"] > 0) & about["organism"].isin(organisms)
    about["is_used"] &= np.array([not any(word in name for word in without) for name in about["name"]])
    genes = {organism: text(stored[f"genes_{organism}"]) for organism in organisms}
    blocks = [block_of(stored, code, genes, about) for code in np.flatnonzero(about["is_used"])]
    names = np.unique(np.concatenate([block.columns for block in blocks]))
    n_measured = pd.Series(np.concatenate([block.columns for block in blocks])).value_counts()
    names = names[n_measured[names] >= MIN_DATASETS]
    share = np.concatenate([block.reindex(columns=names).to_numpy(np.float32) for block in blocks])
    types = np.concatenate([block.index for block in blocks])
    codes = np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])
    return Atlases(CellProfiles(share, pd.Index(names), types, codes), about[about["is_used"]].reset_index(drop=True))


def text(array: np.ndarray) -> np.ndarray:
    """Lines of text."""
    return np.array(array.tobytes().decode().split("\n"), object)


def block_of(stored: dict, code: int, genes: dict, about: pd.DataFrame) -> pd.DataFrame:
    """Shares of counts of a data set: its types in rows, human symbols in columns."""
    organism = about["organism"][code]
    packed = stored[f"measured_{organism}"][stored["measured_row"][code]]
    names = genes[organism][np.unpackbits(packed, count=len(genes[organism])).astype(bool)]
    start, end = stored["code_start"][code : code + 2]
    levels = stored["codes"][start:end].reshape(len(names), -1).astype(np.float32)
    share = (np.expm1(levels * np.float32(stored["step"])) / 1e4).T
    symbols = human_symbols(pd.Index(names), organism=organism, unique=False).names
    types = text(stored["types"])[stored["type_dataset"] == code]
    table = pd.DataFrame(share, index=types, columns=symbols).loc[:, symbols != ""]
    return table.T.groupby(level=0).sum().T


def card_of(weights: Path) -> Path:
    """The model card of a file of weights, beside it."""
    return weights.with_name(f"{weights.stem}_card.md")


def write_card(weights: Path) -> None:
    """Write the contents of a file of weights into its model card; the rest of the card stays."""
    card = card_of(weights)
    above = card.read_text("utf-8").partition(CONTENTS)[0]
    card.write_text(f"{above}{CONTENTS}{contents(weights)}", "utf-8")


def contents(weights: Path) -> str:
    """Sizes of a base, the command that made it, and a row for each study that it learned from."""
    base = read_base(weights)
    about = pd.DataFrame(base.about["sources"]).assign(n_types=np.bincount(base.datasets))
    n_types = about.groupby("organism")["n_types"].sum()
    sizes = ", ".join(f"`{name}` {size}" for name, size in base.sizes.items())
    lines = [
        "\n| | |\n| --- | --- |",
        f"| Genes | {len(base.genes):,} human symbols |",
        f"| Types | {len(base.types):,} of {len(about)} data sets: "
        f"{', '.join(f'{n} {organism}' for organism, n in n_types.items())} |",
        f"| Sizes | {sizes} |",
        f"| File | `{weights.name}`, {weights.stat().st_size / 1e6:.1f} MB; gene embeddings int8, the rest float16 |",
        f"| Made by | `{base.about['command']}` |",
    ]
    for source, of_source in about.groupby("source", sort=False):
        lines.append(f"\n### Data sets of {source}\n\n| Study | Data sets (types) | Remarks |\n| --- | --- | --- |")
        for study, rows in of_source.groupby("citation", sort=False):
            names = ", ".join(f"{name} ({n})" for name, n in zip(rows["name"], rows["n_types"], strict=True))
            lines.append(f"| {study} | {names} | {remarks(rows)} |")
    # A letter that the library lost.
    return "\n".join(lines).replace("Litvi?uková", "Litviňuková") + "\n"


def remarks(rows: pd.DataFrame) -> str:
    """What is to be known of the data sets of a study: of all of them, or by name."""
    if rows["flag"].nunique() == 1:
        return str(rows["flag"].iloc[0])
    names = rows["name"].str.rpartition("/")[2]
    return "; ".join(f"{name}: {flag}" for name, flag in zip(names, rows["flag"], strict=True) if flag)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profiles", type=Path)
    parser.add_argument("--out", type=Path, default=Path("celler/network/base.safetensors"))
    parser.add_argument("--epochs", type=int, default=80, help=f"of {EPOCH} minibatches of 256 cells")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without", default="", help="words in the names of data sets to hold back")
    parser.add_argument("--organism", choices=["human", "mouse"])
    parser.add_argument("--no-masked", action="store_true", help="learn types alone")
    parser.add_argument("--no-attention", action="store_true", help="the sum of gene embeddings alone")
    parser.add_argument("--loss", choices=["hdm", "cross-entropy"], default="hdm")
    args = parser.parse_args()
    organisms = ("human", "mouse") if args.organism is None else (args.organism,)
    atlases = read_atlases(args.profiles, organisms, tuple(filter(None, args.without.split(","))))
    profiles = atlases.profiles
    print(f"{len(profiles.types):,} types of {len(atlases.about)} data sets, {len(profiles.genes):,} genes", flush=True)
    config = NetworkConfig(n_genes=len(profiles.genes), n_classes=1, encoder="base", **SIZES)
    torch.manual_seed(args.seed)
    encoder = BaseEncoder(config)
    if args.no_attention:
        encoder.gate.data.zero_().requires_grad_(False)
    settings = PretrainingConfig(
        max_epochs=args.epochs, batch_size=256, learning_rate=2e-3, weight_decay=1e-4, seed=args.seed
    )
    loader = PseudoCellLoader(profiles, Simulation(), EPOCH, 256, settings.mask_ratio, args.seed)
    loss = HDM(n_hard=20) if args.loss == "hdm" else CrossEntropy()
    start = time.perf_counter()
    head, curves = fit_profiles(encoder, loader, ProfileTasks(loss, 0.0 if args.no_masked else 1.0), settings)
    print(pd.DataFrame(curves).iloc[:: max(1, args.epochs // 10)].to_string())
    sources = atlases.about.drop(columns=["is_used"]).to_dict("records")
    command = f"python docs/benchmarks/base.py profiles.npz --epochs {args.epochs} --seed {args.seed}"
    names = {"genes": profiles.genes, "types": profiles.types, "datasets": profiles.datasets}
    about = {"command": command, "seed": args.seed, "sources": sources}
    write_base(args.out, encoder, config, head.vectors, names, about)
    if card_of(args.out).exists():
        write_card(args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB, {(time.perf_counter() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
