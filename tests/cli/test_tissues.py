"""Labels without a reference from the command line, and the list of tissues."""

import anndata as ad
import numpy as np
import pytest
from tissue_cases import FEW, new, pseudo_cells

from celler.cli._main import main
from celler.data._tissues import tissue_types


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a query and a saved model."""
    folder, cells, model = tmp_path_factory.mktemp("cli"), pseudo_cells(FEW["tissue"]), new()
    cells.write_h5ad(folder / "query.h5ad")
    model.predict(cells)
    model.save(folder / "model")
    return folder


def refused(capsys, *words) -> str:
    """One line on stderr: wrong usage, or input that cannot be used."""
    assert main(list(map(str, words))) in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_annotate_by_a_tissue(folder, capsys):
    options = ["--tissue", "thymus", "--organism", "human", "--out", folder / "out.h5ad", "--cluster-key", "name"]
    assert main(list(map(str, ["annotate", folder / "query.h5ad", *options]))) == 0
    found, query = ad.read_h5ad(folder / "out.h5ad"), ad.read_h5ad(folder / "query.h5ad")
    np.testing.assert_array_equal(found.obs["celler"], new(precision="auto").predict(query))
    assert {"celler_cl_id", "celler_novelty", "celler_majority"} <= set(found.obs)
    printed = capsys.readouterr().out
    assert all(name in printed for name in found.obs["celler"].unique())
    assert " 0\n" not in printed


def test_annotate_by_several_tissues(folder):
    options = ["--tissue", "thymus", "--tissue", "lymph node", "--organism", "human", "--out", folder / "several.h5ad"]
    assert main(list(map(str, ["annotate", *options, folder / "query.h5ad"]))) == 0
    expected = new(tissue=["thymus", "lymph node"], precision="auto").predict(ad.read_h5ad(folder / "query.h5ad"))
    np.testing.assert_array_equal(ad.read_h5ad(folder / "several.h5ad").obs["celler"], expected)


# As with every command, options may stand anywhere.
@pytest.mark.parametrize("order", [("m", "q", "o"), ("m", "o", "q"), ("o", "m", "q")])
def test_annotate_by_a_model_in_any_order(folder, tmp_path, order):
    words = {"m": [folder / "model"], "q": [folder / "query.h5ad"], "o": ["--out", tmp_path / "out.h5ad", "--backoff"]}
    assert main(["annotate", *(str(word) for part in order for word in words[part])]) == 0
    assert "celler_level" in ad.read_h5ad(tmp_path / "out.h5ad").obs


ERRORS = {
    "a model and a query are needed, or a query and --tissue": [
        ["q.h5ad"],
        ["m", "q.h5ad", "more.h5ad"],
        ["m", "q.h5ad", "--tissue", "blood"],
    ],
    "--organism has an effect only with --tissue": [["m", "q.h5ad", "--organism", "human"]],
    "--out o.h5ad is the query itself": [["o.h5ad", "--tissue", "blood"], ["m", "o.h5ad"]],
    "--reference has an effect only with a model and --propagate": [
        ["q.h5ad", "--tissue", "blood", "--reference", "r.h5ad"],
        ["q.h5ad", "--tissue", "blood", "--reference", "r.h5ad", "--propagate"],
        ["m", "q.h5ad", "--reference", "r.h5ad"],
    ],
    "Closest: 'blood'": [["q.h5ad", "--tissue", "blod"]],
    "no atlas of human bladder is in the base": [["q.h5ad", "--tissue", "bladder", "--organism", "human"]],
    "q.h5ad does not exist": [["q.h5ad", "--tissue", "thymus"]],
}


@pytest.mark.parametrize(("message", "words"), [(message, words) for message in ERRORS for words in ERRORS[message]])
def test_annotate_refuses(capsys, tmp_path, monkeypatch, message, words):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, "annotate", *words, "--out", "o.h5ad")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["annotate", "--tissue", "blood", "--out", "o.h5ad"], "required"),
        (["annotate", "q.h5ad", "--tissue", "blood"], "required: --out"),
        (["annotate", "q.h5ad", "--tissue", "blood", "--out", "o.h5ad", "--organism", "rat"], "invalid choice: 'rat'"),
        (["annotate", "m", "q.h5ad", "--out", "o.h5ad", "--wrong", "x"], "unrecognized arguments: --wrong x"),
        (["demo", "more"], "unrecognized arguments: more"),
    ],
)
def test_annotate_with_words_missing_or_unknown(capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_tissues_lists_all(capsys):
    assert main(["tissues"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (blood,) = (line for line in lines if line.startswith("blood "))
    assert blood.split() == ["blood", "31", "types,", "atlases:", "3", "human,", "1", "mouse"]
    assert lines[-1] == "celler annotate QUERY.h5ad --tissue TISSUE --out OUT.h5ad"


def test_tissues_of_an_organism_counts_its_atlases(capsys):
    assert main(["tissues", "--organism", "mouse"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "human" not in "".join(lines)
    assert not any(line.startswith("adrenal gland") for line in lines)
    (blood,) = (line for line in lines if line.startswith("blood "))
    assert blood.split() == ["blood", "9", "types,", "atlases:", "1", "mouse"]


def test_tissues_lists_the_types_of_one(capsys):
    assert main(["tissues", "PBMC", "--organism", "human"]) == 0
    lines, found = capsys.readouterr().out.splitlines(), tissue_types("blood", "human")
    assert lines[0] == found.describe()
    assert "  memory B cell (CL:0000787), B cell" in lines
    assert sum(line.startswith("  ") for line in lines) == len(found.tree.classes)
    assert sum(line.startswith("source: ") for line in lines) == 3


def test_tissues_of_all(capsys):
    assert main(["tissues", "all"]) == 0
    assert capsys.readouterr().out.startswith("183 types of all tissues, from 72 atlases")


def test_tissues_unknown(capsys):
    assert "Closest: 'pancreas'" in refused(capsys, "tissues", "pancras")
