"""Every loss with the equation it belongs to, and problems to put to it."""

from typing import NamedTuple

import numpy as np
import reference
import torch
from hypothesis import strategies as st

from celler.losses import HDM, RIDE, BalancedSoftmax, CrossEntropy, Focal, GInf

BASES = [
    CrossEntropy(),
    CrossEntropy(0.1),
    Focal(),
    Focal(0.5),
    BalancedSoftmax(),
    RIDE(),
    RIDE(diversity=1.0, temperature=0.5, balance=0.5),
    GInf(),
    GInf(0.3, 0.5, 2.0),
]
EVERY = [*BASES, HDM(), *(HDM(n_hard=2, base=base) for base in BASES)]
NOISY = [loss for loss in EVERY if isinstance(getattr(loss, "base", loss), GInf)]
QUIET = [loss for loss in EVERY if loss not in NOISY]


class Problem(NamedTuple):
    """``logits (E, B, C)``, ``labels (B,)`` and ``counts (C,)``; some losses see the first expert alone."""

    logits: np.ndarray
    labels: np.ndarray
    counts: np.ndarray

    def suit(self, loss) -> "Problem":
        """With logits ``(E, B, C)`` where the loss joins experts, ``(B, C)`` where it does not."""
        return self if loss.joins_experts else self._replace(logits=self.logits[0])


@st.composite
def problems(draw):
    """2 to 4 experts' logits of 1 to 5 cells, 2 to 12 classes of 1 to 1e8 cells."""
    shape = draw(st.integers(2, 4)), draw(st.integers(1, 5)), draw(st.integers(2, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    counts = draw(st.lists(st.integers(1, 10**8), min_size=shape[2], max_size=shape[2]))
    logits = rng.normal(size=shape) * draw(st.sampled_from([0.1, 1.0, 10.0]))
    return Problem(logits, rng.integers(shape[2], size=shape[1]), np.array(counts, float))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def compute(loss, problem: Problem, seed: int = 0) -> np.ndarray:
    return loss(*map(torch.as_tensor, problem.suit(loss)), generator(seed)).numpy()


def expected(loss, problem: Problem, normal: np.ndarray | None = None) -> np.ndarray:
    """The same loss by the reference; ``normal`` is the standard normal draw, by default of a seed 0."""
    logits, labels, counts = problem.suit(loss)
    base = getattr(loss, "base", loss)
    inflated = logits
    if isinstance(base, GInf):
        if normal is None:
            normal = torch.randn(logits.shape, generator=generator(), dtype=torch.float64).numpy()
        inflated = reference.inflate(logits, counts, base.mean + base.std * normal, base.amplitude)
    if not isinstance(loss, HDM):
        return equation(base)(inflated, labels, counts)
    n_hard = loss.n_hard or min(20, max(1, round(0.3 * len(counts))))
    return reference.hdm(equation(base), logits, inflated, labels, counts, n_hard)


def equation(base):
    """What the reference says of shifted logits, labels and counts."""
    match base:
        case CrossEntropy():
            return lambda z, y, _: reference.cross_entropy(z, y, base.label_smoothing)
        case Focal():
            return lambda z, y, _: reference.focal(z, y, base.gamma)
        case RIDE():
            options = base.diversity, base.temperature, base.balance
            return lambda z, y, counts: reference.ride(z, y, counts, *options)
        case BalancedSoftmax() | GInf():
            return reference.balanced_softmax
    raise AssertionError(f"{base} has no equation here")
