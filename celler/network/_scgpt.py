"""scGPT's encoder: post-norm self-attention over gene and value tokens, and the reader of its checkpoints."""

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
from celler.network._encoders import attention, groups_by_length


class ScGPTEncoder(nn.Module):
    """The encoder of scGPT :cite:p:`Cui24`; the embedding is the output at its cell token, ``<cls>``.

    A token is the normalised embedding of its gene plus an encoding of its bin; ``expression`` is not read.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        d = config.d_model
        self.gene = nn.Parameter(torch.randn(config.n_genes, d) * 0.02)
        self.cell_token, self.gene_norm = nn.Parameter(torch.randn(d) * 0.02), nn.LayerNorm(d)
        self.value = nn.Sequential(
            nn.Linear(1, d), nn.ReLU(), nn.Linear(d, d), nn.LayerNorm(d), nn.Dropout(config.dropout_rate)
        )
        self.blocks = nn.ModuleList(PostNormBlock(config) for _ in range(config.n_layers))
        # Only padding has bin 0, so its row can hold the value of <cls>. scGPT clamps values at 512; bins end at 255.
        levels = torch.tensor([float(config.pad_value), *range(1, config.n_bins)])
        self.register_buffer("levels", levels[:, None], persistent=False)

    def forward(self, gene_ids: Tensor, values: Tensor, expression: Tensor, padding_mask: Tensor) -> Tensor:
        order, groups = groups_by_length(padding_mask)
        embedding = [self.encode(gene_ids[rows, :n], values[rows, :n], padding_mask[rows, :n]) for rows, n in groups]
        return torch.cat(embedding)[order.argsort()]

    def encode(self, gene_ids: Tensor, values: Tensor, padding_mask: Tensor) -> Tensor:
        """Return the embedding of one group of cells."""
        cell = self.cell_token.expand(len(gene_ids), 1, -1)
        genes = torch.cat([cell, F.embedding(gene_ids, self.gene)], dim=1)
        table = self.value[:-1](self.levels)  # one row per bin rather than per token
        levels = F.embedding(F.pad(values, (1, 0)).int(), table)
        tokens = self.gene_norm(genes) + self.value[-1](levels)
        is_token = None  # attention is faster without a mask
        if padding_mask.any():
            is_token = F.pad(~padding_mask, (1, 0), value=True)[:, None, None, :]
        for block in self.blocks:
            tokens = block(tokens, is_token)
        return tokens[:, 0]


class PostNormBlock(nn.Module):
    """torch's encoder layer with ``norm_first=False`` and ReLU; dropout of attention would have to store weights."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        d, self.n_heads = config.d_model, config.n_heads
        self.in_projection, self.out_projection = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.feed_in, self.feed_out = nn.Linear(d, config.d_feed), nn.Linear(config.d_feed, d)
        self.attention_norm, self.feed_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        attended = self.out_projection(attention(self.in_projection(x), self.n_heads, mask))
        x = self.attention_norm(x + self.dropout(attended))
        hidden = self.dropout(F.relu(self.feed_in(x)))
        normed: Tensor = self.feed_norm(x + self.dropout(self.feed_out(hidden)))
        return normed


ARGS, VOCABULARY, WEIGHTS = "args.json", "vocab.json", ("best_model.pt", "model.pt")
#: Sizes of a :class:`~celler.network.NetworkConfig`: name in args.json, and default where it is optional.
SIZES: dict[str, tuple[str, Any]] = {
    "d_model": ("embsize", None),
    "n_heads": ("nheads", None),
    "n_layers": ("nlayers", None),
    "d_feed": ("d_hid", None),
    "n_bins": ("n_bins", 51),
    "dropout_rate": ("dropout", 0.2),
    "pad_value": ("pad_value", -2),
}
#: Settings of args.json with the only value that is supported, their default.
SUPPORTED: dict[str, Any] = {"input_emb_style": "continuous", "input_style": "binned", "pre_norm": False}
#: Parts of scGPT that do not affect the cell embedding.
HEADS = (
    "decoder.", "cls_decoder.", "mvc_decoder.", "flag_encoder.", "batch_encoder.", "grad_reverse_discriminator."
)  # fmt: skip
#: Parts that do: an unknown tensor of theirs would change it.
ENCODER = ("encoder.", "value_encoder.", "transformer_encoder.", "dsbn.")
EMBEDDING = "encoder.embedding.weight"


