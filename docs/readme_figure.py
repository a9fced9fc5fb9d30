"""Draw the figure of the README: 350 blood cells labelled from 350 others, and markers of the labels.

Cells and markers are those of ``celler demo``; kinds of T cells count as one type. Run it after a change of the bubble
chart or of the default model, and look at the picture: ``python docs/readme_figure.py``.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import celler as cl
from celler.cli._demo import MARKERS
from celler.pl._colors import color_classes

OUT = Path(__file__).parent / "images" / "readme.png"
DPI = 110
NAMES = {
    "Dendritic": "dendritic cell",
    "CD14+ Monocyte": "monocyte",
    "CD19+ B": "B cell",
    "CD56+ NK": "NK cell",
    "CD34+": "progenitor",
}
RARE = 20  # cells of the reference


def labelled():
    """Return the query with its labels, and the reference cells of each type, the most first."""
    adata = cl.datasets.pbmc68k()
    adata.obs["type"] = adata.obs["cell_type"].map(lambda name: NAMES.get(name, "T cell")).astype("category")
    reference, query = cl.benchmark.long_tail_split(adata, "type", imbalance=1, seed=0)
    cl.model.Celler.setup_anndata(reference, labels_key="type")
    model = cl.model.Celler(reference)
    model.train(show_progress=False)
    model.annotate(query)
    return query, reference.obs["type"].value_counts()


def draw_map(query, counts, ax):
    """Draw the labels on the UMAP, with a ring around each cell that got the label of a rare type."""
    labels, truth = (query.obs[key].astype(str).to_numpy() for key in ("celler", "type"))
    colors = color_classes(sorted(counts.index))
    for name, count in counts.items():
        is_type = labels == name
        cells = query.obsm["X_umap"][is_type]
        ax.scatter(*cells.T, s=16, color=colors[name], linewidths=0)
        if count < RARE:
            found = is_type & (truth == name)
            text = f"{name}: {count} reference cells, {found.sum()} of {(truth == name).sum()} found"
            ax.scatter(*cells.T, s=70, color=colors[name], edgecolors="black", linewidths=0.9, label=text)
        else:
            middle, bottom = np.median(cells[:, 0]), np.quantile(cells[:, 1], 0.02)
            ax.text(middle, bottom - 0.6, name, ha="center", va="top", fontsize=10, fontweight="bold")
    ax.margins(y=0.09)
    ax.legend(frameon=False, fontsize=10, loc="upper center", bbox_to_anchor=(0.5, -0.05))
    ax.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2", title="Labels, rare types ringed")


def picture(figure):
    """Return what a figure shows, ``(height, width, 3)``."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]


def beside(left, right):
    """Put two pictures side by side, both centred, on white."""
    height = max(left.shape[0], right.shape[0])

    def padded(image):
        above = (height - image.shape[0]) // 2
        below = height - image.shape[0] - above
        return np.pad(image, ((above, below), (0, 0), (0, 0)), constant_values=255)

    return np.hstack([padded(left), padded(right)])


def main():
    plt.rcParams["figure.dpi"] = DPI
    query, counts = labelled()
    figure, ax = plt.subplots(figsize=(4.6, 4.6), layout="constrained")
    draw_map(query, counts, ax)
    left = picture(figure)
    cl.pl.marker_bubble(query, MARKERS, groupby="celler", show=False)
    plt.imsave(OUT, beside(left, picture(plt.gcf())))


if __name__ == "__main__":
    main()
