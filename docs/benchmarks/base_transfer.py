"""How well encoders tell cell types of atlases that they have not seen: the ablation of the base.

    python docs/benchmarks/base_transfer.py profiles.npz WEIGHTS... --held-back Lung,Kidney,Retina,lymph [--data DATA]
        [--adapt 3]

WEIGHTS are files that ``base.py --without`` wrote with the same words. For each held-back data set, pseudo-cells of one
"study" (a gene-wise factor of its own, standard deviation 0.8) are labelled, 5 or 50 a type, and those of another
study are classified by logistic regression on the frozen embedding, on the expression, and on both (mean of the log
probabilities). With DATA, the folder of the benchmark's sets, real cells are classified in the same way; ``--adapt``
then trains the encoder for some epochs more on pseudo-cells of all profiles in the genes of each set.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from base import read_atlases
from scipy import sparse
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from celler.data._gene_table import human_symbols
from celler.data._pseudo_cells import CellProfiles, PseudoCellLoader, Simulation, draw_counts
from celler.network._base import Base, read_base
from celler.network._config import NetworkConfig
from celler.network._encoders import BaseEncoder
from celler.training._linear import logistic_regression
from celler.training._plan import PretrainingConfig
from celler.training._profiles import EPOCH, ProfileTasks, fit_profiles

N_GENES, N_QUERY, SHIFT, DEPTH = 2000, 40, 0.8, (150, 1500)


def encoder_of(base: Base, symbols: pd.Index) -> BaseEncoder:
    """Frozen encoder for genes."""
    encoder = BaseEncoder(NetworkConfig(n_genes=len(symbols), n_classes=1, encoder="base", **base.sizes))
    encoder.load_state_dict(base.encoder_weights(base.rows_of(symbols)))
    return encoder.eval().requires_grad_(False)


def embed(encoder: BaseEncoder, logs: sparse.csr_matrix) -> np.ndarray:
    """Embedding ``(N, D)`` of ``log1p`` of counts per 10,000."""
    genes, blocks = torch.arange(logs.shape[1]), range(0, logs.shape[0], 200)
    return np.concatenate([encoder.embed_panel(genes, dense(logs[i : i + 200])).numpy() for i in blocks])


def dense(X: sparse.csr_matrix) -> torch.Tensor:
    return torch.from_numpy(X.toarray().astype(np.float32))


def log_cp10k(counts: np.ndarray | sparse.csr_matrix) -> sparse.csr_matrix:
    X = sparse.csr_matrix(counts, dtype=np.float32)
    return (sparse.diags_array(1e4 / np.maximum(np.asarray(X.sum(axis=1)).ravel(), 1)) @ X).tocsr().log1p()


def on_embedding(train: np.ndarray, labels: np.ndarray, query: np.ndarray, C: float) -> tuple[np.ndarray, np.ndarray]:
    """Log probabilities of balanced logistic regression on an embedding, and its classes."""
    model = LogisticRegression(C=C, class_weight="balanced", max_iter=300).fit(train, labels)
    return model.predict_log_proba(query), model.classes_


def on_expression(train: sparse.csr_matrix, labels: np.ndarray, query: sparse.csr_matrix) -> np.ndarray:
    """Log probabilities of Celler's linear expert, a balanced logistic regression."""
    classes, codes = np.unique(labels, return_inverse=True)
    weight, bias = logistic_regression(train, codes, len(classes))
    return log_softmax(query @ weight + bias, axis=1)


