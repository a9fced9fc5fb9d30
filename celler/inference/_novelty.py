"""Novelty: distance of a cell to its nearest reference class, compared with the distances of known cells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from scipy import sparse
from scipy.spatial.distance import cdist
from sklearn.utils.extmath import randomized_svd

from celler._utils._counts import cp10k
from celler.data._profile import Profile, class_sums, profile

#: Most variable genes of the distance, and their principal components; class means are added to these.
N_GENES, N_COMPONENTS = 2000, 50
#: Cells that the distance is fitted on, in proportion to the classes, and minimum of each class.
N_CELLS, N_OF_CLASS = 5000, 50
BLOCK_SIZE = 1000  #: cells per block
SHRINKAGE = 0.05  #: of the covariance towards a sphere of the same trace
PRIOR_CELLS = 5.0  #: pseudo-cells with the mean profile, added to each class so that a small class excludes no gene
N_FOLDS = 5  #: folds of the cross-validation that scores known cells
RIDGE = 0.1  #: of the least-squares projection where genes are missing
CLASS_PRIOR = 10.0  #: weight, in cells, of all classes in the location and spread of each class
MIN_CELLS = 20  #: fewest labelled cells for a novelty score


@dataclass(frozen=True)
class Space:
    """Space of the distances: ``(x[genes] - center) * scale`` projected on ``components (k, H)``."""

    genes: np.ndarray
    center: np.ndarray
    scale: np.ndarray
    components: np.ndarray
    means: np.ndarray  # of the classes (C, k)
    whitening: np.ndarray  # turns the within-class covariance into a sphere (k, k)
    detection: np.ndarray  # share of reference cells that express a gene (G,)


@dataclass(frozen=True)
class Novelty:
    """Fitted novelty score, the sum of two standardised parts: a Mahalanobis distance and a deviance.

    Parameters
    ----------
    space, slope
        Space of the Mahalanobis distance, and slope of each part over sequencing depth ``(2,)``.
    location, spread
        Mean and standard deviation of each part in known cells ``(2, C)``.
    known
        Sorted scores of held-out known cells ``(n,)``.
    """

    space: Space
    slope: np.ndarray
    location: np.ndarray
    spread: np.ndarray
    known: np.ndarray

    def score(
        self, X: sparse.csr_matrix, reference: Profile, is_shared: np.ndarray, *, is_log: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the score of each cell ``(N,)`` and its coordinates ``(N, k)``; known cells have mean 0, deviation 1.

        Parameters
        ----------
        X, is_log
            Counts, or with ``is_log`` their ``log1p`` values, ``(N, G)``.
        reference
            Profile of the classes.
        is_shared
            False for genes that the query lacks ``(G,)``.
        """
        nearest, depth, parts, points = measure(self.space, reference, X, is_shared, is_log=is_log)
        scores = _standardise(parts, nearest, depth, self.slope, self.location, self.spread).sum(axis=0)
        return scores, points

    def threshold(self, false_alarm_rate: float) -> float:
        """Return the score that the share ``false_alarm_rate`` of known cells exceeds."""
        return exceeded_by(self.known, false_alarm_rate)

    def to_plain(self) -> dict[str, np.ndarray]:
        """Return the arrays by name, for a checkpoint."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: own[name] for name in own if name != "space"} | vars(own["space"])

    @classmethod
    def from_plain(cls, arrays: dict[str, np.ndarray]) -> Novelty:
        """Restore what :meth:`to_plain` returned."""
        names = {field.name for field in fields(Space)}
        space = Space(**{name: arrays[name] for name in names})
        return cls(space, **{name: arrays[name] for name in arrays if name not in names})


def exceeded_by(known: np.ndarray, false_alarm_rate: float) -> float:
    """Return the score that the share ``false_alarm_rate`` of the ``known (n,)`` exceeds; raise for no such share."""
    if not 0 < false_alarm_rate < 1:
        raise ValueError(
            f"false_alarm_rate={false_alarm_rate} was given; a share between 0 and 1 is needed, such as 0.05."
        )
    return float(np.quantile(known, 1 - false_alarm_rate))


def fit_novelty(
    rows: Callable[[np.ndarray], sparse.csr_matrix], labels: np.ndarray, reference: Profile, *, is_log: bool, seed: int
) -> Novelty | None:
    """Return the score of a reference with codes ``labels (N,)``, from cross-validation; ``None`` below 20 cells."""
    if len(labels) < MIN_CELLS:
        return None
    rng = np.random.default_rng(seed)
    cells = _sample(labels, rng)
    X, codes = rows(cells), labels[cells]
    everywhere, folds = np.ones(X.shape[1], bool), _folds(codes, rng)
    nearest, depth, parts = np.zeros(len(codes), int), np.zeros(len(codes)), np.zeros((2, len(codes)))
    for fold in range(N_FOLDS):
        held_out = folds == fold
        classes, renumbered = np.unique(codes[~held_out], return_inverse=True)
        space, part = fit_space(X[~held_out], renumbered, is_log=is_log)
        found, depth[held_out], parts[:, held_out], _ = measure(space, part, X[held_out], everywhere, is_log=is_log)
        nearest[held_out] = classes[found]
    seen = parts[:, folds >= 0], nearest[folds >= 0], depth[folds >= 0]
    slope, location, spread = _calibrate(*seen, len(reference.n_cells))
    known = _standardise(*seen, slope, location, spread).sum(axis=0)
    total = max(float(known.std()), 1e-9)
    space, _ = fit_space(X, codes, is_log=is_log)
    stored = (slope, location, spread * total, np.sort(known / total))
    return Novelty(space, *(values.astype(np.float32) for values in stored))


def fit_space(X: sparse.csr_matrix, labels: np.ndarray, *, is_log: bool) -> tuple[Space, Profile]:
    """Return space and profile of cells ``X (N, G)`` with codes ``labels (N,)``; no class may be empty."""
    n_cells, n_classes = len(labels), int(labels.max()) + 1
    space = _space_of(_logs(X, is_log=is_log), labels)
    of_class: Callable[[np.ndarray], np.ndarray] = lambda block: np.eye(n_classes)[labels[block]]
    return space, profile(lambda block: X[block], of_class, n_cells, is_log=is_log, block_size=BLOCK_SIZE)


def _space_of(logs: sparse.csr_matrix, labels: np.ndarray) -> Space:
    """Return the space of cells with values ``logs (N, G)`` and codes ``labels (N,)``."""
    n_cells, n_classes = len(labels), int(labels.max()) + 1
    detected, squares = _detected_and_squares(logs)
    squares /= n_cells
    mean = np.asarray(logs.mean(axis=0)).ravel()
    variance = squares - mean**2
    variance[detected < min(3, n_cells)] = -1
    genes = np.sort(np.argsort(-variance, kind="stable")[:N_GENES])
    genes = genes[variance[genes] > 0]
    in_class = np.eye(n_classes)[labels]
    class_means = class_sums(logs, in_class)[:, genes] / in_class.sum(axis=0)[:, None]
    in_class /= in_class.sum(axis=0)
    between = np.bincount(labels) @ np.square(class_means) / n_cells
    within = np.sqrt(np.maximum(squares[genes] - between, 0))
    scale = 1 / np.maximum(within, max(np.median(within), 1e-6))
    center = mean[genes]
    # Single precision: passes over this matrix take most of the time.
    Z = logs[:, genes].astype(np.float32).toarray()
    del logs  # which takes as much memory as all that follows
    Z -= center.astype(np.float32)
    Z *= scale.astype(np.float32)
    components = _directions(Z, (class_means - center) * scale)
    P = (Z @ components.T.astype(np.float32)).astype(np.float64)
    means = in_class.T @ P
    residual = P - means[labels]
    covariance = residual.T @ residual / max(1, n_cells - n_classes)
    sphere = max(np.trace(covariance) / len(covariance), 1e-9) * np.eye(len(covariance))
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * sphere
    whitening = np.linalg.inv(np.linalg.cholesky(covariance))
    values = (center, scale, components, means, whitening, detected / n_cells)
    return Space(genes, *(value.astype(np.float32) for value in values))


def measure(
    space: Space, reference: Profile, X: sparse.csr_matrix, is_shared: np.ndarray, *, is_log: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    r"""Return nearest class and depth ``(N,)``, both parts of the score ``(2, N)`` and coordinates ``(N, k)``.

    The parts are the log squared Mahalanobis distance to the nearest class, and the deviance per count, in nats, of
    the cell's shares :math:`q` from the closest class profile :math:`\pi_k`,
    :math:`\min_k \sum_g q_g \log(q_g / \pi_{kg})`. Depth is the log of the number of detected genes over that of a
    mean cell. The coordinates ``(N, k)`` are those in which the Mahalanobis distance is Euclidean.
    """
    if X.shape[0] > BLOCK_SIZE:
        blocks = (X[start : start + BLOCK_SIZE] for start in range(0, X.shape[0], BLOCK_SIZE))
        measured = [measure(space, reference, block, is_shared, is_log=is_log) for block in blocks]
        nearest, depth, parts, points = zip(*measured, strict=True)
        return np.concatenate(nearest), np.concatenate(depth), np.concatenate(parts, axis=1), np.concatenate(points)
    logs = _logs(X, is_log=is_log, target=1e4 * float(reference.share[is_shared].sum()))
    whitening = space.whitening.astype(np.float64).T
    points = _project(space, logs, is_shared) @ whitening
    distance = cdist(points, space.means @ whitening, "sqeuclidean")
    rates = _rates(reference, is_shared)
    q = cp10k(X, is_log=is_log) / 1e4
    entropy = q.copy()
    entropy.data *= np.log(np.maximum(entropy.data, 1e-30))
    deviance = np.asarray(entropy.sum(axis=1)).ravel() - (q @ np.log(rates).T).max(axis=1)
    n_detected = np.asarray((X != 0).sum(axis=1)).ravel()
    depth = np.log(np.maximum(n_detected, 1) / max(space.detection[is_shared].sum(), 1e-9))
    parts = np.stack([np.log(np.maximum(distance.min(axis=1), 1e-12)), deviance])
    return distance.argmin(axis=1), depth, parts, points.astype(np.float32)


def _logs(X: sparse.csr_matrix, *, is_log: bool, target: float = 1e4) -> sparse.csr_matrix:
    """Return ``log1p`` of counts per ``target``, without explicit zeros."""
    logs = cp10k(X, is_log=is_log)  # a copy of the values; the indices are those of X
    logs.data *= target / 1e4
    np.log1p(logs.data, out=logs.data)
    if not logs.data.all():
        logs = logs.copy()
        logs.eliminate_zeros()
    return logs


def _detected_and_squares(logs: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of cells that express each gene and the sum of its squared values, ``(G,)`` each."""
    # In steps: bincount copies its input to types that take more memory.
    n_genes, step = logs.shape[1], 2**20
    detected, squares = np.zeros(n_genes, np.int64), np.zeros(n_genes)
    for start in range(0, logs.nnz, step):
        genes, values = logs.indices[start : start + step], logs.data[start : start + step]
        detected += np.bincount(genes, minlength=n_genes)
        squares += np.bincount(genes, np.square(values), n_genes)
    return detected, squares


