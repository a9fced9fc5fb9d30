"""Ontologies: terms with names, synonyms and what they are a kind of, from an OBO file or the one that comes along.

The OBO parser is ours: obonet is twice as slow (1.6 s against 0.7 s for 20,000 terms), refuses files with a byte
order mark, a bad byte or a line without a tag, and leaves synonyms and escapes to the caller, which is most of it.
"""

from __future__ import annotations

import graphlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from celler._utils._messages import similar

#: The Cell Ontology, made by docs/benchmarks/cell_ontology.py.
FILE = Path(__file__).with_name("cell_ontology.tsv")
#: A quoted synonym and its scope; quotes inside are written \".
SYNONYM = re.compile(r'"((?:[^"\\]|\\.)*)"\s*(EXACT|BROAD|NARROW|RELATED)?')
N_LISTED = 8


@dataclass
class Term:
    """A term of the file; ``is_a`` holds ids."""

    id: str
    name: str = ""
    is_a: list[str] = field(default_factory=list)
    exact: list[str] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)
    other_ids: list[str] = field(default_factory=list)
    is_obsolete: bool = False
    replaced_by: str = ""

    def __str__(self) -> str:
        return f"{self.name or 'unnamed'} ({self.id})"


class Ontology:
    """Terms by id, name and synonym; ``about`` names the source, version and licence where they are known."""

    def __init__(self, terms: Iterable[Term], about: Mapping[str, Any] | None = None) -> None:
        self.about = dict(about or {})
        self.terms = {term.id: term for term in terms}
        self._ids = {i.casefold(): t for t in self.terms.values() for i in (t.id, *t.other_ids)}
        # in the order in which a name is looked up; loose synonyms only serve as a hint
        self._named: dict[str, dict[str, list[Term]]] = {"name": {}, "exact": {}, "loose": {}}
        for term in self.terms.values():
            for kind, names in (("name", [term.name]), ("exact", term.exact), ("loose", term.loose)):
                for key in {_plain(name) for name in names if name}:
                    self._named[kind].setdefault(key, []).append(term)

    def find(self, name: str) -> Term:
        """Return the term with this id, name or exact synonym; raise unless there is one, not obsolete."""
        by_id = self._ids.get(name.strip().casefold())
        found = [by_id] if by_id is not None else []
        for kind in ("name", "exact"):
            named = self.named(kind, name)
            found = found or [t for t in named if not t.is_obsolete] or named
        if not found:
            raise ValueError(self._not_found(name))
        if len(found) > 1:
            raise ValueError(f"{name!r} is the name of {' and of '.join(map(str, found))}; pass one of these ids.")
        if found[0].is_obsolete:
            new = self.terms.get(found[0].replaced_by)
            advice = f"It was replaced by {new}: pass that." if new else "Pass another term."
            raise ValueError(f"{name!r} is {found[0]}, which is obsolete. {advice}")
        return found[0]

    def named(self, kind: str, name: str) -> list[Term]:
        """Terms with this ``"name"``, ``"exact"`` or ``"loose"`` synonym, in any case."""
        return self._named[kind].get(_plain(name), [])

    def above(self, term: Term) -> dict[str, Term]:
        """``term`` and all terms above it by id; ids that the file lacks are left out."""
        reached: dict[str, Term] = {}
        waiting = [term]
        while waiting:
            current = waiting.pop()
            if current.id not in reached:
                reached[current.id] = current
                waiting += [self.terms[i] for i in current.is_a if i in self.terms]
        try:
            graphlib.TopologicalSorter({i: t.is_a for i, t in reached.items()}).prepare()
        except graphlib.CycleError as error:
            circle = " is a ".join(str(self.terms[i]) for i in reversed(error.args[1]))
            raise ValueError(f"is_a goes round in a circle: {circle}. Correct the file.") from None
        return reached

    def nearest(self, term: Term, candidates: Mapping[str, Term]) -> list[Term]:
        """Return the ``candidates`` that are ``term`` or above it, and above no other of them."""
        above = self.above(term)
        own = [other for i, other in candidates.items() if i in above]
        higher = {i for other in own for i in self.above(other) if i != other.id}
        return [other for other in own if other.id not in higher]

    def _not_found(self, name: str) -> str:
        if loose := self.named("loose", name):
            return (
                f"{name!r} is no name or exact synonym of a term, only a related, broad or narrow one of "
                f"{' and of '.join(map(str, loose[:N_LISTED]))}. If that is meant, pass its name or id."
            )
        usable = [term for term in self.terms.values() if term.name and not term.is_obsolete]
        name_of = {_plain(known): t.name for t in usable for known in (*t.exact, t.name)}
        close = similar(_plain(name), name_of)
        hint = f" Closest: {name_of[close[0]]!r}." if close else ""
        return f"{name!r} is no id, name or exact synonym of a term.{hint}"


@cache
def cell_ontology() -> Ontology:
    """Read the Cell Ontology that comes with Celler, once."""
    return read_table(FILE)


def read_table(path: Path) -> Ontology:
    """Read a file that :func:`write_table` wrote."""
    first, *lines = path.read_text(encoding="utf-8").splitlines()
    terms = []
    for line in lines:
        identifier, name, parents, synonyms = line.split("\t")
        terms.append(Term(identifier, name, parents.split(), synonyms.split("|") if synonyms else []))
    return Ontology(terms, json.loads(first.removeprefix("# ")))


def write_table(path: Path, ontology: Ontology) -> None:
    """Write ``about`` as JSON, then id, name, parents and exact synonyms of each term, one a line."""
    lines = ["# " + json.dumps(ontology.about)]
    for term in ontology.terms.values():
        lines.append("\t".join([term.id, term.name, " ".join(term.is_a), "|".join(term.exact)]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_obo(path: str | os.PathLike[str]) -> Ontology:
    """Read the ids, names, synonyms, ``is_a`` and obsolete terms of an OBO file; the rest is skipped."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; pass an OBO file, such as cl-basic.obo of the Cell Ontology. "
            "Celler downloads nothing."
        )
    terms: list[Term] = []
    is_term = False
    for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines():
        line = line.strip()
        if line.startswith("["):
            is_term = line.casefold() == "[term]"
            terms += [Term("")] if is_term else []
        elif is_term and ":" in line:
            tag, _, value = line.partition(":")
            _read_tag(terms[-1], tag.strip(), value.strip())
    if not any(term.id for term in terms):
        raise ValueError(
            f"{path} has no [Term] with an id, so it is not an OBO file (or an empty one); ontologies come in "
            "several formats, pass the one whose name ends in .obo."
        )
    return Ontology(term for term in terms if term.id)


def _read_tag(term: Term, tag: str, value: str) -> None:
    """Store one ``tag: value`` line in the term."""
    if tag == "name":
        term.name = _unescaped(value)
    elif tag == "synonym":
        if match := SYNONYM.match(value):
            # The format's default scope is RELATED.
            names = term.exact if match[2] == "EXACT" else term.loose
            names.append(_unescaped(match[1]))
    elif tag == "is_obsolete":
        term.is_obsolete = value.casefold().startswith("true")
    elif identifier := re.split(r"[\s!{]", value, maxsplit=1)[0]:
        if tag in ("id", "replaced_by"):
            setattr(term, tag, identifier)
        elif tag in ("is_a", "alt_id"):
            (term.is_a if tag == "is_a" else term.other_ids).append(identifier)


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


def _plain(name: str) -> str:
    """Return the name in lower case with single spaces."""
    return " ".join(name.casefold().split())
