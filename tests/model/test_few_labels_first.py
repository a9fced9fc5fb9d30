"""train with few labels: its first training leaves the model alone and is shown."""

import pytest
from toy import QUICK, cells, pretrained

from celler.model import _few_labels


@pytest.fixture
def model():
    """Pretrained, with five labels of each class."""
    adata = cells(80)
    labels = adata.obs["cell_type"].astype(object)
    adata.obs["few"] = labels.where(labels.groupby(labels).cumcount() < 5, None)
    return pretrained(adata, {"labels_key": "few"}, max_epochs=1)


def test_train_keeps_reports_of_the_first_training_apart(model, monkeypatch):
    predict, guides = _few_labels.predict, []

    def reporting(state, cells, *arguments, **options):
        guides.append(state)
        cells.reference.reported.add("of the first training")
        return predict(state, cells, *arguments, **options)

    monkeypatch.setattr(_few_labels, "predict", reporting)
    before = set(model._reported)
    model.train(**QUICK | {"max_epochs": 1})
    assert len(guides) == 1
    assert guides[0].network is not model.module
    assert model._reported == before


def test_train_shows_a_bar_of_the_first_labels(model, capfd):
    model.train(**QUICK | {"max_epochs": 1, "refit": True, "show_progress": True})
    shown = capfd.readouterr().err
    titles = ["First labels", "Training", "Refitting"]
    assert sorted(titles, key=shown.index) == titles
    model.train(**QUICK | {"max_epochs": 1, "show_progress": True})
    assert "First labels" not in capfd.readouterr().err
