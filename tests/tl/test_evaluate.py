"""Evaluation, against scikit-learn and by hand."""

import numpy as np
import pandas as pd
import pytest
from pl_cases import annotated, assert_same, parents
from sklearn.metrics import (
    accuracy_score,
    classification_report,
    f1_score,
    precision_score,
    recall_score,
)

from celler.metrics import expected_calibration_error
from celler.tl import Evaluation, evaluate


@pytest.fixture
def adata():
    """Six classes; nothing is rejected."""
    adata = annotated()
    adata.obs["celler"] = adata.obs["celler"].where(adata.obs["celler"] != "Unknown", "B cell")
    return adata


def columns(adata, *keys):
    return [adata.obs[key].to_numpy().astype(str) for key in keys]


def test_evaluate_equals_sklearn(adata):
    truth, prediction = columns(adata, "cell_type", "celler")
    before = adata.copy()
    result = evaluate(adata, "cell_type", "celler")
    assert_same(adata, before)
    assert isinstance(result, Evaluation)
    assert result.per_parent is None
    assert result.summary["accuracy"] == accuracy_score(truth, prediction)
    for name, score in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        for average in ("macro", "weighted"):
            expected = score(truth, prediction, average=average, zero_division=0)
            assert result.summary[f"{average}_{name}"] == pytest.approx(expected)
    report = classification_report(truth, prediction, output_dict=True, zero_division=0)
    for name, row in result.per_class.iterrows():
        expected = report[name]
        assert row["f1"] == pytest.approx(expected["f1-score"])
        assert row[["precision", "recall"]].tolist() == pytest.approx([expected["precision"], expected["recall"]])
        assert row["query_cells"] == expected["support"]
    assert "reference_cells" not in result.per_class, "cells of the query are not called the reference's"
    pd.testing.assert_frame_equal(evaluate(adata.obs, "cell_type", "celler").per_class, result.per_class)


@pytest.mark.parametrize("kind", [dict, pd.Series])
def test_evaluate_with_reference_counts(adata, kind):
    names = list(adata.obs["cell_type"].cat.categories)
    counts = kind(dict(zip(names, [5, 1000, 50, 15, 2000, 300], strict=True)))
    result = evaluate(adata, "cell_type", "celler", reference_counts=counts)
    assert result.per_class["reference_cells"].to_dict() == dict(counts)
    groups = result.per_class["frequency"]
    assert set(groups[groups == "tail"].index) == {names[0], names[2], names[3]}
    tail = result.per_class.loc[groups == "tail"]
    assert result.summary["f1_tail"] == pytest.approx(tail["f1"].mean())
    assert result.summary["recall_tail"] == pytest.approx(tail["recall"].mean())
    assert result.summary["f1_head"] == pytest.approx(result.per_class.loc[groups == "head", "f1"].mean())


def test_evaluate_with_a_confidence(adata):
    truth, prediction = columns(adata, "cell_type", "celler")
    confidence = adata.obs["celler_confidence"].to_numpy()
    expected = expected_calibration_error(confidence, truth == prediction)
    assert evaluate(adata, "cell_type", "celler").summary["ece"] == pytest.approx(expected)
    adata.obs["sure"] = adata.obs["celler_confidence"].where(adata.obs["donor"] == "donor 1")
    known = (adata.obs["donor"] == "donor 1").to_numpy()
    result = evaluate(adata, "cell_type", "celler", confidence="sure").summary
    expected = expected_calibration_error(confidence[known], (truth == prediction)[known])
    assert result["ece"] == pytest.approx(expected)
    without = adata.obs.drop(columns=["celler_confidence", "sure"])
    assert "ece" not in evaluate(without, "cell_type", "celler").summary
    without["celler_confidence"] = np.nan
    assert "ece" not in evaluate(without, "cell_type", "celler").summary
    with pytest.raises(KeyError, match="confidence='sur' is not a column .*Closest: 'sure'"):
        evaluate(adata, "cell_type", "celler", confidence="sur")


def test_evaluate_with_names_that_differ():
    """Worked by hand: "CD14 Mono" is "CD14+ Mono", and both kinds of T cells are "T"."""
    cells = pd.DataFrame(
        {
            "given": ["CD14 Mono", "CD14 Mono", "T reg", "T help", "B"],
            "found": ["CD14+ Mono", "B", "T", "T", "B"],
        }
    )
    names = {"CD14+ Mono": "CD14 Mono", "T reg": "T", "T help": "T"}
    counts = {"CD14+ Mono": 10, "T reg": 3, "T help": 4, "B": 5}
    for given in (names, pd.Series(names)):
        result = evaluate(cells, "given", "found", mapping=given, reference_counts=counts)
        assert result.summary["accuracy"] == pytest.approx(4 / 5)
        assert result.per_class["reference_cells"].to_dict() == {"CD14 Mono": 10, "T": 7, "B": 5}
        assert result.per_class["query_cells"].to_dict() == {"CD14 Mono": 2, "T": 2, "B": 1}
    parents = {"CD14+ Mono": "myeloid", "T reg": "lymphoid", "T help": "lymphoid", "B": "lymphoid"}
    result = evaluate(cells, "given", "found", mapping=names, parents=parents)
    assert result.summary["parent_accuracy"] == pytest.approx(4 / 5)
    parents["T help"] = "myeloid"
    with pytest.raises(ValueError, match="gives class 'T' lymphoid, myeloid as parents"):
        evaluate(cells, "given", "found", mapping=names, parents=parents)
    with pytest.warns(UserWarning, match=r"pass mapping=\{'CD14\+ Mono': 'CD14 Mono'\}"):
        assert evaluate(cells, "given", "found").summary["accuracy"] == pytest.approx(1 / 5)


