"""Check: the arguments of a public function against the table of rules, before anything else happens."""

from __future__ import annotations

import functools
import inspect
import os
import reprlib
from collections.abc import Callable
from dataclasses import fields
from typing import Any, ParamSpec, TypeVar

from celler._utils._modalities import part_to_pass
from celler._utils._rules import Rule, plain, rule_of

P = ParamSpec("P")
R = TypeVar("R")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Check the arguments of a public function by the table before anything else happens."""
    signature = inspect.signature(function)
    rules = {
        name: (rule_of(name, str(parameter.annotation)), parameter.default, "None" in str(parameter.annotation))
        for name, parameter in signature.parameters.items()
        if name not in ("self", "cls")
    }

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            given = signature.bind_partial(*args, **kwargs)
        except TypeError:
            given = None
        if given is None:
            return function(*args, **kwargs)  # raises, in Python's words
        for name, value in given.arguments.items():
            if name not in rules:
                continue
            rule, default, is_optional = rules[name]
            if value is default or (value is None and is_optional):
                continue
            given.arguments[name] = value = plain(value)
            check(name, value, rule)
        return function(*given.args, **given.kwargs)

    return call


def check_fields(options: Any) -> None:
    """Check the values of a dataclass of options by the table, from its ``__post_init__``."""
    for field in fields(options):
        value = plain(getattr(options, field.name))
        if value is not None or "None" not in str(field.type):
            check(field.name, value, rule_of(field.name, str(field.type)))


def check(name: str, value: Any, rule: Rule) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless an argument is as its rule says."""
    if not rule.fits(value):
        raise TypeError(
            f"{name}={shown(value)} was given, of type {type(value).__name__}; {rule.needed} is needed."
            f"{part_to_pass(value)}"
        )
    if not rule.holds(value):
        raise ValueError(f"{name}={shown(value)} was given; {rule.needed} is needed.")


def shown(value: object) -> str:
    """Return the start of a value of any length, for a message."""
    if isinstance(value, str | int | float | list | tuple | dict | set | bytes | os.PathLike | None):
        return _REPR.repr(value)
    return f"<{type(value).__name__}>"


_REPR = reprlib.Repr()
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = _REPR.maxset = 4
_REPR.maxstring = _REPR.maxother = 80
