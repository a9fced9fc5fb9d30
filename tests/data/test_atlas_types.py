"""Types of atlases: facts of biology, the ontology and the base that the file must agree with, and its own format."""

import zipfile

import numpy as np
import pandas as pd
import pytest

from celler.data._atlas_types import AtlasTypes, read_atlas_types, write_atlas_types
from celler.labels._ontology import cell_ontology
from celler.network._base import read_base

TYPES = read_atlas_types()


def levels_in(dataset: str, gene: str) -> pd.Series:
    """Expression of a gene in each type of a data set."""
    is_of = (TYPES.table["dataset"].map(TYPES.datasets["name"]) == dataset).to_numpy()
    levels = TYPES.levels[TYPES.genes.get_loc(gene), is_of] * float(TYPES.step)
    return pd.Series(levels, TYPES.table["name"].to_numpy()[is_of])


# Markers that every textbook names: the profiles must be those of the types they are called.
@pytest.mark.parametrize(
    ("dataset", "gene", "name"),
    [
        ("Human/Adult/Pancreas_HCA", "INS", "type B pancreatic cell"),
        ("Human/Adult/Pancreas_HCA", "GCG", "pancreatic A cell"),
        ("Human/Adult/Pancreas_HCA", "SST", "pancreatic D cell"),
        ("Mouse/Adult/Pancreas_MCA", "INS", "type B pancreatic cell"),
        ("Human/Adult/Spleen_HCA", "PPBP", "platelet"),
        ("Human/Adult/Spleen_HCA", "PF4", "platelet"),
        ("Human/Adult/ImmuneCensus_HCA", "MS4A1", "memory B cell"),
        ("Human/Adult/ImmuneCensus_HCA", "NKG7", "natural killer cell"),
        ("Human/Adult/ImmuneCensus_HCA", "LYZ", "classical monocyte"),
        ("Human/Adult/ImmuneCensus_HCA", "HBB", "erythroid lineage cell"),
        ("Human/Fetal/Cerebrum_Descartes", "GFAP", "astrocyte"),
        ("Human/Fetal/Liver_Descartes", "ALB", "hepatoblast"),
        ("Mouse/Adult/Brain_MCA", "PLP1", "oligodendrocyte"),
        ("Mouse/Adult/Brain_MCA", "MBP", "oligodendrocyte"),
    ],
)
def test_a_marker_is_highest_in_its_type(dataset, gene, name):
    assert levels_in(dataset, gene).idxmax() == name


def test_names_are_those_of_the_ontology():
    table, terms = TYPES.table, cell_ontology().terms
    with_id = table[table["cl_id"] != ""]
    assert len(with_id) > 0.95 * len(table)
    for name, cl_id in set(zip(with_id["name"], with_id["cl_id"], strict=True)):
        assert terms[cl_id].name == name
        assert not terms[cl_id].is_obsolete
    without = set(table["name"][table["cl_id"] == ""])
    assert not without & {term.name for term in terms.values()}


def test_a_name_has_one_key():
    pairs = pd.DataFrame({"key": TYPES.keys, "name": TYPES.table["name"].to_numpy()}).drop_duplicates()
    assert pairs["key"].is_unique
    assert pairs["name"].is_unique
    assert len(pairs) == 257


def test_rows_are_those_of_the_base():
    base, table = read_base(), TYPES.table
    assert TYPES.genes.equals(base.genes)
    assert table["row"].is_unique
    np.testing.assert_array_equal(np.asarray(base.types)[table["row"]], table["original"])
    np.testing.assert_array_equal(np.asarray(base.datasets)[table["row"]], table["dataset"])
    assert base.type_weights.shape[0] == len(base.types)


def test_levels_are_expression_per_10000():
    every = np.arange(len(TYPES.genes))
    share = TYPES.profiles(every).share
    # Rounding adds little to a cell's counts; genes that the base lacks, as those of milk in mouse, take some away.
    sums = np.nansum(share, axis=1)
    assert sums.max() < 1.03
    assert np.median(sums) > 0.95
    assert np.isnan(share).any()
    assert not np.isnan(share).all(axis=1).any()


def test_each_dataset_has_a_source_and_a_tissue():
    datasets = TYPES.datasets
    assert set(datasets["organism"]) == {"human", "mouse"}
    assert (datasets["citation"].str.len() > 10).all()
    is_mouse = datasets["name"].str.startswith("Mouse")
    assert (datasets["organism"][is_mouse] == "mouse").all()
    assert (datasets["organism"][datasets["name"].str.startswith("Human")] == "human").all()
    for word, tissue in (("Pancreas", "pancreas"), ("Liver", "liver"), ("Kidney", "kidney"), ("PBMC", "blood")):
        named = datasets["tissues"][datasets["name"].str.contains(word)]
        assert named.str.split(";").map(lambda names, tissue=tissue: tissue in names).all()