def test_evaluate_without_a_common_name_warns():
    cells = pd.DataFrame({"given": ["a", "b"], "found": ["A", "B"]})
    with pytest.warns(UserWarning, match=r"No predicted label \(A, B\) is a name of the truth \(a, b\).*mapping="):
        assert evaluate(cells, "given", "found").summary["accuracy"] == 0
    assert evaluate(cells, "given", "found", mapping={"A": "a", "B": "b"}).summary["accuracy"] == 1


def test_evaluate_with_names_that_differ_in_signs():
    given = ["CD14 Mono", "B cells", "CD16-NK", "T", "CD8- T"]
    cells = pd.DataFrame({"given": given, "found": ["CD14+ mono", "B", "CD16-NK", "T", "CD8+ T"]})
    with pytest.warns(UserWarning, match="count as different types") as caught:
        evaluate(cells, "given", "found")
    mapping = {"B": "B cells", "CD14+ mono": "CD14 Mono"}
    assert str(caught[0].message).endswith(f"pass mapping={mapping}."), "CD8- T is not CD8+ T"
    assert evaluate(cells, "given", "found", mapping=mapping).summary["accuracy"] == 0.8


def test_evaluation_prints_scores_by_name_with_three_digits(adata):
    result = evaluate(adata, "cell_type", "celler")
    accuracy = f"{result.summary['accuracy']:.3f}"
    lines = repr(result).splitlines()
    assert lines[0] == "Evaluation of 600 cells of 6 classes"
    assert lines[1].split() == ["accuracy", accuracy]
    assert [line.split()[-1] for line in lines if line.startswith("platelet")] == [
        result.per_class.loc["platelet", "frequency"]
    ]
    assert all(len(word) <= 5 for line in lines for word in line.split() if word.startswith("0."))
    page = result._repr_html_()
    assert f"<th>accuracy</th><td>{accuracy}</td>" in page
    assert page.count("<table") == 2
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories({"B cell": "<b>"})
    adata.obs["celler"] = adata.obs["celler"].astype(str).replace("B cell", "<b>")
    assert "<th>&lt;b&gt;</th>" in evaluate(adata, "cell_type", "celler")._repr_html_()


def test_evaluate_with_parents_of_a_mapping_or_a_column(adata):
    names = list(adata.obs["cell_type"].cat.categories)
    parent_of = parents(names)
    truth, prediction = (np.vectorize(parent_of.get)(part) for part in columns(adata, "cell_type", "celler"))
    adata.obs["lineage"] = truth
    for given in (parent_of, pd.Series(parent_of), "lineage"):
        result = evaluate(adata, "cell_type", "celler", parents=given)
        assert result.summary["parent_accuracy"] == accuracy_score(truth, prediction)
        expected = f1_score(truth, prediction, average="macro")
        assert result.summary["parent_macro_f1"] == pytest.approx(expected)
        assert result.per_parent["query_cells"].to_dict() == pd.Series(truth).value_counts().to_dict()
        assert result.per_parent["query_cells"].sum() == 600
        assert "reference_cells" not in result.per_parent
        recall = recall_score(truth, prediction, labels=["myeloid"], average=None)[0]
        assert result.per_parent.loc["myeloid", "recall"] == pytest.approx(recall)
    assert result.summary["accuracy"] < result.summary["parent_accuracy"]


