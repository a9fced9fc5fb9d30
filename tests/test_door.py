"""The door: keywords that exist, signatures left as they are, warnings at the line that called."""

import inspect
import typing

import pytest
from toy import QUICK, SMALL, celler_warning, cells, fit, trained

import celler as cl
from celler._utils._messages import suggest_keywords, suggest_keywords_of_methods
from celler.model import Celler


def add(left: int, *, amount: int = 1) -> int:
    """One more."""
    return left + amount


@pytest.mark.parametrize(
    ("call", "called", "closest"),
    [
        (lambda: trained().train(max_epoch=3), "Celler.train()", "max_epochs"),
        (lambda: trained().predict(cells(), threshhold=0.5), "Celler.predict()", "threshold"),
        (lambda: trained().annotate(cells(), added_key="x"), "Celler.annotate()", "key_added"),
        (lambda: trained().save("model", overwite=True), "Celler.save()", "overwrite"),
        (lambda: Celler(cells(), dropout=0.1), "Celler()", "dropout_rate"),
        (lambda: Celler.setup_anndata(cells(), label_key="x"), "setup_anndata()", "labels_key"),
        (lambda: Celler.load("model", accelerater="cpu"), "Celler.load()", "accelerator"),
        (lambda: cl.pl.marker_bubble(cells(), group_by="x"), "marker_bubble()", "groupby"),
        (lambda: cl.losses.GInf(amplitud=0.2), "GInf()", "amplitude"),
        (lambda: cl.losses.HDM(hard=3), "HDM()", "n_hard"),
        (lambda: cl.mining.Replay(n_class=3), "Replay()", "n_per_class"),
        (lambda: cl.pp.check_input(cells(), layers="x"), "check_input()", "layer"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.endswith("()") else "",
)
def test_a_mistyped_keyword_is_told_the_closest_one(call, called, closest):
    with pytest.raises(TypeError) as caught:
        call()
    assert called in str(caught.value)
    assert f"Closest: {closest!r}" in str(caught.value)


@pytest.mark.parametrize(
    "room",
    [cl.pl, cl.tl, cl.pp, cl.datasets, cl.benchmark],
    ids=lambda room: room.__name__,
)
def test_every_public_function_suggests(room):
    functions = [value for name in room.__all__ if inspect.isfunction(value := getattr(room, name))]
    assert functions
    for function in functions:
        with pytest.raises(TypeError, match=f"{function.__name__}.. has no argument 'nonsense'"):
            function(nonsense=1)


def test_what_a_wrapped_function_says_of_itself_stays():
    wrapped = suggest_keywords(add)
    assert inspect.signature(wrapped) == inspect.signature(add)
    assert typing.get_type_hints(wrapped) == typing.get_type_hints(add)
    assert (wrapped.__name__, wrapped.__doc__) == ("add", "One more.")
    assert wrapped(1, amount=2) == 3


def test_an_option_of_another_package_is_told_no_closest_one():
    with pytest.raises(TypeError) as caught:
        trained().train(check_val_every_n_epoch=1)
    assert "Closest" not in str(caught.value)
    assert "Arguments: max_epochs, accelerator" in str(caught.value)


def test_other_type_errors_are_not_touched():
    wrapped = suggest_keywords(add)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'left'"):
        wrapped()
    with pytest.raises(TypeError, match="can only concatenate"):
        wrapped("1", amount=1)


def test_private_and_open_methods_of_a_class_stay():
    class Plain:
        def _own(self, x): ...

        def free(self, **options):
            return options

        @classmethod
        def made(cls, x=1):
            return cls, x

    own, free = Plain._own, Plain.free
    assert suggest_keywords_of_methods(Plain) is Plain
    assert (Plain._own, Plain.free) == (own, free)
    assert Plain.made(x=2) == (Plain, 2)


def test_warnings_point_at_the_call():
    query = cells(seed=1)
    empty = cells(seed=1)
    empty.X.data[: empty.X.indptr[1]] = 0
    small = cells()
    small.obs["cell_type"] = small.obs["cell_type"].astype(str)
    small.obs.iloc[0, small.obs.columns.get_loc("cell_type")] = "one of its kind"
    Celler.setup_anndata(small, "cell_type")
    model = fit(cells(), max_epochs=1)
    calls = {
        "genes are in the query": lambda: model.predict(query[:, :70]),
        "no counts": lambda: trained().predict(empty),
        "fewer than 3 labelled cells": lambda: Celler(small, **SMALL).train(**QUICK),
        "Left out": lambda: cl.pl.marker_bubble(query, ["gene 1", "none"], "cell_type", show=False),
    }
    for message, call in calls.items():
        with pytest.warns(UserWarning, match=message) as caught:
            call()
        assert celler_warning(caught.list).filename == __file__
