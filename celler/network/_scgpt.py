"""scGPT's encoder: post-norm self-attention over gene and value tokens, for weights trained elsewhere."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from celler._utils._messages import warn
from celler.network._config import NetworkConfig
from celler.network._encoders import groups_by_length


class ScGPTEncoder(nn.Module):
    """The encoder of scGPT :cite:p:`Cui24`; returns the output at its cell token, ``<cls>``.

    A token is the normalised embedding of its gene plus an encoding of its bin, which is read as a number.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        d = config.d_model
        self.gene = nn.Parameter(torch.randn(config.n_genes, d) * 0.02)
        self.cell_token, self.gene_norm = nn.Parameter(torch.randn(d) * 0.02), nn.LayerNorm(d)
        self.value = nn.Sequential(
            nn.Linear(1, d),
            nn.ReLU(),
            nn.Linear(d, d),
            nn.LayerNorm(d),
            nn.Dropout(config.dropout_rate),
        )
        self.blocks = nn.ModuleList(PostNormBlock(config) for _ in range(config.n_layers))
        # Bin 0 is padding and nothing else, so its place is free for the value that <cls> has. scGPT's clamp at
        # 512 is left out, since there are 256 bins at most.
        levels = torch.tensor([float(config.pad_value), *range(1, config.n_bins)])
        self.register_buffer("levels", levels[:, None], persistent=False)

    def forward(
        self, gene_ids: Tensor, values: Tensor, expression: Tensor, padding_mask: Tensor
    ) -> Tensor:
        """``(B, T)`` each -> embedding ``(B, D)``; the encoder reads bins, not ``expression``."""
        order, groups = groups_by_length(padding_mask)
        embedding = [
            self.encode(gene_ids[rows, :n], values[rows, :n], padding_mask[rows, :n])
            for rows, n in groups
        ]
        return torch.cat(embedding)[order.argsort()]

    def encode(self, gene_ids: Tensor, values: Tensor, padding_mask: Tensor) -> Tensor:
        """Embedding ``(B, D)`` of cells that attend together."""
        cell = self.cell_token.expand(len(gene_ids), 1, -1)
        genes = torch.cat([cell, F.embedding(gene_ids, self.gene)], dim=1)
        table = self.value[:-1](self.levels)  # one row per bin rather than per token
        levels = F.embedding(F.pad(values, (1, 0)), table)
        tokens = self.gene_norm(genes) + self.value[-1](levels)
        is_token = None  # without a mask attention takes a faster path
        if padding_mask.any():
            is_token = F.pad(~padding_mask, (1, 0), value=True)[:, None, None, :]
        for block in self.blocks:
            tokens = block(tokens, is_token)
        return tokens[:, 0]


