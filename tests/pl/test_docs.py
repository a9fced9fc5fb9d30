"""Docstrings of the plots: every parameter, an example that runs, and its picture."""

import inspect
import re
from doctest import DocTestParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from pl_cases import annotated, checked, curves

import celler as cl

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", cl.pl.__all__)
def test_document_names_every_parameter_and_the_picture(name):
    plot = getattr(cl.pl, name)
    text = inspect.getdoc(plot)
    section = text.split("Parameters\n----------\n")[1].split("\n\nReturns\n-------\n")[0]
    assert re.findall(r"^(\w+)$", section, re.MULTILINE) == list(inspect.signature(plot).parameters)
    assert "$" not in text
    assert "\n\nExamples\n--------\n" in text
    (picture,) = re.findall(r"image:: /(\S+)", text)
    assert (DOCS / picture).exists(), "run docs/plots.py"


@pytest.mark.parametrize("name", cl.pl.__all__)
def test_document_shows_an_example_that_runs(name, no_autoshow):
    """The plot's own line; the training before it is that of the user guide."""
    cells = cl.datasets.pbmc68k()
    cells.obs["celler"] = cells.obs["cell_type"]
    cells.obs["celler_confidence"] = 0.9
    known = {"cl": cl, "cells": cells, "query": cells, "model": SimpleNamespace(history=curves())}
    known["model"].check_labels = lambda query: checked(annotated())
    examples = [item.source for item in DocTestParser().get_examples(getattr(cl.pl, name).__doc__)]
    for line in examples if name == "marker_bubble" else examples[-1:]:
        exec(line, known)
    assert f"cl.pl.{name}(" in examples[-1]
