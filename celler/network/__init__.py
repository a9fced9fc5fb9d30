"""Networks: tokens in, logits of each expert and a cell embedding out."""

from celler.network._config import NetworkConfig
from celler.network._network import GeneTransformer, NetworkOutput, build_network, extend_network

__all__ = ["GeneTransformer", "NetworkConfig", "NetworkOutput", "build_network", "extend_network"]
