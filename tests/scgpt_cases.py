"""An scGPT folder in its exact layout, and torch's own encoder assembled from the same tensors."""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ARGS = {
    "embsize": 16, "nheads": 4, "d_hid": 24, "nlayers": 2, "n_layers_cls": 3, "dropout": 0.2,
    "pad_token": "<pad>", "pad_value": -2, "mask_value": -1, "n_bins": 51,
    "input_style": "binned", "input_emb_style": "continuous", "max_seq_len": 1200,
}  # fmt: skip
SPECIAL = ("<pad>", "<cls>", "<eoc>")


def tensors(n_tokens: int, args: dict = ARGS, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors under the names that scGPT saves, heads included."""
    d, feed = args["embsize"], args["d_hid"]
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator) * scale

    def linear(name: str, n_out: int, n_in: int) -> dict[str, Tensor]:
        weights = normal(n_out, n_in, scale=n_in**-0.5)
        return {f"{name}.weight": weights, f"{name}.bias": normal(n_out, scale=0.1)}

    def norm(name: str) -> dict[str, Tensor]:
        return {f"{name}.weight": 1 + normal(d, scale=0.1), f"{name}.bias": normal(d, scale=0.1)}

    state = {"encoder.embedding.weight": normal(n_tokens, d)} | norm("encoder.enc_norm")
    state |= linear("value_encoder.linear1", d, 1) | linear("value_encoder.linear2", d, d)
    state |= norm("value_encoder.norm")
    for i in range(args["nlayers"]):
        layer = f"transformer_encoder.layers.{i}"
        attention = linear("in_proj", 3 * d, d)
        state |= {f"{layer}.self_attn.{name.replace('.', '_')}": t for name, t in attention.items()}
        state |= linear(f"{layer}.self_attn.out_proj", d, d)
        state |= linear(f"{layer}.linear1", feed, d) | linear(f"{layer}.linear2", d, feed)
        state |= norm(f"{layer}.norm1") | norm(f"{layer}.norm2")
    for i, n_out in ((0, d), (2, d), (4, 1)):
        state |= linear(f"decoder.fc.{i}", n_out, d)
    state |= linear("cls_decoder._decoder.0", d, d) | norm("cls_decoder._decoder.2")
    state |= linear("cls_decoder.out_layer", 7, d)
    return state | {"flag_encoder.weight": normal(2, d)}


def write_folder(
    folder: Path,
    genes: list[str],
    *,
    args: dict | None = None,
    specials: tuple[str, ...] = SPECIAL,
    state: dict[str, Tensor] | None = None,
    file_name: str = "best_model.pt",
) -> dict[str, Tensor]:
    """Write the three files and return the tensors. ``specials`` are those that vocab.json lists."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: row for row, token in enumerate([*genes, *specials])}
    state = tensors(len(genes) + len(SPECIAL)) if state is None else state
    (folder / "args.json").write_text(json.dumps(ARGS | (args or {})))
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    torch.save(state, folder / file_name)
    return state


class PlainScGPT(nn.Module):
    """torch.nn.TransformerEncoder(norm_first=False) with scGPT's two encoders in front, one cell at a time."""

    def __init__(self, state: dict[str, Tensor], args: dict = ARGS) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            args["embsize"], args["nheads"], args["d_hid"], args["dropout"], batch_first=True
        )
        self.state, self.args = state, args
        self.layers = nn.TransformerEncoder(layer, args["nlayers"], enable_nested_tensor=False)
        prefix = "transformer_encoder."
        own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        self.layers.load_state_dict(own)
        self.eval()

    def part(self, name: str) -> tuple[Tensor, Tensor]:
        return self.state[f"{name}.weight"], self.state[f"{name}.bias"]

    def forward(self, rows: Tensor, values: Tensor, is_padding: Tensor) -> Tensor:
        """Rows of the embedding, values and padding ``(B, S)``, the cell token first -> ``(B, S, D)``."""
        d = (self.args["embsize"],)
        gene = F.layer_norm(
            F.embedding(rows, self.state["encoder.embedding.weight"]),
            d,
            *self.part("encoder.enc_norm"),
        )
        hidden = F.relu(F.linear(values.clamp(max=512)[..., None], *self.part("value_encoder.linear1")))
        value = F.linear(hidden, *self.part("value_encoder.linear2"))
        value = F.layer_norm(value, d, *self.part("value_encoder.norm"))
        return self.layers(gene + value, src_key_padding_mask=is_padding)


def bins_of(row: np.ndarray, n_bins: int = 51) -> np.ndarray:
    """scGPT's bins of one cell's values, zero where there is none."""
    bins, is_there = np.zeros(len(row)), row > 0
    edges = np.quantile(row[is_there], np.linspace(0, 1, n_bins - 1))
    bins[is_there] = np.digitize(row[is_there], edges)
    return bins


def expected_embedding(
    state: dict[str, Tensor], X: np.ndarray, rows: np.ndarray, cell_row: int, args: dict = ARGS
) -> np.ndarray:
    """The ``<cls>`` embedding ``(N, D)`` of cells ``X (N, G)`` whose genes have the ``rows`` of the embedding."""
    model, n_most = PlainScGPT(state, args), int((X > 0).sum(1).max()) + 1
    tokens = torch.zeros(len(X), n_most, dtype=torch.long)
    values = torch.full((len(X), n_most), float(args["pad_value"]))
    is_padding = torch.ones(len(X), n_most, dtype=torch.bool)
    tokens[:, 0], is_padding[:, 0] = cell_row, False
    for i, row in enumerate(X):
        n = int((row > 0).sum())
        tokens[i, 1 : n + 1] = torch.from_numpy(rows[row > 0])
        values[i, 1 : n + 1] = torch.from_numpy(bins_of(row, args["n_bins"])[row > 0]).float()
        is_padding[i, 1 : n + 1] = False
    with torch.no_grad():
        return model(tokens, values, is_padding)[:, 0].numpy()
