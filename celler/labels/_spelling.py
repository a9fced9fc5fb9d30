"""Spelling: one form for the ways in which a name of a cell type is written."""

from __future__ import annotations

import re
import unicodedata

GREEK = str.maketrans(
    {"α": " alpha ", "β": " beta ", "γ": " gamma ", "δ": " delta ", "ε": " epsilon ", "φ": " phi ", "ϕ": " phi "}
)
#: In order: "CD14+" and "CD14pos", "CD14-" at the end of a word, "a/b" and "a & b", "Tcells".
REWRITTEN = [
    (re.compile(r"(?<=[\w)])\+|(?<=\d)pos\b|\bpos\b"), " positive "),
    (re.compile(r"(?<=\w)-(?=\s|$|[,/)])|(?<=\d)neg\b|\bneg\b"), " negative "),
    (re.compile(r"/|\|"), " or "),
    (re.compile(r"&"), " and "),
    (re.compile(r"(?<=[a-z0-9])cells?\b"), " cell "),
]
SIGN = re.compile(r"(\w) (positive|negative|high|low|bright|dim|intermediate)\b")
SMALL_WORDS = {"of", "the"}
#: In a shorter word, such as "OEC", "ae" and "oe" are no spelling.
MIN_BRITISH = 5


def spelling(name: str) -> str:
    """Return the words of a name in alphabetical order, in lower case and singular, without punctuation."""
    text = "".join(c for c in unicodedata.normalize("NFKD", name.casefold().translate(GREEK)) if c.isascii())
    for pattern, word in REWRITTEN:
        text = pattern.sub(word, text)
    # a sign stays with its marker: "CD14+ CD16-" is not "CD14- CD16+"
    text = SIGN.sub(r"\1\2", " ".join(re.findall(r"[a-z0-9]+", text)))
    return " ".join(sorted(_singular(word) for word in text.split() if word not in SMALL_WORDS))


def without_cell(key: str) -> str:
    """Return a spelling without the word "cell"; of "cell" alone, all of it."""
    return " ".join(word for word in key.split() if word != "cell") or key


def parted(name: str) -> str:
    """Return a name with a space where a capital follows a small letter."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)


def _singular(word: str) -> str:
    """Return a word without the English or Latin ending of the plural, and in American spelling."""
    if len(word) > MIN_BRITISH:
        word = word.replace("ae", "e").replace("oe", "e")
    if word.endswith("ia"):
        return word[:-1] + "um"
    is_plural = len(word) > 2 and word.endswith("s") and not word.endswith(("ss", "us", "is"))
    return word[:-1] if is_plural else word
