"""Layout: names, sizes and types of a network's weights, without the memory that they take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from celler.network._config import NetworkConfig
from celler.network._heads import GeneDecoder
from celler.network._network import GeneTransformer


class _WithoutValues(TorchFunctionMode):
    """Leave out what only changes values: on the meta device the first such call imports for a second."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.randn:
            func = torch.empty
        if func in CHANGES:
            return args[0]
        return func(*args, **kwargs or {})


#: Methods of a tensor that return one of the same size.
CHANGES = {getattr(Tensor, name) for name in ("mul", "div", "__mul__", "__truediv__", "uniform_", "normal_", "fill_")}
CHANGES |= {Tensor.zero_}


def network_layout(config: NetworkConfig) -> dict[str, Tensor]:
    """Weights of a network by name, as tensors that have a size and a type alone."""
    return _layout(lambda: GeneTransformer(config))


def decoder_layout(config: NetworkConfig, n_batches: int) -> dict[str, Tensor]:
    """Weights of a :class:`celler.network._heads.GeneDecoder` likewise."""
    return _layout(lambda: GeneDecoder(config, n_batches))


def _layout(make: Callable[[], nn.Module]) -> dict[str, Tensor]:
    with torch.device("meta"), _WithoutValues():
        module = make()
    weights: dict[str, Tensor] = module.state_dict()
    return weights
