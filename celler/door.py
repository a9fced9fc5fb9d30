"""Door: where the user's call meets the package; keywords are checked, and warnings point back to the call."""

from __future__ import annotations

import functools
import inspect
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from celler.names import closest

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
                    f"{called}() has no argument {name!r}.{closest(name, options)} "
                    f"Arguments: {', '.join(options)}."
                )
        return function(*args, **kwargs)

    return checked


def _takes_any(function: Callable[..., object]) -> bool:
    kinds = (parameter.kind for parameter in inspect.signature(function).parameters.values())
    return inspect.Parameter.VAR_KEYWORD in kinds
