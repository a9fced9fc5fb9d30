"""Arrays: names, types, sizes and values of the arrays of a saved model, which follow from its config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from celler.model._contents import AGAIN, VALIDATION, shown
from celler.network._config import NetworkConfig
from celler.network._layout import decoder_layout, network_layout


@dataclass(frozen=True)
class Array:
    """An array of a saved model.

    A text in the ``shape`` is a size that no config says, in which arrays agree. ``holds`` is whether the values are
    those ``needed``.
    """

    dtypes: tuple[str, ...]
    shape: tuple[int | str, ...]
    needed: str
    holds: Callable[[np.ndarray], bool]


FLOATS, WHOLE = ("float32", "float64"), ("int64", "int32")


def _is_finite(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).all())


FINITE = "finite numbers", _is_finite
SHARES = "numbers from 0 to 1", lambda values: bool(((values >= 0) & (values <= 1)).all())
POSITIVE = "finite numbers above 0", lambda values: bool((values > 0).all()) and _is_finite(values)
AT_LEAST_0 = "finite numbers of at least 0", lambda values: bool((values >= 0).all()) and _is_finite(values)
ROWS = "whole numbers of at least 0", lambda values: bool((values >= 0).all())
#: A gene that is never seen has the score −∞.
SCORES = "numbers below infinity", lambda values: bool((values < np.inf).all())
#: The mean of a gene that was not measured in a class is NaN.
MEANS = "finite numbers of at least 0, or NaN", lambda values: not bool(((values < 0) | np.isinf(values)).any())
SORTED = "sorted finite numbers", lambda values: _is_finite(values) and bool((np.diff(values) >= 0).all())
WEIGHT_RULES = {
    "_extra_state": SHARES,
    "encoder.score": SCORES,
    "evidence.enough": AT_LEAST_0,
    "standardize.scale": POSITIVE,
}


def layout(config: dict[str, Any], sizes: NetworkConfig) -> dict[str, Array]:
    """Return the arrays of a model with a checked config, by name."""
    found = _weights("weights.", network_layout(sizes))
    if config["fitted"] is not None:
        found |= _of_fitted(config["fitted"], sizes)
    if config["pretrained"] is not None:
        decoder = decoder_layout(sizes, len(config["pretrained"]["batches"]))
        found |= _weights("pretrained.decoder.", decoder)
        found["pretrained.gene_share"] = Array(FLOATS, (sizes.n_genes,), *AT_LEAST_0)
    return found


def _weights(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Array]:
    return {
        prefix + name: Array(
            (str(weight.dtype).removeprefix("torch."),), tuple(weight.shape), *WEIGHT_RULES.get(name, FINITE)
        )
        for name, weight in weights.items()
    }


def _of_fitted(fitted: dict[str, Any], sizes: NetworkConfig) -> dict[str, Array]:
    n_genes, n_classes = sizes.n_genes, sizes.n_classes
    n_validation = "n_validation" if VALIDATION[0] in fitted["history"] else 0
    found = {
        "train_indices": Array(WHOLE, ("n_train",), *ROWS),
        "validation_indices": Array(WHOLE, (n_validation,), *ROWS),
        "class_counts": Array(WHOLE, (n_classes,), *ROWS),
        "gene_share": Array(FLOATS, (n_genes,), *AT_LEAST_0),
    }
    if fitted["profile"] is not None:
        found |= {
            "profile.mean": Array(FLOATS, (n_classes, n_genes), *MEANS),
            "profile.n_cells": Array(FLOATS, (n_classes,), *AT_LEAST_0),
            "profile.dispersion": Array(FLOATS, (n_genes,), *AT_LEAST_0),
        }
    if fitted["novelty"] is not None:
        is_of_atlases = "names" in fitted["novelty"]
        arrays = _of_open_set(sizes, fitted["novelty"]) if is_of_atlases else _of_novelty(n_genes, n_classes)
        found |= {f"novelty.{name}": array for name, array in arrays.items()}
    return {f"fitted.{name}": array for name, array in found.items()}


def _of_novelty(n_genes: int, n_classes: int) -> dict[str, Array]:
    is_selection: Callable[[np.ndarray], bool] = lambda genes: (
        bool((np.diff(genes) > 0).all()) and (not genes.size or (genes[0] >= 0 and genes[-1] < n_genes))
    )
    are_classes: Callable[[np.ndarray], bool] = lambda means: 0 < len(means) <= n_classes and _is_finite(means)
    return {
        "genes": Array(WHOLE, ("n_selected",), f"ascending positions of {n_genes:,} genes", is_selection),
        "center": Array(FLOATS, ("n_selected",), *FINITE),
        "scale": Array(FLOATS, ("n_selected",), *FINITE),
        "components": Array(FLOATS, ("n_components", "n_selected"), *FINITE),
        "means": Array(FLOATS, ("n_means", "n_components"), f"1 to {n_classes:,} rows of finite numbers", are_classes),
        "whitening": Array(FLOATS, ("n_components", "n_components"), *FINITE),
        "detection": Array(FLOATS, (n_genes,), *SHARES),
        "slope": Array(FLOATS, (2,), *FINITE),
        "location": Array(FLOATS, (2, n_classes), *FINITE),
        "spread": Array(FLOATS, (2, n_classes), *POSITIVE),
        "known": Array(FLOATS, ("n_known",), *SORTED),
    }


def _of_open_set(sizes: NetworkConfig, plain: dict[str, Any]) -> dict[str, Array]:
    return {
        "inside": Array(("float32",), (sizes.n_types, sizes.d_model), *FINITE),
        "outside": Array(("float32",), (len(plain["names"]), sizes.d_model), *FINITE),
        "known": Array(FLOATS, ("n_known",), *SORTED),
    }


def check_shapes(
    found: Mapping[str, tuple[str, tuple[int, ...]]], arrays: Mapping[str, Array], what: str, advice: str = AGAIN
) -> None:
    """Raise ``ValueError`` unless ``found``, type and size by name, are those of the ``arrays``; ``what`` has them."""
    missing, unknown = [name for name in arrays if name not in found], [name for name in found if name not in arrays]
    if missing or unknown:
        name = shown((missing or unknown)[0])
        raise ValueError(f"{what} {'lacks the array' if missing else 'has the unknown array'} {name}. {advice}")
    sizes: dict[str, int] = {}
    for name, array in arrays.items():
        dtype, shape = found[name]
        if dtype not in array.dtypes:
            raise ValueError(f"{what} has {name} of type {dtype}; {' or '.join(array.dtypes)} is needed. {advice}")
        fits = len(shape) == len(array.shape)
        for size, needed in zip(shape, array.shape, strict=False):
            fits &= size == (sizes.setdefault(needed, size) if isinstance(needed, str) else needed)
        if not fits:
            needed_shape = tuple(sizes.get(size, size) if isinstance(size, str) else size for size in array.shape)
            raise ValueError(f"{what} has {name} of shape {shape}; {needed_shape} is needed. {advice}")


def check_values(found: Mapping[str, np.ndarray], arrays: Mapping[str, Array], what: str, advice: str = AGAIN) -> None:
    """Raise ``ValueError`` where an array holds values that it cannot have."""
    for name, array in arrays.items():
        if not array.holds(found[name]):
            raise ValueError(f"{what} has other values in {name} than {array.needed}. {advice}")


def plain_and_arrays(contents: dict[str, Any], prefix: str = "") -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Split contents into plain values and arrays under dotted names; a dict of arrays alone leaves an empty one."""
    plain: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, value in contents.items():
        if isinstance(value, dict):
            plain[name], within = plain_and_arrays(value, f"{prefix}{name}.")
            arrays |= within
        elif isinstance(value, np.ndarray):
            arrays[f"{prefix}{name}"] = np.asarray(value, order="C")
        else:
            plain[name] = value
    return plain, arrays
