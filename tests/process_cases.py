"""What each of two processes does: it trains, labels and leaves what it saw. Run as a script by test_processes."""

import pickle
import sys
from pathlib import Path


def child(folder: Path, store: str) -> None:
    import toy

    from celler import training
    from celler.loading import ShuffledMinibatches
    from celler.mining import rank_and_size

    seen: dict[str, object] = {"visited": []}
    first = ShuffledMinibatches.__iter__

    def watched(self):
        for part in first(self):
            seen["visited"].append((self.epoch, part))
            yield part

    ShuffledMinibatches.__iter__ = watched
    drawn = training.TrainingPlan.on_train_epoch_end

    def noted(self):
        seen["noise"] = self.generator.get_state().numpy()
        drawn(self)

    training.TrainingPlan.on_train_epoch_end = noted
    model = toy.fit(toy.cells(400), accelerator="cpu", max_epochs=6)
    seen |= {
        "rank": rank_and_size(),
        "history": model.history,
        "validation": model.validation_indices_,
        "class_counts": model.class_counts_,
        "temperature": model._decision.temperature,
        "weights": {k: v.numpy() for k, v in model.module.state_dict().items()},
        "labels": model.predict(toy.cells(200, seed=1)),
        "hard": model.hard_cells_,
    }
    if store != "none":
        from celler.atlas import DataModule
        from celler.model import Celler

        dm = DataModule(store, labels_key="cell_type")
        streamed = Celler(registry=dm.registry, **toy.SMALL)
        streamed.train(datamodule=dm, accelerator="cpu", **toy.QUICK)
        from celler.atlas import inference

        inference.BLOCK_ROWS = 100
        seen["streamed_history"] = streamed.history
        seen["streamed_counts"] = streamed.class_counts_
        seen["streamed"] = streamed.predict(dataloader=dm.inference_dataloader(), soft=True)
        streamed.save(folder / f"model{rank_and_size()[0]}")
    (folder / f"{rank_and_size()[0]}.pickle").write_bytes(pickle.dumps(seen))


if __name__ == "__main__":
    child(Path(sys.argv[1]), sys.argv[2])
