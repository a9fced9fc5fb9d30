"""Methods to compare: functions of the form of :class:`Fit`, each with a line in ``METHODS``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

#: Cells -> scores, a row per cell and a column per type of the reference; the highest is the label.
#: Scores within [0, 1] are probabilities; others have no calibration error.
Predict = Callable[["AnnData"], "pd.DataFrame"]


class Fit(Protocol):
    """Train on a labelled reference and return a function that labels cells.

    Parameters
    ----------
    reference
        Cells with labels, a copy that may be changed. ``X`` is CSR float32; ``uns["kind"]`` names the kind of its
        values, as :func:`celler.pp.check_input` does.
    labels_key
        Column of ``reference.obs`` with the labels.
    query
        Cells to label later, without labels, for methods that also learn from them: a copy with the genes that the
        reference has too, in its order.
    seed
        Seed of every random draw.

    Returns
    -------
    Function of an AnnData such as ``query`` that returns a DataFrame of scores, a row per cell and a column per type.
    The type with the highest score is the label.

    Notes
    -----
    The time of both functions is measured and includes their preprocessing.
    """

    def __call__(self, reference: AnnData, labels_key: str, query: AnnData, seed: int) -> Predict:
        """Train, and return what labels cells."""
        ...


@dataclass(frozen=True)
class Method:
    """Describe a method to compare, a function of the form of :class:`celler.benchmark.Fit`.

    Parameters
    ----------
    title
        Name in figures and messages.
    packages
        Distributions that must be installed, the method's own first.
    needs_counts
        Whether the method cannot learn from logarithms.
    module
        Module that defines the function, under the method's name in ``METHODS``.
    imports
        Modules that the function imports, to load before the clock starts.

    Examples
    --------
    >>> from celler.benchmark.methods import METHODS
    >>> METHODS["mine"] = Method("My method", ("numpy",), module="my_package.my_module")
    """

    title: str
    packages: tuple[str, ...]
    needs_counts: bool = False
    module: str = "celler.benchmark.methods._sklearn"
    imports: tuple[str, ...] = ()

    def versions(self) -> str:
        """Return names and versions of the packages; raise ``PackageNotFoundError`` without them."""
        return ", ".join(f"{package} {version(package)}" for package in self.packages)


_OURS, _CELLTYPIST, _SCANVI = (f"celler.benchmark.methods._{name}" for name in ("celler", "celltypist", "scanvi"))
METHODS: dict[str, Method] = {
    "celler": Method("Celler", ("celler", "torch"), module=_OURS),
    "celler_additive": Method("Celler without base", ("celler", "torch"), module=_OURS),
    "celler_transductive": Method("Celler, propagated", ("celler", "torch"), module=_OURS),
    "celltypist": Method("CellTypist", ("celltypist", "scikit-learn"), module=_CELLTYPIST),
    "scanvi": Method("scANVI", ("scvi-tools", "torch", "scikit-misc"), True, _SCANVI),
    "linear_svm": Method("linear SVM", ("scikit-learn",)),
    "logreg": Method("logistic regression", ("scikit-learn",)),
    "knn": Method("k nearest neighbours", ("scikit-learn", "scanpy"), imports=("scanpy",)),
    "xgboost": Method("gradient boosting", ("xgboost", "scanpy"), imports=("scanpy", "xgboost")),
    "random_forest": Method("random forest", ("scikit-learn",)),
    "mlp": Method("MLP (ACTINN)", ("scikit-learn",)),
}
