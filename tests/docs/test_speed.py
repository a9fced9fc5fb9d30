"""docs/benchmarks/speed.py: operations against torch's own count, the table, and synthetic cells."""

import numpy as np
import pytest
import scripts
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from celler.data._tokenizer import TokenBatch, Tokenizer
from celler.network._config import NetworkConfig
from celler.network._network import build_network

speed, work = scripts.load("speed"), scripts.load("work")
synthetic_cells = scripts.load("synthetic").synthetic_cells
SIZES = {"n_genes": 90, "n_classes": 7, "d_model": 16, "n_heads": 2, "n_latents": 4}
N_CELLS, N_TOKENS = 16, 30


def tokens() -> TokenBatch:
    X = synthetic_cells(N_CELLS, n_genes=90, n_expressed=N_TOKENS, n_classes=7).X
    return Tokenizer()(X, np.arange(90, dtype=np.int32))


def counted(config: NetworkConfig, *, backward: bool) -> int:
    """Matrix products by torch's count; sums of table rows are none to it."""
    network = build_network(config, 0)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        output = network(*tokens())
        if backward:
            output.expert_logits.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("n_layers", [1, 3])
@pytest.mark.parametrize("encoder", ["additive", "latent", "transformer"])
def test_forward_work_matches_the_operations_torch_counts(encoder, n_layers):
    config = NetworkConfig(**SIZES, encoder=encoder, n_layers=n_layers, use_evidence=False)
    ours = work.forward_work(config, N_TOKENS, N_CELLS).products
    if encoder != "transformer":  # the sum of gene embeddings
        ours -= N_CELLS * 2 * N_TOKENS * config.d_model
    # The rest is small: scores of the value table under padding, and the like.
    assert ours == pytest.approx(counted(config, backward=False), rel=0.02)


@pytest.mark.parametrize("encoder", ["latent", "transformer"])
def test_training_work_matches_the_operations_torch_counts(encoder):
    config = NetworkConfig(**SIZES, encoder=encoder, use_evidence=False)
    ours = work.training_work(config, N_TOKENS, N_CELLS, n_weights=0).products
    if encoder == "latent":  # its sum forward, a dense product backward
        ours -= 2 * N_CELLS * 2 * N_TOKENS * config.d_model
        ours += 2 * N_CELLS * config.n_genes * config.d_model
    assert ours == pytest.approx(counted(config, backward=True), rel=0.03)


def test_forward_work_with_evidence():
    without = NetworkConfig(**SIZES, use_evidence=False)
    both = NetworkConfig(**SIZES)
    extra = work.forward_work(both, 30, 16).products - work.forward_work(without, 30, 16).products
    assert extra == 2 * 16 * 30 * 7


def test_seconds_is_the_longer_of_operations_and_bytes():
    ceilings, Work = work.Ceilings(products=10.0, memory=2.0, weights=4.0), work.Work
    assert Work(products=100, streamed=2, tables=4).seconds(ceilings) == 10
    assert Work(products=1, streamed=2, tables=4).seconds(ceilings) == 2
    assert (Work(1, 2, 3) + Work(1, 2, 3)) * 2 == Work(4, 8, 12)


@pytest.fixture(scope="module")
def table():
    before = torch.get_num_threads()
    found = speed.measure_speed(accelerator="cpu", n_cells=96)
    assert torch.get_num_threads() == before
    return found


@pytest.mark.slow
def test_measure_speed_rates_floors_and_ceilings(table):
    assert (table["value"] >= 0).all()
    rates = table.set_index("measure").query("unit == 'cells/s'")
    assert list(rates.index) == [
        "tokenizer",
        "forward pass",
        "training step",
        "train, an epoch",
        "predict",
    ]
    np.testing.assert_allclose(rates["value"] / rates["at_floor"], rates["share"])
    assert (rates["share"] < 1).all(), "faster than the floor: the floor is wrong"
    assert table["share"].notna().sum() == len(rates)


@pytest.mark.slow
def test_speed_text_names_machine_and_sizes(table):
    text = speed.speed_text(table)
    for words in ("device: cpu", "threads: 1", "500 of 3,000 genes, 20 types", "minibatches of 96"):
        assert words in text
    assert "nan" not in text


@pytest.mark.slow
def test_main_prints_and_writes_the_table(table, monkeypatch, capsys, tmp_path):
    given = {}

    def known(encoder, **options):
        given.update(options, encoder=encoder)
        return table

    monkeypatch.setattr(speed, "measure_speed", known)
    file = tmp_path / "speed.csv"
    options = ["--device", "cpu", "--encoder", "latent", "--threads", "2", "--large"]
    scripts.run(speed, monkeypatch, *options, "--out", file)
    assert "matrix product, float32" in capsys.readouterr().out
    assert file.read_text().startswith("measure,value,unit,at_floor,share")
    assert given == {
        "encoder": "latent", "accelerator": "cpu", "large": True, "n_threads": 2, "n_cells": None,
    }  # fmt: skip


def test_synthetic_cells_sizes_and_seed():
    adata = synthetic_cells(250, n_genes=120, n_expressed=30, n_classes=40)
    assert adata.shape == (250, 120)
    assert adata.X.has_canonical_format
    assert set(np.diff(adata.X.indptr)) == {30}
    assert adata.X.dtype == np.float32
    assert adata.obs["cell_type"].nunique() == 40
    np.testing.assert_array_equal(adata.X.data, np.round(adata.X.data))
    again = synthetic_cells(250, n_genes=120, n_expressed=30, n_classes=40)
    assert (adata.X != again.X).nnz == 0
    with pytest.raises(ValueError, match="n_expressed=130 was given; 1 to n_genes=120"):
        synthetic_cells(3, n_genes=120, n_expressed=130)
