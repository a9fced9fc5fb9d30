"""The file of the base: written and read again, and the one that comes with the package."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from celler.data._gene_table import human_symbols
from celler.network._base import FILE, read_base, write_base
from celler.network._config import NetworkConfig
from celler.network._encoders import BaseEncoder

SIZES = {"d_model": 16, "n_latents": 4, "n_layers": 2, "n_heads": 4}
CONFIG = NetworkConfig(n_genes=6, n_classes=1, encoder="base", **SIZES)
NAMES = {"genes": ["CD3E", "MS4A1", "NKG7", "LYZ", "PPBP", "β"], "types": ["T cell", "B cell/é"], "datasets": [0, 1]}


@pytest.fixture
def encoder() -> BaseEncoder:
    torch.manual_seed(0)
    encoder = BaseEncoder(CONFIG)
    with torch.no_grad():
        encoder.gene *= torch.logspace(-1, 2, 6)[:, None]  # genes of unlike size, each with a step of its own
        encoder.gene[4] = 0
    return encoder


@pytest.fixture
def vectors() -> torch.Tensor:
    return torch.randn(2, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def base(tmp_path, encoder, vectors):
    path = tmp_path / "base.safetensors"
    write_base(path, encoder, CONFIG, vectors, NAMES, {"seed": 3, "sources": [{"name": "Lung/é"}]})
    return read_base(path)


def test_read_base_returns_what_was_written(base, encoder, vectors):
    assert list(base.genes) == NAMES["genes"]
    assert list(base.types) == NAMES["types"]
    assert base.datasets.tolist() == [0, 1]
    assert base.sizes == SIZES
    assert base.about["seed"] == 3
    assert base.about["sources"] == [{"name": "Lung/é"}]
    torch.testing.assert_close(base.type_weights.float(), vectors, rtol=2**-11, atol=0)
    read = base.encoder_weights(np.arange(6))
    for name, written in encoder.state_dict().items():
        assert read[name].dtype == torch.float32
        assert read[name].shape == written.shape
        if name != "gene":
            torch.testing.assert_close(read[name], written, rtol=2**-11, atol=2**-24)


def test_write_base_rounds_a_gene_by_half_a_step_at_most(base, encoder):
    """A step is a gene's largest value by 127; the scale in float16 adds a little."""
    gene = encoder.gene.detach().double()
    step = gene.abs().amax(1, keepdim=True) / 127
    error = (base.encoder_weights(np.arange(6))["gene"].double() - gene).abs()
    assert (error <= 0.57 * step + 1e-7).all()
    assert (error > 0.3 * step)[:4].any()
    assert base.weights["gene"].dtype == torch.int8


def test_encoder_weights_follow_the_rows(base):
    every = base.encoder_weights(np.arange(6))
    rows = np.array([5, -1, 0, 0, -1])
    chosen = base.encoder_weights(rows)
    for name in ("gene", "score"):
        assert torch.equal(chosen[name][[0, 2, 3]], every[name][[5, 0, 0]])
    assert not chosen["gene"][[1, 4]].any()
    assert (chosen["score"][[1, 4]] == -torch.inf).all()
    for name in set(every) - {"gene", "score"}:
        assert torch.equal(chosen[name], every[name])
    again = base.encoder_weights(np.arange(6))
    assert all(torch.equal(again[name], every[name]) for name in every), "the file's weights were changed"


def test_encoder_weights_fit_an_encoder(base):
    rows = np.array([2, -1, 4])
    config = NetworkConfig(n_genes=3, n_classes=1, encoder="base", **base.sizes)
    encoder = BaseEncoder(config)
    encoder.load_state_dict(base.encoder_weights(rows))
    embedding = encoder.embed_panel(torch.arange(3), torch.tensor([[1.0, 5.0, 2.0], [1.0, 0.0, 2.0]]))
    assert embedding.isfinite().all()
    assert torch.equal(embedding[0], embedding[1])


def test_rows_of_symbols(base):
    assert base.rows_of(pd.Index(["LYZ", "", "nobody", "CD3E", "lyz"])).tolist() == [3, -1, -1, 0, -1]


def test_the_base_is_small():
    assert FILE.stat().st_size <= 10_000_000


def test_the_base_is_plain_safetensors():
    """Of a known type each, named as the encoder's weights are."""
    tensors = load_file(FILE)
    base = read_base()
    config = NetworkConfig(n_genes=len(base.genes), n_classes=1, encoder="base", **base.sizes)
    expected = {name: weight.shape for name, weight in BaseEncoder(config).state_dict().items()}
    extra = {"gene_scale", "type_weights", "types", "datasets", "genes"}
    assert set(tensors) == set(expected) | extra
    for name, shape in expected.items():
        assert tensors[name].shape == shape
        assert tensors[name].dtype == (torch.int8 if name == "gene" else torch.float16)
    assert all(tensor.isfinite().all() for tensor in tensors.values() if tensor.is_floating_point())
    assert tensors["gene_scale"].shape == (len(base.genes),)
    assert (tensors["gene_scale"] > 0).all()
    assert tensors["type_weights"].shape == (len(base.types), base.sizes["d_model"])


def test_the_genes_of_the_base_are_current_symbols():
    genes = read_base().genes
    assert len(genes) > 10_000
    assert genes.is_unique
    assert list(human_symbols(genes).names) == list(genes)


def test_the_types_of_the_base_name_their_atlas():
    base = read_base()
    sources = base.about["sources"]
    assert len(base.types) == len(base.datasets) > 500
    assert all(isinstance(name, str) and name for name in base.types)
    assert np.array_equal(np.unique(base.datasets), np.arange(len(sources)))
    for code in range(len(sources)):
        types = base.types[base.datasets == code]
        assert len(set(types)) == len(types)


def test_the_base_says_what_it_was_made_of():
    about = read_base().about
    assert about["name"] == "celler-base"
    assert isinstance(about["seed"], int)
    assert f"--seed {about['seed']}" in about["command"]
    assert "docs/benchmarks/base.py" in about["command"]
    assert "/" not in about["command"].replace("docs/benchmarks/base.py", "")
    assert len({source["name"] for source in about["sources"]}) > 50
    for source in about["sources"]:
        assert source["organism"] in ("human", "mouse")
        assert all(isinstance(value, str) for value in source.values())
        assert source["citation"]
        assert source["source"].endswith(("CC BY 4.0", "MIT"))
    json.dumps(about)
