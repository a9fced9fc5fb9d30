"""Every argument of every public function has a rule in one table, and what no rule accepts is our error at once."""

import importlib
import inspect
from functools import cache

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import toy

import celler
from celler._utils._check import check
from celler._utils._rules import ANY, RULES, plain, rule_of
from celler.model import Celler

FACES = [name for name in dir(celler) if name in celler.__all__ and not name.startswith("_")]
#: What the package makes and hands on, and functions of tensors and arrays that are called in inner loops.
MADE = {"DEFAULT", "Evaluation", "GeneAlignment", "InputReport", "Summary", "HardCells", "Loss", "ClassLoss"}
MADE |= {"Method", "Fit", "LabelCheck"}
INNER = {"shift", "among", "hard_classes", "from_labels", "encode", "roll_up", "agreeing_parents", "watch", "choose"}
OPTIONS = {"Replay", "Storage", "Variant", "GInf", "HDM", "RIDE", "Focal", "CrossEntropy", "BalancedSoftmax"}


def functions() -> dict:
    """Return the public functions and methods by name."""
    found = {}
    for face in FACES:
        module = importlib.import_module(f"celler.{face}")
        for name in module.__all__:
            one = getattr(module, name)
            if name in MADE:
                continue
            if not inspect.isclass(one):
                found[f"{face}.{name}"] = one
                continue
            found |= {f"{face}.{name}": one.__init__} if name not in {"LabelTree"} else {}
            for method in sorted(set(vars(one)) - INNER):
                value = inspect.getattr_static(one, method)
                value = getattr(value, "__func__", value)
                if not method.startswith("_") and inspect.isfunction(value):
                    found[f"{face}.{name}.{method}"] = value
    return found


FUNCTIONS = functions()


def arguments():
    for name, function in FUNCTIONS.items():
        for argument, parameter in inspect.signature(function).parameters.items():
            if argument not in ("self", "cls"):
                yield name, argument, parameter


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_has_a_rule(name):
    parameters = inspect.signature(FUNCTIONS[name]).parameters
    for argument, parameter in parameters.items():
        if argument not in ("self", "cls"):
            assert rule_of(argument, str(parameter.annotation)).needed
    is_options = name.split(".")[-1] in OPTIONS
    assert is_options or not set(parameters) - {"self", "cls"} or hasattr(FUNCTIONS[name], "__wrapped__")


def test_every_rule_is_of_an_argument():
    used = {argument for _, argument, _ in arguments()}
    used |= {f"{argument}: {parameter.annotation}" for _, argument, parameter in arguments()}
    assert set(RULES) <= used


def test_defaults_are_as_their_rules_say():
    for name, argument, parameter in arguments():
        default = parameter.default
        if default in (inspect.Parameter.empty, None) or "OfReference" in str(parameter.annotation):
            continue
        if not name.startswith("losses") and "factory" not in repr(default):
            check(argument, default, rule_of(argument, str(parameter.annotation)))


# ---- each argument with what it may not be ----
BAD = {
    "text": "0.5",
    "empty": "",
    "list": [],
    "zero": 0,
    "negative": -1,
    "half": 0.5,
    "nan": float("nan"),
    "infinite": float("inf"),
    "huge": 10**30,
    "huge float": 1e300,
    "true": True,
    "object": object(),
    "bytes": b"x",
    "none": None,
    "numpy nan": np.float64("nan"),
    "dict of lists": {"a": [1]},
    "class": int,
    "nul": "a\0b",
}


@cache
def query() -> ad.AnnData:
    return toy.cells(20, seed=1)