def _directions(Z: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Return orthonormal rows ``(k, H)`` that span the principal components of ``Z (N, H)`` and the class ``means``."""
    n_components = max(1, min(N_COMPONENTS, len(Z) // 5, Z.shape[1] - 1))
    principal = randomized_svd(Z, n_components, random_state=0, n_iter=4)[2]
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    means = np.divide(means, lengths, out=np.zeros_like(means), where=lengths > 0)
    _, sizes, rows = np.linalg.svd(np.concatenate([principal, means]), full_matrices=False)
    return np.asarray(rows[sizes > 1e-6])


def _project(space: Space, logs: sparse.csr_matrix, is_shared: np.ndarray) -> np.ndarray:
    """Return coordinates ``(N, k)``, the ridge-regularised least-squares fit where genes are missing."""
    is_used = is_shared[space.genes]
    Z = (logs[:, space.genes[is_used]].toarray() - space.center[is_used]) * space.scale[is_used]
    components = space.components[:, is_used]
    if is_used.all():
        return np.asarray(Z @ components.T)
    gram = components @ components.T + RIDGE * np.eye(len(components))
    return np.asarray(np.linalg.solve(gram, components @ Z.T).T)


def _rates(reference: Profile, is_shared: np.ndarray) -> np.ndarray:
    """Return each shared gene's share of the counts of a class ``(C, G)``; rows sum to 1 over the shared genes."""
    mean = reference.restricted(np.ones(len(is_shared), bool)).mean.astype(np.float64) / 1e4
    n_cells = reference.n_cells[:, None]
    rates = (mean * n_cells + PRIOR_CELLS * reference.share) / (n_cells + PRIOR_CELLS) + 1e-6
    rates = np.where(is_shared, rates, 0)
    rates /= rates.sum(axis=1, keepdims=True)
    return np.where(is_shared, rates, 1.0)


def _calibrate(
    parts: np.ndarray, nearest: np.ndarray, depth: np.ndarray, n_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return slope over depth, and location and spread per class shrunk to those of all cells, of ``parts (2, N)``."""
    x, n_cells = depth - depth.mean(), np.bincount(nearest, minlength=n_classes)
    slope = parts @ x / (1.1 * x @ x + 1e-9)
    rest = parts - slope[:, None] * depth
    mean, variance = rest.mean(axis=1, keepdims=True), rest.var(axis=1, keepdims=True)
    sums = np.stack([np.bincount(nearest, part, n_classes) for part in rest])
    location = (sums + CLASS_PRIOR * mean) / (n_cells + CLASS_PRIOR)
    squares = np.square(rest - location[:, nearest])
    sums = np.stack([np.bincount(nearest, part, n_classes) for part in squares])
    spread = np.sqrt((sums + CLASS_PRIOR * variance) / (n_cells + CLASS_PRIOR))
    return slope, location, np.maximum(spread, 1e-9)


def _standardise(
    parts: np.ndarray,
    nearest: np.ndarray,
    depth: np.ndarray,
    slope: np.ndarray,
    location: np.ndarray,
    spread: np.ndarray,
) -> np.ndarray:
    """Return ``parts (2, N)`` in standard deviations above known cells of the nearest class, at the same depth."""
    rest = parts - slope[:, None] * depth
    return np.asarray((rest - location[:, nearest]) / spread[:, nearest])


def _sample(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return ascending positions of about ``N_CELLS`` cells at most, with all cells of small classes."""
    kept = []
    for label in np.unique(labels):
        cells = rng.permutation(np.flatnonzero(labels == label))
        kept.append(cells[: max(N_OF_CLASS, round(N_CELLS * len(cells) / len(labels)))])
    return np.sort(np.concatenate(kept))


def _folds(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the fold of each cell ``(N,)``, stratified by class; −1 for the only cell of a class."""
    folds = np.full(len(labels), -1)
    for label in np.unique(labels):
        cells = rng.permutation(np.flatnonzero(labels == label))
        if len(cells) > 1:
            folds[cells] = np.arange(len(cells)) % N_FOLDS
    return folds
