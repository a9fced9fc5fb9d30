"""Ontology: terms of a local OBO file, found by name, synonym or id, and what stands above them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from celler.names import most_like

#: A quoted synonym and its scope; quotes within are written \".
SYNONYM = re.compile(r'"((?:[^"\\]|\\.)*)"\s*(EXACT|BROAD|NARROW|RELATED)?')
N_LISTED = 8


@dataclass
class Term:
    """A term as the file has it; ``is_a`` are ids."""

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
    """Terms by id, with what it takes to look one up."""

    def __init__(self, terms: Iterable[Term]) -> None:
        self.terms = {term.id: term for term in terms}
        self._ids = {i.casefold(): t for t in self.terms.values() for i in (t.id, *t.other_ids)}
        self._by_name: dict[str, list[Term]] = {}
        self._by_synonym: dict[str, list[Term]] = {}
        self._by_loose: dict[str, list[Term]] = {}
        for term in self.terms.values():
            for table, names in (
                (self._by_name, [term.name]),
                (self._by_synonym, term.exact),
                (self._by_loose, term.loose),
            ):
                for key in {_plain(name) for name in names if name}:
                    table.setdefault(key, []).append(term)

    def find(self, name: str) -> Term:
        """The term with this id, name or exact synonym, whatever the case of the letters.

        Raises ``ValueError`` where there is none, more than one, or an obsolete one.
        """
        by_id = self._ids.get(name.strip().casefold())
        found = [by_id] if by_id is not None else []
        for table in (self._by_name, self._by_synonym):
            named = table.get(_plain(name), [])
            found = found or [t for t in named if not t.is_obsolete] or named
        if not found:
            raise ValueError(self._not_found(name))
        if len(found) > 1:
            raise ValueError(
                f"{name!r} is the name of {' and of '.join(map(str, found))}; pass one of these ids."
            )
        if found[0].is_obsolete:
            raise ValueError(f"{name!r} is {found[0]}, which is obsolete.{self._advice(found[0])}")
        return found[0]

    def above(self, term: Term) -> dict[str, Term]:
        """``term`` and all terms it is, by id; terms that the file does not hold are left out.

        Raises ``ValueError`` where ``is_a`` leads back to a term.
        """
        reached: dict[str, Term] = {}
        path: list[str] = []
        waiting = [(term, False)]
        while waiting:
            current, is_done = waiting.pop()
            if is_done:
                path.pop()
                continue
            if current.id in path:
                circle = [*path[path.index(current.id) :], current.id]
                names = " is a ".join(str(self.terms[i]) for i in circle)
                raise ValueError(f"is_a goes round in a circle: {names}. Correct the file.")
            if current.id in reached:
                continue
            reached[current.id] = current
            path.append(current.id)
            waiting.append((current, True))
            waiting += [(self.terms[i], False) for i in current.is_a if i in self.terms]
        return reached

    def nearest(self, term: Term, candidates: Mapping[str, Term]) -> list[Term]:
        """The ``candidates`` among ``term`` and what it is, less those that stand above another of them."""
        own = [other for i, other in candidates.items() if i in self.above(term)]
        higher = {i for other in own for i in self.above(other) if i != other.id}
        return [other for other in own if other.id not in higher]

    def _not_found(self, name: str) -> str:
        loose = self._by_loose.get(_plain(name), [])
        if loose:
            return (
                f"{name!r} is no name or exact synonym of a term, only a related, broad or narrow one of "
                f"{' and of '.join(map(str, loose[:N_LISTED]))}. If that is meant, pass its name or id."
            )
        usable = [term for term in self.terms.values() if term.name and not term.is_obsolete]
        name_of = {_plain(known): t.name for t in usable for known in (*t.exact, t.name)}
        close = most_like(_plain(name), name_of)
        hint = f" Closest: {name_of[close]!r}." if close is not None else ""
        return f"{name!r} is no id, name or exact synonym of a term.{hint}"

    def _advice(self, term: Term) -> str:
        new = self.terms.get(term.replaced_by)
        return f" It was replaced by {new}: pass that." if new else " Pass another term."


def read_obo(path: str | os.PathLike[str]) -> Ontology:
    """Terms of an OBO file such as ``cl-basic.obo``: ids, names, synonyms, ``is_a``, obsolete ones.

    Other stanzas, tags, comments and trailing qualifiers are skipped. Raises ``FileNotFoundError``, or
    ``ValueError`` for a file without terms.
    """
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
    """Take over one ``tag: value`` of a term."""
    if tag == "name":
        term.name = _unescaped(value)
    elif tag == "synonym":
        if match := SYNONYM.match(value):
            # A synonym without a scope is a related one, says the format.
            names = term.exact if match[2] == "EXACT" else term.loose
            names.append(_unescaped(match[1]))
    elif tag == "is_obsolete":
        term.is_obsolete = value.casefold().startswith("true")
    elif tag in ("id", "is_a", "alt_id", "replaced_by"):
        identifier = re.split(r"[\s!{]", value, maxsplit=1)[0]
        if tag == "id":
            term.id = identifier
        elif tag == "replaced_by":
            term.replaced_by = identifier
        elif identifier:
            (term.is_a if tag == "is_a" else term.other_ids).append(identifier)


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


def _plain(name: str) -> str:
    """Letters in one case and single spaces, as names are compared."""
    return " ".join(name.casefold().split())
