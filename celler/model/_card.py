"""Card: the README.md of a saved model, filled in from what the model knows, with fields for its author."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import pandas as pd

from celler._utils._messages import counted, listed
from celler._utils._version import __version__
from celler.data._gene_table import find_genes
from celler.labels._cell_types import ids_of
from celler.model._state import ModelState, network_line, training_line

TAGS = ("cell-type-annotation", "single-cell", "scverse", "anndata", "biology")
N_PROBED = 500  #: genes that tell the organism
OPEN = "To be filled in by the author"
LICENSE = "# license: to be filled in by the author, such as cc-by-4.0"
IDENTIFIER = "[a-z0-9][a-z0-9.+-]*"
LICENSE_LINE = f"^license: ({IDENTIFIER})\\r?$"


def model_card(state: ModelState, address: str) -> str:
    """Return the card of a model that ``Celler.load(address)`` loads."""
    sections = {
        "Use": _use(state, address),
        "Classes": _classes(state),
        "Genes": _genes(state),
        "Training": _training(state),
        "Licence": f"{OPEN}, as `license:` at the top of this file.",
        "Data": f"{OPEN}: where the cells are from, under which accession and terms.",
        "Intended use": f"{OPEN}: tissue, organism, assays and question that the model is for.",
        "Limits": f"{OPEN}: types, states and assays that it has not seen. A cell of a type outside the classes gets "
        "the name of one of them, unless `false_alarm_rate` or `threshold` is given.",
        "Contact": f"{OPEN}.",
    }
    front = ["---", "library_name: celler", "tags:", *(f"- {tag}" for tag in TAGS), LICENSE, "---"]
    title = (
        f"# Cell types: {counted(len(state.tree.classes), 'classes')}" if state.tree.classes else "# Encoder of cells"
    )
    body = [f"## {name}\n\n{text}" for name, text in sections.items()]
    return "\n\n".join(["\n".join(front), title, *body]) + "\n"


def with_license(card: str, license: str | None) -> str:
    """Return a card with the licence, an identifier of the hub, in its front matter; ``None`` changes nothing."""
    if license is None:
        return card
    if not re.fullmatch(IDENTIFIER, license):
        raise ValueError(
            f"license={license!r} was given; an identifier of the hub is needed, in lower case, such as 'cc-by-4.0', "
            "'bsd-3-clause' or 'other'."
        )
    line = f"license: {license}"
    front = _front(card)
    if front is None:
        return f"---\n{line}\n---\n\n{card}"
    changed, n = re.subn(r"^(# )?license:.*$", line, front, count=1, flags=re.MULTILINE)
    return card.replace(front, changed if n else front.replace("---\n", f"---\n{line}\n", 1), 1)


def license_of(card: str | None) -> str | None:
    """Return the licence in the front matter of a card."""
    found = re.search(LICENSE_LINE, _front(card or "") or "", flags=re.MULTILINE)
    return None if found is None else found[1]


def digest(card: str) -> str:
    """Return the SHA-256 of a card, by which one is known that its author changed in more than the licence."""
    # A system or an editor may change the ends of the lines.
    plain = re.sub(f"^{LICENSE}$|{LICENSE_LINE}", "", card.replace("\r\n", "\n"), flags=re.MULTILINE)
    return hashlib.sha256(plain.encode(errors="surrogateescape")).hexdigest()


def _front(card: str) -> str | None:
    """Return the front matter of a card, with the lines around it."""
    match = re.match(r"---\r?\n.*?^---\r?$", card, flags=re.DOTALL | re.MULTILINE)
    return None if match is None else match[0]


def _use(state: ModelState, address: str) -> str:
    call = 'model.annotate(adata)  # writes adata.obs["celler"] and its confidence'
    if state.fitted is None:
        call = 'adata.obsm["X_celler"] = model.get_latent_representation(adata)'
    code = f'import celler as cl\n\nmodel = cl.model.Celler.load("{address}")\n{call}'
    values = "log1p-normalised values or counts"
    where = f" in `layers[{_code(state.setup.layer)}]` or `X`" if state.setup.layer else ""
    return f"```python\n{code}\n```\n\n`adata` is any AnnData with {values}{where}; genes are matched by name."


def _classes(state: ModelState) -> str:
    """Return the table of the classes, with ids of the Cell Ontology where it has some of the names."""
    tree, fitted = state.tree, state.fitted
    if not tree.classes:
        return "None: the model embeds cells."
    columns = {"Class": [_cell(name) for name in tree.classes]}
    if tree.parents:
        columns["Parent"] = [_cell(name) for name in tree.parents]
    if fitted is not None:
        what = "Training cells" if not state.names_atlases else "Clusters of atlases"
        columns[what] = [f"{int(n):,}" for n in fitted.class_counts]
    ids = ids_of(tree.classes) | dict(state.ids)
    if any(ids.values()):
        columns["Cell Ontology"] = [ids.get(name, "") for name in tree.classes]
    rows = [" | ".join(row) for row in zip(*columns.values(), strict=True)]
    return "\n".join(f"| {row} |" for row in [" | ".join(columns), " | ".join("---" for _ in columns), *rows])


def _genes(state: ModelState) -> str:
    names = state.genes.names
    organism = _organism(state)
    of = f" of {organism}" if organism else ""
    return f"{len(names):,} genes{of}: {_cell(listed(names))}."


def _organism(state: ModelState) -> str:
    if state.base is not None:
        return state.base.organism
    names: pd.Index = state.genes.names
    return find_genes(names[:: max(1, len(names) // N_PROBED)]).organism


def _training(state: ModelState) -> str:
    lines = [f"Network: {network_line(state)}."]
    if state.names_atlases:
        lines.append("Its classes are types of the atlases of celler-base; no cell of a reference trained it.")
    elif state.fitted is not None:
        n_cells = int(np.sum(state.fitted.class_counts))
        lines.append(f"Trained on {n_cells:,} labelled cells: {training_line(state.fitted)}.")
    if state.pretrained is not None:
        lines.append(f"Pretrained on {state.pretrained.n_cells:,} cells without their labels.")
    if state.fitted is not None and state.fitted.novelty is None:
        lines.append("It has no novelty score, so `false_alarm_rate` cannot be used.")
    lines.append(f"Written by Celler {__version__}.")
    return "\n".join(f"- {line}" for line in lines)


def _cell(text: str) -> str:
    """Return text as it stands in a table of Markdown, where it is neither a mark nor HTML."""
    plain = " ".join(str(text).split())
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", plain).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _code(text: str) -> str:
    return repr(text).replace("`", "'")
