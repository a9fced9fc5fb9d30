"""Door: where the user's call meets the package; keywords are checked, and warnings point back to the call."""

from __future__ import annotations

import difflib
import functools
import inspect
import logging
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ParamSpec, TypeVar

import pandas as pd

P = ParamSpec("P")

R = TypeVar("R")

C = TypeVar("C", bound=type)

PACKAGE = str(Path(__file__).parent) + os.sep


def suggest_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, whose TypeError for a keyword it does not have names the closest one it has.

    The signature, the hints and the docstring stay what they are. Python itself suggests from 3.13 on,
    without the list of all.
    """
    return _checked(function, function.__qualname__)


def suggest_keywords_of_methods(cls: C) -> C:
    """``cls`` with :func:`suggest_keywords` at its own constructor and public methods."""
    for name, value in list(vars(cls).items()):
        is_of_class = isinstance(value, classmethod)
        function = value.__func__ if is_of_class else value
        is_public = name == "__init__" or not name.startswith("_")
        if is_public and inspect.isfunction(function) and not _takes_any(function):
            called = cls.__name__ if name == "__init__" else f"{cls.__name__}.{name}"
            checked = _checked(function, called)
            setattr(cls, name, classmethod(checked) if is_of_class else checked)
    return cls


def warn(message: str) -> None:
    """A UserWarning at the line that called the package, however deep inside the reason was found."""
    frame, level, found = inspect.currentframe(), 0, 1
    while frame is not None:
        level += 1
        if frame.f_code.co_filename.startswith(PACKAGE):
            found = level + 1
        frame = frame.f_back
    warnings.warn(message, UserWarning, stacklevel=found)


def _checked(function: Callable[P, R], called: str) -> Callable[P, R]:
    names = list(inspect.signature(function).parameters)
    options = [name for name in names if name not in ("self", "cls")]

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in names:
                raise TypeError(
                    f"{called}() has no argument {name!r}.{closest(name, options, cutoff=0.55)} "
                    f"Arguments: {', '.join(options)}."
                )
        return function(*args, **kwargs)

    return checked


def _takes_any(function: Callable[..., object]) -> bool:
    kinds = (parameter.kind for parameter in inspect.signature(function).parameters.values())
    return inspect.Parameter.VAR_KEYWORD in kinds


def column(table: pd.DataFrame, key: str, argument: str, place: str = "adata.obs") -> pd.Series:
    """``table[key]``, or a KeyError that suggests the closest column to the one named by ``argument``."""
    if key in table.columns:
        return table[key]
    columns = list(map(str, table.columns))
    raise KeyError(
        f"{argument}={key!r} is not a column of {place}.{closest(key, columns)} Columns: {columns}."
    )


def closest(name: object, names: Iterable[str], cutoff: float = 0.4) -> str:
    """``" Closest: 'x'."``, the one of ``names`` most like ``name``; empty where none is."""
    close = most_like(name, names, cutoff)
    return "" if close is None else f" Closest: {close!r}."


def most_like(name: object, names: Iterable[str], cutoff: float = 0.4) -> str | None:
    """The one of ``names`` most like ``name``, ``None`` where none is.

    cutoff: how alike they must be, from 0 to 1.
    """
    close = difflib.get_close_matches(str(name), list(names), n=1, cutoff=cutoff)
    return close[0] if close else None


def has_progress() -> bool:
    """Whether progress is shown at all."""
    # scvi.settings.verbosity is the level of this logger: one setting keeps all its models silent
    return logging.getLogger("scvi").level <= logging.INFO
