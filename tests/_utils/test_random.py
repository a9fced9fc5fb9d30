"""Random numbers of SplitMix64, against its published values."""

import numpy as np
import pytest

from celler._utils._random import STEP, mixed, uniform

#: The first five numbers of the reference implementation from the seed 1234567.
FIRST = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]


def test_mixed_makes_the_published_numbers():
    with np.errstate(over="ignore"):
        states = np.uint64(1234567) + np.arange(5, dtype=np.uint64) * STEP
    assert [int(mixed(state)) for state in states] == FIRST


def test_uniform_is_the_upper_53_bits():
    assert uniform(np.uint64(1234567)) == pytest.approx(FIRST[0] / 2**64, abs=2**-53)
