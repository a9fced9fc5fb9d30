"""Speed guard: ratios of processor times measured in one run, against a reference in plain NumPy or torch.

Absolute times depend on the machine and its other jobs; the ratio of two pieces of work that take turns hardly does.
Each bound is 1.3 times the ratio of docs/performance.md. The least of several rounds counts, and a test fails only when
three attempts exceed the bound.
"""

import time
from collections.abc import Callable

import numpy as np
import pytest
import scripts
import torch
import torch.nn.functional as F

from celler.data._tokenizer import Tokenizer
from celler.network._config import NetworkConfig
from celler.network._network import build_network

synthetic_cells, numpy_loop = (
    scripts.load("synthetic").synthetic_cells,
    scripts.load("speed").numpy_loop,
)
N_ATTEMPTS, N_ROUNDS, MARGIN = 3, 7, 1.3


@pytest.fixture(scope="module")
def cells():
    return synthetic_cells(128)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def ratio(ours: Callable[[], object], reference: Callable[[], object]) -> float:
    """Least processor time of ours over the least of the reference, taking turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for run in (ours, reference):
        run()
    for _ in range(N_ROUNDS):
        for run, seconds in zip((ours, reference), times, strict=True):
            start = time.process_time()
            run()
            seconds.append(time.process_time() - start)
    return min(times[0]) / min(times[1])


def assert_within(usual: float, ours: Callable[[], object], reference: Callable[[], object]):
    found = []
    for _ in range(N_ATTEMPTS):
        found.append(ratio(ours, reference))
        if found[-1] <= MARGIN * usual:
            return
    raise AssertionError(f"ratios {np.round(found, 3)}, usually {usual}: 30 % slower or more")


def test_assert_within_fails_only_for_slower_work():
    def work(n: int) -> Callable[[], object]:
        values = np.random.default_rng(0).random(20_000)
        return lambda: [np.sort(values) for _ in range(n)]

    assert_within(1.0, work(10), work(10))
    with pytest.raises(AssertionError, match="usually 1.0: 30 % slower"):
        assert_within(1.0, work(16), work(10))


def test_tokenizer_against_a_numpy_loop(cells):
    tokenizer, genes = Tokenizer(), np.arange(cells.n_vars, dtype=np.int32)
    X, few = cells.X, cells.X[:40]
    assert_within(0.64, lambda: [tokenizer(X, genes) for _ in range(4)], lambda: numpy_loop(few))


def network_and_tokens(cells, n_cells=128, **options):
    config = NetworkConfig(n_genes=cells.n_vars, n_classes=20, **options)
    tokens = Tokenizer()(cells.X[:n_cells], np.arange(cells.n_vars, dtype=np.int32))
    return build_network(config, 0), tokens


def test_forward_pass_against_dense_products(cells):
    network, tokens = network_and_tokens(cells)
    dense = torch.from_numpy(cells.X.toarray())
    network.eval()

    @torch.inference_mode()
    def ours():
        for _ in range(3):
            network(*tokens)

    @torch.inference_mode()
    def reference():
        for _ in range(3):
            dense @ network.encoder.gene, dense @ network.evidence.weight

    assert_within(0.94, ours, reference)


def test_forward_and_backward_against_dense_products(cells):
    network, tokens = network_and_tokens(cells)
    tables = network.encoder.gene, network.evidence.weight
    dense = torch.from_numpy(cells.X.toarray())
    network.train()

    def ours():
        for _ in range(3):
            network(*tokens).expert_logits.sum().backward()

    def reference():
        for _ in range(3):
            sum((dense @ table).sum() for table in tables).backward()

    assert_within(1.57, ours, reference)


def test_self_attention_against_the_layer_of_torch(cells):
    network, tokens = network_and_tokens(cells, 8, encoder="transformer", use_evidence=False, dropout_rate=0.0)
    layer = torch.nn.TransformerEncoderLayer(64, 4, 256, 0.0, F.gelu, batch_first=True, norm_first=True)
    x = torch.randn(8, 501, 64)
    network.train(), layer.train()
    assert_within(
        1.0,
        lambda: network(*tokens).expert_logits.sum().backward(),
        lambda: layer(x).sum().backward(),
    )
