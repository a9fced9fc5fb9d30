"""The model card of the base tells what is in the file of weights."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import scripts
from safetensors import safe_open

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "celler" / "network" / "base.safetensors"
CARD = WEIGHTS.with_name("base_card.md")
base = scripts.load("base")


def test_card_is_that_of_the_weights():
    above, heading, contents = CARD.read_text("utf-8").partition(base.CONTENTS)
    assert above
    assert heading
    assert contents == base.contents(WEIGHTS)


def test_card_cites_every_data_set_with_its_types():
    with safe_open(WEIGHTS, "np") as file:
        sources, datasets = json.loads(file.metadata()["about"])["sources"], file.get_tensor("datasets")
    card = CARD.read_text("utf-8")
    n_types = {name: int(n) for name, n in re.findall(r"([\w/.-]+) \((\d+)\)", card)}
    counts = Counter(np.asarray(datasets).tolist())
    for code, source in enumerate(sources):
        assert n_types[source["name"]] == counts[code]
        assert f"| {source['citation']} |".replace("?uk", "ňuk") in card
        assert source["source"] in card


def test_write_card_keeps_what_is_written_by_hand(tmp_path):
    weights = tmp_path / WEIGHTS.name
    weights.symlink_to(WEIGHTS)
    card = tmp_path / "base_card.md"
    card.write_text(f"# By hand\n\n{base.CONTENTS}\nold\n")
    base.write_card(weights)
    assert card.read_text("utf-8") == f"# By hand\n\n{base.CONTENTS}{base.contents(WEIGHTS)}"


def test_remarks_name_the_data_set_where_not_all_have_it():
    rows = pd.DataFrame({"name": ["Mouse/Adult/A", "Mouse/Adult/B"], "flag": ["", "nuclei"]})
    assert base.remarks(rows) == "B: nuclei"
    assert base.remarks(rows.assign(flag="nuclei")) == "nuclei"
