"""Makes tests/data/saved_model: a tiny model of this format and what it predicts, for later versions to read.

Run on the oldest supported Python: ``python tests/data/make_saved_model.py`` from the root of the repository.
"""

import sys
from pathlib import Path

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent))

from toy import cells, fit  # noqa: E402  the tests are no package

if __name__ == "__main__":
    network = {"d_model": 8, "n_latents": 2}
    model = fit(cells(), {"parent_labels_key": "parent_type"}, network, max_epochs=20)
    query = cells(40, seed=1)
    model.save(FOLDER / "saved_model", overwrite=True)
    query.to_df().astype(int).to_csv(FOLDER / "saved_model" / "query.csv")
    predicted = model.predict(query, soft=True)
    predicted.to_csv(FOLDER / "saved_model" / "predicted.csv", float_format="%.6f")
