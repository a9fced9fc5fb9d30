"""Notebook: what a model shows of itself in one: its table, its names for tab completion, its setup."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import rich
import rich.pretty  # scvi-tools 1.4 uses it and does not import it, which rich 15 no longer does by itself

from celler.model._state import Fitted

REPLAYED = "replayed "  #: before the name of a class in the curves of a training
#: What scvi-tools' base class has for those who write models, or for its own ways to save, log and load data; it works,
#: and tab completion leaves it out.
FOR_DEVELOPERS = frozenset({
    "data_registry", "deregister_manager", "get_from_registry", "get_normalized_function_name_", "get_setup_arg",
    "get_state_registry", "history_", "id", "init_params_", "is_trained_", "register_manager",
    "registry", "registry_", "run_id", "run_id_", "run_name", "run_name_", "summary_stats", "summary_string",
    "test_indices", "test_indices_", "train_indices_", "update_setup_method_args", "validation_indices_",
    "view_registry", "view_setup_args", "view_setup_method_args",
})  # fmt: skip


def html(summary: str) -> str:
    """Return the summary of a model as a table: its first line, then a row for each of the others."""
    title, *lines = summary.splitlines()
    rows = [line.split(maxsplit=1) for line in lines]
    left = "text-align: left; vertical-align: top"
    body = "".join(
        f'<tr><th style="{left}">{escape(name)}</th><td style="{left}">{escape(text)}</td></tr>' for name, text in rows
    )
    return f"<table><caption style='{left}'><b>{escape(title)}</b></caption><tbody>{body}</tbody></table>"


def names_shown(names: Iterable[str], unsupported: Iterable[str]) -> list[str]:
    """Return the names that tab completion lists."""
    hidden = FOR_DEVELOPERS | set(unsupported)
    return [name for name in names if name not in hidden]


def by_epoch(curves: Mapping[str, Sequence[float] | np.ndarray], n_epochs: int) -> pd.DataFrame:
    """Return a row per epoch, counted from 1 as the progress bar counts them."""
    return pd.DataFrame(dict(curves), index=pd.RangeIndex(1, n_epochs + 1, name="epoch"))


def curves_of(fitted: Fitted) -> pd.DataFrame | None:
    """Return the curves of a training, without those of single classes; ``None`` for a model of atlases."""
    if not fitted.history:
        return None
    curves = {name: values for name, values in fitted.history.items() if not name.startswith(REPLAYED)}
    n_epochs = len(fitted.history["train_loss"])
    return by_epoch(curves, n_epochs).assign(is_kept=np.arange(n_epochs) == fitted.kept_epoch)


def replayed_of(fitted: Fitted) -> pd.DataFrame:
    """Return the number of replayed cells by epoch and class."""
    of_class = {
        name.removeprefix(REPLAYED): np.array(values).astype(int)
        for name, values in fitted.history.items()
        if name.startswith(REPLAYED)
    }
    return by_epoch(of_class, len(fitted.history.get("train_loss", ())))


def print_setup(arguments: dict[str, Any], summary: str) -> None:
    """Print the arguments of a setup whose AnnData is not there, as of a loaded model."""
    rich.print("Setup via `Celler.setup_anndata` with arguments:")
    rich.pretty.pprint(arguments)
    rich.print()
    print(summary.splitlines()[0])
