"""The masked task beside another: what :meth:`celler.model.Celler.train` adds for ``masked_weight``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from celler.network.decoder import GeneDecoder
from celler.pretraining import MaskedLoss
from celler.pretraining.masking import MaskedMinibatch


class MaskedTask(nn.Module):
    """``weight`` times the masked loss of the next minibatch at each call, epoch after epoch without end."""

    def __init__(
        self, decoder: GeneDecoder, minibatches: Iterable[MaskedMinibatch], weight: float
    ) -> None:
        super().__init__()
        self.decoder, self.weight = decoder, weight
        self._endless = endless(minibatches)

    def forward(self, encoder: nn.Module) -> Tensor:
        """The weighted loss of ``encoder`` and the decoder, a scalar."""
        minibatch = next(self._endless).to(self.decoder.gene.device)
        loss, _ = MaskedLoss(encoder, self.decoder)(minibatch)
        return self.weight * loss


def endless(minibatches: Iterable[MaskedMinibatch]) -> Iterator[MaskedMinibatch]:
    """All of them, again and again; their sampler draws each epoch anew."""
    while True:
        yield from minibatches
