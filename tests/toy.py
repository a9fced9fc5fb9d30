"""A toy reference, queries and a trained model that several test files share."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from unittest.mock import patch

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from celler.datasets import toy_long_tail
from celler.model import Celler
from celler.training._plan import TrainingPlan

#: A network that trains in a second, in float32 because "auto" depends on the machine.
SMALL = {"d_model": 16, "precision": "float32"}
QUICK = {"max_epochs": 5, "batch_size": 64, "refit": False, "show_progress": False}


def cells(n_obs: int = 300, depth: float = 0.15, seed: int = 0) -> ad.AnnData:
    """Counts of four types, the smallest a tenth of the largest, thinned to ``depth``.

    Whatever the seed, the types are the same: one seed gives a reference, another its query.
    """
    full = toy_long_tail(n_obs=2000, n_vars=80, n_classes=4, imbalance=10.0)
    rng = np.random.default_rng(seed)
    adata = full[rng.choice(full.n_obs, n_obs, replace=False)].copy()
    counts = rng.binomial(adata.X.toarray().astype(int), depth)
    counts[counts.sum(axis=1) == 0, 0] = 1
    adata.X = sparse.csr_matrix(counts.astype(np.float32))
    return adata


def truth(adata: ad.AnnData) -> np.ndarray:
    return adata.obs["cell_type"].to_numpy().astype(str)


def fit(adata: ad.AnnData, setup: dict | None = None, network: dict | None = None, **train) -> Celler:
    """A small model, trained quickly on ``adata``, which is set up on the way."""
    Celler.setup_anndata(adata, **({"labels_key": "cell_type"} | (setup or {})))
    model = Celler(adata, **(SMALL | (network or {})))
    model.train(**(QUICK | train))
    return model


def pretrained(
    reference: ad.AnnData | None = None,
    setup: dict | None = None,
    network: dict | None = None,
    **options,
) -> Celler:
    """A small model, pretrained briefly."""
    reference = cells() if reference is None else reference
    Celler.setup_anndata(reference, **(setup or {}))
    model = Celler(reference, **(SMALL | (network or {})))
    model.pretrain(**({"max_epochs": 2, "batch_size": 64, "show_progress": False} | options))
    return model


@cache
def trained() -> Celler:
    """One model with parents for all tests that only predict."""
    return fit(cells(), {"parent_labels_key": "parent_type"})


class Stopped(Exception):
    pass


@contextmanager
def stopped_in(epoch: int) -> Iterator[None]:
    """Stop each training when it validates this ``epoch``, counted from 0, as a kill would."""
    end = TrainingPlan.on_validation_epoch_end

    def stopping(self: TrainingPlan) -> None:
        if self.trainer.current_epoch == epoch:
            raise Stopped
        end(self)

    with patch.object(TrainingPlan, "on_validation_epoch_end", stopping), suppress(Stopped):
        yield
        raise AssertionError(f"no training came to epoch {epoch}")


def soft(query: ad.AnnData | None, **options) -> pd.DataFrame:
    """Probabilities of the one model."""
    return trained().predict(query, soft=True, **options)


def assert_equal_frames(actual: pd.DataFrame, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(actual, expected, check_exact=True)


def assert_close(actual: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Equal but for the order of sums in float32, which follows the storage and the chunks."""
    pd.testing.assert_frame_equal(actual, expected, rtol=0, atol=2e-6)


def celler_warning(caught: list[warnings.WarningMessage]) -> warnings.WarningMessage:
    """The one warning among ``caught`` that is ours: dependencies may have their own."""
    (ours,) = (warning for warning in caught if warning.category is UserWarning)
    return ours


def snapshot(adata: ad.AnnData) -> dict:
    """A deep copy of everything an AnnData holds, to compare with later."""
    parts = {"obs": adata.obs.copy(deep=True), "var": adata.var.copy(deep=True)}
    parts |= {"uns": dict(adata.uns), "obs_names": adata.obs_names.copy()}
    for name in ("obsm", "layers"):
        slots = getattr(adata, name)
        parts |= {f"{name}/{key}": copy_of(slots[key]) for key in slots if key is not None}
    return parts | {"X": copy_of(adata.X), "keys": sorted(parts)}


def copy_of(X):
    return None if X is None else X.copy()


def assert_unchanged(adata: ad.AnnData, before: dict) -> None:
    """Values, columns, dtypes, categories, formats and keys are what they were."""
    after = snapshot(adata)
    assert sorted(after) == sorted(before)
    for name, was in before.items():
        now = after[name]
        if isinstance(was, pd.DataFrame):
            assert_equal_frames(now, was)
        elif isinstance(was, pd.Index):
            pd.testing.assert_index_equal(now, was)
        elif sparse.issparse(was):
            assert type(now) is type(was)
            for part in ("data", "indices", "indptr"):
                np.testing.assert_array_equal(getattr(now, part), getattr(was, part), strict=True)
        elif isinstance(was, np.ndarray):
            np.testing.assert_array_equal(now, was, strict=True)
        else:
            assert now == was, name
