"""Contents: what the config of a saved model may say."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, get_args

from celler.inference._calibration import Decision
from celler.labels._tree import LabelTree
from celler.model._base import BaseOrigin
from celler.model._setup import network_config
from celler.model._state import HARD_CELL_COLUMNS, ScGPTOrigin, Setup
from celler.network._base import SIZES
from celler.network._config import Encoder, Head, NetworkConfig

FORMAT, FORMAT_VERSION = "celler", 2
AGAIN = "Get the folder again from where it came, or save the model again."
#: Largest size of a network and most blocks: far above any that is of use, and small enough to be checked.
MAX_SIZE, MAX_LAYERS, MAX_CLASSES, MAX_MEMBERS = 1_000_000, 1000, 20_000, 1000


class Rule(NamedTuple):
    """What a value has to be, in words, and whether one is."""

    needed: str
    holds: Callable[[Any], bool]


def shown(value: object) -> str:
    """Return the start of a value of any length, for a message."""
    return _REPR.repr(value)


_REPR = reprlib.Repr()
_REPR.maxlist = _REPR.maxdict = 4
_REPR.maxstring = _REPR.maxother = 60


# ---- rules ----
def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300  # of a whole number of any length


def _is_whole(value: Any, least: int, most: float) -> bool:
    return type(value) is int and least <= value <= most


def _whole(least: int, most: float = 2**63 - 1) -> Rule:
    limit = f" and at most {most:,}" if most < 2**40 else ""
    return Rule(f"a whole number of at least {least:,}{limit}", lambda value: _is_whole(value, least, most))


def _or_none(rule: Rule) -> Rule:
    return Rule(f"{rule.needed}, or null", lambda value: value is None or rule.holds(value))


def _one_of(*values: str) -> Rule:
    return Rule(f"one of {list(values)}", lambda value: isinstance(value, str) and value in values)


def _are_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _are_names(value: Any, most: int = MAX_SIZE) -> bool:
    return _are_strings(value) and len(value) <= most and len(set(value)) == len(value)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


ANY = Rule("a value", lambda value: True)
TEXT = Rule("text", _is_text)
NUMBER = Rule("a finite number", _is_number)
FLAG = Rule("true or false", lambda value: type(value) is bool)
SIZE, LAYERS = _whole(1, MAX_SIZE), _whole(1, MAX_LAYERS)
OBJECT = Rule("an object", lambda value: isinstance(value, dict))
STRINGS, NUMBERS = Rule("a list of texts", _are_strings), Rule("a list of finite numbers", _are_numbers)
#: A class or a batch may have an empty name, a gene not.
NAMES = Rule("a list of different names", _are_names)
GENES = Rule(
    "a list of different names, none of them empty, of at least one gene",
    lambda value: _are_names(value) and value != [] and "" not in value,
)
CLASSES = Rule(
    f"a sorted list of different names, {MAX_CLASSES:,} at most,",
    lambda value: _are_names(value, MAX_CLASSES) and value == sorted(value),
)
TEXTS = Rule("an object of texts", lambda value: isinstance(value, dict) and _are_strings([*value.values()]))
EMPTY = Rule("an empty object", lambda value: value == {})
ROOT = {
    "format": ANY,
    "format_version": Rule(f"{FORMAT_VERSION}", lambda value: value == FORMAT_VERSION and type(value) is int),
    "celler_version": TEXT,
    "registry": OBJECT,
    "init_params": OBJECT,
    "fitted": _or_none(OBJECT),
    "pretrained": _or_none(OBJECT),
    "weights": EMPTY,
    "tensors": OBJECT,
    "card": OBJECT,
}
#: Numbers that strict JSON lacks; they stand as text in curves, and nowhere else.
NOT_FINITE = ("NaN", "Infinity", "-Infinity")
VALIDATION = ("validation_macro_f1", "validation_macro_f1_error")
SHA256 = Rule(
    "64 hexadecimal digits",
    lambda value: isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef"),
)
TENSORS = {"file": TEXT, "size": _whole(8), "sha256": SHA256}
REGISTRY = {
    "model_name": _one_of("Celler"),
    "setup_method_name": _one_of("setup_anndata"),
    "scvi_version": TEXT,
    "setup_args": OBJECT,
    "field_registries": EMPTY,
    "celler": OBJECT,
}
STRING = Rule("text", lambda value: isinstance(value, str))
SETUP = {field.name: _or_none(STRING) for field in fields(Setup)}
SETUP |= {"unlabeled_category": STRING, "parents": _or_none(TEXTS)}
DESCRIBED = {
    "base": _or_none(OBJECT),
    "gene_names": GENES,
    "classes": CLASSES,
    "parents": STRINGS,
}
BASE = {
    "name": TEXT,
    "n_known": _whole(0),
    "organism": _one_of("human", "mouse"),
    "sizes": OBJECT,
    "n_profiles": _whole(0),
    "n_types": _whole(0, MAX_CLASSES),
}
MEMBERS = _whole(2, MAX_MEMBERS)
SCGPT = {"d_feed": SIZE, "pad_value": NUMBER, "is_frozen": FLAG, "is_vocabulary": FLAG}
ARGUMENTS = {
    "encoder": _one_of(*get_args(Encoder)),
    "head": _or_none(_one_of(*get_args(Head))),
    "n_layers": _or_none(LAYERS),
    "d_model": SIZE,
    "n_heads": _or_none(SIZE),
    "n_latents": _or_none(SIZE),
    "dropout_rate": Rule("a number of at least 0 and below 1", lambda value: _is_number(value) and 0 <= value < 1),
    "evidence": FLAG,
    "max_genes": SIZE,
    "n_bins": _or_none(_whole(3, 256)),
    "precision": _one_of("auto", "float32", "bfloat16"),
}
FITTED = {
    "decision": OBJECT,
    "history": OBJECT,
    "hard_cells": OBJECT,
    "profile": _or_none(EMPTY),
    "seed": _or_none(_whole(-(2**63))),
    "novelty": _or_none(EMPTY),
    "class_prior": _or_none(NUMBER),
}
POSITIVE = Rule("a number above 0", lambda value: _is_number(value) and value > 0)
DECISION = {field.name: POSITIVE for field in fields(Decision)}
#: Novelty of a model whose classes are types of atlases.
OPEN_SET = {"names": STRINGS, "location": NUMBER, "spread": POSITIVE}
PRETRAINED = {"decoder": EMPTY, "batches": NAMES, "n_cells": _whole(0), "history": OBJECT}
BASE_SIZES = {name: LAYERS if name == "n_layers" else SIZE for name in SIZES}
#: Parts that every config has.
ROOMS = {
    "": ROOT,
    "tensors.": TENSORS,
    "card.": {"sha256": SHA256},
    "registry.": REGISTRY,
    "registry.setup_args.": SETUP,
    "registry.celler.": DESCRIBED,
    "init_params.": ARGUMENTS,
}


# ---- the check ----
def check_config(config: Any, path: Path) -> NetworkConfig:
    """Return the sizes of the network that a config describes; raise ``ValueError`` for one that no model can have."""
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = shown(config.get("format") if isinstance(config, dict) else config)
        raise ValueError(
            f"{path} is no config of a Celler model: its format is {found}, not {FORMAT!r}. Pass the folder that "
            "model.save() wrote."
        )
    version = config.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:
        raise ValueError(
            f"{path} was written by Celler {shown(config.get('celler_version'))} in format {shown(version)}; this "
            f"version reads up to {FORMAT_VERSION}. Upgrade celler."
        )
    for place, rules in ROOMS.items():
        _check(_at(config, place), rules, path, place)
    described = config["registry"]["celler"]
    if described["base"] is not None:
        _check(described["base"], BASE, path, "registry.celler.base.")
        _check(described["base"]["sizes"], BASE_SIZES, path, "registry.celler.base.sizes.")
    if "ids" in described and not TEXTS.holds(described["ids"]):
        raise _refusal(path, "registry.celler.ids", described["ids"], TEXTS.needed)
    if "n_members" in described and not MEMBERS.holds(described["n_members"]):
        raise _refusal(path, "registry.celler.n_members", described["n_members"], MEMBERS.needed)
    if "scgpt" in described:
        _check(described["scgpt"], SCGPT, path, "registry.celler.scgpt.")
    if config["fitted"] is not None:
        _check_fitted(config["fitted"], described, path)
    if config["pretrained"] is not None:
        _check(config["pretrained"], PRETRAINED, path, "pretrained.")
        _check_curves(config["pretrained"]["history"], path, "pretrained.history")
    return _sizes(config, path)


def _at(config: dict[str, Any], place: str) -> Any:
    """Return the value at a dotted place, which ends in a dot."""
    value: Any = config
    for name in place.split(".")[:-1]:
        value = value[name]
    return value


def _check(values: Any, rules: dict[str, Rule], path: Path, place: str) -> None:
    """Raise ``ValueError`` unless ``values`` is an object with exactly these entries, each as its rule says."""
    if not isinstance(values, dict):
        raise _refusal(path, place.rstrip("."), values, "an object")
    optional = {"scgpt", "ids", "n_members"} if rules is DESCRIBED else set()
    missing, unknown = sorted(rules.keys() - values.keys()), sorted(values.keys() - rules.keys() - optional)
    if missing or unknown:
        what = (
            f"lacks {place}{missing[0]}" if missing else f"has {shown(place + unknown[0])}, which Celler does not know"
        )
        raise ValueError(f"{path} {what}. {AGAIN}")
    for name, rule in rules.items():
        if not rule.holds(values[name]):
            raise _refusal(path, f"{place}{name}", values[name], rule.needed)


def _refusal(path: Path, place: str, found: object, needed: str) -> ValueError:
    return ValueError(f"{path}: {place or 'it'} is {shown(found)}; {needed} is needed. {AGAIN}")


def _check_fitted(fitted: Any, described: dict[str, Any], path: Path) -> None:
    classes, is_of_atlases = described["classes"], bool(described["base"] and described["base"]["n_types"])
    _check(fitted, FITTED | ({"novelty": _or_none(OBJECT)} if is_of_atlases else {}), path, "fitted.")
    if is_of_atlases and fitted["novelty"] is not None:
        _check(fitted["novelty"], OPEN_SET, path, "fitted.novelty.")
    _check(fitted["decision"], DECISION, path, "fitted.decision.")
    _check_curves(fitted["history"], path, "fitted.history")
    history, cells = fitted["history"], fitted["hard_cells"]
    if not history.get("train_loss") and not is_of_atlases:
        raise _refusal(path, "fitted.history.train_loss", history.get("train_loss"), "a number for each epoch")
    if not classes:
        raise _refusal(path, "registry.celler.classes", classes, "a class at least, since the model is trained,")
    for name in VALIDATION if VALIDATION[0] in history else ():
        if not _are_numbers(history.get(name)) or min(history[name]) < 0:
            needed = "a finite number of at least 0 for each epoch"
            raise _refusal(path, f"fitted.history.{name}", history.get(name), needed)
    is_class = Rule("a list of classes", lambda value: _are_strings(value) and set(value) <= set(classes))
    _check(
        cells,
        dict(zip(HARD_CELL_COLUMNS, (STRINGS, is_class, is_class, NUMBERS, NUMBERS, NUMBERS), strict=True)),
        path,
        "fitted.hard_cells.",
    )
    if len({len(column) for column in cells.values()}) != 1:
        raise _refusal(path, "fitted.hard_cells", cells, "a table of columns of one length")


def _check_curves(curves: Any, path: Path, place: str) -> None:
    is_table = isinstance(curves, dict) and all(isinstance(curve, list) for curve in curves.values())
    if not is_table or len({len(curve) for curve in curves.values()}) > 1:
        raise _refusal(path, place, curves, "a list of numbers of one length for each name")
    for name, curve in curves.items():
        if not all(_is_number(value) or (isinstance(value, str) and value in NOT_FINITE) for value in curve):
            raise _refusal(path, f"{place}.{name}", curve, "a list of numbers")


def _sizes(config: dict[str, Any], path: Path) -> NetworkConfig:
    """Return the sizes of the network; raise ``ValueError`` where parts of the config contradict each other."""
    described, arguments = config["registry"]["celler"], config["init_params"]
    genes, classes, parents = (described[name] for name in ("gene_names", "classes", "parents"))
    base, scgpt = described["base"], described.get("scgpt")
    if parents and len(parents) != len(classes):
        raise _refusal(path, "registry.celler.parents", parents, f"a parent for each of {len(classes):,} classes")
    if base is not None and base["n_known"] > len(genes):
        raise _refusal(path, "registry.celler.base.n_known", base["n_known"], f"at most {len(genes):,}, all genes,")
    if {"base": base, "scgpt": scgpt}.get(arguments["encoder"], 0) is None:
        raise _refusal(
            path, f"registry.celler.{arguments['encoder']}", None, f"an object, for encoder={arguments['encoder']!r},"
        )
    try:
        if parents:
            LabelTree(tuple(classes)).with_parents(dict(zip(classes, parents, strict=True)))
        return network_config(
            arguments | {"n_members": described.get("n_members")},
            len(genes),
            max(1, len(classes)),
            None if scgpt is None else ScGPTOrigin(**scgpt),
            None if base is None else BaseOrigin(**base),
        )
    except ValueError as error:
        raise ValueError(f"{path} contradicts itself: {error} {AGAIN}") from None


# ---- curves ----
def encoded(curves: dict[str, list[float]]) -> dict[str, list[float | str]]:
    """Return curves with text for numbers that strict JSON does not have: NaN and infinite ones."""
    return {
        name: [value if math.isfinite(value) else _NAMES_OF_FLOATS[str(float(value))] for value in map(float, curve)]
        for name, curve in curves.items()
    }


def decoded(curves: dict[str, list[float | str]]) -> dict[str, list[float]]:
    """Return what :func:`encoded` took."""
    return {name: [float(value) for value in curve] for name, curve in curves.items()}


_NAMES_OF_FLOATS = dict(zip(("nan", "inf", "-inf"), NOT_FINITE, strict=True))
