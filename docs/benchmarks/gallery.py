"""Train, save and describe three models from openly licensed sets: a gallery, and examples of the model card.

    python docs/benchmarks/gallery.py DATA [--out gallery] [--push OWNER]

DATA is a folder of the labelled .h5ad files of the benchmarks. Each model becomes a folder of config.json,
model.safetensors and README.md, of which this script fills in what only an author knows; ``--push`` uploads them to
``OWNER/<name>`` on a Hugging Face hub.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import anndata as ad

from celler.model import Celler


@dataclass(frozen=True)
class Entry:
    """A model of the gallery, and what its author says in the card."""

    file: str
    labels_key: str
    license: str
    data: str
    use: str
    limits: str


GALLERY = {
    "pbmc3k": Entry(
        "pbmc3k_annotated",
        "cell_type",
        "cc-by-4.0",
        "2,638 blood cells of a healthy donor, 10x Genomics (3' v1, CC BY 4.0); types of the Seurat tutorial.",
        "Blood or PBMC of human, droplet assays, at the level of nine types.",
        "One donor, one chemistry. No granulocytes, erythrocytes, plasma or stem cells; three kinds of T cells only.",
    ),
    "pbmc_10x_three_chemistries": Entry(
        "pbmc_10x_3tech_1200",
        "cell_type_harmonised",
        "cc-by-4.0",
        "1,200 blood cells of three healthy donors, 10x Genomics (3' v1, 3' v2 and 5', CC BY 4.0).",
        "Blood or PBMC of human, also of another 10x chemistry.",
        "1,767 genes. Seven megakaryocytes and three stem cells: do not rely on these two types.",
    ),
    "mouse_motor_cortex": Entry(
        "mouse_motor_cortex_11444_44types",
        "cell_type",
        "gpl-3.0",
        "11,444 cells of mouse primary motor cortex from the sample data of the R package DOT (GPL-3 or later).",
        "Mouse cortex, single cells or panels that hold most of these 500 genes.",
        "500 genes, 44 types of one region of adult mice; no smooth muscle cells or pericytes.",
    ),
}
OPEN = "To be filled in by the author"


def described(card: str, entry: Entry, contact: str) -> str:
    """Return a card with the open parts filled in."""
    said = {"Data": entry.data, "Intended use": entry.use, "Limits": entry.limits, "Contact": contact}
    parts = card.split("\n## ")
    for place, part in enumerate(parts):
        title, _, text = part.partition("\n")
        if title in said:
            kept = text[text.index(". A cell") + 2 :] if title == "Limits" else "\n"
            parts[place] = f"{title}\n\n{said[title]} {kept}".rstrip() + "\n"
        elif title == "Licence":
            parts[place] = f"{title}\n\n{entry.license}, that of the cells.\n"
    return "\n## ".join(parts).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("gallery"))
    parser.add_argument("--push", metavar="OWNER")
    parser.add_argument("--contact", default="the maintainers of Celler, in its issues")
    args = parser.parse_args()
    for name, entry in GALLERY.items():
        adata = ad.read_h5ad(args.data / f"{entry.file}.h5ad")
        Celler.setup_anndata(adata, labels_key=entry.labels_key)
        model = Celler(adata)
        model.train()
        folder = args.out / name
        model.save(folder, overwrite=True)
        card = folder / "README.md"
        card.write_text(described(card.read_text("utf-8"), entry, args.contact), "utf-8")
        model = Celler.load(folder)  # with the card as it is now
        print(f"{folder}\n{model}")
        if args.push:
            print(model.push_to_hub(f"{args.push}/{name}", license=entry.license))


if __name__ == "__main__":
    main()