def accepted(argument: str, parameter: inspect.Parameter, value: object) -> bool:
    if value is None and "None" in str(parameter.annotation):
        return True
    if value is parameter.default:
        return True
    rule, value = rule_of(argument, str(parameter.annotation)), plain(value)
    return bool(rule.fits(value) and rule.holds(value))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_no_rule_accepts_is_refused_before_anything_happens(name):
    """The other arguments stay as they are: the refusal names the argument, what was given and what is needed."""
    function = FUNCTIONS[name]
    if name.split(".")[-1] in OPTIONS:
        pytest.skip("tried below")
    signature = inspect.signature(function)
    n_tried = 0
    for argument, parameter in signature.parameters.items():
        for value in BAD.values():
            if argument in ("self", "cls") or accepted(argument, parameter, value):
                continue
            with pytest.raises((TypeError, ValueError), match=f"^{argument}=.* was given.*; .* needed"):
                function(**{argument: value})
            n_tried += 1
    is_free = all(RULES.get(one) is ANY for one in signature.parameters if one not in ("self", "cls"))
    assert n_tried or is_free


def options():
    import celler.atlas
    import celler.benchmark
    import celler.losses
    import celler.mining

    places = (celler.losses, celler.mining, celler.atlas, celler.benchmark)
    for name in sorted(OPTIONS):
        kind = next(getattr(place, name) for place in places if name in place.__all__)
        for argument, parameter in inspect.signature(kind).parameters.items():
            yield pytest.param(kind, argument, parameter, id=f"{name}-{argument}")


@pytest.mark.parametrize(("kind", "argument", "parameter"), list(options()))
def test_options_are_checked_when_they_are_made(kind, argument, parameter):
    for value in BAD.values():
        if accepted(argument, parameter, value):
            continue
        with pytest.raises((TypeError, ValueError), match=f"{argument}=.* was given"):
            kind(**{argument: value})


#: Values that a rule accepts, of NumPy's kinds.
@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": np.int64(7)},
        {"threshold": np.float32(0.5)},
        {"soft": np.bool_(True)},
        {"indices": np.arange(3)},
        {"indices": pd.Index([0, 2])},
        {"indices": np.array([True] * 10 + [False] * 10)},
        {"unknown_label": np.str_("none")},
        {"threshold": 1},
        {"threshold": 0},
    ],
    ids=str,
)
def test_predict_accepts_numpy_scalars(options):
    assert len(toy.trained().predict(query(), **options))


def test_train_accepts_numpy_scalars():
    options = {"max_epochs": np.int64(1), "batch_size": np.int32(64), "learning_rate": np.float64(3e-3)}
    options |= {"seed": np.uint32(3), "train_size": np.float32(0.9), "early_stopping": np.bool_(False)}
    assert toy.fit(toy.cells(100), **options).history is not None


VALUES = {
    "predict": {"batch_size", "level", "threshold", "unknown_label", "candidates", "false_alarm_rate", "indices"},
    "annotate": {"key_added", "cluster_key", "threshold", "unknown_label", "false_alarm_rate"},
    "get_gene_importance": {"groupby", "n_genes", "method", "indices"},
    "predict_expression": {"genes", "indices"},
    "impute": {"layer_added"},
}


@pytest.mark.parametrize(("method", "argument"), [(m, a) for m, names in VALUES.items() for a in sorted(names)])
def test_model_with_a_bad_argument_is_right_or_our_error(method, argument):
    """Also of what a rule lets through: the outcome is right, or an error that names the argument or what it lacks."""
    model = toy.trained()
    adata = query().copy()
    before = toy.snapshot(adata)
    for value in BAD.values():
        try:
            getattr(model, method)(adata, **{argument: value})
        except (TypeError, ValueError, KeyError, IndexError, RuntimeError) as error:
            words = str(error)
            assert argument in words or "pretrain" in words or "no cell" in words or repr(value) in words, words
            toy.assert_unchanged(adata, before)
        else:
            adata = query().copy()


def test_signatures_stay_for_the_documentation():
    parameters = inspect.signature(Celler.predict).parameters
    assert list(parameters)[:4] == ["self", "adata", "indices", "soft"]
    assert Celler.predict.__doc__.startswith("Label the cells")
