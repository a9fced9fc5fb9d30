"""Operations and bytes of a forward pass and a training step, counted from their sizes. A helper of speed.py."""

from __future__ import annotations

from dataclasses import dataclass, replace

from celler.network._config import NetworkConfig

#: Bytes of a token as the tokenizer writes it: gene, bin, expression, mask.
TOKEN_BYTES = 4 + 1 + 4 + 1
#: Bytes of a stored value of a CSR matrix and its column.
ENTRY_BYTES = 8
#: Bytes per weight of a step of AdamW with clipping: the gradient is written and read twice, weight and both moments
#: are read and written.
STEP_BYTES = 4 * (3 + 6)


@dataclass(frozen=True)
class Ceilings:
    """Measured rates of a machine.

    products: operations/s of a matrix product. memory: bytes/s, read and written, of a copy larger than any cache.
    weights: the same of a copy as large as weights, gradients and moments.
    """

    products: float
    memory: float
    weights: float


@dataclass(frozen=True)
class Work:
    """What a computation needs.

    products: operations of matrix products and sums. streamed: bytes from or to memory. tables: bytes of rows of
    tables, weights and activations, which fit in the caches.
    """

    products: float = 0.0
    streamed: float = 0.0
    tables: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.products + other.products,
            self.streamed + other.streamed,
            self.tables + other.tables,
        )

    def __mul__(self, factor: float) -> Work:
        return Work(self.products * factor, self.streamed * factor, self.tables * factor)

    def seconds(self, ceilings: Ceilings) -> float:
        """The least time: products and bytes at once, each at its ceiling."""
        moving = self.streamed / ceilings.memory + self.tables / ceilings.weights
        return max(self.products / ceilings.products, moving)


def tokenizer_work(n_tokens: float, n_cells: int) -> Work:
    """Each entry read once, each token written once."""
    return Work(streamed=n_cells * n_tokens * (ENTRY_BYTES + TOKEN_BYTES))


def forward_work(config: NetworkConfig, n_tokens: float, n_cells: int) -> Work:
    """A forward pass of ``n_cells`` cells with ``n_tokens`` tokens each."""
    read = Work(streamed=n_cells * (n_tokens * TOKEN_BYTES + 4 * (config.d_model + config.n_classes)))
    per_cell = _head(config) + _sums(config, n_tokens) + _attention(config, n_tokens)
    return read + per_cell * n_cells + _per_pass(config)


def training_work(config: NetworkConfig, n_tokens: float, n_cells: int, n_weights: int) -> Work:
    """A step on a minibatch: forward, twice as much backward, and AdamW on ``n_weights`` weights.

    The gradient of a sum's table is one more sum, since the expression has no gradient. The evidence table is solved
    before and takes no part.
    """
    config = replace(config, use_evidence=False)
    forward, sums = forward_work(config, n_tokens, n_cells), _sums(config, n_tokens) * n_cells
    backward = replace((forward + sums * -1) * 2 + sums, streamed=0.0)
    return forward + backward + Work(12 * n_weights, 0, STEP_BYTES * n_weights)


def _head(config: NetworkConfig) -> Work:
    """Two dense layers, as of the ``"mlp"`` head."""
    d, c = config.d_model, config.n_classes
    return Work(products=2 * (d * 2 * d + 2 * d * c))


def _sums(config: NetworkConfig, n_tokens: float) -> Work:
    """Weighted sums over a cell's genes: the evidence table, and the additive part of an encoder."""
    width = config.n_classes * config.use_evidence
    width += config.d_model * (config.encoder in ("additive", "latent"))
    return Work(products=2 * n_tokens * width, tables=4 * n_tokens * width)


def _attention(config: NetworkConfig, n_tokens: float) -> Work:
    """Attention of one cell."""
    d, n_rows = config.d_model, n_tokens + 1
    if config.encoder == "additive":
        return Work()
    if config.encoder in ("transformer", "scgpt"):
        d_feed = config.d_feed if config.encoder == "scgpt" else 4 * d
        return _blocks(d, d_feed, n_rows) * config.n_layers + Work(tables=8 * n_rows * d)
    n_queries = config.n_heads * config.n_latents
    first = Work(products=2 * n_tokens * n_queries * d, tables=4 * n_tokens * (2 * n_queries + d))
    pool = Work(products=2 * config.n_latents * d * d)
    return first + _blocks(d, 4 * d, config.n_latents) * config.n_layers + pool


def _blocks(d: int, d_feed: int, n_rows: float) -> Work:
    """One transformer block over ``n_rows``: every product reads its input and writes its output once."""
    products = n_rows * (8 * d * d + 4 * d * d_feed) + 4 * n_rows * n_rows * d
    return Work(products=products, tables=4 * n_rows * (12 * d + 2 * d_feed))


def _per_pass(config: NetworkConfig) -> Work:
    """Work of a pass that does not depend on the number of cells: the latent encoder's products with its tables."""
    if config.encoder != "latent":
        return Work()
    d, rows = config.d_model, config.n_genes + config.n_bins
    n_queries = config.n_heads * config.n_latents
    keys = 2 * rows * (d * d + n_queries * d // config.n_heads)
    values = 2 * config.n_genes * d * d
    return Work(keys + values, 0, 4 * (rows * (2 * d + n_queries) + config.n_genes * 2 * d))
