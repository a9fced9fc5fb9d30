"""Spellings of one name are equal, and those of different names are not."""

import pytest

from celler.labels._spelling import parted, spelling, without_cell


@pytest.mark.parametrize(
    "names",
    [
        ("T cell", "T cells", "T-cells", "t_cell", "T.cell", "Tcells", "cell, T", " T  CELL "),
        ("CD14+ monocyte", "CD14-positive monocyte", "monocytes CD14+", "CD14pos monocytes", "CD14 pos. monocyte"),
        ("CD34- cell", "CD34-negative cells", "CD34neg cell"),
        ("γδ T cell", "gamma-delta T cells", "Gamma.Delta.T.Cell"),
        ("hematopoietic stem cell", "Haematopoietic stem cells"),
        ("epithelium of oesophagus", "esophagus epithelia", "the epithelium of the esophagus"),
        ("Müller cell", "Muller cells"),
        ("CD56bright NK", "NK CD56-bright", "CD56 bright NK"),
    ],
)
def test_spelling_of_one_name(names):
    assert len({spelling(name) for name in names}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("CD14+ CD16- monocyte", "CD14- CD16+ monocyte"),
        ("CD14-low CD16+", "CD14+ CD16-low"),
        ("NK/T cells", "NK T cells"),
        ("T & NK cells", "NK T cells"),
        ("OEC", "EC"),
        ("pancreatic A cell", "pancreatic cell"),
        ("type 1", "type 2"),
        ("mucus", "muc"),
        ("T cell", "T"),
    ],
)
def test_spelling_of_different_names(one, other):
    assert spelling(one) != spelling(other)


def test_without_cell_keeps_the_word_alone():
    assert without_cell(spelling("B cells")) == spelling("B")
    assert without_cell(spelling("cells")) == "cell"
    assert without_cell("") == ""


def test_parted_at_capitals():
    assert parted("NaiveBcells") == "Naive Bcells"
    assert parted("CD4 T") == "CD4 T"
