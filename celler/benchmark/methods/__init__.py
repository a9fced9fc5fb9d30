"""Methods to compare: a file each, with a ``fit`` in the form of :class:`Fit`, and a line in ``METHODS``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

#: Cells -> scores, a row per cell and a column per type of the reference; the highest is the label.
#: Within [0, 1] they are probabilities; any others have no calibration error.
Predict = Callable[["AnnData"], "pd.DataFrame"]


class Fit(Protocol):
    """Learns the types of ``reference.obs[labels_key]`` and returns what names those of other cells.

    Both AnnData are the method's own: ``X`` is CSR float32, ``uns["kind"]`` says what it holds (see
    :func:`celler.pp.check_input`), and the query has the genes of the reference that it measured, in
    the reference's order. Preprocessing belongs into ``fit``, where the clock runs.
    """

    def __call__(self, reference: AnnData, labels_key: str, query: AnnData, seed: int) -> Predict:
        """Learn, and return what labels other cells.

        query: the cells that will be asked for, without labels, for methods that learn from them too.
        seed: of every draw.
        """
        ...


@dataclass(frozen=True)
class Method:
    """A method to compare; its ``fit`` is in the module of its name.

    title: what figures and messages call it.
    packages: what must be installed, its own package first.
    needs_counts: it cannot do with logarithms.
    """

    title: str
    packages: tuple[str, ...]
    needs_counts: bool = False

    def versions(self) -> str:
        """Names and versions of the packages; raises ``PackageNotFoundError`` where one is missing."""
        return ", ".join(f"{package} {version(package)}" for package in self.packages)


METHODS: dict[str, Method] = {
    "celler": Method("Celler", ("celler", "torch")),
    "celler_transductive": Method("Celler, propagated", ("celler", "torch")),
    "celltypist": Method("CellTypist", ("celltypist", "scikit-learn")),
    "scanvi": Method("scANVI", ("scvi-tools", "torch", "scikit-misc"), needs_counts=True),
    "linear_svm": Method("linear SVM", ("scikit-learn",)),
    "logreg": Method("logistic regression", ("scikit-learn",)),
    "knn": Method("k nearest neighbours", ("scikit-learn", "scanpy")),
    "xgboost": Method("gradient boosting", ("xgboost", "scanpy")),
    "random_forest": Method("random forest", ("scikit-learn",)),
    "mlp": Method("MLP (ACTINN)", ("scikit-learn",)),
}
