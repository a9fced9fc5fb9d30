"""A user's script under mypy --strict: the hints of the public API, as they look from outside."""

from pathlib import Path
from typing import Any, assert_type

import anndata as ad
import numpy as np
import pandas as pd

import celler as cl
from celler.model import Celler


def annotate(reference: ad.AnnData, query: ad.AnnData) -> pd.DataFrame:
    Celler.setup_anndata(reference, labels_key="cell_type", layer="counts")
    model = cl.model.Celler(reference, d_model=32)
    assert_type(model, Celler)
    model.train(max_epochs=3, loss=cl.losses.HDM(base=cl.losses.GInf(mean=-5.0)), replay=None)
    assert_type(model.train(seed=1), None)
    assert_type(model.classes_, np.ndarray)
    assert_type(model.get_latent_representation(query), np.ndarray)
    assert_type(Celler.load("model"), Celler)
    assert_type(Celler.from_pretrained("scgpt", reference, freeze_encoder=True), Celler)
    model.annotate(query, key_added="celler")
    result = cl.tl.evaluate(query, "cell_type", "celler")
    assert_type(result, cl.tl.Evaluation)
    assert_type(cl.tl.report(query, "report.html", truth_key="cell_type"), Path)
    model.train(max_epoch=3)  # type: ignore[call-arg]
    model.predict(query, soft="yes")  # type: ignore[arg-type]
    cl.pl.confusion(query, "cell_type", "celler", figsze=(3, 3))  # type: ignore[call-arg]
    return result.per_class


def methods(model: Celler, query: ad.AnnData) -> None:
    model.pretrain(max_epochs=2)
    model.annotate(query, cluster_key="leiden", backoff=True, propagate=True)
    labels = model.predict(query, threshold=0.5, candidates=["B", "T"])
    probabilities = model.predict(query, soft=True)
    print(labels, probabilities)
    assert_type(model.get_gene_importance(query, groupby="celler", n_genes=3), pd.DataFrame)
    assert_type(model.get_novelty(query), np.ndarray)
    assert_type(model.hard_cells_, pd.DataFrame)
    assert_type(model.parents_, dict[str, str])
    model.save("model", overwrite=True)
    assert_type(model.push_to_hub("owner/model", private=True, license="mit"), str)
    assert_type(Celler.load_query_data(query, model, extend_labels=True), Celler)
    assert_type(Celler.prepare_query_anndata(query, "model"), ad.AnnData)


def losses() -> list[cl.losses.Loss]:
    return [
        cl.losses.CrossEntropy(label_smoothing=0.1),
        cl.losses.Focal(),
        cl.losses.BalancedSoftmax(),
        cl.losses.RIDE(diversity=0.05),
        cl.losses.HDM(n_hard=3, base=cl.losses.GInf(amplitude=0.2)),
        cl.losses.DEFAULT,
    ]


def look(query: ad.AnnData, model: Celler) -> Any:
    cl.pl.marker_bubble(query, {"B": ["CD79A"]}, groupby="celler", show=False)
    cl.pl.prediction_bubble(query, "cell_type", "celler", parents="lineage", show=False)
    cl.pl.class_counts(query.obs["cell_type"].value_counts(), show=False)
    cl.pl.alluvial(query, "cell_type", "celler", figsize=(5, 4))
    cl.pl.composition(query, "celler", "donor")
    cl.pl.confidence(query, basis=None)
    cl.pl.reliability(query, "cell_type", "celler", n_bins=10)
    cl.pl.history(model.history)
    result = cl.tl.evaluate(query, "cell_type", "celler", confidence="celler_confidence")
    assert_type(result.summary, dict[str, float])
    cl.tl.majority_vote(query, "celler", "leiden", min_share=0.5)
    assert_type(cl.tl.rank_markers(query, "celler", n_genes=5), pd.DataFrame)
    return cl.pl.f1_by_frequency({"Celler": result}, return_fig=True)


def prepare(query: ad.AnnData, model: Celler) -> ad.AnnData:
    assert_type(cl.pp.check_input(query, layer="counts"), cl.pp.InputReport)
    renamed, report = cl.pp.align_genes(query, model, mapping={"Ms4a1": "MS4A1"})
    assert_type(report, cl.pp.GeneAlignment)
    tree = cl.labels.LabelTree.from_obo("cl-basic.obo", query.obs["cell_type"])
    Celler.setup_anndata(query, labels_key="cell_type", parents=tree)
    assert_type(cl.datasets.pbmc68k(), ad.AnnData)
    return renamed


def stream(files: list[str], query: ad.AnnData) -> pd.DataFrame:
    storage = cl.atlas.Storage(memory_gb=2)
    built = cl.atlas.build(files, "store", labels_key="label", test_size=0.2, storage=storage)
    assert_type(built, cl.atlas.Summary)
    assert_type(cl.atlas.summary("store").by("tissue"), pd.DataFrame)
    dm = cl.atlas.DataModule("store", labels_key="cell_type")
    model = Celler(registry=dm.registry)
    model.train(datamodule=dm, masked_weight=0.0)
    print(model.predict(dataloader=dm.inference_dataloader(split="test")))
    model.annotate_store(dm, "celler", treshold=0.5)  # type: ignore[call-arg]
    assert_type(dm.annotation("celler"), pd.DataFrame)
    cl.pl.cells_by(built.counts, ["tissue"], show=False)
    return dm.annotation("celler")


def compare(reference: ad.AnnData, query: ad.AnnData) -> str:
    part, rest = cl.benchmark.long_tail_split(reference, "cell_type", imbalance=1, seed=0)
    rows = cl.benchmark.run(part, rest, "cell_type", ["celler", "logreg"], seeds=2)
    cl.benchmark.score_figure(rows)
    cl.benchmark.class_figure(cl.benchmark.class_scores(rows))
    return cl.benchmark.summary_text(cl.benchmark.summary(rows))
