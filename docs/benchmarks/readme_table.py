"""The table of four methods in README.md and on the landing page, from the means of the benchmark.

    python docs/benchmarks/readme_table.py [benchmark/runs.csv]

With the ``runs.csv`` of ``shared_tasks.py`` it first renews ``docs/tables/benchmark_means.csv``; then it writes the
table between the markers of both pages.
"""

import sys
from pathlib import Path

import pandas as pd

from celler.benchmark.methods import METHODS

ROOT = Path(__file__).parents[2]
MEANS = ROOT / "docs" / "tables" / "benchmark_means.csv"
PAGES = (ROOT / "README.md", ROOT / "docs" / "index.md")
START, END = "<!-- table: benchmark -->\n\n", "\n\n<!-- end of the table -->"
CORNER = "Mean of nine tasks"
#: Scores of a run, the title of their column, and their decimals.
SCORES = {
    "macro_f1": ("Macro-F1", 3),
    "recall_tail": ("Tail recall", 3),
    "accuracy": ("Accuracy", 3),
    "fit_seconds": ("Training (s)", 1),
}
SHOWN = ["Macro-F1", "Tail recall", "Training (s)"]
ROWS = {
    "Celler": "Celler",
    "scANVI": "scANVI (trained with the query)",
    "logistic regression": "logistic regression",
    "CellTypist": "CellTypist",
}


def means(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean over the seeds of a task, then over the tasks that have the score, as text, best macro-F1 first."""
    by_task = runs.groupby(["method", "task"])[list(SCORES)].mean()
    found = by_task.groupby("method").mean().sort_values("macro_f1", ascending=False)
    texts = {title: found[key].map(f"{{:.{decimals}f}}".format) for key, (title, decimals) in SCORES.items()}
    return pd.DataFrame(texts).rename(index=lambda method: METHODS[method].title).rename_axis(CORNER)


def table(found: pd.DataFrame) -> str:
    """Write four methods in Markdown, the best of each column in bold."""
    shown = found.loc[[name for name in found.index if name in ROWS], SHOWN]
    values = shown.astype(float)
    best = values.eq(values.max().where(values.columns != "Training (s)", values.min()))
    shown = shown.mask(best, "**" + shown + "**").rename(index=ROWS)
    lines = [f"| {CORNER} | {' | '.join(SHOWN)} |", "| --- |" + " ---: |" * len(SHOWN)]
    lines += [f"| {name} | {' | '.join(row)} |" for name, row in zip(shown.index, shown.to_numpy(), strict=True)]
    return "\n".join(lines)


def filled(page: str, text: str) -> str:
    """Return a page with the text between its markers."""
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"the page has no {START.strip()} and {END.strip()}; put both, with a line between.")
    return before + start + text + end + after


def main() -> None:
    if len(sys.argv) > 1:
        means(pd.read_csv(sys.argv[1])).to_csv(MEANS)
    text = table(pd.read_csv(MEANS, index_col=0, dtype=str))
    print(text)
    for page in PAGES:
        page.write_text(filled(page.read_text("utf-8"), text), encoding="utf-8")


if __name__ == "__main__":
    main()
