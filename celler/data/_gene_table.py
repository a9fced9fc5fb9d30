"""Gene table: Ensembl ids, symbols, earlier symbols and one-to-one orthologs of human and mouse."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pandas as pd

FILE = Path(__file__).with_name("genes.npz")  #: made by docs/benchmarks/gene_table.py, which lists the sources
MIN_KNOWN = 0.1  #: share of names that must be in the table, else an index holds something else
MIN_LEAD = 1.05  #: how many times more of the names in capitals mouse must know to be the species
N_PROBED = 2000  #: names read to tell the species and placeholders
ID_PREFIX = {"human": "ENSG", "mouse": "ENSMUSG"}
GENOMES = {"GRCh37": "human", "GRCh38": "human", "hg19": "human", "hg38": "human"}
GENOMES |= {"GRCm38": "mouse", "GRCm39": "mouse", "mm9": "mouse", "mm10": "mouse", "mm39": "mouse"}
_GENOME = re.compile(rf"({'|'.join(GENOMES)})[_.-]+(?=[A-Za-z0-9])")
_LOWER = re.compile("[a-z]")
_PLACEHOLDER = re.compile(r"(gene|feature|var|row|col|id|[a-z])?[\s_.-]*\d+(\.0)?", re.IGNORECASE)
_DATE = re.compile(r"(\d{1,2})-(Sep|Mar)|(Sep|Mar)-(\d{1,2})", re.IGNORECASE)
COPY = re.compile(r"(.+)\.\d+")  # what R's make.unique appends
UNKNOWN, SYMBOL, ENSEMBL, EARLIER, CAPITALS, R_STYLE, PREFIXED, DATE = range(-1, 7)
#: How a name was found, in words; a way is a code of this list.
WAYS = (
    "symbol",
    "Ensembl id",
    "earlier symbol or alias",
    "symbol in capitals",
    "R-style name",
    "name without its genome prefix",
    "date that a spreadsheet made of a symbol",
)


@dataclass(frozen=True)
class Found:
    """Genes of the names of an index.

    Attributes
    ----------
    rows
        Row of each name's gene in the table of its species ``(n,)``, int32; -1 for none.
    ways
        Code of :data:`WAYS` ``(n,)``, int8; -1 for none.
    is_current
        Whether a name is the gene's current symbol or its own Ensembl id ``(n,)``.
    organism
        ``"human"``, ``"mouse"`` or, where the names are of neither, ``""``.
    """

    rows: np.ndarray
    ways: np.ndarray
    is_current: np.ndarray
    organism: str

    def unique(self) -> Found:
        """Leave out names that share a gene, unless just one of them is its current name."""
        is_found = self.rows >= 0
        n_genes = self.rows.max(initial=-1) + 1
        n_names = np.bincount(self.rows[is_found], minlength=n_genes)
        n_current = np.bincount(self.rows[is_found & self.is_current], minlength=n_genes)
        keep = is_found.copy()
        of_gene = self.rows[is_found]
        is_current = self.is_current[is_found]
        keep[is_found] = (n_names[of_gene] == 1) | (is_current & (n_current[of_gene] == 1))
        rows, ways = np.where(keep, self.rows, np.int32(-1)), np.where(keep, self.ways, np.int8(UNKNOWN))
        return Found(rows, ways, self.is_current & keep, self.organism)


@dataclass(frozen=True)
class Resolved:
    """Human symbols of the names of an index; ``str()`` says in words how they were found.

    Attributes
    ----------
    names
        Current human symbol of each name ``(n,)``; ``""`` where unknown, ambiguous or without one-to-one ortholog.
    n_by_way
        Number of names by how they were found: a key of :data:`WAYS`.
    organism
        ``"human"``, ``"mouse"`` or ``""`` for an index whose names are of neither.
    n_shared
        Number of names left out because another one is the same gene.
    n_without_ortholog
        Number of known mouse genes without one-to-one ortholog.
    """

    names: pd.Index
    n_by_way: dict[str, int]
    organism: str
    n_shared: int = 0
    n_without_ortholog: int = 0

    @property
    def n_known(self) -> int:
        """Number of names that have a human symbol."""
        return sum(self.n_by_way.values())

    def __str__(self) -> str:
        if not self.organism:
            return f"The {len(self.names):,} names are not those of human or mouse genes."
        ways = ", ".join(f"{n:,} by {way}" for way, n in self.n_by_way.items())
        through = ", through one-to-one orthologs of mouse genes" if self.organism == "mouse" else ""
        are = "is a known gene" if self.n_known == 1 else "are known genes"
        return f"{self.n_known:,} of {len(self.names):,} names {are}{through} ({ways}; table of {release()})."


def human_symbols(names: pd.Index, *, organism: str | None = None, unique: bool = True) -> Resolved:
    """Human symbols of genes named by Ensembl ids, symbols, earlier symbols or aliases of human or mouse.

    The species is that of most names, unless ``organism`` says it. With ``unique``, names that share a gene are left
    out, except the one that is its current symbol or own Ensembl id.
    """
    found = find_genes(names, organism)
    kept = found.unique() if unique else found
    rows = human_rows(kept)
    counts = Counter(kept.ways[rows >= 0].tolist())
    return Resolved(
        pd.Index(_human_symbols()[rows], dtype=object),
        {WAYS[way]: counts[way] for way in sorted(counts)},
        found.organism,
        n_shared=int((found.rows >= 0).sum() - (kept.rows >= 0).sum()),
        n_without_ortholog=int(((kept.rows >= 0) & (rows < 0)).sum()),
    )


def human_rows(found: Found) -> np.ndarray:
    """Rows of the genes in the human table ``(n,)``, through one-to-one orthologs where they are mouse genes."""
    if found.organism != "mouse":
        return found.rows
    return np.append(_arrays()["mouse_ortholog"], np.int32(-1))[found.rows]


def find_genes(names: pd.Index, organism: str | None = None) -> Found:
    """Look up names in the table; an ambiguous name is not found, and names of placeholders never are."""
    listed = [str(name) for name in names]
    n = len(listed)
    if not n or _are_placeholders(listed):
        return _none(n)
    genomes = _strip_genomes(listed)
    is_upper = not any(map(_LOWER.search, listed))
    species = _species(organism or _organism(listed, is_upper))
    rows, ways, is_own = species.current(listed, is_upper)
    _add_other_names(listed, species, rows, ways)
    rows[[i for i, genome in genomes.items() if GENOMES[genome] != species.name]] = -1
    if (rows >= 0).sum() < MIN_KNOWN * n:
        return _none(n)
    rows[_other_readings(listed, species, rows, ways)] = -1
    is_own |= (ways == R_STYLE) & _is_symbol_in_r(listed, species, rows, ways)
    ways[list(genomes)] = PREFIXED
    ways[rows < 0] = UNKNOWN
    return Found(rows, ways, is_own & (rows >= 0), species.name)


@cache
def _human_symbols() -> np.ndarray:
    """Symbol of each row, and of row -1 ``""``."""
    return np.array([*_species("human").symbols, ""], dtype=object)


@cache
def release() -> str:
    """Name of the newest release in the table."""
    return str(json.loads(_arrays()["about"].tobytes())["release"])


@cache
def _arrays() -> dict[str, np.ndarray]:
    with np.load(FILE, allow_pickle=False) as table:
        return dict(table)


@cache
def _species(name: str) -> _Species:
    return _Species(name)


class _Species:
    """Look-ups of one species."""

    def __init__(self, name: str) -> None:
        self.name, self.id_prefix = name, ID_PREFIX[name]
        table = {key.removeprefix(name + "_"): array for key, array in _arrays().items()}
        self.symbols = table["symbols"].tobytes().decode().split("\n")
        self.row_of_symbol = dict(zip(self.symbols, range(len(self.symbols)), strict=True))
        own, other = table["ids"], table["other_ids"]
        has_id = np.flatnonzero(own)
        ids = np.concatenate([own[has_id], other[:, 0]])
        order = np.argsort(ids)
        self.ids, self.row_of_id = ids[order], np.concatenate([has_id, other[:, 1]]).astype(np.int32)[order]
        self.own_ids = own
        self._table = table
        self.contested = table["contested"]

    @cached_property
    def row_of_earlier(self) -> dict[str, int]:
        """Row by earlier symbol or alias."""
        lines = self._table["earlier"].tobytes().decode().split("\n")
        return {name: row for row, line in enumerate(lines) if line for name in line.split("\t")}

    @cached_property
    def disputed(self) -> dict[str, list[int]]:
        """Rows of the other genes that have an earlier symbol as an alias; -1 for one that is not in the table."""
        found: dict[str, list[int]] = {}
        names = self._table["disputed"].tobytes().decode().split("\n")
        for name, row in zip(names, self._table["disputed_row"].tolist(), strict=True):
            found.setdefault(name, []).append(row)
        return found

    @cached_property
    def row_in_capitals(self) -> dict[str, int]:
        """Row by symbol, then by earlier symbol or alias, in capitals; -1 where it means several genes."""
        found: dict[str, int] = {}
        for names in (self.row_of_symbol, self.row_of_earlier):
            of_names: dict[str, int] = {}
            for name, row in names.items():
                upper = name.upper()
                if upper != name and of_names.setdefault(upper, row) != row:
                    of_names[upper] = -1
            found = of_names | found
        return found

    @cached_property
    def row_in_r(self) -> dict[str, int]:
        """Row by the name that R's ``make.names`` makes of one with hyphens; -1 where it means several genes."""
        found: dict[str, int] = {}
        for names in (self.row_of_symbol, self.row_of_earlier):
            for name, row in names.items():
                if "-" in name and found.setdefault(dotted := name.replace("-", "."), row) != row:
                    found[dotted] = -1
        return found

    def current(self, names: list[str], is_upper: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows and ways of current symbols and Ensembl ids, and whether the name is the gene's own.

        Names of which none has a small letter are compared with the symbols in capitals too.
        """
        get = self.row_of_symbol.get
        rows = np.array([get(name, -1) for name in names], np.int32)
        ways = np.where(rows >= 0, SYMBOL, UNKNOWN).astype(np.int8)
        is_own = rows >= 0
        columns, numbers = self._ids_in(names)
        place = np.searchsorted(self.ids, numbers).clip(max=len(self.ids) - 1)
        is_known = self.ids[place] == numbers
        columns, found = columns[is_known], self.row_of_id[place[is_known]]
        rows[columns], ways[columns] = found, ENSEMBL
        is_own[columns] = self.own_ids[found] == numbers[is_known]
        for i in _unknown(names, rows) if is_upper else ():
            if (row := self.row_in_capitals.get(names[i], -1)) >= 0:
                rows[i], ways[i], is_own[i] = row, CAPITALS, True
        return rows, ways, is_own

    def _ids_in(self, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Places and numbers of the names that are Ensembl ids, with or without a version."""
        start = len(self.id_prefix)
        found = [
            (i, int(number))
            for i, name in enumerate(names)
            if name.startswith(self.id_prefix)
            and len(number := name[start:].partition(".")[0]) == 11
            and number.isdecimal()
            and (len(name) == start + 11 or name[start + 12 :].isdecimal())
        ]
        columns, numbers = np.array(found, np.int64).reshape(-1, 2).T
        return columns, numbers


def _strip_genomes(names: list[str]) -> dict[int, str]:
    """Take genome prefixes such as ``hg19_`` off the names, in place; the genome by the place of the name."""
    genomes = {}
    for i, name in enumerate(names):
        if name[:1] in "Ghm" and (match := _GENOME.match(name)):
            genomes[i], names[i] = match[1], name[match.end() :]
    return genomes


def _organism(names: list[str], is_upper: bool) -> str:
    """Return the species that has more of the names as current symbols or Ensembl ids.

    Names that are all in capitals are human, unless clearly more of them are those of mouse genes in capitals.
    """
    probed = names[:: max(1, len(names) // N_PROBED)]
    n_known = {}
    for name in ID_PREFIX:
        species = _species(name)
        rows, ways, _ = species.current(probed, is_upper)
        if is_upper:
            _add_other_names(probed, species, rows, ways)
        n_known[name] = int((rows >= 0).sum())
    return "mouse" if n_known["mouse"] > n_known["human"] * (MIN_LEAD if is_upper else 1) else "human"


def _add_other_names(names: list[str], species: _Species, rows: np.ndarray, ways: np.ndarray) -> None:
    """Fill in, for names that are no current ones, genes by earlier symbol or alias and by R-style name."""
    for i in _unknown(names, rows):
        name = names[i]
        row, way = species.row_of_earlier.get(name, -1), EARLIER
        if row < 0 and ("." in name or name[:1] == "X"):
            row, way = _r_style(name, species), R_STYLE
        if row < 0 and (date := _DATE.fullmatch(name)):
            row, way = _of_date(date, species), DATE
        if row >= 0:
            rows[i], ways[i] = row, way


def _unknown(names: list[str], rows: np.ndarray) -> list[int]:
    """Places of names without a gene that are no Ensembl ids."""
    return [i for i in np.flatnonzero(rows < 0).tolist() if not names[i].startswith("ENS")]


def _r_style(name: str, species: _Species) -> int:
    """Row of a name that went through R's ``make.names``; -1 where it can mean two genes."""
    if name[0] == "X" and name[1:2].isdecimal():
        name = name[1:]
        row = species.row_of_symbol.get(name, species.row_of_earlier.get(name, -1))
        if row >= 0:
            return row
    copy = COPY.fullmatch(name)
    if copy and any(copy[1] in known for known in (species.row_of_symbol, species.row_of_earlier, species.row_in_r)):
        return -1  # MIR9.1 may be MIR9-1 or the second MIR9
    return species.row_in_r.get(name, -1)


def _of_date(date: re.Match[str], species: _Species) -> int:
    """Row of the gene whose symbol a spreadsheet read as a date: ``SEPT2`` as ``2-Sep``; -1 where it can mean two."""
    month, number = (date[2] or date[3]).lower(), int(date[1] or date[4])
    if month == "mar" and number <= 2:
        return -1  # MARCH1 or MARC1
    symbol = f"{'SEPT' if month == 'sep' else 'MARCH'}{number}"
    symbol = symbol.title() if species.name == "mouse" else symbol
    return species.row_of_symbol.get(symbol, species.row_of_earlier.get(symbol, -1))


def _is_symbol_in_r(names: list[str], species: _Species, rows: np.ndarray, ways: np.ndarray) -> np.ndarray:
    """Whether an R-style name is the current symbol but for its dots."""
    found = np.zeros(len(names), bool)
    for i in np.flatnonzero(ways == R_STYLE):
        found[i] = species.symbols[rows[i]].replace("-", ".") == names[i].removeprefix("X")
    return found


def _other_readings(names: list[str], species: _Species, rows: np.ndarray, ways: np.ndarray) -> np.ndarray:
    """Places of names whose other reading the index does not rule out.

    A symbol that once named another gene is doubtful if its own gene is there under an earlier name and the other gene
    under none. An earlier symbol that is also an alias of other genes is doubtful unless these are there by themselves.
    """
    own, other = species.contested.T
    is_earlier, is_known, is_doubtful = np.zeros((3, len(species.symbols) + 1), bool)
    is_earlier[rows[ways == EARLIER]] = True
    is_known[rows] = True
    is_known[-1] = False  # of names that were not found
    is_doubtful[own[is_earlier[own] & ~is_known[other]]] = True
    doubtful = np.flatnonzero((ways == SYMBOL) & (rows >= 0) & is_doubtful[rows])
    disputed = [
        i
        for i in np.flatnonzero((ways == EARLIER) & (rows >= 0))
        if (others := species.disputed.get(names[i])) is not None and not is_known[others].all()
    ]
    return np.append(doubtful, np.array(disputed, np.int64))


def _are_placeholders(names: list[str]) -> bool:
    """Whether most names are numbers or numbered genes, such as ``gene_0001``."""
    probed = names[:: max(1, len(names) // N_PROBED)]
    return 2 * sum(_PLACEHOLDER.fullmatch(name) is not None for name in probed) > len(probed)


def _none(n: int) -> Found:
    nothing = np.full(n, -1, np.int32)
    return Found(nothing, nothing.astype(np.int8), np.zeros(n, bool), "")
