"""An annotation without a model, and a parser of pages that knows what is wrong with one."""

import base64
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import anndata as ad
import numpy as np
import pandas as pd

CLASSES = ["B", "T", "Rare"]
VOID = {"meta", "link", "img", "br", "hr", "input"}


def annotated(classes: list[str] = CLASSES, n_obs: int = 120, **parts) -> ad.AnnData:
    """Cells of three types with what `annotate` writes; of each type's cells the last has the next type's label.

    Of 30 genes, 10 are markers of each type. The third type has 6 cells.
    """
    rng = np.random.default_rng(0)
    types = np.repeat([0, 1, 2], [n_obs // 2, n_obs - n_obs // 2 - 6, 6])
    labels = types.copy()
    labels[np.flatnonzero(np.diff(types, append=3))] = [1, 2, 0]
    rates = np.where(np.arange(30) // 10 == types[:, None], 4.0, 0.3)
    adata = ad.AnnData(np.log1p(rng.poisson(rates)).astype(np.float32))
    adata.obs_names = [f"cell {i}" for i in range(n_obs)]
    adata.var_names = [f"g{i}" for i in range(30)]
    adata.obs["celler"] = pd.Categorical.from_codes(labels, classes)
    adata.obs["celler_confidence"] = np.where(labels == types, 0.9, 0.4)
    adata.obs["celler_second"] = pd.Categorical.from_codes((labels + 1) % 3, classes)
    adata.obs["celler_novelty"] = np.linspace(-1, 1, n_obs)
    adata.obs["truth"] = pd.Categorical.from_codes(types, classes)
    adata.obs["leiden"] = pd.Categorical(types.astype(str))
    adata.obsm["X_umap"] = np.eye(3)[types][:, :2] * 9 + rng.normal(size=(n_obs, 2))
    adata.uns["celler"] = record(classes, types, labels) | parts
    return adata


def record(classes: list[str], types: np.ndarray, labels: np.ndarray) -> dict:
    pairs = pd.crosstab(types, labels).stack()
    pairs = pairs[pairs > 0]
    return {
        "celler_version": "0.1.0",
        "date": "2026-03-05",
        "classes": classes,
        "parents": [],
        "temperature": 1.25,
        "threshold": "none",
        "unknown_label": "Unknown",
        "novelty_threshold": "none",
        "backoff": False,
        "shift": 0.62,
        "expected_accuracy": 0.87,
        "novelty_location": 0.1,
        "propagation": "none",
        "false_alarm_rate": "none",
        "cluster_key": "none",
        "correct_shift": True,
        "genes": {"matched": 30, "missing": 10, "extra": 2, "expression_share": 0.8},
        "model": {
            "source": "my_model",
            "license": "none",
            "network": "Celler-base (384 wide)",
            "names_atlases": False,
            "atlases": [],
            "labels_key": "cell_type",
            "class_counts": [500, 400, 9],
            "labelled_cells": 909,
            "training": "kept epoch 12 of 20, seed 3",
        },
        "warnings": ["30 of the model's 40 genes are in the query."],
        "by_markers": {
            "type": [classes[k] for k, _ in pairs.index],
            "label": [classes[k] for _, k in pairs.index],
            "n_cells": pairs.tolist(),
        },
        "missed_types": {"type": [], "n_cells": [], "n_other": [], "labels": [], "markers": []},
        "markers": {"type": np.repeat(classes, 2).tolist(), "gene": ["g0", "g1", "g10", "g11", "g20", "g21"]},
    }


class Page(HTMLParser):
    """What a page holds: ``errors`` of its nesting, texts by tag, addresses that it loads, links, and pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source, self.open, self.errors = text, [], []
        self.tags: list[tuple[str, dict]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        self.errors += [f"<{tag}> is not closed" for tag in self.open]

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.texts.setdefault(tag, []).append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.errors.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data):
        for tag in set(self.open):
            self.texts[tag][-1] += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(self.texts["body"][0].split())

    @property
    def headings(self) -> list[int]:
        return [int(tag[1]) for tag, _ in self.tags if re.fullmatch("h[1-6]", tag)]

    @property
    def loads(self) -> list[str]:
        """Addresses that a browser loads without being asked."""
        found = [
            attributes[name] for _, attributes in self.tags for name in ("src", "srcset", "data") if name in attributes
        ]
        found += [attributes["href"] for attributes in self.all("link")]
        return found + re.findall(r"url\(([^)]*)\)|@import ([^;]*)", " ".join(self.texts["style"]))

    @property
    def pictures(self) -> list[bytes]:
        return [base64.b64decode(image["src"].partition(",")[2], validate=True) for image in self.all("img")]

    def rows(self, caption: str) -> list[list[str]]:
        """Rows of the table of this caption, as texts."""
        (table,) = re.findall(rf"<table>\s*<caption>{caption}</caption>(.*?)</table>", self.source, re.DOTALL)
        body = table.split("<tbody>")[1]
        rows = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
        return [
            [
                " ".join(re.sub("<[^>]*>", "", cell).split())
                for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
            ]
            for row in rows
        ]


def references(svg: bytes) -> list[str]:
    """Addresses within an SVG."""
    root = ElementTree.fromstring(svg)
    return [value for node in root.iter() for name, value in node.attrib.items() if name.endswith(("href", "src"))]
