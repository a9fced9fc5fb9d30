"""Celler-base: the file of the pretrained encoder that comes with the package."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from celler.network._config import NetworkConfig
from celler.network._encoders import UNSEEN, BaseEncoder

FILE = Path(__file__).with_name("base.safetensors")  #: made by docs/benchmarks/base.py
SIZES = ("d_model", "n_latents", "n_layers", "n_heads")


@dataclass(frozen=True)
class Base:
    """A pretrained encoder, and the types of the atlases that it learned.

    Attributes
    ----------
    genes
        Human symbols of its genes ``(G,)``.
    weights
        Weights of its :class:`celler.network._encoders.BaseEncoder`, float16, and of the genes int8 with a scale for
        each gene, ``gene_scale (G,)``.
    type_weights, types, datasets
        Vector of each type ``(K, D)``, its name and the code of its data set ``(K,)``.
    about
        Sizes, version, command and sources.
    """

    genes: pd.Index
    weights: dict[str, Tensor]
    type_weights: Tensor
    types: np.ndarray
    datasets: np.ndarray
    about: dict[str, Any]

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of the encoder."""
        return {name: int(self.about["sizes"][name]) for name in SIZES}

    def rows_of(self, symbols: pd.Index) -> np.ndarray:
        """Row of each human symbol ``(n,)``; -1 where it is not known."""
        return self.genes.get_indexer(symbols)

    def encoder_weights(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Weights of an encoder for genes with these ``rows (n_genes,)``; one with -1 is never seen."""
        index, is_known = torch.from_numpy(np.maximum(rows, 0)).long(), torch.from_numpy(rows >= 0)
        weights = {name: weight.float() for name, weight in self.weights.items() if name not in (*UNSEEN, "gene_scale")}
        rows_of = {name: self.weights[name][index].float() for name in UNSEEN}
        rows_of["gene"] *= self.weights["gene_scale"][index, None].float()
        return weights | {
            name: torch.where(is_known[:, None], rows_of[name], unseen) for name, unseen in UNSEEN.items()
        }


@cache
def read_base(path: Path = FILE) -> Base:
    """Read a file that :func:`write_base` wrote."""
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["about"])
    tensors = load_file(path)
    names = {name: tensors.pop(name).numpy().tobytes().decode().split("\n") for name in ("genes", "types")}
    type_weights, datasets = tensors.pop("type_weights"), tensors.pop("datasets").numpy()
    return Base(pd.Index(names["genes"]), tensors, type_weights, np.array(names["types"], object), datasets, about)


def write_base(
    path: Path,
    encoder: BaseEncoder,
    config: NetworkConfig,
    type_weights: Tensor,
    names: dict[str, Any],
    about: dict[str, Any],
) -> None:
    """Write an encoder for all genes, with the types it learned; ``about`` is free text by key."""
    tensors = {name: weight.detach().half().contiguous() for name, weight in encoder.state_dict().items()}
    gene = encoder.gene.detach()
    scale = (gene.abs().amax(1) / 127).half()
    tensors["gene"] = (gene / scale[:, None].float().clamp(min=1e-8)).round().clamp(-127, 127).to(torch.int8)
    tensors["gene_scale"] = scale
    tensors["type_weights"] = type_weights.detach().half().contiguous()
    for name in ("genes", "types"):
        tensors[name] = torch.frombuffer(bytearray("\n".join(map(str, names[name])), "utf-8"), dtype=torch.uint8)
    tensors["datasets"] = torch.from_numpy(np.asarray(names["datasets"], np.int16))
    sizes = {name: getattr(config, name) for name in SIZES}
    save_file(tensors, path, {"about": json.dumps({"name": "celler-base", "sizes": sizes} | about)})
