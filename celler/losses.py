"""Losses for classes of unequal size, GInf and HDM among them: logits in, loss per cell out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

__all__ = ["GInf", "HDM", "CrossEntropy", "Loss"]


class Loss(Protocol):
    """What every loss here is: a frozen description that is called on logits."""

    def __call__(
        self,
        logits: Tensor,
        labels: Tensor,
        class_counts: Tensor,
        generator: Generator | None = None,
    ) -> Tensor:
        """``logits (B, C)``, ``labels (B,)``, ``class_counts (C,)`` -> loss per cell ``(B,)``, nats."""
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """Plain cross-entropy; takes no notice of the class sizes.

    label_smoothing: share of the target spread evenly over the classes, 0 up to but not 1.
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"label_smoothing={self.label_smoothing} was given; 0 <= it < 1 is needed."
            )

    def __call__(
        self,
        logits: Tensor,
        labels: Tensor,
        class_counts: Tensor,
        generator: Generator | None = None,
    ) -> Tensor:
        """``logits (B, C)``, ``labels (B,)``, ``class_counts (C,)`` -> loss per cell ``(B,)``, nats."""
        return F.cross_entropy(
            at_least_float32(logits), labels, reduction="none", label_smoothing=self.label_smoothing
        )


@dataclass(frozen=True)
class GInf:
    r"""Gaussian Inflation, equations 4 to 7 of the Celler paper.

    Balanced softmax whose logits are inflated at random, more so in rare classes, which keeps the
    few cells of a rare class from being learned by heart:

    .. math::
        z'_{ij} = z_{ij} + a\,\Delta_j I_{ij}, \quad \Delta_j = \log N_{max} - \log N_j, \quad
        I_{ij} \sim \mathcal N(\mu, \sigma^2), \qquad
        \ell_i = -\log \frac{N_{y_i} e^{z'_{i y_i}}}{\sum_k N_k e^{z'_{ik}}}

    The prior N belongs to training alone: prediction takes the softmax of the plain logits.

    amplitude: a, no unit. 0 is the balanced softmax.
    mean, std: of the Gaussian I. With std 0 and amplitude·mean 1 the prior cancels and plain
        cross-entropy is left.
    """

    amplitude: float = 0.1
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.amplitude < 0 or self.std < 0:
            raise ValueError(
                f"amplitude={self.amplitude} and std={self.std} were given; both must be >= 0."
            )

    def inflate(self, logits: Tensor, class_counts: Tensor, generator: Generator | None) -> Tensor:
        """``z' + log N (B, C)``, the logits on which the loss is a cross-entropy."""
        logits = at_least_float32(logits)
        log_counts = log_class_counts(class_counts, logits)
        if self.amplitude == 0:
            return logits + log_counts
        # Drawn on the generator's own device: a seed gives the same noise wherever the logits are.
        device = generator.device if generator is not None else logits.device
        noise = torch.randn(logits.shape, generator=generator, device=device, dtype=logits.dtype)
        inflation = self.mean + self.std * noise.to(logits.device)
        return logits + self.amplitude * (log_counts.max() - log_counts) * inflation + log_counts

    def __call__(
        self,
        logits: Tensor,
        labels: Tensor,
        class_counts: Tensor,
        generator: Generator | None = None,
    ) -> Tensor:
        """``logits (B, C)``, ``labels (B,)``, ``class_counts (C,)`` all > 0 -> loss ``(B,)``, nats."""
        return F.cross_entropy(
            self.inflate(logits, class_counts, generator), labels, reduction="none"
        )


@dataclass(frozen=True)
class HDM:
    r"""Hard Data Mining over categories, equations 8 to 10, added to the GInf loss.

    The n classes other than the true one with the highest logits, chosen without noise, and the
    true one form the set :math:`\Omega_i`; the same inflated logits are compared within it:

    .. math:: \ell_i = \ell^{GInf}_i - \log \frac{N_{y_i} e^{z'_{i y_i}}}{\sum_{k \in \Omega_i} N_k e^{z'_{ik}}}

    n_hard: n. ``None`` takes min(20, max(1, round(0.3 C))); at C − 1 or more the set is every
        class and the loss twice that of GInf.
    base: the GInf whose draw both terms share.
    """

    n_hard: int | None = None
    base: GInf = field(default_factory=GInf)

    def __post_init__(self) -> None:
        if self.n_hard is not None and self.n_hard < 1:
            raise ValueError(f"n_hard={self.n_hard} was given; at least 1 is needed, or None.")

    def hard_classes(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Indices ``(B, n + 1)`` of the set: the true class first, then the n hardest others."""
        n_classes = logits.shape[1]
        n_hard = self.n_hard or min(20, max(1, round(0.3 * n_classes)))
        others = logits.detach().scatter(1, labels[:, None], float("-inf"))
        hardest = others.topk(min(n_hard, n_classes - 1), dim=1).indices
        return torch.cat([labels[:, None], hardest], dim=1)

    def __call__(
        self,
        logits: Tensor,
        labels: Tensor,
        class_counts: Tensor,
        generator: Generator | None = None,
    ) -> Tensor:
        """``logits (B, C)``, ``labels (B,)``, ``class_counts (C,)`` all > 0 -> loss ``(B,)``, nats."""
        inflated = self.base.inflate(logits, class_counts, generator)
        among_hard = inflated.gather(1, self.hard_classes(logits, labels))
        return F.cross_entropy(inflated, labels, reduction="none") + F.cross_entropy(
            among_hard, torch.zeros_like(labels), reduction="none"
        )


def at_least_float32(logits: Tensor) -> Tensor:
    """Half-precision logits in float32: near log N = 14 bfloat16 steps by 0.06, more than a tail gap."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def log_class_counts(class_counts: Tensor, logits: Tensor) -> Tensor:
    """``log N (C,)`` in the precision of the logits; a class without cells is an error."""
    empty = (class_counts <= 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"class_counts is 0 or less for class {empty}; each class needs a training cell."
        )
    return class_counts.to(logits).log()
