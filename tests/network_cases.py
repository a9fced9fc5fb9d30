"""Small networks for tests of the network's files."""

import itertools

import torch

from celler.network._config import NetworkConfig
from celler.network._network import GeneTransformer, build_network

SMALL = {"n_genes": 40, "n_classes": 5, "n_bins": 11, "d_model": 16, "n_heads": 4, "n_latents": 3}
KINDS = [
    {"encoder": encoder, "head": head}
    for encoder, head in itertools.product(("base", "additive", "latent", "transformer"), ("linear", "mlp", "vgg"))
]


def network(**options) -> GeneTransformer:
    """In evaluation mode, with no weight left at the zero it starts from."""
    model = build_network(NetworkConfig(**SMALL | options), seed=0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(generator=torch.Generator().manual_seed(len(parameter)))
    return model


def assert_same(one, other):
    for part, expected in zip(one, other, strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-5)
