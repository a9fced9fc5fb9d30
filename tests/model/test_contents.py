"""What a saved model may hold: each damaged or forged folder is refused by name before a network is made."""

import shutil
from inspect import signature

import pytest
from hostile_cases import ARRAYS, CASES, CONFIGS, FILES_OF, HEADERS, JSON
from toy import trained

from celler.model import Celler
from celler.model._contents import ARGUMENTS, decoded, encoded
from celler.model._folder import CONFIG, WEIGHTS


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    trained().save(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def test_the_cases_have_names_of_their_own():
    assert len(CASES) == sum(map(len, (FILES_OF, JSON, CONFIGS, HEADERS, ARRAYS))) >= 30


@pytest.mark.parametrize(("change", "words"), CASES.values(), ids=CASES)
def test_load_of_a_hostile_folder(folder, change, words, monkeypatch):
    def fail(*_):
        raise AssertionError("a network was made")

    change(folder)

    monkeypatch.setattr("celler.model._setup.build_network", fail)
    kind = FileNotFoundError if "does not exist" in words else ValueError
    with pytest.raises(kind, match=words) as error:
        Celler.load(folder)
    assert str(folder) in str(error.value)
    assert any(name in str(error.value) for name in (CONFIG, WEIGHTS))
    assert len(str(error.value)) < 700


def test_load_of_the_folder_that_is_changed(folder):
    assert Celler.load(folder).is_trained


def test_the_arguments_are_those_of_the_class():
    """A new argument of Celler needs a rule, or its models could not be loaded."""
    arguments = set(signature(Celler.__init__).parameters) - {"self", "adata", "registry"}
    assert set(ARGUMENTS) == arguments


def test_encoded_curves_are_decoded():
    curves = {"loss": [1.5, float("inf"), float("-inf"), 0.1 + 0.2], "f1": []}
    assert encoded(curves) == {"loss": [1.5, "Infinity", "-Infinity", 0.1 + 0.2], "f1": []}
    assert decoded(encoded(curves)) == curves
    assert encoded({"loss": [float("nan")]}) == {"loss": ["NaN"]}
