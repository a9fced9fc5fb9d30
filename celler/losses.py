"""Losses for classes of unequal size, GInf and HDM among them: logits in, loss per cell out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

__all__ = [
    "DEFAULT",
    "HDM",
    "RIDE",
    "BalancedSoftmax",
    "ClassLoss",
    "CrossEntropy",
    "Focal",
    "GInf",
    "Loss",
]


class Loss(Protocol):
    """What every loss here is: a frozen description that is called on logits.

    Any callable of this form trains a model too; what is not differentiable in it is its own affair.
    """

    def __call__(
        self,
        logits: Tensor,
        labels: Tensor,
        class_counts: Tensor,
        generator: Generator | None = None,
    ) -> Tensor:
        """``logits (B, C)``, ``labels (B,)``, ``class_counts (C,)`` -> loss per cell ``(B,)``, nats."""
        ...


class ClassLoss(Loss, Protocol):
    """A loss in two steps, so that :class:`HDM` can take the second among the hard classes alone.

    joins_experts: its logits are those of all experts, ``(E, B, C)``, instead of one's ``(B, C)``.
    """

    joins_experts: ClassVar[bool]

    def shift(self, logits: Tensor, class_counts: Tensor, generator: Generator | None) -> Tensor:
        """The logits it compares, float32 or finer: with the prior and the noise, where it has them."""
        ...

    def among(self, shifted: Tensor, labels: Tensor, class_counts: Tensor) -> Tensor:
        """Loss per cell ``(B,)`` of shifted logits whose last axis holds some classes or all.

        labels: ``(B,)``, positions along that axis. class_counts: their cells, ``(K,)`` or ``(B, K)``.
        """
        ...


def in_two_steps(
    self: ClassLoss,
    logits: Tensor,
    labels: Tensor,
    class_counts: Tensor,
    generator: Generator | None = None,
) -> Tensor:
    """``logits (B, C)``, ``labels (B,)``, ``class_counts (C,)`` all > 0 -> loss per cell ``(B,)``, nats.

    Logits are ``(E, B, C)`` where the loss joins experts. Raises ``ValueError`` for a class without
    training cells.
    """
    check_counts(class_counts)
    return self.among(self.shift(logits, class_counts, generator), labels, class_counts)


@dataclass(frozen=True)
class CrossEntropy:
    """Plain cross-entropy; takes no notice of the class sizes.

    label_smoothing: share of the target spread evenly over the classes, 0 up to but not 1.
    """

    label_smoothing: float = 0.0

    joins_experts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"label_smoothing={self.label_smoothing} was given; 0 <= it < 1 is needed."
            )

    def shift(self, logits: Tensor, class_counts: Tensor, generator: Generator | None) -> Tensor:
        return at_least_float32(logits)

    def among(self, shifted: Tensor, labels: Tensor, class_counts: Tensor) -> Tensor:
        return F.cross_entropy(
            shifted, labels, reduction="none", label_smoothing=self.label_smoothing
        )

    __call__ = in_two_steps


@dataclass(frozen=True)
class Focal:
    r"""Focal loss of :cite:t:`Lin17`: cells the model is sure of count less.

    .. math:: \ell_i = -(1 - p_{i y_i})^\gamma \log p_{i y_i}

    gamma: no unit. 0 is cross-entropy; the larger, the less an easy cell counts.
    """

    gamma: float = 2.0

    joins_experts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.gamma >= 0:
            raise ValueError(f"gamma={self.gamma} was given; it must be >= 0.")

    def shift(self, logits: Tensor, class_counts: Tensor, generator: Generator | None) -> Tensor:
        return at_least_float32(logits)

    def among(self, shifted: Tensor, labels: Tensor, class_counts: Tensor) -> Tensor:
        nll = F.cross_entropy(shifted, labels, reduction="none")
        # 1 − p without cancellation, and above 0, where a gamma below 1 has an infinite slope.
        tiny = torch.finfo(nll.dtype).tiny
        return (-torch.expm1(-nll)).clamp_min(tiny) ** self.gamma * nll

    __call__ = in_two_steps


@dataclass(frozen=True)
class BalancedSoftmax:
    r"""Balanced softmax of :cite:t:`Ren20`: cross-entropy of logits to which the class prior was added.

    .. math:: \ell_i = -\log \frac{N_{y_i} e^{z_{i y_i}}}{\sum_k N_k e^{z_{ik}}}

    The prior N belongs to training alone: prediction takes the softmax of the plain logits.
    """

    joins_experts: ClassVar[bool] = False

    def shift(self, logits: Tensor, class_counts: Tensor, generator: Generator | None) -> Tensor:
        logits = at_least_float32(logits)
        return logits + class_counts.to(logits).log()

    def among(self, shifted: Tensor, labels: Tensor, class_counts: Tensor) -> Tensor:
        return F.cross_entropy(shifted, labels, reduction="none")

    __call__ = in_two_steps


@dataclass(frozen=True)
class RIDE:
    r"""The loss of RIDE, :cite:t:`Wang21`: each expert's cross-entropy, and a reward for disagreeing.

    .. math::
        \ell_i = \sum_e \Big( -\log \operatorname{softmax}(z^e_i)_{y_i} - \frac{\lambda}{E - 1}
        \sum_{f \ne e} D_{KL}\big(\operatorname{softmax}(z^e_i / T) \,\|\, \operatorname{softmax}(z^f_i / T)\big)
        \Big)

    .. math::
        T_j = \alpha \frac{\psi_j}{\max_k \psi_k}, \quad
        \psi_j = \gamma \frac{N_j}{\tfrac 1 C \sum_k N_k} + 1 - \gamma

    The class-wise temperature lets the experts differ more on rare classes. It is the ratio that
    RIDE's authors compute; the difference in their paper turns negative with many classes.

    diversity: λ, no unit. 0 is the sum of the experts' cross-entropies; much above 0.05 disagreeing
        pays more than being right.
    temperature: α, above 0. balance: γ, from 0, the same temperature for all classes, to 1.
    """

    diversity: float = 0.05
    temperature: float = 1.0
    balance: float = 0.05

    joins_experts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.diversity >= 0 and self.temperature > 0):
            raise ValueError(
                f"diversity={self.diversity} and temperature={self.temperature} were given; "
                "diversity >= 0 and temperature > 0 are needed."
            )
        if not 0 <= self.balance <= 1:
            raise ValueError(f"balance={self.balance} was given; 0 <= it <= 1 is needed.")

    def shift(self, logits: Tensor, class_counts: Tensor, generator: Generator | None) -> Tensor:
        if logits.ndim != 3 or len(logits) < 2:
            raise ValueError(
                f"logits of shape {tuple(logits.shape)} were given; RIDE compares experts and needs "
                "(E, B, C) with two of them or more."
            )
        return at_least_float32(logits)

    def among(self, shifted: Tensor, labels: Tensor, class_counts: Tensor) -> Tensor:
        n_experts, n_cells, _ = shifted.shape
        nll = F.cross_entropy(shifted.flatten(0, 1), labels.repeat(n_experts), reduction="none")
        counts = class_counts.to(shifted)
        psi = self.balance * counts / counts.mean(-1, keepdim=True) + 1 - self.balance
        temperature = self.temperature * psi / psi.amax(-1, keepdim=True)
        log_p = (shifted / temperature).log_softmax(-1)
        # Σ_e Σ_f p_e (log p_e − log p_f): the pair e = f adds nothing.
        divergence = (log_p.exp() * (n_experts * log_p - log_p.sum(0))).sum((0, -1))
        return nll.view(n_experts, n_cells).sum(0) - self.diversity / (n_experts - 1) * divergence

    __call__ = in_two_steps


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

    joins_experts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (self.amplitude >= 0 and self.std >= 0):
            raise ValueError(
                f"amplitude={self.amplitude} and std={self.std} were given; both must be >= 0."
            )

    def shift(self, logits: Tensor, class_counts: Tensor, generator: Generator | None) -> Tensor:
        """``z' + log N (B, C)``, the logits on which the loss is a cross-entropy."""
        logits = at_least_float32(logits)
        log_counts = class_counts.to(logits).log()
        if self.amplitude == 0:
            return logits + log_counts
        # Drawn on the generator's own device: a seed gives the same noise wherever the logits are.
        device = generator.device if generator is not None else logits.device
        noise = torch.randn(logits.shape, generator=generator, device=device, dtype=logits.dtype)
        scale = self.amplitude * (log_counts.max() - log_counts)
        # A row of C numbers first: with a few dozen cells a step on (B, C) costs what it takes to start.
        shifted = logits + torch.add(log_counts, scale, alpha=self.mean)
        return torch.addcmul(shifted, scale, noise.to(logits.device), value=self.std)

    def among(self, shifted: Tensor, labels: Tensor, class_counts: Tensor) -> Tensor:
        return F.cross_entropy(shifted, labels, reduction="none")

    __call__ = in_two_steps