@dataclass(frozen=True)
class ScGPTCheckpoint:
    """Contents of an scGPT folder."""

    sizes: dict[str, Any]  # arguments of NetworkConfig
    gene_names: pd.Index
    rows: np.ndarray  # of the genes in the embedding (n_genes,)
    embedding: Tensor  # (n_tokens, D)
    cell_row: int  # of <cls>
    weights: dict[str, Tensor]  # the encoder's others, under its names

    def encoder_weights(self, genes: np.ndarray) -> dict[str, Tensor]:
        """Return the state of an encoder for ``genes (n,)``, positions in :attr:`gene_names`."""
        rows = torch.from_numpy(self.rows[genes])
        return self.weights | {"gene": self.embedding[rows], "cell_token": self.embedding[self.cell_row]}


def is_scgpt_folder(folder: Path) -> bool:
    """Return whether ``folder`` holds a file that only scGPT writes."""
    return any((folder / name).exists() for name in (ARGS, VOCABULARY, WEIGHTS[0]))


def read_scgpt(folder: Path) -> ScGPTCheckpoint:
    """Read an scGPT folder as data only, so that nothing in it can run; warn of tensors outside scGPT's layout."""
    found = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    missing = [name for name in (ARGS, VOCABULARY) if not (folder / name).is_file()]
    missing += [] if found else [" or ".join(WEIGHTS)]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)}; an scGPT folder holds {ARGS}, {VOCABULARY} and "
            f"{' or '.join(WEIGHTS)}. Copy all of them from the source of the weights."
        )
    args, path = _read_json(folder / ARGS), found[0]
    sizes = _sizes(args, folder / ARGS)
    vocabulary = _vocabulary(folder / VOCABULARY, str(args.get("pad_token", "<pad>")))
    tensors = _renamed(_read_tensors(path), path)
    if EMBEDDING in tensors and len(tensors[EMBEDDING]) != len(vocabulary):
        raise ValueError(
            f"{folder / VOCABULARY} has {len(vocabulary):,} tokens, with the special ones, but the gene embedding of "
            f"{path.name} has {len(tensors[EMBEDDING]):,} rows. Take both files from one model."
        )
    _check_tensors(tensors, sizes, len(vocabulary), path)
    genes = {name: row for name, row in vocabulary.items() if not re.fullmatch("<.*>", name)}
    return ScGPTCheckpoint(
        sizes=sizes,
        gene_names=pd.Index(list(genes), dtype=object),
        rows=np.array(list(genes.values()), dtype=np.int64),
        embedding=tensors[EMBEDDING].float(),
        cell_row=vocabulary["<cls>"],
        weights={
            f"{ours}.{kind}": tensors[f"{theirs}.{kind}"].float()
            for theirs, ours, _ in _layout(sizes)
            for kind in ("weight", "bias")
        },
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({error}). Copy it again.") from error
    if not isinstance(contents, dict):
        raise ValueError(f"{path} holds a {type(contents).__name__}; a JSON object is needed.")
    return contents


def _sizes(args: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the sizes in ``args`` under the names of :class:`~celler.network.NetworkConfig`."""
    missing = [given for given, default in SIZES.values() if default is None and given not in args]
    if missing:
        raise ValueError(f"{path} lacks {missing}, the sizes of the network; it has {list(args)}.")
    sizes = {ours: args.get(given, default) for ours, (given, default) in SIZES.items()}
    for ours, value in sizes.items():
        is_count = ours not in ("dropout_rate", "pad_value")
        if type(value) not in ((int,) if is_count else (int, float)) or (is_count and value < 1):
            kind = "a whole number above 0" if is_count else "a number"
            raise ValueError(f"{path} has {SIZES[ours][0]}={value!r}; {kind} is needed.")
    if not 3 <= sizes["n_bins"] <= 256 or not 0 <= sizes["dropout_rate"] < 1:
        found = ", ".join(f"{SIZES[name][0]}={sizes[name]!r}" for name in ("n_bins", "dropout_rate"))
        raise ValueError(f"{path} has {found}; 3 to 256 bins and a dropout of at least 0 and below 1 are needed.")
    for name, needed in SUPPORTED.items():
        if (args.get(name) or needed) != needed:
            raise ValueError(f"{path} has {name}={args[name]!r}; only {needed!r} is supported.")
    return sizes


def _vocabulary(path: Path, pad_token: str) -> dict[str, int]:
    """Return the row of each token; missing special tokens are appended, as scGPT does."""
    vocabulary = _read_json(path)
    rows = list(vocabulary.values())
    if any(type(row) is not int for row in rows) or sorted(rows) != list(range(len(rows))):
        raise ValueError(
            f"{path} must give each token its own row of the embedding, 0 to {len(rows) - 1:,}, and does not. Copy "
            "it again."
        )
    for token in (pad_token, "<cls>", "<eoc>"):
        vocabulary.setdefault(token, len(vocabulary))
    return vocabulary


def _read_tensors(path: Path) -> dict[str, Tensor]:
    advice = "Save the tensors alone with torch.save(model.state_dict(), path)."
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's message advises to load the file unsafely
        what = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it contains {what[1]}" if what else "it is no file of tensors"
        raise ValueError(
            f"{path} was not opened: {reason}, and only tensors are read, since anything else can run code. {advice}"
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged or cut short; copy it again. ({error})") from error
    if not isinstance(contents, dict) or not all(isinstance(name, str) for name in contents):
        raise ValueError(f"{path} holds a {type(contents).__name__}, not named tensors. {advice}")
    others = [name for name, value in contents.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(f"{path} holds not only tensors but also {others[:3]}. {advice}")
    return dict(contents)


def _renamed(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Remove the prefix of parallel training, and give attention one name for all its implementations."""
    renamed = {}
    for key, tensor in tensors.items():
        name = key.removeprefix("module.").replace("self_attn._impl.", "self_attn.")
        name = re.sub(r"self_attn\.(Wqkv\.|in_proj_)", "self_attn.in_proj.", name)
        if name in renamed:
            raise ValueError(f"{path} holds {name!r} twice, under different names ({key!r}).")
        renamed[name] = tensor
    return renamed


def _layout(sizes: dict[str, Any]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield scGPT's name, the encoder's name and the shape of each weight; a bias has its first size."""
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


def _check_tensors(tensors: dict[str, Tensor], sizes: dict[str, Any], n_tokens: int, path: Path) -> None:
    """Raise ``ValueError`` for a missing, misshapen or unknown tensor of the encoder."""
    needed: dict[str, tuple[int, ...]] = {EMBEDDING: (n_tokens, sizes["d_model"])}
    for theirs, _, shape in _layout(sizes):
        needed |= {f"{theirs}.weight": shape, f"{theirs}.bias": shape[:1]}
    check_layers = f"check nlayers in {ARGS} ({sizes['n_layers']})"
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} of the encoder's {len(needed)} tensors (first: {missing[0]!r}); "
            f"{check_layers}, or take the file of the whole model."
        )
    wrong = [name for name, shape in needed.items() if tuple(tensors[name].shape) != shape]
    if wrong:
        raise ValueError(
            f"{path} does not fit {ARGS}: {wrong[0]!r} has the shape {tuple(tensors[wrong[0]].shape)}, expected is "
            f"{needed[wrong[0]]} ({len(wrong)} tensors differ). Take both files from one model."
        )
    others = [name for name in tensors if name not in needed and not name.startswith(HEADS)]
    unknown = [name for name in others if name.startswith(ENCODER)]
    if unknown:
        raise ValueError(
            f"{path} holds {len(unknown)} unknown tensors that would change the encoder (first: {unknown[0]!r}); "
            f"{check_layers}. Norms by donor/assay batch (dsbn) are not supported."
        )
    if others:
        warn(f"{path} holds {len(others)} tensors outside scGPT's layout; not read: {others[:5]}.")