def held_back(profiles: CellProfiles, seed: int = 7) -> list[tuple[CellProfiles, dict[int, tuple]]]:
    """Pseudo-cells of each held-back data set: labelled ones, 5 and 50 a type, and a query of another study."""
    rng, tasks = np.random.default_rng(seed), []
    for code in np.unique(profiles.datasets):
        own = profiles.share[profiles.datasets == code]
        panel = np.sort(np.argsort(-np.log1p(1e4 * np.nan_to_num(own)).var(0), kind="stable")[:N_GENES])
        part = CellProfiles(own[:, panel], profiles.genes[panel], np.arange(len(own)), np.zeros(len(own), int))
        how = Simulation(depth=DEPTH, shift=0.0)
        of_study = []
        for _ in range(2):
            factors = np.exp(SHIFT * rng.standard_normal(len(panel)))
            shifted = CellProfiles(part.share * factors, part.genes, part.types, part.datasets)
            of_study.append(PseudoCellLoader(shifted, how, 1, 1, 0.0, seed))
        cells = {}
        for n in (5, 50):
            labels, truth = np.repeat(part.types, n), np.repeat(part.types, N_QUERY)
            counts = [
                draw_counts(*drawn, np.arange(len(panel)), rng) for drawn in zip(of_study, (labels, truth), strict=True)
            ]
            cells[n] = (log_cp10k(counts[0]), labels, log_cp10k(counts[1]), truth)
        tasks.append((part, cells))
    return tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profiles", type=Path)
    parser.add_argument("weights", type=Path, nargs="+")
    parser.add_argument("--held-back", required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--adapt", type=int, default=0, help=f"epochs of {EPOCH} minibatches")
    args = parser.parse_args()
    words = tuple(args.held_back.split(","))
    everything = read_atlases(args.profiles)
    is_out = np.array([any(word in name for word in words) for name in everything.about["name"]])
    profiles = everything.profiles
    rows = is_out[profiles.datasets]
    tasks = held_back(CellProfiles(profiles.share[rows], profiles.genes, profiles.types[rows], profiles.datasets[rows]))
    print(f"{len(tasks)} data sets held back, {rows.sum()} types")
    own = [{n: on_expression(X, y, Q) for n, (X, y, Q, _) in cells.items()} for _, cells in tasks]
    found = []
    for path in args.weights:
        base, row = read_base(path), {"weights": path.stem}
        for (part, cells), alone in zip(tasks, own, strict=True):
            encoder = encoder_of(base, part.genes)
            for n, (X, y, Q, truth) in cells.items():
                log_p, classes = on_embedding(embed(encoder, X), y, embed(encoder, Q), 1.0 if n == 5 else 0.1)
                for name, values in (("base", log_p), ("expression", alone[n]), ("both", log_p + alone[n])):
                    score = f1_score(truth, classes[values.argmax(1)], average="macro")
                    row.setdefault(f"{n} {name}", []).append(score)
        found.append({name: value if name == "weights" else np.mean(value) for name, value in row.items()})
        if args.data is not None:
            found[-1] |= real_cells(base, args.data, everything.profiles, args.adapt)
        print(pd.DataFrame(found[-1:]).round(3).to_string(index=False), flush=True)
    print(pd.DataFrame(found).round(3).to_markdown(index=False) if len(found) > 1 else "")


def adapted(encoder: BaseEncoder, symbols: pd.Index, profiles: CellProfiles, n_epochs: int) -> BaseEncoder:
    """Train the encoder on pseudo-cells of the profiles, in the genes of a set."""
    place = profiles.genes.get_indexer(symbols)
    share = np.where(place >= 0, profiles.share[:, place], np.nan)
    own = CellProfiles(share, symbols, profiles.types, profiles.datasets)
    settings = PretrainingConfig(max_epochs=n_epochs, batch_size=256, learning_rate=5e-4, weight_decay=1e-4)
    loader = PseudoCellLoader(own, Simulation(), EPOCH, 256, 0.15, 0, np.flatnonzero(place >= 0))
    fit_profiles(encoder.requires_grad_(True), loader, ProfileTasks(), settings)
    return encoder.eval().requires_grad_(False)


def real_cells(base: Base, data: Path, profiles: CellProfiles, n_epochs: int) -> dict[str, float]:
    """Mean macro-F1 over the benchmark's named sets, of the embedding alone and with the expression."""
    from shared_tasks import TASKS

    scores: dict[str, list[float]] = {"real base": [], "real both": []}
    for name, task in TASKS.items():
        if name == "cbmc_longtail":  # its genes are placeholders
            continue
        reference, query, _ = next(iter(task(data, [0])))
        query = query[:, reference.var_names].copy() if set(reference.var_names) <= set(query.var_names) else query
        symbols = human_symbols(reference.var_names).names
        encoder, y = encoder_of(base, symbols), reference.obs["cell_type"].astype(str).to_numpy()
        if n_epochs:
            encoder = adapted(encoder, symbols, profiles, n_epochs)
        X, Q = log_cp10k(reference.X), log_cp10k(query.X)
        log_p, classes = on_embedding(embed(encoder, X), y, embed(encoder, Q), 0.1)
        both = log_p + on_expression(X, y, Q)
        truth = query.obs["cell_type"].astype(str).to_numpy()
        for key, values in (("real base", log_p), ("real both", both)):
            scores[key].append(f1_score(truth, classes[values.argmax(1)], average="macro"))
    return {key: float(np.mean(values)) for key, values in scores.items()}


if __name__ == "__main__":
    main()
