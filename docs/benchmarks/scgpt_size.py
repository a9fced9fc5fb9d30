"""Speed and memory of a model of scGPT's size with random weights: embedding and fine-tuning.

Seconds are of processor time over all threads, which other programs on the machine do not lengthen.

    python docs/benchmarks/scgpt_size.py FILE.h5ad --labels-key cell_type
"""

import argparse
import json
import resource
import tempfile
import time
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import torch

from celler.model import Celler
from celler.network._config import NetworkConfig
from celler.network._scgpt import ScGPTEncoder

N_TOKENS = 60_697
ARGS = {
    "embsize": 512,
    "nheads": 8,
    "d_hid": 512,
    "nlayers": 12,
    "dropout": 0.2,
    "n_bins": 51,
    "pad_value": -2,
}
NAMES = {
    "gene_norm": "encoder.enc_norm", "value.0": "value_encoder.linear1", "value.2": "value_encoder.linear2",
    "value.3": "value_encoder.norm", "blocks": "transformer_encoder.layers", "in_projection": "self_attn.Wqkv",
    "out_projection": "self_attn.out_proj", "feed_in": "linear1", "feed_out": "linear2",
    "attention_norm": "norm1", "feed_norm": "norm2",
}  # fmt: skip


def write_folder(folder: Path, genes: list[str]) -> None:
    """An scGPT folder with random weights, its vocabulary filled up to scGPT's number of tokens."""
    tokens = [
        *genes,
        *(f"gene {i}" for i in range(N_TOKENS - 3 - len(genes))),
        "<pad>",
        "<cls>",
        "<eoc>",
    ]
    sizes = {"d_model": 512, "n_heads": 8, "n_layers": 12, "d_feed": 512}
    encoder = ScGPTEncoder(NetworkConfig(n_genes=1, n_classes=1, encoder="scgpt", **sizes))
    state = {}
    for name, weights in encoder.state_dict().items():
        for ours, theirs in NAMES.items():
            name = name.replace(f"{ours}.", f"{theirs}.")
        state[name] = weights
    state = {name: weights for name, weights in state.items() if "." in name}
    state["encoder.embedding.weight"] = torch.randn(N_TOKENS, 512)
    (folder / "args.json").write_text(json.dumps(ARGS))
    (folder / "vocab.json").write_text(json.dumps({token: row for row, token in enumerate(tokens)}))
    torch.save(state, folder / "best_model.pt")


def peak() -> float:
    """GiB that the process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Print a line per measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--labels-key", default="cell_type")
    parser.add_argument("--n-cells", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if not Path(options.file).is_file():
        raise SystemExit(f"{options.file} is not there; pass an h5ad file with counts and gene symbols.")
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    adata = ad.read_h5ad(options.file)
    adata = adata[np.random.default_rng(0).choice(adata.n_obs, options.n_cells, replace=False)].copy()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_folder(folder, list(adata.var_names))
        print(f"{np.median(np.diff(adata.X.indptr)):.0f} genes per cell, {peak():.2f} GiB before")
        start = time.process_time()
        model = Celler.from_pretrained(folder, accelerator="cpu")
        print(f"reading the folder: {time.process_time() - start:.1f} s, peak {peak():.2f} GiB")
        for max_genes in (300, 1200):
            model = Celler.from_pretrained(folder, accelerator="cpu", max_genes=max_genes)
            start = time.process_time()
            model.get_latent_representation(adata)
            seconds = (time.process_time() - start) / adata.n_obs
            print(f"embedding, max_genes={max_genes}: {seconds:.2f} s a cell, peak {peak():.2f} GiB")
        Celler.setup_anndata(adata, options.labels_key)
        for is_frozen in (True, False):
            model = Celler.from_pretrained(folder, adata, freeze_encoder=is_frozen, max_genes=300)
            for n_epochs in (1, 2):  # the second time it continues
                start = time.process_time()
                model.train(n_epochs, "cpu", train_size=1.0, show_progress=False)
                seconds = time.process_time() - start
                print(f"frozen={is_frozen}, {n_epochs} epochs: {seconds:.1f} s, peak {peak():.2f} GiB")


if __name__ == "__main__":
    main()
