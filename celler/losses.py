"""Losses for classes of unequal size, among them GInf and HDM: logits in, loss per cell out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from celler._utils._check import check_fields

__all__ = ["DEFAULT", "HDM", "RIDE", "BalancedSoftmax", "ClassLoss", "CrossEntropy", "Focal", "GInf", "Loss"]


class Loss(Protocol):
    """Interface of a loss: any callable of this form trains a model.

    The losses of this module are frozen dataclasses. In a loss of your own, the gradient is yours to mind.
    """

    def __call__(
        self, logits: Tensor, labels: Tensor, class_counts: Tensor, generator: Generator | None = None
    ) -> Tensor:
        """Compute the loss of each cell.

        Parameters
        ----------
        logits
            ``(B, C)``, or ``(E, B, C)`` of E experts if the loss joins experts.
        labels
            Codes of the true classes ``(B,)``.
        class_counts
            Training cells of each class ``(C,)``, all above 0.
        generator
            Source of the noise, for losses that draw some.

        Returns
        -------
        torch.Tensor
            Loss of each cell ``(B,)`` in nats.
        """
        ...


class ClassLoss(Loss, Protocol):
    """A loss in two steps, of which :class:`HDM` repeats the second among the hard classes.

    By default the logits are not shifted and compared by cross-entropy.

    Attributes
    ----------
    joins_experts
        Whether the loss takes the logits of all experts ``(E, B, C)`` instead of one's ``(B, C)``.
    """

    joins_experts: ClassVar[bool] = False

    def shift(self, logits: Tensor, class_counts: Tensor, generator: Generator | None) -> Tensor:
        """Return the logits to compare in float32 or finer, with the prior and the noise if there are any."""
        return at_least_float32(logits)

    def among(self, shifted: Tensor, labels: Tensor, class_counts: Tensor) -> Tensor:
        """Return the loss of each cell ``(B,)`` among the classes on the last axis of ``shifted``.

        ``labels (B,)`` are positions on that axis, ``class_counts`` its cells ``(K,)`` or ``(B, K)``.
        """
        return F.cross_entropy(shifted, labels, reduction="none")

    def __call__(
        self, logits: Tensor, labels: Tensor, class_counts: Tensor, generator: Generator | None = None
    ) -> Tensor:
        """Compute the loss of each cell, see :class:`Loss`."""
        check_counts(class_counts)
        return self.among(self.shift(logits, class_counts, generator), labels, class_counts)


@dataclass(frozen=True)
class CrossEntropy(ClassLoss):
    """Cross-entropy, which ignores the class sizes.

    Parameters
    ----------
    label_smoothing
        Share of the target that is spread evenly over the classes, from 0 to below 1.
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)

    def among(self, shifted: Tensor, labels: Tensor, class_counts: Tensor) -> Tensor:
        return F.cross_entropy(shifted, labels, reduction="none", label_smoothing=self.label_smoothing)


@dataclass(frozen=True)
class Focal(ClassLoss):
    r"""Focal loss of :cite:t:`Lin17`, in which confident cells count less.

    .. math:: \ell_i = -(1 - p_{i y_i})^\gamma \log p_{i y_i}

    Parameters
    ----------
    gamma
        Strength, no unit. 0 is cross-entropy; the larger, the less an easy cell counts.
    """

    gamma: float = 2.0

    def __post_init__(self) -> None:
        check_fields(self)

    def among(self, shifted: Tensor, labels: Tensor, class_counts: Tensor) -> Tensor:
        nll = F.cross_entropy(shifted, labels, reduction="none")
        # 1 − p without cancellation, and above 0, where a gamma below 1 has an infinite slope.
        tiny = torch.finfo(nll.dtype).tiny
        return (-torch.expm1(-nll)).clamp_min(tiny) ** self.gamma * nll


@dataclass(frozen=True)
class BalancedSoftmax(ClassLoss):
    r"""Balanced softmax of :cite:t:`Ren20`: cross-entropy of the logits plus the log prior of the classes.

    .. math:: \ell_i = -\log \frac{N_{y_i} e^{z_{i y_i}}}{\sum_k N_k e^{z_{ik}}}

    The prior N is used in training only; a prediction is the softmax of the plain logits.
    """

    def shift(self, logits: Tensor, class_counts: Tensor, generator: Generator | None) -> Tensor:
        logits = at_least_float32(logits)
        return logits + class_counts.to(logits).log()


