"""Base: which genes of a reference the pretrained base knows, and its encoder for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from celler._utils._messages import counted
from celler.data._gene_table import human_symbols
from celler.network._base import read_base
from celler.network._network import GeneTransformer

NAME = "celler-base"  #: what ``from_pretrained`` calls the base by
#: Known genes, and share of the reference's genes, from which a new model starts from the base.
MIN_KNOWN, MIN_SHARE = 100, 0.2


@dataclass(frozen=True)
class BaseOrigin:
    """What a model keeps of the base that it starts from."""

    name: str  # of the base
    n_known: int  # genes of the model that the base knows
    organism: str  # "human", or "mouse" whose genes are known through orthologs
    sizes: Mapping[str, int]  # of the encoder
    n_profiles: int = 0  # cell types learned in addition
    n_types: int = 0  # types of its atlases that the model names; 0 for classes of a reference

    def describe(self, n_genes: int) -> str:
        """Say how many of a model's genes the base knows, and how."""
        through = ", through one-to-one orthologs" if self.organism == "mouse" else ""
        more = f", has learned {counted(self.n_profiles, 'more types')}" if self.n_profiles else ""
        return f"knows {self.n_known:,} of {n_genes:,} genes{through}{more}"


def base_rows(names: pd.Index) -> tuple[np.ndarray, str]:
    """Rows of the base for genes ``(n_genes,)``, -1 for unknown ones, and their organism."""
    resolved = human_symbols(names)
    return read_base().rows_of(resolved.names), resolved.organism


def base_for(names: pd.Index, encoder: str | None, *, has_sizes: bool) -> tuple[BaseOrigin | None, np.ndarray]:
    """Return the base for a new model of these genes, and its rows for them; ``None`` where it wants another encoder.

    Raises ``ValueError`` where ``encoder="base"`` was given and the base knows too few of the genes.
    """
    if encoder not in (None, "base") or (encoder is None and has_sizes):
        return None, np.empty(0, np.int64)
    rows, organism = base_rows(names)
    n_known = int((rows >= 0).sum())
    if n_known >= MIN_KNOWN and n_known >= MIN_SHARE * len(names):
        base = read_base()
        return BaseOrigin(str(base.about["name"]), n_known, organism, base.sizes), rows
    if encoder is None:
        return None, rows
    raise ValueError(
        f"encoder='base' was given and the base knows {n_known:,} of the {len(names):,} genes such as "
        f"{list(names[:3])}; at least {MIN_KNOWN} and {MIN_SHARE:.0%} are needed. Name genes by symbols or Ensembl ids "
        "of human or mouse (gene_key=), or leave encoder out."
    )


def start_line(names: pd.Index, base: BaseOrigin | None) -> str:
    """Say what a training of a model of these genes starts from."""
    if base is not None:
        return f"Starting from {base.name}, which {base.describe(len(names))}."
    n_known = int((base_rows(names)[0] >= 0).sum())
    return f"Learning genes from the reference alone: celler-base knows {n_known:,} of its {len(names):,}."


def load_base(network: GeneTransformer, rows: np.ndarray) -> None:
    """Give the encoder of ``network`` the base's weights of ``rows (n_genes,)``, in place, and freeze it."""
    network.encoder.load_state_dict(read_base().encoder_weights(rows))
    network.encoder.requires_grad_(False)
