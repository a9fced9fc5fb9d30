"""What the values of an AnnData are, in words."""

from __future__ import annotations

from dataclasses import dataclass

from anndata import AnnData

from celler.data._expression import ExpressionReader, elsewhere

_USED = {
    "counts": "They are used as they are.",
    "expected counts": "They are used as counts are.",
    "normalised": "They are used as counts are.",
    "log1p": "They are used as they are.",
    "log2": "They are multiplied by ln 2 on reading, which makes them natural logarithms.",
    "binned": "Labels from bins are less certain: counts or log1p-normalised counts are needed.",
    "scaled": "They cannot be used: counts or log1p-normalised counts are needed.",
    "not finite": "They cannot be used: find where the NaN or infinite values come from.",
}


@dataclass(frozen=True)
class InputReport:
    """What expression values are; ``str()`` says it in words and what follows from it.

    source: where the values are. kind: ``"counts"``, ``"expected counts"``, ``"normalised"`` (not
        logarithmised), ``"log1p"``, ``"log2"``, ``"binned"``, ``"scaled"`` or ``"not finite"``.
    evidence: what the kind was told from.
    is_usable: whether cells can be labelled from them.
    elsewhere: what the AnnData's other usable matrices hold, by what to pass for them.
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


def check_input(adata: AnnData, layer: str | None = None) -> InputReport:
    """Tell what ``X`` or a layer holds: counts, logarithms, scaled values and so on.

    A thousand or two of the cells, spread evenly, are looked at; ``adata`` is not changed.

    layer: entry of ``adata.layers``; ``None`` is ``X``. The report covers the other layers, ``X`` and
        ``raw`` too, in ``elsewhere``.

    Raises ``KeyError`` for a layer that is not there. Unusable values are reported, not raised.
    """
    if not isinstance(adata, AnnData):
        raise TypeError(f"a {type(adata).__name__} was given; an AnnData is needed.")
    reader = ExpressionReader(adata, layer)
    state = reader.state
    others = {name: other.kind for name, other in elsewhere(reader).items()}
    return InputReport(reader.name, state.kind, state.evidence, state.is_usable, dict(others))
