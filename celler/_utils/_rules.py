"""Rules: what each argument of a public function may be, in one table by its name."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd


class Rule(NamedTuple):
    """What an argument has to be, in words; whether its type fits, and then whether its value does."""

    needed: str
    fits: Callable[[Any], bool]
    holds: Callable[[Any], bool] = lambda value: True


# ---- kinds of arguments ----
def _whole(least: int, most: int) -> Rule:
    needed = f"a whole number of at least {least:,} and at most {most:,}"
    return Rule(needed, lambda value: type(value) is int, lambda value: least <= value <= most)


def _number(needed: str, holds: Callable[[float], bool]) -> Rule:
    """Return the rule of a finite number; a whole one of any length is compared before it becomes a float."""
    return Rule(
        f"a finite number{needed}",
        lambda value: type(value) in (int, float),
        lambda value: abs(value) < 1e300 and math.isfinite(value) and holds(value),
    )


def _either(needed: str, *rules: Rule) -> Rule:
    def holds(value: Any) -> bool:
        return any(rule.fits(value) and rule.holds(value) for rule in rules)

    return Rule(needed, lambda value: any(rule.fits(value) for rule in rules), holds)


def _type(needed: str, *kinds: type) -> Rule:
    return Rule(needed, lambda value: isinstance(value, kinds) and not isinstance(value, bool))


def _of_module(needed: str, module: str, name: str) -> Rule:
    """Return the rule of a class whose module need not be imported: without it there is no such object."""

    def fits(value: Any) -> bool:
        kind = getattr(sys.modules.get(module), name, None)
        return kind is not None and isinstance(value, kind)

    return Rule(needed, fits)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return not isinstance(value, str) and isinstance(value, Iterable) and all(map(_is_text, value))


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence | np.ndarray | pd.Index | pd.Series) and not isinstance(value, str | bytes)


def _is_key(value: str) -> bool:
    return value != "" and "/" not in value and "\0" not in value


def _is_path(value: Any) -> bool:
    text = os.fsdecode(value)
    return text != "" and "\0" not in text


def _is_base(value: Any) -> bool:
    return hasattr(value, "among") and not isinstance(value, type)


def _are_sizes(value: Any) -> bool:
    return len(value) == 2 and all(
        isinstance(size, int | float | np.number) and 0 < size < 1000 and not isinstance(size, bool) for size in value
    )


def _is_devices(value: Any) -> bool:
    whole = lambda one: type(one) is int and 0 <= one < 4096
    return whole(value) or _is_text(value) or (isinstance(value, list) and all(map(whole, value)))


FLAG = Rule("True or False", lambda value: type(value) is bool)
TEXT = Rule("text", _is_text)
NAME = Rule("text that is not empty", _is_text, lambda value: value != "")
KEY_ADDED = Rule("text that is not empty and has no '/', which files cannot hold,", _is_text, _is_key)
TEXTS = Rule("a list of texts", _are_texts)
SOME_TEXTS = Rule("a list of at least one text", _are_texts, lambda value: len(list(value)) > 0)
TEXT_OR_TEXTS = _either("text that is not empty, or a list of texts", NAME, SOME_TEXTS)
PATH = Rule("a path, text or pathlib.Path,", lambda value: isinstance(value, str | os.PathLike), _is_path)
TABLE = _type("a pandas DataFrame", pd.DataFrame)
CELLS = _of_module("an AnnData", "anndata", "AnnData")
CELLS_OR_TABLE = _either("an AnnData or a pandas DataFrame", CELLS, TABLE)
LIST = Rule("a list or an array", _is_list)
ARRAY = _type("an array, a Series or a list", np.ndarray, pd.Series, pd.Index, pd.Categorical, list, tuple)
MAPPING = _type("a dict or a Series", Mapping, pd.Series)
SHARE = _number(" between 0 and 1", lambda value: 0 <= value <= 1)
PART = _number(" of at least 0 and below 1", lambda value: 0 <= value < 1)
SOME = _number(" above 0 and at most 1", lambda value: 0 < value <= 1)
INSIDE = _number(" above 0 and below 1", lambda value: 0 < value < 1)
POSITIVE = _number(" above 0", lambda value: value > 0)
AT_LEAST_0 = _number(" of at least 0", lambda value: value >= 0)
AT_LEAST_1 = _number(" of at least 1", lambda value: value >= 1)
NUMBER = _number("", lambda value: True)
SIZE, COUNT, MANY = _whole(1, 1_000_000), _whole(1, 10_000_000), _whole(1, 1_000_000_000)
SEED = _whole(0, 2**32 - 1)  # what NumPy, torch and scikit-learn all take
SEEDS = _either(
    "a whole number of at least 1 and at most 1,000, or a list of seeds,",
    _whole(1, 1000),
    Rule(
        "",
        _is_list,
        lambda value: len(value) > 0 and all(SEED.fits(one) and SEED.holds(one) for one in map(plain, value)),
    ),
    Rule("", lambda value: isinstance(value, range), lambda value: len(value) > 0 and min(value) >= 0),
)
MODEL = _either(
    "a trained Celler or its folder, or the address of one,", PATH, _of_module("", "celler.model", "Celler")
)
#: One value for all sources, or one for each: ``celler.atlas.build`` looks at the rest.
PER_SOURCE = _either("text, or a dict or a list of texts, one for each source,", NAME, MAPPING, LIST)
EVALUATION = _of_module("an Evaluation", "celler.tl", "Evaluation")
ANY = Rule("a value", lambda value: True)

#: The rule of each argument; "name: annotation" where one name is needed for two things. ``None`` is accepted where
#: the signature says so, and so is the default.
RULES = {
    "accelerator": NAME,
    "adata": CELLS,
    "adata: AnnData | str | os.PathLike[str] | None": _either("an AnnData, or the path of one,", CELLS, PATH),
    "adata: AnnData | str | os.PathLike[str] | Sequence[AnnData] | CellBlocks": _either(
        "an AnnData, its path, a list of AnnData or the dataloader of a store",
        CELLS,
        PATH,
        _of_module("", "celler.atlas._store", "CellBlocks"),
        Rule("", lambda value: _is_list(value) and len(value) > 0 and all(map(CELLS.fits, value))),
    ),
    "adaptation": _of_module("what model.adapt(query) returns", "celler.inference._adaptation", "Adaptation"),
    "adjustment": Rule("a function of the logits and the class counts", callable),
    "adata: AnnData | pd.DataFrame": CELLS_OR_TABLE,
    "amplitude": AT_LEAST_0,
    "at_least": _whole(0, 1_000_000_000),
    "ax": Rule("Axes of matplotlib", lambda value: hasattr(value, "get_figure")),
    "backoff": FLAG,
    "balance": SHARE,
    "base": Rule("one of celler.losses other than HDM, such as GInf(),", _is_base),
    "baseline": NAME,
    "basis": NAME,
    "batch_key": NAME,
    "batch_size": MANY,
    "candidates": TEXTS,
    "categories_order": SOME_TEXTS,
    "check": _of_module("what model.check_labels gave", "celler.tl", "LabelCheck"),
    "ckpt_path": PATH,
    "class_balance": SHARE,
    "class_prior": _either(
        '"auto", "balanced", "reference" or a number from -1 to 1',
        Rule("", _is_text, lambda value: value in ("auto", "balanced", "reference")),
        _number("", lambda value: -1 <= value <= 1),
    ),
    "classes": TEXTS,
    "classes: pd.DataFrame": TABLE,
    "cluster_key": NAME,
    "cmap": Rule("the name of a colour map, or a Colormap,", lambda value: _is_text(value) or callable(value)),
    "columns": TEXTS,
    "columns: Mapping[str, PerSource] | None": MAPPING,
    "commit_message": TEXT,
    "confidence": ARRAY,
    "confidence: str | None": NAME,
    "confidence_key": NAME,
    "correct_key": NAME,
    "correct_shift": FLAG,
    "counts": CELLS_OR_TABLE,
    "curves": _type("model.history of a trained model, a pandas DataFrame,", pd.DataFrame),
    "d_model": SIZE,
    "data": _either("an AnnData, a table, a Series or a dict", CELLS_OR_TABLE, MAPPING),
    "dataloader": _of_module("dm.inference_dataloader() of a DataModule", "celler.atlas._store", "CellBlocks"),
    "datamodule": _of_module("a celler.atlas.DataModule", "celler.atlas._datamodule", "DataModule"),
    "dataset": NAME,
    "dataset_key": NAME,
    "dendrogram": FLAG,
    "devices": Rule("'auto', a number of processes, or a list of numbers of devices,", _is_devices),
    "dir_path": PATH,
    "diversity": AT_LEAST_0,
    "dot_max": SOME,
    "dot_min": PART,
    "drop": TEXTS,
    "dropout_rate": PART,
    "dtype": Rule("'uint16' or 'uint32'", _is_text, lambda value: value in ("uint16", "uint32")),
    "duplicates": NAME,
    "early_stopping": FLAG,
    "encoder": NAME,
    "evidence": FLAG,
    "extend_labels": FLAG,
    "false_alarm_rate": SHARE,
    "figsize": Rule("a width and a height in inches, above 0 and below 1,000,", _is_list, _are_sizes),
    "file": PATH,
    "folder": PATH,
    "freeze_encoder": FLAG,
    "gamma": AT_LEAST_0,
    "gene_key": NAME,
    "gene_key: PerSource": PER_SOURCE,
    "genes": TEXT_OR_TEXTS,
    "genes: Sequence[str] | pd.Index | None": SOME_TEXTS,
    "group_key": NAME,
    "groupby": NAME,
    "has_new_classifier": FLAG,
    "head": NAME,
    "hide_state_registries": FLAG,
    "ignore_case": FLAG,
    "imbalance": AT_LEAST_1,
    "indices": Rule("a list or an array of positions, or a boolean mask,", _is_list),
    "is_correct": ARRAY,
    "key": NAME,
    "key_added": KEY_ADDED,
    "label_smoothing": PART,
    "labels": ANY,  # cl.labels tells one text, a table, bytes and numbers apart, and says what each needs
    "labels_key": NAME,
    "labels_key: PerSource": PER_SOURCE,
    "layer": NAME,
    "layer: PerSource": PER_SOURCE,
    "layer_added": KEY_ADDED,
    "learning_rate": POSITIVE,
    "level": NAME,
    "license": NAME,
    "loss": Rule("one of celler.losses, such as HDM(),", lambda value: callable(value) and not isinstance(value, type)),
    "mapping: Mapping[str, str] | pd.Series | None": MAPPING,
    "mapping": _either("a dict, a Series, a table or a path", MAPPING, TABLE, PATH),
    "markers": _either("text, a list of texts, a dict or a table", NAME, LIST, MAPPING, TABLE),
    "mask_ratio": INSIDE,
    "masked_weight": AT_LEAST_0,
    "max_epochs": SIZE,
    "max_genes": SIZE,
    "max_share": SOME,
    "mean": NUMBER,
    "memory_gb": AT_LEAST_1,  # of which the libraries take 0.7
    "method": NAME,
    "methods": SOME_TEXTS,
    "min_share": SHARE,
    "min_cells": COUNT,
    "n_bins": SIZE,
    "n_bins: int | None": _whole(3, 256),
    "n_classes": _whole(2, 10_000),
    "n_genes": COUNT,
    "n_hard": COUNT,
    "n_heads": SIZE,
    "n_jobs": _whole(1, 4096),
    "n_key": NAME,
    "n_latents": SIZE,
    "n_layers": _whole(1, 1000),
    "n_members": _whole(1, 1000),
    "n_most": SIZE,
    "n_obs": COUNT,
    "n_per_class": COUNT,
    "n_vars": SIZE,
    "normalize": FLAG,
    "organism": NAME,
    "organs": MAPPING,
    "orthologs": FLAG,
    "out": PATH,
    "overwrite": FLAG,
    "parent_keys": TEXTS,
    "parent_labels_key": NAME,
    "parents": _either(
        "a dict, a Series or a celler.labels.LabelTree, of parents by name,",
        MAPPING,
        NAME,
        TEXTS,
        _of_module("", "celler.labels", "LabelTree"),
    ),
    "path": PATH,
    "patience": COUNT,
    "per_cell": FLAG,
    "precision": NAME,
    "prediction": ARRAY,
    "prediction: str": NAME,
    "prediction_key": NAME,
    "pretrained": MODEL,
    "private": FLAG,
    "profiles": _of_module("an AnnData with a row for each cell type", "anndata", "AnnData"),
    "propagate": FLAG,
    "query": CELLS,
    "query_labels_key": NAME,
    "reference": CELLS,
    "reference: Any": ANY,
    "reference_counts": MAPPING,
    "reference_model": MODEL,
    "refit": FLAG,
    "registry": MAPPING,
    "replay": _of_module("a celler.mining.Replay, or None for no replay,", "celler.mining", "Replay"),
    "repo_id": NAME,
    "return_fig": FLAG,
    "revision": NAME,
    "rng": _type("a NumPy generator, np.random.default_rng(seed),", np.random.Generator),
    "rows": TABLE,
    "save": PATH,
    "seed": SEED,
    "seeds": SEEDS,
    "show": FLAG,
    "show_progress": FLAG,
    "soft": FLAG,
    "sources": Rule(
        "a list or a dict of files or AnnDatas",
        lambda value: isinstance(value, Iterable) and not isinstance(value, str | bytes | os.PathLike),
    ),
    "split": NAME,
    "standard_scale": NAME,
    "std": AT_LEAST_0,
    "storage": _of_module("a celler.atlas.Storage", "celler.atlas", "Storage"),
    "swap_axes": FLAG,
    "table": TABLE,
    "tables": _either("a table, an Evaluation, or a dict of them", TABLE, MAPPING, EVALUATION),
    "temperature": POSITIVE,
    "test_size": PART,
    "threshold": _number(", a probability between 0 and 1,", lambda value: 0 <= value <= 1),
    "tissue": TEXT_OR_TEXTS,
    "title": TEXT,
    "token": NAME,
    "train_on": NAME,
    "train_size": SOME,
    "truth": ARRAY,
    "truth: str": NAME,
    "truth_key": NAME,
    "unknown_label": TEXT,
    "unlabeled_category": _either("text or a number", TEXT, NUMBER),
    "use_raw": FLAG,
    "validation_size": PART,
    "variants": MAPPING,
    "vmax": NUMBER,
    "vmin": NUMBER,
}  # fmt: skip


def rule_of(name: str, annotation: str) -> Rule:
    """Return the rule of an argument; raise ``KeyError`` where the table has none."""
    return RULES.get(f"{name}: {annotation}") or RULES[name]


def plain(value: Any) -> Any:
    """Return Python's number, bool or text for NumPy's."""
    return value.item() if isinstance(value, np.number | np.bool_ | np.str_) else value
