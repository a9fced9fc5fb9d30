"""Speed: operations against torch's own count, the table, and synthetic cells."""

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from celler.benchmark import measure_speed, speed_text, synthetic_cells
from celler.benchmark.work import Ceilings, Work, forward_work, training_work
from celler.cli._main import main
from celler.data._tokenizer import TokenBatch, Tokenizer
from celler.network._config import NetworkConfig
from celler.network._network import build_network

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
def test_operations_of_a_forward_pass_are_those_torch_counts(encoder, n_layers):
    config = NetworkConfig(**SIZES, encoder=encoder, n_layers=n_layers, use_evidence=False)
    ours = forward_work(config, N_TOKENS, N_CELLS).products
    if encoder != "transformer":  # the sum of gene embeddings
        ours -= N_CELLS * 2 * N_TOKENS * config.d_model
    # Small change: scores of the value table under padding, and the like.
    assert ours == pytest.approx(counted(config, backward=False), rel=0.02)


@pytest.mark.parametrize("encoder", ["latent", "transformer"])
def test_a_training_step_is_three_times_that(encoder):
    config = NetworkConfig(**SIZES, encoder=encoder, use_evidence=False)
    ours = training_work(config, N_TOKENS, N_CELLS, n_weights=0).products
    if encoder == "latent":  # its sum forward, and the dense product that stands for it backward
        ours -= 2 * N_CELLS * 2 * N_TOKENS * config.d_model
        ours += 2 * N_CELLS * config.n_genes * config.d_model
    assert ours == pytest.approx(counted(config, backward=True), rel=0.03)


def test_evidence_and_classes_add_to_the_sums():
    without = NetworkConfig(**SIZES, use_evidence=False)
    both = NetworkConfig(**SIZES)
    extra = forward_work(both, 30, 16).products - forward_work(without, 30, 16).products
    assert extra == 2 * 16 * 30 * 7


def test_the_floor_is_the_longer_of_operations_and_bytes():
    ceilings = Ceilings(products=10.0, memory=2.0, weights=4.0)
    assert Work(products=100, streamed=2, tables=4).seconds(ceilings) == 10
    assert Work(products=1, streamed=2, tables=4).seconds(ceilings) == 2
    assert (Work(1, 2, 3) + Work(1, 2, 3)) * 2 == Work(4, 8, 12)


@pytest.fixture(scope="module")
def table():
    before = torch.get_num_threads()
    found = measure_speed(accelerator="cpu", n_cells=96)
    assert torch.get_num_threads() == before
    return found


def test_the_table_has_rates_floors_and_ceilings(table):
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


def test_the_text_says_what_was_measured_and_where(table):
    text = speed_text(table)
    for words in ("device: cpu", "threads: 1", "500 of 3,000 genes, 20 types", "minibatches of 32"):
        assert words in text
    assert "nan" not in text


def test_the_command_prints_and_writes_the_table(table, monkeypatch, capsys, tmp_path):
    asked = {}

    def known(encoder, **options):
        asked.update(options, encoder=encoder)
        return table

    monkeypatch.setattr("celler.benchmark.measure_speed", known)
    file = tmp_path / "speed.csv"
    arguments = ["--device", "cpu", "--encoder", "latent", "--threads", "2", "--large"]
    assert main(["benchmark", "speed", *arguments, "--out", str(file)]) == 0
    assert "matrix product, float32" in capsys.readouterr().out
    assert file.read_text().startswith("measure,value,unit,at_floor,share")
    assert asked == {
        "encoder": "latent", "accelerator": "cpu", "large": True, "n_threads": 2, "n_cells": None,
    }  # fmt: skip


def test_synthetic_cells_are_what_was_asked_for():
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
