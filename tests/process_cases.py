"""What each of two processes does: it trains, labels and leaves what it saw. A script of test_processes.py."""

import pickle
import sys
from pathlib import Path

import numpy as np


def stopped_early(seen: dict[str, object]) -> None:
    """A training that stops at the first epoch that is further below the best than a standard error."""
    import toy

    from celler.losses import DEFAULT
    from celler.training import _callbacks

    first = _callbacks.BestWeights.__init__
    _callbacks.BestWeights.__init__ = lambda self, module, _: first(self, module, 1)
    options = {"max_epochs": 60, "learning_rate": 3.0, "loss": DEFAULT}  # the solved evidence table would hold
    seen["stopped"] = toy.fit(toy.cells(400), accelerator="cpu", **options).history
    _callbacks.BestWeights.__init__ = first


def embedded(seen: dict[str, object], model) -> None:
    """What a frozen encoder's embedding is, computed while the processes are connected."""
    import toy

    from celler.data._sources import InMemoryCells
    from celler.model._fit import Loaders, TrainingCells, embed
    from celler.training._plan import TrainingConfig

    adata = toy.cells(101)
    source = InMemoryCells(adata.X, np.zeros(101, np.int64))
    config = TrainingConfig(max_epochs=1, batch_size=8, show_progress=False)
    cells = TrainingCells(source, adata.obs_names.__getitem__, False)
    loaders = Loaders(cells, model._state.tokenizer, config)
    seen["embedding"] = embed(model.module, loaders, np.arange(1, 101)).numpy()


def of_store(seen: dict[str, object], folder: Path, store: str) -> None:
    """Pretraining, training, stopping, going on and labelling, from a store."""
    import toy

    from celler._utils._distributed import rank_and_size
    from celler.atlas import DataModule
    from celler.atlas import _store as inference
    from celler.model import Celler

    dm = DataModule(store, labels_key="cell_type")
    how = toy.QUICK | {"datamodule": dm, "accelerator": "cpu"}
    streamed = Celler(registry=dm.registry, **toy.SMALL)
    streamed.train(**how)
    with toy.stopped_in(2):
        Celler(registry=dm.registry, **toy.SMALL).train(**how, ckpt_path=folder / "last.ckpt")
    resumed = Celler(registry=dm.registry, **toy.SMALL)
    resumed.train(**how, ckpt_path=folder / "last.ckpt")
    inference.ROWS_OF_ANNDATA = 100
    seen |= {
        "streamed_history": streamed.history,
        "resumed_history": resumed.history,
        "streamed_counts": streamed.class_counts_,
        "streamed": streamed.predict(dataloader=dm.inference_dataloader(), soft=True),
        "resumed": resumed.predict(dataloader=dm.inference_dataloader(), soft=True),
    }
    streamed.save(folder / f"model{rank_and_size()[0]}")
    pretrained = Celler(registry=dm.registry, **toy.SMALL)
    pretrained.pretrain(2, datamodule=dm, accelerator="cpu", show_progress=False)
    seen["pretrained"] = pretrained.pretraining_history
    seen["pretrained_weights"] = pretrained.module.encoder.gene.detach().numpy()


def of_base(seen: dict[str, object]) -> None:
    """The base learns profiles and a reference, before and while the processes are connected."""
    import anndata as ad
    import toy
    from base_cases import N_GENES, SYMBOLS, known_cells, untrained

    from celler.model import _profiles

    _profiles.EPOCH = 4
    profiles = ad.AnnData(np.random.default_rng(0).gamma(0.5, size=(4, N_GENES)))
    profiles.var_names = list(SYMBOLS)
    for name in ("base", "base_again"):
        model = untrained(known_cells(200))
        model.learn_profiles(profiles, max_epochs=1, batch_size=32, accelerator="cpu", show_progress=False)
        model.train(**toy.QUICK, accelerator="cpu")
        seen[name] = {k: v.numpy() for k, v in model.module.state_dict().items()}


def child(folder: Path, store: str) -> None:
    import toy

    from celler._utils._distributed import rank_and_size
    from celler.data._samplers import ShuffledSampler
    from celler.training import _plan as training

    seen: dict[str, object] = {"visited": []}
    first = ShuffledSampler.__iter__

    def watched(self):
        for part in first(self):
            seen["visited"].append((self.epoch, part))
            yield part

    ShuffledSampler.__iter__ = watched
    drawn = training.TrainingPlan.on_train_epoch_end

    def noted(self):
        seen["noise"] = self.generator.get_state().numpy()
        drawn(self)

    training.TrainingPlan.on_train_epoch_end = noted
    model = toy.fit(toy.cells(400), accelerator="cpu", max_epochs=6)
    ShuffledSampler.__iter__ = first
    seen |= {
        "rank": rank_and_size(),
        "history": model.history,
        "validation": model.validation_indices_,
        "class_counts": model.class_counts_,
        "temperature": model._state.decision.temperature,
        "weights": {k: v.numpy() for k, v in model.module.state_dict().items()},
        "labels": model.predict(toy.cells(200, seed=1)),
        "hard": model.hard_cells_,
    }
    if store != "none":
        of_base(seen)
        embedded(seen, model)
        stopped_early(seen)
        of_store(seen, folder, store)
    (folder / f"{rank_and_size()[0]}.pickle").write_bytes(pickle.dumps(seen))


if __name__ == "__main__":
    child(Path(sys.argv[1]), sys.argv[2])
