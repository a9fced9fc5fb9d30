"""Draw the two figures of the contributing page: python docs/development/drawings.py.

A drawing is a list of columns. A column is a list of (what there is, which files make it) from top to bottom.
"""

from html import escape
from pathlib import Path

IMAGES = Path(__file__).parents[1] / "images"
WIDTH, HEIGHT, GAP, MARGIN, TITLE = 340, 58, 34, 20, 40

LABELS = {
    "model.train()": [
        ("AnnData, the reference", "adata.X, adata.obs[labels_key]"),
        ("cells, labels, genes", "data/_expression, _genes, _sources"),
        ("minibatches of tokens and labels", "data/_samplers, _tokenizer, _loader"),
        ("logits of each expert", "network/_base, _encoders, _heads, _network"),
        ("loss and weights", "losses, training/_linear, _plan, _run"),
        ("ModelState, frozen", "model/_fit, _state"),
    ],
    "model.predict(), model.annotate()": [
        ("AnnData, the query", "adata.X"),
        ("cells in the model's genes", "data/_query, _genes"),
        ("tokens, their shift undone", "data/_tokenizer, inference/_shift"),
        ("logits, by the network of ModelState", "model/_forward, network"),
        ("probabilities", "inference/_share, _propagation, _calibration"),
        ("labels, in adata.obs", "inference/_labels, _novelty, model/_annotate"),
    ],
}
STORE = {
    "atlas.build()": [
        ("h5ad and zarr files", "one or many, never changed"),
        ("blocks of counts", "atlas/_files"),
        ("genes, labels, cells to keep", "atlas/_curate"),
        ("plan: split and order of cells", "atlas/_plan"),
        ("shuffled datasets", "atlas/_write"),
        ("store: cells.zarr, manifest.json", "atlas/_build"),
    ],
    "model.train(datamodule=...)": [
        ("store", "atlas/_store"),
        ("rows of an epoch", "atlas/_sampler"),
        ("cells, labels", "atlas/_source, _datamodule"),
        ("minibatches of tokens and labels", "data/_tokenizer, _loader"),
        ("ModelState", "as from an AnnData"),
        ("table of labels, next to the cells", "atlas/_annotations"),
    ],
}


def text(x: float, y: float, size: int, words: str, style: str = "") -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" {style}>{escape(words)}</text>'


def column(left: float, title: str, boxes: list[tuple[str, str]]) -> list[str]:
    """Return the elements of a column: its title, and boxes joined by arrows."""
    middle = left + WIDTH / 2
    parts = [text(middle, MARGIN + 16, 17, title, 'font-family="monospace" font-weight="bold"')]
    for i, (noun, files) in enumerate(boxes):
        top = MARGIN + TITLE + i * (HEIGHT + GAP)
        if i:
            parts.append(f'<path d="M{middle} {top - GAP + 3}V{top - 5}" stroke="#444" marker-end="url(#a)"/>')
        parts += [
            f'<rect x="{left}" y="{top}" width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#e8f1fa" stroke="#3b6ea5"/>',
            text(middle, top + 25, 16, noun),
            text(middle, top + 46, 12, files, 'font-family="monospace" fill="#345"'),
        ]
    return parts


def drawing(columns: dict[str, list[tuple[str, str]]]) -> str:
    """Return an SVG with the columns next to each other."""
    width = MARGIN + len(columns) * (WIDTH + MARGIN)
    height = 2 * MARGIN + TITLE + max(map(len, columns.values())) * (HEIGHT + GAP) - GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
        f' height="{height}" font-family="sans-serif" text-anchor="middle">',
        '<marker id="a" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#444"/></marker>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for i, (title, boxes) in enumerate(columns.items()):
        parts += column(MARGIN + i * (WIDTH + MARGIN), title, boxes)
    return "\n".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    (IMAGES / "labels.svg").write_text(drawing(LABELS), "utf-8")
    (IMAGES / "store.svg").write_text(drawing(STORE), "utf-8")
