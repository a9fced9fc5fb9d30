"""Metrics against scikit-learn and rows worked by hand."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from celler.metrics import (
    calibration_bins,
    expected_calibration_error,
    frequency_groups,
    per_class,
    summary,
)

COUNTS = {"head": 800, "middle": 60, "rare": 21, "absent": 5}


@pytest.fixture
def labels(rng):
    truth = rng.choice(["head", "middle", "rare"], size=300, p=[0.7, 0.2, 0.1])
    wrong = rng.random(300) < 0.3
    prediction = np.where(wrong, rng.choice(["head", "middle", "rare", "absent"], 300), truth)
    return truth, prediction


def test_per_class_equals_sklearn(labels):
    truth, prediction = labels
    table = per_class(truth, prediction, COUNTS)
    assert table.index.tolist() == ["head", "middle", "rare"], "largest in the reference first"
    for name, row in table.iterrows():
        hit = truth == name, prediction == name
        assert row["precision"] == pytest.approx(precision_score(*hit))
        assert row["recall"] == pytest.approx(recall_score(*hit))
        assert row["f1"] == pytest.approx(f1_score(*hit))
        assert row["query_cells"] == hit[0].sum()
        assert row["reference_cells"] == COUNTS[name]
    assert table["frequency"].tolist() == ["head", "medium", "medium"]


def test_summary_equals_sklearn(labels):
    truth, prediction = labels
    figures = summary(truth, prediction, COUNTS)
    assert figures["accuracy"] == pytest.approx(accuracy_score(truth, prediction))
    assert figures["macro_f1"] == pytest.approx(f1_score(truth, prediction, average="macro", zero_division=0))
    for name, score in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        for average in ("macro", "weighted"):
            expected = score(truth, prediction, average=average, zero_division=0)
            assert figures[f"{average}_{name}"] == pytest.approx(expected)
            some = score(truth, prediction, labels=["head", "rare"], average=average, zero_division=0)
            chosen = summary(truth, prediction, COUNTS, classes=["head", "rare"])
            assert chosen[f"{average}_{name}"] == pytest.approx(some)
    table = per_class(truth, prediction, COUNTS)
    assert figures["recall_head"] == table.loc["head", "recall"]
    assert figures["f1_medium"] == pytest.approx(table.loc[["middle", "rare"], "f1"].mean())
    assert np.isnan(figures["f1_tail"])
    assert np.isnan(figures["recall_tail"])


def test_per_class_with_a_class_that_the_reference_lacks():
    table = per_class(np.array(["new", "a"]), np.array(["a", "a"]), {"a": 100})
    assert table.loc["new"].tolist() == [0, 1, 0, 0, 0, "tail"]
    figures = summary(np.array(["new", "a"]), np.array(["a", "a"]), {"a": 100})
    assert figures["macro_f1"] == pytest.approx((0 + 2 / 3) / 2)
    assert figures["recall_tail"] == 0


@pytest.mark.parametrize(
    ("count", "total", "group"),
    [
        (19, 100, "tail"),  # under 20 cells, whatever the share
        (20, 100, "head"),
        (20, 500, "medium"),
        (39, 2000, "tail"),  # under 2 %
        (40, 2000, "medium"),
        (199, 2000, "medium"),  # under 10 %
        (200, 2000, "head"),
    ],
)
def test_frequency_groups_at_the_limits(count, total, group):
    assert frequency_groups({"it": count, "rest": total - count})["it"] == group


def test_expected_calibration_error_by_hand():
    """Two bins of [0, 1/2) and [1/2, 1]: |(0.2 + 0.4) − 1| and |(0.9 + 1.0) − 1|, over four cells."""
    confidence, is_correct = np.array([0.2, 0.4, 0.9, 1.0]), np.array([True, False, False, True])
    error = expected_calibration_error(confidence, is_correct, n_bins=2)
    assert error == pytest.approx((0.4 + 0.9) / 4)
    assert expected_calibration_error(np.ones(3), np.ones(3)) == 0


def test_expected_calibration_error_equals_sklearns_curve(rng):
    confidence = rng.random(500)
    is_correct = rng.random(500) < confidence**2
    accuracy, mean_confidence = calibration_curve(is_correct, confidence, n_bins=15)
    weight = np.histogram(confidence, np.linspace(0, 1, 16))[0] / 500
    assert expected_calibration_error(confidence, is_correct) == pytest.approx(
        (weight * np.abs(accuracy - mean_confidence)).sum()
    )


def test_calibration_bins_equal_sklearns_curve(rng):
    confidence = rng.random(400)
    is_correct = rng.random(400) < confidence
    confidence[:2], is_correct[:2] = [0.0, 1.0], [False, True]
    bins = calibration_bins(confidence, is_correct, n_bins=10)
    accuracy, mean_confidence = calibration_curve(is_correct, confidence, n_bins=10)
    np.testing.assert_allclose(bins["accuracy"], accuracy)
    np.testing.assert_allclose(bins["confidence"], mean_confidence)
    np.testing.assert_array_equal(bins["n_cells"], np.histogram(confidence, np.linspace(0, 1, 11))[0])
    few = calibration_bins(np.array([0.05, 0.95]), np.array([True, False]), n_bins=10)
    assert few.index.tolist() == [0, 9], "bins without cells are left out"
    with pytest.raises(ValueError, match="n_bins=0 was given; a whole number of at least 1"):
        calibration_bins(confidence, is_correct, n_bins=0)