class PostNormBlock(nn.Module):
    """torch's encoder layer with ``norm_first=False`` and ReLU; dropout of attention weights is left out.

    With it, attention would have to hold all its weights, the square of the number of tokens.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        d, self.n_heads = config.d_model, config.n_heads
        self.in_projection, self.out_projection = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.feed_in, self.feed_out = nn.Linear(d, config.d_feed), nn.Linear(config.d_feed, d)
        self.attention_norm, self.feed_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """``x (B, S, D)``, ``mask (B, 1, 1, S)`` True where attended to -> ``(B, S, D)``."""
        heads = self.in_projection(x).unflatten(-1, (3, self.n_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = self.attention_norm(
            x + self.dropout(self.out_projection(attended.transpose(1, 2).flatten(2)))
        )
        hidden = self.dropout(F.relu(self.feed_in(x)))
        normed: Tensor = self.feed_norm(x + self.dropout(self.feed_out(hidden)))
        return normed


ARGS, VOCABULARY, WEIGHTS = "args.json", "vocab.json", ("best_model.pt", "model.pt")
#: Entries of args.json and what they are called here; the first four are required.
REQUIRED = {"embsize": "d_model", "nheads": "n_heads", "nlayers": "n_layers", "d_hid": "d_feed"}
OPTIONAL = {
    "n_bins": ("n_bins", 51),
    "dropout": ("dropout_rate", 0.2),
    "pad_value": ("pad_value", -2),
}
#: Parts of scGPT that the cell embedding does not pass through.
HEADS = (
    "decoder.", "cls_decoder.", "mvc_decoder.", "flag_encoder.", "batch_encoder.",
    "grad_reverse_discriminator.",
)  # fmt: skip
#: Parts it passes through: a key of theirs that is not in the layout would change it.
ENCODER = ("encoder.", "value_encoder.", "transformer_encoder.", "dsbn.")
EMBEDDING = "encoder.embedding.weight"


@dataclass(frozen=True)
class ScGPTCheckpoint:
    """What a folder holds: ``sizes`` of :class:`celler.network._config.NetworkConfig`, genes and weights.

    gene_names: tokens of the vocabulary that are genes ``(n_genes,)``. rows: their rows of the embedding.
    embedding: ``(n_tokens, D)``. cell_row: the row of ``<cls>``. weights: of the other encoder parts,
        under the names of the ``"scgpt"`` encoder.
    """

    sizes: dict[str, Any]
    gene_names: pd.Index
    rows: np.ndarray
    embedding: Tensor
    cell_row: int
    weights: dict[str, Tensor]

    def encoder_weights(self, genes: np.ndarray) -> dict[str, Tensor]:
        """State of an encoder for the ``genes (n,)``, positions in :attr:`gene_names`."""
        rows = torch.from_numpy(self.rows[genes])
        tables = {"gene": self.embedding[rows], "cell_token": self.embedding[self.cell_row]}
        return self.weights | tables


def is_scgpt_folder(folder: Path) -> bool:
    """Whether ``folder`` holds a file that only scGPT writes."""
    return any((folder / name).exists() for name in (ARGS, VOCABULARY, WEIGHTS[0]))


def read_scgpt(folder: Path) -> ScGPTCheckpoint:
    """Contents of an scGPT folder; files are opened as data only, so nothing in them can run.

    Raises ``FileNotFoundError`` for a missing file and ``ValueError`` for one that is damaged, holds
    more than tensors, or does not fit the others. Warns of tensors that scGPT's layout does not have.
    """
    found = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    missing = [name for name in (ARGS, VOCABULARY) if not (folder / name).is_file()]
    missing += [] if found else [" or ".join(WEIGHTS)]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)}; an scGPT folder holds {ARGS}, {VOCABULARY} and "
            f"{' or '.join(WEIGHTS)}. Copy all of them from where the weights came from."
        )
    args = _read_json(folder / ARGS)
    sizes = _sizes(args, folder / ARGS)
    vocabulary = _vocabulary(folder / VOCABULARY, str(args.get("pad_token", "<pad>")))
    tensors = _renamed(_read_tensors(found[0]), found[0])
    if EMBEDDING in tensors and len(tensors[EMBEDDING]) != len(vocabulary):
        raise ValueError(
            f"{folder / VOCABULARY} has {len(vocabulary):,} tokens, with the special ones, but the gene embedding of "
            f"{found[0].name} has {len(tensors[EMBEDDING]):,} rows; take both files from one model."
        )
    _check_tensors(tensors, sizes, len(vocabulary), found[0])
    weights = {
        f"{ours}.{kind}": tensors[f"{theirs}.{kind}"].float()
        for theirs, ours, _ in _layout(sizes)
        for kind in ("weight", "bias")
    }
    genes = {name: row for name, row in vocabulary.items() if not re.fullmatch("<.*>", name)}
    return ScGPTCheckpoint(
        sizes=sizes,
        gene_names=pd.Index(list(genes), dtype=object),
        rows=np.array(list(genes.values()), dtype=np.int64),
        embedding=tensors[EMBEDDING].float(),
        cell_row=vocabulary["<cls>"],
        weights=weights,
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: it is no JSON ({error}). Copy it again.") from error
    if not isinstance(contents, dict):
        raise ValueError(
            f"{path} holds a {type(contents).__name__}; names with their values are needed."
        )
    return contents


def _sizes(args: dict[str, Any], path: Path) -> dict[str, Any]:
    """Sizes under the names of :class:`celler.network._config.NetworkConfig`."""
    missing = [name for name in REQUIRED if name not in args]
    if missing:
        raise ValueError(f"{path} lacks {missing}, the sizes of the network; it has {list(args)}.")
    named = {ours: args[name] for name, ours in REQUIRED.items()}
    named |= {ours: args.get(name, default) for name, (ours, default) in OPTIONAL.items()}
    given = {ours: name for name, ours in REQUIRED.items()}
    given |= {ours: name for name, (ours, _) in OPTIONAL.items()}
    for name, value in named.items():
        is_count = name not in ("dropout_rate", "pad_value")
        if type(value) not in ((int,) if is_count else (int, float)) or (is_count and value < 1):
            what = "a whole number above 0" if is_count else "a number"
            raise ValueError(f"{path} has {given[name]}={value!r}; {what} is needed.")
    for name, needed in {"input_emb_style": "continuous", "input_style": "binned"}.items():
        if args.get(name, needed) != needed:
            raise ValueError(
                f"{path} has {name}={args[name]!r}; only models with {needed!r} values are read."
            )
    if args.get("pre_norm"):
        raise ValueError(
            f"{path} has pre_norm={args['pre_norm']!r}; only post-norm blocks are read."
        )
    return named


def _vocabulary(path: Path, pad_token: str) -> dict[str, int]:
    """Token to row; special tokens that are not there are appended, as scGPT does."""
    vocabulary = _read_json(path)
    rows = list(vocabulary.values())
    if any(type(row) is not int for row in rows) or sorted(rows) != list(range(len(rows))):
        raise ValueError(
            f"{path} must give each token its own row of the embedding, 0 to {len(rows) - 1:,}; it does not."
        )
    for token in (pad_token, "<cls>", "<eoc>"):
        vocabulary.setdefault(token, len(vocabulary))
    return vocabulary


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its message advises to load the file unsafely
        what = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it asks for {what[1]}" if what else "it is no file of tensors"
        raise ValueError(
            f"{path} was not opened: {reason}, and only tensors are read, since anything else can run code. Save "
            "the tensors alone where the model came from: torch.save(model.state_dict(), path)."
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged or cut short; copy it again. ({error})") from error
    is_named = isinstance(contents, dict) and all(isinstance(name, str) for name in contents)
    others = (
        [name for name, value in contents.items() if not isinstance(value, Tensor)]
        if is_named
        else []
    )
    if not is_named or others:
        what_else = f"also {others[:3]}" if others else f"a {type(contents).__name__}"
        raise ValueError(
            f"{path} must hold named tensors alone, it holds {what_else}. Save the tensors alone: "
            "torch.save(model.state_dict(), path)."
        )
    return dict(contents)


def _renamed(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Names without the prefix of parallel training, and attention named alike whatever computed it."""
    renamed = {}
    for key, tensor in tensors.items():
        name = key.removeprefix("module.")
        name = name.replace("self_attn._impl.", "self_attn.")
        name = re.sub(r"self_attn\.(Wqkv\.|in_proj_)", "self_attn.in_proj.", name)
        if name in renamed:
            raise ValueError(f"{path} holds {name!r} twice, under different names ({key!r}).")
        renamed[name] = tensor
    return renamed


