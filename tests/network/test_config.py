"""Configurations that cannot be."""

import pytest
from network_cases import SMALL

from celler.network._config import NetworkConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "latent", "d_model": 30}, "d_model=30 is not a multiple of n_heads=4; take d_model=32"),
        ({"encoder": "lstm"}, r"encoder='lstm' was given; choose from \['additive', 'base', 'latent', 'scgpt'"),
        ({"head": "resnet"}, r"head='resnet' was given; choose from \['linear', 'mlp', 'vgg'\]"),
    ],
)  # fmt: skip
def test_network_config_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        NetworkConfig(**SMALL | options)


@pytest.mark.parametrize("options", [{"head": "atlas"}, {"n_types": 3}, {"head": "mlp", "n_types": 3}])
def test_network_config_of_atlases_needs_their_types(options):
    with pytest.raises(ValueError, match=r"head='atlas' is for models made by Celler.from_pretrained\('celler-base'"):
        NetworkConfig(**SMALL | options)
