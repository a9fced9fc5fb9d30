"""Members: their own best classes, from the logits of all and what each has of its own."""

import numpy as np

from celler.inference._members import MemberOutputs, agreement, member_codes


def test_member_codes_of_a_hand_worked_cell():
    """Two members: together (1, 0.5); alone the second prefers the second class once its part weighs enough."""
    logits, own = np.array([[1.0, 0.5]]), np.array([[[2.0, 0.0]], [[0.0, 1.0]]])
    # Beside their mean (1, 0.5) the members have (1, -0.5) and (-1, 0.5).
    assert member_codes(logits, own, 0.2).tolist() == [[0, 0]]  # 1.2 : 0.4 and 0.8 : 0.6
    assert member_codes(logits, own, 0.5).tolist() == [[0, 1]]  # 1.5 : 0.25 and 0.5 : 0.75


def test_member_outputs_filled_in_parts_are_those_of_all(rng):
    logits, own = rng.normal(size=(9, 4)), rng.normal(size=(3, 9, 4)).astype(np.float32)
    found = MemberOutputs.of(3, 9, 4)
    for rows in (np.arange(0, 9, 2), np.arange(1, 9, 2)):
        found.fill(rows, logits[rows], own[:, rows], 0.7)
    np.testing.assert_array_equal(found.codes, member_codes(logits, own, 0.7))
    np.testing.assert_array_equal(found.logits, own)


def test_agreement_is_the_share_of_members():
    codes = np.array([[1, 1, 1, 1], [0, 1, 2, 1], [0, 0, 2, 2]])
    np.testing.assert_array_equal(agreement(codes, np.array([1, 1, 1])), [1.0, 0.5, 0.0])