@dataclass(frozen=True)
class HDM:
    r"""Hard Data Mining over categories, equations 8 to 10, added to a base loss, GInf in the paper.

    The n classes other than the true one with the highest logits, chosen without noise, and the
    true one form the set :math:`\Omega_i`; the same inflated logits are compared within it:

    .. math:: \ell_i = \ell^{GInf}_i - \log \frac{N_{y_i} e^{z'_{i y_i}}}{\sum_{k \in \Omega_i} N_k e^{z'_{ik}}}

    With another base the second term is that base as if there were no classes but those of
    :math:`\Omega_i`; of experts in common (:class:`RIDE`) their mean logits choose the set.

    n_hard: n. ``None`` takes min(20, max(1, round(0.3 C))); at C − 1 or more the set is every
        class and the loss twice the base.
    base: any other loss of this module; both terms share its draw of noise.
    """

    n_hard: int | None = None
    base: ClassLoss = field(default_factory=GInf)

    def __post_init__(self) -> None:
        if self.n_hard is not None and self.n_hard < 1:
            raise ValueError(f"n_hard={self.n_hard} was given; at least 1 is needed, or None.")
        if not hasattr(self.base, "among") or isinstance(self.base, type):
            raise TypeError(
                f"base={self.base!r} was given; pass one of celler.losses other than HDM, such as GInf()."
            )

    @property
    def joins_experts(self) -> bool:
        """Whether the base takes the logits of all experts at once."""
        return self.base.joins_experts

    def hard_classes(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Indices ``(B, n + 1)`` of the set: the true class first, then the n hardest others."""
        n_classes = logits.shape[1]
        n_hard = self.n_hard or min(20, max(1, round(0.3 * n_classes)))
        # The true class above all others: one search finds it and them.
        raised = logits.detach().scatter(1, labels[:, None], float("inf"))
        return raised.topk(1 + min(n_hard, n_classes - 1), dim=1).indices

    def __call__(
        self,
        logits: Tensor,
        labels: Tensor,
        class_counts: Tensor,
        generator: Generator | None = None,
    ) -> Tensor:
        """``logits (B, C)``, or those of the base, ``labels (B,)``, ``class_counts (C,)`` -> ``(B,)``, nats."""
        check_counts(class_counts)
        shifted = self.base.shift(logits, class_counts, generator)
        hard = self.hard_classes(logits.mean(0) if self.joins_experts else logits, labels)
        among_hard = shifted.gather(-1, hard.expand(*shifted.shape[:-1], -1))
        first = torch.zeros_like(labels)
        return self.base.among(shifted, labels, class_counts) + self.base.among(
            among_hard, first, class_counts[hard]
        )


#: What ``train`` takes unless told otherwise. The noise's mean of −2 gives a class j a margin of 0.2 Δ_j:
#: the few cells of a rare class are learned by heart long before they stand for its unseen ones.
DEFAULT = HDM(base=GInf(mean=-2.0))


def at_least_float32(logits: Tensor) -> Tensor:
    """Half-precision logits in float32: near log N = 14 bfloat16 steps by 0.06, more than a tail gap."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def check_counts(class_counts: Tensor) -> None:
    """A class without training cells has no prior: a ``ValueError`` names it."""
    if class_counts.min() <= 0:
        empty = (class_counts <= 0).nonzero().flatten().tolist()
        raise ValueError(
            f"class_counts is 0 or less for class {empty}; each class needs a training cell."
        )
