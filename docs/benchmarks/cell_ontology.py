"""Make the table of the Cell Ontology in the package, from the release in ``cellxgene-ontology-guide`` on PyPI.

    pip install cellxgene-ontology-guide==1.11.1
    python docs/benchmarks/cell_ontology.py [CL-ontology-v2026-03-26.json.zst] [--out celler/labels/cell_ontology.tsv]

Without a path, the newest release in the installed package is taken. Of each term that is not deprecated and is a
cell, the id, the name, the terms directly above it (``is_a``; the package gives distances, a parent is at 1) and the
exact synonyms are kept; the package has no others. The Cell Ontology is licensed CC BY 4.0.
"""

import argparse
import importlib.resources
import json
import subprocess
from pathlib import Path
from typing import Any

from celler.labels._ontology import FILE, Ontology, Term, write_table

ROOT = "CL:0000000"
#: What the release says and the literature does not, with the reason.
LEFT_OUT = {
    ("CL:0002394", "CL:0000784"): "CD141-positive myeloid dendritic cells (cDC1) are no plasmacytoid dendritic cells"
}


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path, help="CL-ontology-*.json.zst or .json (the installed package)")
    parser.add_argument("--out", type=Path, default=FILE)
    arguments = parser.parse_args()
    path = arguments.path or newest()
    terms = terms_of(json.loads(text_of(path)))
    write_table(arguments.out, Ontology(terms, about(path)))
    print(f"{arguments.out}: {len(terms):,} terms of {path.name}, {arguments.out.stat().st_size:,} bytes")


def newest() -> Path:
    """Path of the newest release in the installed package."""
    folder = Path(str(importlib.resources.files("cellxgene_ontology_guide"))) / "data"
    return max(folder.glob("CL-ontology-v*.json.zst"))  # the version is a date


def text_of(path: Path) -> str:
    """Text of a file, decompressed by the program ``zstd`` if its name ends in ``.zst``."""
    if path.suffix != ".zst":
        return path.read_text(encoding="utf-8")
    return subprocess.run(["zstd", "-dc", path], check=True, capture_output=True).stdout.decode()


def terms_of(release: dict[str, dict[str, Any]]) -> list[Term]:
    """Terms of cells that are not deprecated, by id."""
    terms = []
    for identifier, entry in sorted(release.items()):
        parents = [above for above, distance in entry["ancestors"].items() if distance == 1]
        # parts of cells, such as "basophilic cytoplasm", have no parent among the cells
        if entry["deprecated"] or not (parents or identifier == ROOT):
            continue
        is_a = [above for above in sorted(parents) if (identifier, above) not in LEFT_OUT]
        terms.append(Term(identifier, entry["label"], is_a, sorted(entry.get("synonyms", []))))
    return terms


def about(path: Path) -> dict[str, Any]:
    """What the first line of the table says of its source."""
    return {
        "name": "Cell Ontology",
        "version": path.name.removeprefix("CL-ontology-").split(".")[0],
        "source": f"{path.name} of cellxgene-ontology-guide 1.11.1 (PyPI)",
        "url": "https://obofoundry.org/ontology/cl",
        "licence": "CC BY 4.0",
        "columns": ["id", "name", "is_a", "exact synonyms"],
        "left out": [f"{term} is_a {above}: {why}" for (term, above), why in LEFT_OUT.items()],
    }


if __name__ == "__main__":
    main()