@dataclass(frozen=True)
class RIDE(ClassLoss):
    r"""Loss of RIDE, :cite:t:`Wang21`: each expert's cross-entropy, less a reward for disagreement.

    Parameters
    ----------
    diversity
        λ, no unit. 0 is the sum of the cross-entropies; much above 0.05, disagreement pays more than a correct label.
    temperature
        α, above 0.
    balance
        γ, from 0, the same temperature for all classes, to 1.

    Notes
    -----
    .. math::
        \ell_i = \sum_e \Big( -\log \operatorname{softmax}(z^e_i)_{y_i} - \frac{\lambda}{E - 1}
        \sum_{f \ne e} D_{KL}\big(\operatorname{softmax}(z^e_i / T) \,\|\, \operatorname{softmax}(z^f_i / T)\big)
        \Big)

    .. math::
        T_j = \alpha \frac{\psi_j}{\max_k \psi_k}, \quad
        \psi_j = \gamma \frac{N_j}{\tfrac 1 C \sum_k N_k} + 1 - \gamma

    The temperature of a class lets the experts differ more on rare classes. It is the ratio in the code of
    RIDE's authors; the difference in their paper turns negative with many classes.
    """

    diversity: float = 0.05
    temperature: float = 1.0
    balance: float = 0.05

    joins_experts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)

    def shift(self, logits: Tensor, class_counts: Tensor, generator: Generator | None) -> Tensor:
        if logits.ndim != 3 or len(logits) < 2:
            raise ValueError(
                f"logits of shape {tuple(logits.shape)} were given; RIDE compares experts and needs (E, B, C) with "
                "two of them or more."
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


@dataclass(frozen=True)
class GInf(ClassLoss):
    r"""Gaussian Inflation, equations 4 to 7 of the Celler paper.

    Balanced softmax with logits inflated at random, most in rare classes, so that their few cells are not memorised.

    Parameters
    ----------
    amplitude
        a, no unit. 0 is the balanced softmax.
    mean
        μ of the Gaussian I.
    std
        σ of the Gaussian I. With std 0 and amplitude · mean 1, the prior cancels and cross-entropy remains.

    Notes
    -----
    .. math::
        z'_{ij} = z_{ij} + a\,\Delta_j I_{ij}, \quad \Delta_j = \log N_{max} - \log N_j, \quad
        I_{ij} \sim \mathcal N(\mu, \sigma^2), \qquad
        \ell_i = -\log \frac{N_{y_i} e^{z'_{i y_i}}}{\sum_k N_k e^{z'_{ik}}}

    The prior N is used in training only; a prediction is the softmax of the plain logits.
    """

    amplitude: float = 0.1
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)

    def shift(self, logits: Tensor, class_counts: Tensor, generator: Generator | None) -> Tensor:
        """Return ``z' + log N (B, C)``, whose cross-entropy is the loss."""
        logits = at_least_float32(logits)
        log_counts = class_counts.to(logits).log()
        if self.amplitude == 0:
            return logits + log_counts
        # Drawn on the generator's own device: a seed gives the same noise wherever the logits are.
        device = generator.device if generator is not None else logits.device
        noise = torch.randn(logits.shape, generator=generator, device=device, dtype=logits.dtype)
        scale = self.amplitude * (log_counts.max() - log_counts)
        # A row of C numbers first: on a few dozen cells, an operation on (B, C) costs its launch.
        shifted = logits + torch.add(log_counts, scale, alpha=self.mean)
        return torch.addcmul(shifted, scale, noise.to(logits.device), value=self.std)


@dataclass(frozen=True)
class HDM:
    r"""Hard Data Mining over categories, equations 8 to 10 of the Celler paper, added to a base loss.

    Parameters
    ----------
    n_hard
        n, the number of hard classes. ``None`` is min(20, max(1, round(0.3 C))). From C - 1 on, the loss doubles.
    base
        Another loss of this module, :class:`GInf` in the paper. Both terms share its draw of noise.

    Notes
    -----
    The set :math:`\Omega_i` is the true class and the n other classes with the highest logits, without noise.
    The inflated logits are compared once more within it:

    .. math:: \ell_i = \ell^{GInf}_i - \log \frac{N_{y_i} e^{z'_{i y_i}}}{\sum_{k \in \Omega_i} N_k e^{z'_{ik}}}

    With another base, the second term is that base among the classes of :math:`\Omega_i`. For :class:`RIDE`
    the mean logits of the experts choose the set.

    Examples
    --------
    >>> model.train(loss=cl.losses.HDM(n_hard=15))
    """

    n_hard: int | None = None
    base: ClassLoss = field(default_factory=GInf)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def joins_experts(self) -> bool:
        """Whether the base takes the logits of all experts."""
        return self.base.joins_experts

    def hard_classes(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the codes of the set ``(B, n + 1)``: the true class, then the n hardest others."""
        n_classes = logits.shape[1]
        n_hard = self.n_hard or min(20, max(1, round(0.3 * n_classes)))
        # With the true class above all others, one search finds it and them.
        raised = logits.detach().scatter(1, labels[:, None], float("inf"))
        return raised.topk(1 + min(n_hard, n_classes - 1), dim=1).indices

    def __call__(
        self, logits: Tensor, labels: Tensor, class_counts: Tensor, generator: Generator | None = None
    ) -> Tensor:
        """Compute the loss of each cell, see :class:`Loss`."""
        check_counts(class_counts)
        shifted = self.base.shift(logits, class_counts, generator)
        hard = self.hard_classes(logits.mean(0) if self.joins_experts else logits, labels)
        among_hard = shifted.gather(-1, hard.expand(*shifted.shape[:-1], -1))
        first = torch.zeros_like(labels)
        return self.base.among(shifted, labels, class_counts) + self.base.among(among_hard, first, class_counts[hard])


#: Default loss of ``train``. Measured with 8 to 44 types, :class:`HDM` and a mean of the noise add nothing to it.
DEFAULT = GInf()


def at_least_float32(logits: Tensor) -> Tensor:
    """Half-precision logits as float32: near log N = 14, bfloat16 steps by 0.06, more than a tail gap."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def check_counts(class_counts: Tensor) -> None:
    """Raise ``ValueError`` for a class without training cells, which has no prior."""
    if class_counts.min() <= 0:
        empty = (class_counts <= 0).nonzero().flatten().tolist()
        raise ValueError(f"class_counts is 0 or less for class {empty}; each class needs a training cell.")
