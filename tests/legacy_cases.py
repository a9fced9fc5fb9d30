"""Models as Celler 0.1.0 saved them, in one ``model.pt``."""

from pathlib import Path

import numpy as np
import pytest
import torch

from celler.model import Celler
from celler.model._checkpoint import Saved, contents_of
from celler.model._legacy import FILE_NAME


def converts() -> pytest.WarningsRecorder:
    """Expect the warning of such a model."""
    return pytest.warns(FutureWarning, match=r"model\.pt is in the format of Celler 0\.1\.0.*Convert it once")


def write_legacy(model: Celler, folder: Path) -> None:
    """What the version 0.1.0 wrote."""

    def tensors(values: dict) -> dict:
        return {
            name: tensors(value)
            if isinstance(value, dict)
            else torch.as_tensor(value)
            if isinstance(value, np.ndarray)
            else value
            for name, value in values.items()
        }

    contents = tensors(contents_of(Saved(model._state, model.registry_, model._arguments)))
    folder.mkdir(exist_ok=True)
    torch.save({"format": "celler", "format_version": 1, "celler_version": "0.1.0"} | contents, folder / FILE_NAME)
