"""Figures of comparisons: what they draw, against pandas by hand."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from celler.benchmark import class_figure, score_figure


@pytest.fixture
def made_up(rng):
    """Two tasks, three seeds and two methods, the second better by 0.1."""
    rows = [
        {"task": task, "method": method, "seed": seed, "macro_f1": rng.random() / 2 + gain}
        for task in ("a", "b")
        for method, gain in (("logreg", 0.0), ("celler", 0.5))
        for seed in range(3)
    ]
    return pd.DataFrame(rows)


def test_score_figure_draws_ticks_means_and_spreads(made_up):
    figure = score_figure(made_up)
    try:
        first, second = figure.axes
        assert [first.get_title(), second.get_title()] == ["a", "b"]
        names = [label.get_text() for label in first.get_yticklabels()]
        assert names == ["logistic regression", "Celler"], "the best on top"
        ticks = first.get_lines()[0]
        of_logreg = made_up[(made_up["task"] == "a") & (made_up["method"] == "logreg")]
        np.testing.assert_allclose(ticks.get_xdata(), of_logreg["macro_f1"])
        mean, _, (bar,) = first.containers[0]
        assert mean.get_xdata()[0] == pytest.approx(of_logreg["macro_f1"].mean())
        (low, _), (high, _) = bar.get_segments()[0]
        assert (high - low) / 2 == pytest.approx(of_logreg["macro_f1"].std(ddof=1))
        assert mean.get_color() != first.containers[1][0].get_color()
    finally:
        plt.close(figure)


def test_score_figure_without_some_runs(made_up):
    is_left_out = (made_up["task"] == "b") & (made_up["method"] == "celler")
    is_one_seed = (made_up["seed"] == 0) | (made_up["method"] == "celler")
    figure = score_figure(made_up[~is_left_out & is_one_seed])
    try:
        first, second = figure.axes
        assert len(first.containers) == 2
        assert len(second.containers) == 1
        drawn = figure.get_tightbbox()
        assert drawn.width <= figure.get_figwidth() * 1.05
        assert first.get_position().width > 0.25
    finally:
        plt.close(figure)


def test_class_figure_draws_mean_f1_by_size(rng):
    classes = pd.DataFrame(
        [
            (method, seed, name, n_cells, rng.random())
            for method in ("logreg", "linear_svm")
            for seed in range(2)
            for name, n_cells in (("a", 90), ("b", 10), ("c", 30), ("unseen", 0))
        ],
        columns=["method", "seed", "class", "reference_cells", "f1"],
    )
    figure = class_figure(classes)
    try:
        (panel,) = figure.axes
        assert panel.get_xscale() == "log"
        lines = {line.get_label(): line for line in panel.get_lines()}
        assert list(lines) == ["linear SVM", "logistic regression"]
        np.testing.assert_array_equal(lines["linear SVM"].get_xdata(), [10, 30, 90])
        means = classes[classes["method"] == "logreg"].groupby("class")["f1"].mean()
        np.testing.assert_allclose(lines["logistic regression"].get_ydata(), means[["b", "c", "a"]])
        assert len({line.get_color() for line in lines.values()}) == 2
        legend = [text.get_text() for text in figure.legends[0].get_texts()]
        assert legend == list(lines)
    finally:
        plt.close(figure)
