"""The model card: what a model knows of itself, as Markdown with front matter that any reader takes."""

import re

import pytest
from base_cases import fit_known
from toy import cells, fit, pretrained, trained

from celler.model import Celler
from celler.model._card import TAGS, digest, license_of, model_card, with_license

CARD = model_card(trained()._state, "my_model")


def front(card: str) -> list[str]:
    return card.split("---\n")[1].splitlines()


def section(card: str, name: str) -> str:
    return re.search(rf"^## {name}\n\n(.*?)(?=^## |\Z)", card, flags=re.DOTALL | re.MULTILINE)[1]


def test_front_matter_is_that_of_the_hub():
    yaml = pytest.importorskip("yaml")
    for card, more in ((CARD, {}), (with_license(CARD, "cc-by-4.0"), {"license": "cc-by-4.0"})):
        assert yaml.safe_load("\n".join(front(card))) == {"library_name": "celler", "tags": list(TAGS)} | more
    assert {"cell-type-annotation", "single-cell", "scverse"} <= set(TAGS)


def test_card_lists_the_classes_with_their_cells():
    counts = trained().class_counts_
    rows = [f"| type {i} | {trained().parents_[f'type {i}']} | {counts[i]} |" for i in range(4)]
    assert section(CARD, "Classes").split("\n")[:6] == [
        "| Class | Parent | Training cells |",
        "| --- | --- | --- |",
        *rows,
    ]


def test_card_has_ids_of_the_cell_ontology():
    """Only where the name means one term: "alpha" does not."""
    names = {"type 0": "B cell", "type 1": "NK cells", "type 2": "alpha", "type 3": "type 3"}
    adata = cells()
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str).map(names)
    rows = section(model_card(fit(adata, max_epochs=1)._state, "m"), "Classes").splitlines()
    assert rows[0] == "| Class | Training cells | Cell Ontology |"
    found = {row.split(" | ")[0].strip("| "): row.split(" | ")[2].strip("| ") for row in rows[2:6]}
    assert found == {"B cell": "CL:0000236", "NK cells": "CL:0000623", "alpha": "", "type 3": ""}


def test_card_says_how_the_model_was_trained():
    text = section(CARD, "Training")
    history = trained().history
    kept = f"kept epoch {history['is_kept'].to_numpy().nonzero()[0][0] + 1} of {len(history)}"
    assert f"Trained on {trained().class_counts_.sum()} labelled cells: {kept}, seed 0" in text
    n = len(trained().validation_indices_)
    score = float(re.search(rf"macro-F1 ([\d.]+) on {n} held-out cells", text)[1])
    assert score in history["validation_macro_f1"].round(3).to_numpy()
    assert "sum of gene embeddings (16 wide) + evidence table" in text


def test_card_names_genes_and_organism():
    assert section(CARD, "Genes").startswith("80 genes: gene 0, gene 1, gene 2,")
    card = model_card(fit_known(max_epochs=1)._state, "blood")
    assert section(card, "Genes").startswith("140 genes of human: ")
    assert "Celler-base (384 wide, knows 140 of 140 genes)" in card


def test_card_shows_code_that_runs(tmp_path):
    trained().save(tmp_path / "blood")
    code = re.search(r"```python\n(.*?)```", (tmp_path / "blood" / "README.md").read_text(), flags=re.DOTALL)[1]
    assert 'Celler.load("blood")' in code
    adata = cells(30, seed=1)
    exec(code.replace('"blood"', repr(str(tmp_path / "blood"))), {"adata": adata})
    assert "celler" in adata.obs


def test_card_leaves_fields_to_the_author():
    for name in ("Licence", "Data", "Intended use", "Limits", "Contact"):
        assert section(CARD, name).startswith("To be filled in by the author"), name
    assert not any(line.startswith("license:") for line in front(CARD))


def test_card_of_names_with_marks():
    """A name cannot add a column, a line, a heading or HTML."""
    names = {"type 0": "a|b", "type 1": "<script>x</script>", "type 2": "# one\ntwo", "type 3": "`c` *d* [e](f)"}
    adata = cells()
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str).map(names)
    card = model_card(fit(adata, max_epochs=1)._state, "m")
    rows = section(card, "Classes").strip().splitlines()
    assert len(rows) == 6
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)
    assert "<script>" not in card
    assert not re.search(r"(?<!\\)[`*\[]", "".join(rows))


def test_card_of_a_pretrained_model():
    card = model_card(pretrained()._state, "m")
    assert section(card, "Classes").startswith("None: the model embeds cells.")
    assert "Pretrained on 300 cells without their labels." in card
    assert "get_latent_representation" in section(card, "Use")
    assert "annotate" not in card


def test_with_license_changes_one_line():
    licensed = with_license(CARD, "mit")
    assert license_of(CARD) is None
    assert license_of(licensed) == "mit"
    assert license_of(with_license(licensed, "cc-by-4.0")) == "cc-by-4.0"
    assert len(licensed.splitlines()) == len(CARD.splitlines())
    assert with_license(CARD, None) == CARD
    assert digest(licensed) == digest(CARD) == digest(CARD.replace("\n", "\r\n"))
    assert digest(licensed + "x") != digest(CARD)


def test_with_license_of_a_card_of_another_hand():
    assert with_license("# Title\n", "mit") == "---\nlicense: mit\n---\n\n# Title\n"
    assert with_license("---\ntags:\n- a\n---\nText", "mit") == "---\nlicense: mit\ntags:\n- a\n---\nText"
    body = "---\ntags:\n- a\n---\nlicense: not this"
    assert license_of(body) is None
    assert with_license(body, "mit").endswith("license: not this")


@pytest.mark.parametrize("license", ["CC BY 4.0", "mit\nlibrary_name: evil", "", "MIT"])
def test_with_license_of_no_identifier(license):
    with pytest.raises(ValueError, match="an identifier of the hub is needed"):
        with_license(CARD, license)


def test_load_of_a_card_keeps_the_licence(tmp_path):
    trained().save(tmp_path)
    (tmp_path / "README.md").write_text(with_license(CARD, "mit") + "Mine.")
    state = Celler.load(tmp_path)._state
    assert state.license == "mit"
    assert state.card.endswith("Mine.")
