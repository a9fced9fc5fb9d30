"""What must hold on a GPU as on a CPU; without a GPU the same tests run on the CPU."""

from pathlib import Path

import numpy as np
import pytest
import torch
from toy import cells, fit, pretrained, truth
from worker_cases import drawn

from celler._utils import _workers
from celler.datasets import pbmc68k
from celler.model import Celler, _celler

ACCELERATOR = "gpu" if torch.cuda.is_available() else "cpu"
DEVICE = "cuda" if ACCELERATOR == "gpu" else "cpu"
#: Probabilities of one network on two devices differ by the order of sums, of bfloat16 by its 8 bits.
ATOL = {"float32": 1e-4, "bfloat16": 0.05}
pytestmark = pytest.mark.gpu


def both(model: Celler, folder: Path, precision: str = "float32") -> tuple[Celler, Celler]:
    """One model on the CPU in float32, and on the device in ``precision``."""
    model.save(folder / "model")
    other = Celler.load(folder / "model", accelerator=ACCELERATOR)
    other._become(other._state.on(other.device, precision))
    assert other.device.type == DEVICE
    return Celler.load(folder / "model", accelerator="cpu"), other


@pytest.mark.parametrize("precision", ATOL)
@pytest.mark.parametrize("encoder", ["additive", "latent", "transformer"])
def test_predict_is_that_of_the_cpu(tmp_path, encoder, precision):
    query = cells(seed=1)
    on_cpu, on_device = both(fit(cells(), network={"encoder": encoder}), tmp_path, precision)
    expected, found = (model.predict(query, soft=True).to_numpy() for model in (on_cpu, on_device))
    np.testing.assert_allclose(found, expected, rtol=0, atol=ATOL[precision])
    top_two = np.sort(expected, axis=1)[:, -2:]
    is_clear = top_two[:, 1] - top_two[:, 0] > 2 * ATOL[precision]
    assert is_clear.mean() > 0.8
    assert (found.argmax(1) == expected.argmax(1))[is_clear].all()


@pytest.mark.filterwarnings("ignore::UserWarning")  # of few genes and shift
def test_predict_by_the_base_is_that_of_the_cpu(tmp_path):
    blood = pbmc68k()
    reference, query = blood[::2].copy(), blood[1::2].copy()
    Celler.setup_anndata(reference, labels_key="cell_type")
    model = Celler(reference, encoder="base", precision="float32")
    model.train(max_epochs=1, refit=False, show_progress=False)
    on_cpu, on_device = both(model, tmp_path)
    for options in ({}, {"propagate": True}, {"false_alarm_rate": 0.05}):
        expected, found = (np.asarray(each.predict(query, **options)) for each in (on_cpu, on_device))
        assert (found == expected).mean() > 0.995, options
    expected, found = (each.get_latent_representation(query) for each in (on_cpu, on_device))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


def test_train_on_the_device_learns_as_on_the_cpu():
    query = cells(seed=1)
    on_cpu, on_device = (fit(cells(), max_epochs=20, accelerator=where) for where in ("cpu", ACCELERATOR))
    assert on_device.device.type == DEVICE
    right = [float((each.predict(query) == truth(query)).mean()) for each in (on_cpu, on_device)]
    assert right[1] > right[0] - 0.05
    assert np.isfinite(on_device.history["train_loss"].to_numpy(float)).all()


def test_a_seed_gives_the_same_labels_twice():
    query = cells(seed=1)
    first, second = (fit(cells(), accelerator=ACCELERATOR, seed=3).predict(query, soft=True) for _ in range(2))
    np.testing.assert_allclose(first.to_numpy(), second.to_numpy(), rtol=0, atol=1e-3 if DEVICE == "cuda" else 0)


def test_pretrain_and_train_on_the_device():
    model = pretrained(setup={"labels_key": "cell_type"}, accelerator=ACCELERATOR)
    model.train(max_epochs=10, accelerator=ACCELERATOR, refit=False, show_progress=False)
    query = cells(seed=1)
    assert (model.predict(query) == truth(query)).mean() > 0.6


@pytest.mark.filterwarnings("ignore::UserWarning")  # the toy's new type takes cells
def test_load_query_data_trains_new_labels_on_the_device(tmp_path):
    reference = cells()
    old = fit(reference[truth(reference) != truth(reference)[0]].copy(), max_epochs=10)
    query = cells(seed=1)
    Celler.prepare_query_anndata(query, old)
    model = Celler.load_query_data(query, old, extend_labels=True, accelerator=ACCELERATOR)
    model.train(accelerator=ACCELERATOR, show_progress=False)
    assert model.device.type == DEVICE
    assert truth(reference)[0] in set(model.predict(cells(seed=2)))


@pytest.mark.skipif(DEVICE == "cpu", reason="the CPU has no count of its peak memory")
def test_predict_takes_no_more_of_the_gpu_for_more_cells():
    model = fit(cells(), network={"encoder": "transformer"}, accelerator=ACCELERATOR)
    peaks = []
    for n_cells in (1000, 4000):
        torch.cuda.reset_peak_memory_stats()
        model.predict(cells(n_cells, seed=1))
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.skipif(DEVICE == "cpu", reason="model/test_devices.py has it for the CPU")
def test_predict_by_a_process_of_its_own(monkeypatch):
    """On the GPU of this process, as there may be one alone."""
    model, query = fit(cells(), accelerator=ACCELERATOR), drawn(cells(seed=1), 30_000)
    expected = model.predict(query, soft=True)
    monkeypatch.setattr(_celler, "choose_prediction_devices", lambda *_: (torch.device("cuda", 0),))
    try:
        np.testing.assert_array_equal(model.predict(query, soft=True), expected)
        assert len(_workers._workers) == 1
    finally:
        _workers.stop_workers()
