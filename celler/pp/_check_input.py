"""Input check: what the expression values of an AnnData are."""

from __future__ import annotations

from dataclasses import dataclass

from anndata import AnnData

from celler._utils._check import checked
from celler.data._expression import ExpressionReader, elsewhere

_USED = {
    "counts": "They can be used.",
    "expected counts": "They can be used, like counts.",
    "normalised": "They can be used, like counts.",
    "log1p": "They can be used.",
    "log2": "They can be used: they are multiplied by ln 2, which makes them natural logarithms.",
    "log10": "They can be used: they are multiplied by ln 10, which makes them natural logarithms.",
    "sqrt": "They can be used: they are squared.",
    "binary": "Labels from presence alone are less certain: counts or log1p-normalised counts are needed.",
    "binned": "Labels from bins are less certain: counts or log1p-normalised counts are needed.",
    "scaled": "They cannot be used: counts or log1p-normalised counts are needed.",
    "mixed": "They cannot be used: put the samples together again from their counts.",
    "not finite": "They cannot be used: find where the NaN or infinite values come from.",
}


@dataclass(frozen=True)
class InputReport:
    """What expression values are and whether cells can be labelled from them; ``str()`` is a report.

    Attributes
    ----------
    source
        The matrix, such as ``"adata.X"``.
    kind
        ``"counts"``, ``"expected counts"``, ``"normalised"`` (without logarithm), ``"log1p"``, ``"log2"``,
        ``"log10"``, ``"sqrt"``, ``"binned"``, ``"binary"``, ``"scaled"``, ``"mixed"`` or ``"not finite"``.
    evidence
        The property of the values that shows their kind.
    is_usable
        Whether cells can be labelled from the values.
    elsewhere
        Kinds of the AnnData's other usable matrices, by what to pass for them.
    """

    source: str
    kind: str
    evidence: str
    is_usable: bool
    elsewhere: dict[str, str]

    def __str__(self) -> str:
        others = ", ".join(f"{name} ({kind})" for name, kind in self.elsewhere.items())
        what = self.kind if self.kind.endswith("counts") else f"{self.kind} values"
        return f"{self.source} holds {what}: {self.evidence}. {_USED[self.kind]}" + (
            f" There are also {others}." if others else ""
        )


@checked
def check_input(adata: AnnData, layer: str | None = None) -> InputReport:
    """Report what ``X`` or a layer holds: counts, logarithms, scaled values and so on.

    Reads one to two thousand evenly spaced cells; ``adata`` is not changed.

    Parameters
    ----------
    adata
        The cells, in memory or backed.
    layer
        Entry of ``adata.layers``; ``None`` is ``X``.

    Returns
    -------
    InputReport
        The kind of the values, and of those ``elsewhere``. Values that cannot be used are reported, not raised.

    Raises
    ------
    KeyError
        The layer does not exist.
    ValueError
        There are no genes, or the matrix is damaged.

    Examples
    --------
    >>> print(cl.pp.check_input(adata))
    adata.X holds counts: whole numbers, largest 28. They can be used.
    """
    if adata.n_vars == 0:
        raise ValueError("adata has no genes, whose values could be looked at.")
    reader = ExpressionReader(adata, layer)
    state = reader.state
    others = {name: other.kind for name, other in elsewhere(reader).items()}
    return InputReport(reader.name, state.kind, state.evidence, state.is_usable, dict(others))