def test_tissues_are_plain_names():
    assert {"blood", "bone marrow", "brain", "heart", "kidney", "liver", "lung", "pancreas"} <= set(TYPES.tissues)
    assert list(TYPES.tissues) == sorted(TYPES.tissues)
    assert all(name == name.strip().lower() and name for name in TYPES.tissues)
    assert all(len(codes) for codes in TYPES.tissues.values())


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("PBMC", "blood"),
        (" Blood ", "blood"),
        ("islets", "pancreas"),
        ("cortex", "brain"),
        ("colon", "large intestine"),
    ],
)
def test_named_knows_other_words(given, name):
    assert TYPES.named(given) == [name]


def test_named_takes_several_once():
    assert TYPES.named(["blood", "PBMC", "bone marrow"]) == ["blood", "bone marrow"]


@pytest.mark.parametrize(
    ("tissue", "message"),
    [
        (
            "blod",
            r"tissue='blod' was given, which no atlas of the base has. Closest: 'blood'. Tissues: adrenal gland, ",
        ),
        (["lung", "livr"], "tissue='livr' was given.*Closest: 'liver'"),
        ([], "tissue is empty; name at least one, or pass None for all"),
    ],
)
def test_named_unknown(tissue, message):
    with pytest.raises(ValueError, match=message):
        TYPES.named(tissue)


def test_named_of_no_names():
    with pytest.raises(TypeError, match="tissue=3 was given; a name, several names, or None"):
        TYPES.named(3)


def test_of_an_organism():
    for organism in ("human", "mouse"):
        found = TYPES.of("pancreas", organism)
        assert set(found.datasets["organism"].iloc[found.table["dataset"]]) == {organism}
        assert found.levels.shape == (len(TYPES.genes), len(found))
    assert len(TYPES.of("pancreas")) == sum(len(TYPES.of("pancreas", one)) for one in ("human", "mouse"))


def test_of_no_atlas():
    with pytest.raises(ValueError, match="organism='rat' was given; 'human', 'mouse' or None"):
        TYPES.of("blood", "rat")
    with pytest.raises(ValueError, match="no atlas of human bladder is in the base; leave organism out"):
        TYPES.of("bladder", "human")


def test_profiles_are_those_of_the_chosen_types():
    found, rows = TYPES.of("pancreas", "human"), np.array([3, 70, 4000])
    profiles = found.profiles(rows)
    level = found.levels[rows].T.astype(float)
    expected = (np.exp(level * float(found.step)) - 1) / 1e4
    measured = found.is_measured[found.table["dataset"]][:, rows]
    np.testing.assert_allclose(profiles.share, np.where(measured, expected, np.nan), rtol=1e-5)
    assert list(profiles.genes) == list(TYPES.genes[rows])
    assert set(profiles.datasets) == {0, 1}


def small() -> AtlasTypes:
    """Two types of two data sets in three genes."""
    table = pd.DataFrame(
        {"name": ["B cell", "odd cell, \u03b2"], "cl_id": ["CL:0000236", ""], "original": ["B", "odd"], "row": [4, 0]}
    ).assign(dataset=[1, 0])
    datasets = pd.DataFrame(
        {
            "name": ["one", "two"],
            "tissues": ["eye;retina", "blood"],
            "organism": ["human", "mouse"],
            "stage": ["adult"] * 2,
        }
    ).assign(citation=["A. et al.", "B. et al."])
    levels = np.array([[0, 255], [7, 1], [0, 0]], np.uint8)
    measured = np.array([[True, False, True], [True, True, True]])
    return AtlasTypes(table, datasets, pd.Index(["A", "B", "C"]), levels, 0.1, measured)


def test_read_gives_what_was_written(tmp_path):
    given = small()
    write_atlas_types(tmp_path / "types.npz", given)
    found = read_atlas_types(tmp_path / "types.npz")
    pd.testing.assert_frame_equal(found.table[list(given.table)], given.table)
    pd.testing.assert_frame_equal(found.datasets[list(given.datasets)], given.datasets)
    assert found.genes.equals(given.genes)
    np.testing.assert_array_equal(found.levels, given.levels)
    np.testing.assert_array_equal(found.is_measured, given.is_measured)
    assert found.step == pytest.approx(0.1)
    assert list(found.keys) == ["CL:0000236", "odd cell, \u03b2"]


def test_read_of_a_damaged_file(tmp_path):
    path = tmp_path / "types.npz"
    write_atlas_types(path, small())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(zipfile.BadZipFile, match="not a zip file"):
        read_atlas_types(path)


def test_read_never_unpickles(tmp_path):
    path = tmp_path / "types.npz"
    np.savez(path, levels=np.array([{"a": 1}], object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        read_atlas_types(path)


def test_citations_have_all_letters():
    """A "?" stands for a letter that an encoding lost."""
    assert not TYPES.datasets["citation"].str.contains("?", regex=False).any()
