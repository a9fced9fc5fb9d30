"""Members: what each member of an averaged model says alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from celler.inference._outputs import Outputs


@dataclass(frozen=True)
class MemberOutputs:
    """Outputs of the members, filled pass by pass."""

    codes: np.ndarray  # best class of each (N, M)
    logits: np.ndarray  # of what each has of its own (M, N, C); (M, N, 0) where they are not kept

    @classmethod
    def of(cls, n_members: int, n_cells: int, n_kept: int) -> MemberOutputs:
        """Return empty outputs, with logits of ``n_kept`` classes."""
        codes = np.zeros((n_cells, n_members), np.int32)
        return cls(codes, np.zeros((n_members, n_cells, n_kept), np.float32))

    def fill(self, rows: np.ndarray, logits: np.ndarray, member_logits: np.ndarray, share: float) -> None:
        """Set those of some ``rows``, as :func:`member_codes` takes them."""
        self.codes[rows] = member_codes(logits, member_logits, share)
        if self.logits.shape[2]:
            self.logits[:, rows] = member_logits

    def added_to(self, outputs: Outputs) -> Outputs:
        """Return ``outputs`` with these."""
        return replace(outputs, member_codes=self.codes, member_logits=self.logits)


def member_codes(logits: np.ndarray, member_logits: np.ndarray, share: float) -> np.ndarray:
    """Return the best class of each member alone ``(N, M)``.

    ``logits (N, C)`` are those of all together, to which the mean of ``member_logits (M, N, C)``, what each has of its
    own, adds with the weight ``share``.
    """
    mean = member_logits.mean(axis=0)
    codes = [(logits + share * (own - mean)).argmax(axis=1) for own in member_logits]
    return np.stack(codes, axis=1)


def agreement(codes: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Return the share of members, with best classes ``codes (N, M)``, that agree with the class ``best (N,)``."""
    return np.asarray((codes == best[:, None]).mean(axis=1))