def _layout(sizes: dict[str, Any]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name in scGPT, the encoder's name and the shape of the weight of each part; biases have its first size."""
    d, feed = sizes["d_model"], sizes["d_feed"]
    yield "encoder.enc_norm", "gene_norm", (d,)
    yield "value_encoder.linear1", "value.0", (d, 1)
    yield "value_encoder.linear2", "value.2", (d, d)
    yield "value_encoder.norm", "value.3", (d,)
    for i in range(sizes["n_layers"]):
        theirs, ours = f"transformer_encoder.layers.{i}", f"blocks.{i}"
        yield f"{theirs}.self_attn.in_proj", f"{ours}.in_projection", (3 * d, d)
        yield f"{theirs}.self_attn.out_proj", f"{ours}.out_projection", (d, d)
        yield f"{theirs}.linear1", f"{ours}.feed_in", (feed, d)
        yield f"{theirs}.linear2", f"{ours}.feed_out", (d, feed)
        yield f"{theirs}.norm1", f"{ours}.attention_norm", (d,)
        yield f"{theirs}.norm2", f"{ours}.feed_norm", (d,)


def _check_tensors(
    tensors: dict[str, Tensor], sizes: dict[str, Any], n_tokens: int, path: Path
) -> None:
    """Every tensor of the encoder is there, has its shape, and none is left over."""
    needed: dict[str, tuple[int, ...]] = {EMBEDDING: (n_tokens, sizes["d_model"])}
    for theirs, _, shape in _layout(sizes):
        needed |= {f"{theirs}.weight": shape, f"{theirs}.bias": shape[:1]}
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} of the encoder's {len(needed)} tensors (first: {missing[0]!r}); check "
            f"nlayers in {ARGS} ({sizes['n_layers']}), or take the file of the whole model."
        )
    wrong = [name for name, shape in needed.items() if tuple(tensors[name].shape) != shape]
    if wrong:
        raise ValueError(
            f"{path} does not fit {ARGS}: {wrong[0]!r} has the shape {tuple(tensors[wrong[0]].shape)}, expected is "
            f"{needed[wrong[0]]} ({len(wrong)} tensors differ). Take both files from one model."
        )
    others = [name for name in tensors if name not in needed and not name.startswith(HEADS)]
    foreign = [name for name in others if name.startswith(ENCODER)]
    if foreign:
        raise ValueError(
            f"{path} holds {len(foreign)} tensors that would change the encoder and are not in the layout that "
            f"is read (first: {foreign[0]!r}); check nlayers in {ARGS} ({sizes['n_layers']}). Norms by donor/assay "
            "batch (dsbn) are not read."
        )
    if others:
        warn(
            f"{path} holds {len(others)} tensors that are no part of scGPT's layout and were not read: {others[:5]}."
        )
