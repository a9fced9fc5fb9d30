"""Layouts: names, sizes and types of weights, equal to those of networks that were made, without their memory."""

import subprocess
import sys
from typing import get_args

import pytest
import torch

from celler.network._config import Encoder, Head, NetworkConfig
from celler.network._heads import GeneDecoder
from celler.network._layout import decoder_layout, network_layout
from celler.network._network import build_network


def sizes(weights) -> dict:
    return {name: (tuple(weight.shape), weight.dtype) for name, weight in weights.items()}


@pytest.mark.parametrize("evidence", [True, False])
@pytest.mark.parametrize("head", get_args(Head))
@pytest.mark.parametrize("encoder", get_args(Encoder))
def test_layout_is_that_of_the_network(encoder, head, evidence):
    config = NetworkConfig(
        30,
        5,
        encoder=encoder,
        head=head,
        n_layers=2,
        d_model=24,
        d_sum=7,
        n_heads=2,
        n_latents=6,
        use_evidence=evidence,
    )
    assert sizes(network_layout(config)) == sizes(build_network(config, seed=0).state_dict())
    assert sizes(decoder_layout(config, 3)) == sizes(GeneDecoder(config, 3).state_dict())


def test_layout_takes_no_memory():
    """A table of a petabyte."""
    found = network_layout(NetworkConfig(10**6, 10**3, d_model=10**6, encoder="additive"))
    assert found["encoder.gene"].shape == (10**6, 10**6)
    assert {weight.device for name, weight in found.items() if name != "_extra_state"} == {torch.device("meta")}


def test_layout_imports_nothing_more():
    """The first random number on the meta device imports a thousand modules, for a second."""
    code = (
        "import sys; from celler.network._config import NetworkConfig; from celler.network import _layout; "
        "before = len(sys.modules); _layout.network_layout(NetworkConfig(9, 2, encoder='base')); "
        "print(len(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 5