def test_evaluate_with_backed_off_cells():
    """Worked by hand: of four cells of a and b, one is right, one unknown and two are given as x."""
    cells = pd.DataFrame(
        {
            "given": ["a", "a", "b", "b", "c", "c"],
            "found": ["a", "x", "x", "Unknown", "c", "x"],
            "found_confidence": [1.0, 0.3, 0.3, 0.3, 1.0, 0.3],
        }
    )
    result = evaluate(cells, "given", "found", parents={"a": "x", "b": "x", "c": "y"})
    scores = result.summary
    assert scores["accuracy"] == pytest.approx(2 / 6)
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 0 + 2 / 3) / 3), "x is no fourth class"
    assert scores["ece"] == 0, "of the labels that are classes"
    assert scores["backed_off_share"] == pytest.approx(3 / 6)
    assert scores["rejected_share"] == pytest.approx(1 / 6)
    assert scores["parent_accuracy"] == pytest.approx(4 / 6)
    assert scores["parent_macro_recall"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    own = evaluate(cells, "given", "found", parents={"a": "a", "b": "a", "c": "c"})
    assert "backed_off_share" not in own.summary


def test_evaluate_with_parents_that_are_missing_or_two(adata):
    names = list(adata.obs["cell_type"].cat.categories)
    with pytest.raises(ValueError, match="parents has no parent for platelet; name one"):
        evaluate(adata, "cell_type", "celler", parents=parents(names[:-1]))
    with pytest.raises(ValueError, match="gives class 'B cell' donor 0, donor 1, donor 2 as parents"):
        evaluate(adata, "cell_type", "celler", parents="donor")
    with pytest.raises(KeyError, match="parents='linage' is not a column"):
        evaluate(adata, "cell_type", "celler", parents="linage")
    # a parent that only some cells of the class are given is enough; none at all is not
    lineage = adata.obs["cell_type"].map(parents(names)).astype(object)
    adata.obs["lineage"] = lineage.where(adata.obs["donor"] != "donor 0")
    result = evaluate(adata, "cell_type", "celler", parents="lineage")
    adata.obs["lineage"] = lineage
    expected = evaluate(adata, "cell_type", "celler", parents="lineage")
    assert result.summary == pytest.approx(expected.summary, nan_ok=True)
    adata.obs["lineage"] = lineage.where(adata.obs["cell_type"] != "platelet")
    with pytest.raises(ValueError, match="parents='lineage' has no parent for platelet"):
        evaluate(adata, "cell_type", "celler", parents="lineage")


def test_evaluate_with_classes_that_the_truth_lacks():
    """By hand: two of four right; "new" is a class of its own, with an F1 of 0."""
    cells = pd.DataFrame({"given": [*"aabb"], "found": ["a", "new", "b", "a"]})
    result = evaluate(cells, "given", "found", parents={"a": "x", "b": "x"})
    assert result.summary["accuracy"] == 0.5
    assert result.summary["macro_f1"] == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)
    assert list(result.per_class.index) == ["a", "b"]
    assert result.summary["parent_accuracy"] == 0.75
    rolled = evaluate(cells, "given", "found", parents={"a": "x", "b": "x", "new": "x"})
    assert rolled.summary["parent_accuracy"] == 1


def test_evaluate_with_rejected_cells():
    cells = pd.DataFrame({"given": [*"aabb"], "found": ["a", "Unknown", "b", "a"], "sure": [1, 0.1, 1, 0]})
    result = evaluate(cells, "given", "found", parents={"a": "x", "b": "y"}, confidence="sure")
    assert result.summary["accuracy"] == 0.5
    labels = {"labels": ["a", "b"], "average": "macro"}
    assert result.summary["macro_f1"] == f1_score(cells["given"], cells["found"], **labels)
    assert result.summary["rejected_share"] == 0.25
    assert result.summary["parent_macro_f1"] == result.summary["macro_f1"]
    assert result.summary["ece"] == 0
    assert list(result.per_class.index) == ["a", "b"]
    other = evaluate(cells, "given", "found", unknown_label="none")
    assert "rejected_share" not in other.summary
    assert other.summary["macro_f1"] == f1_score(cells["given"], cells["found"], average="macro")
    # where the truth knows it, it is a class
    cells["given"] = ["a", "Unknown", "b", "b"]
    result = evaluate(cells, "given", "found")
    assert "rejected_share" not in result.summary
    assert result.per_class.loc["Unknown", "f1"] == 1


def test_evaluate_with_missing_labels(adata):
    truth, prediction = columns(adata, "cell_type", "celler")
    adata.obs["cell_type"] = adata.obs["cell_type"].where(adata.obs["donor"] != "donor 0")
    adata.obs["celler"] = adata.obs["celler"].astype(object).where(adata.obs["donor"] != "donor 1", None)
    with pytest.warns(UserWarning, match="no label in 'cell_type' or 'celler'") as caught:
        result = evaluate(adata, "cell_type", "celler")
    assert caught[0].filename == __file__
    is_kept = (adata.obs["donor"] == "donor 2").to_numpy()
    assert result.summary["accuracy"] == accuracy_score(truth[is_kept], prediction[is_kept])
    assert result.per_class["query_cells"].sum() == is_kept.sum()
    adata.obs["celler"] = adata.obs["celler"].where(adata.obs["donor"] == "donor 0")
    with pytest.raises(ValueError, match="No cell has a label in both 'cell_type' and 'celler'"):
        evaluate(adata, "cell_type", "celler")


def test_evaluate_with_one_class_and_with_numbers():
    cells = pd.DataFrame({"given": ["a", "a"], "found": ["a", "a"], "cluster": [0, 0]})
    result = evaluate(cells, "given", "found")
    assert result.summary["macro_f1"] == result.summary["accuracy"] == 1
    assert evaluate(cells, "cluster", "cluster").per_class.index.tolist() == ["0"]


def test_evaluate_with_unknown_columns(adata):
    with pytest.raises(KeyError, match="truth='celltype' is not a column of adata.obs. Closest: 'cell_type'"):
        evaluate(adata, "celltype", "celler")
    with pytest.raises(KeyError, match="prediction='CELLER' is not a column of the table. Closest: 'celler'"):
        evaluate(adata.obs, "cell_type", "CELLER")
