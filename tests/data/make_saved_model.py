"""Makes tests/data/saved_model_2: the model of saved_model, which Celler 0.1.0 wrote, in the format of today.

Both are for later versions to read, and predict what ``saved_model/predicted.csv`` says. Run on the oldest supported
Python: ``python tests/data/make_saved_model.py`` from the root of the repository.
"""

from pathlib import Path

from celler.model import Celler

FOLDER = Path(__file__).parent

if __name__ == "__main__":
    Celler.load(FOLDER / "saved_model").save(FOLDER / "saved_model_2", overwrite=True)
