"""Examples of the README and of pages run as copied."""

import re
import shlex
from functools import partialmethod
from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import pytest

import celler as cl
from celler.cli._main import _parser, main

ROOT = Path(__file__).parents[2]
#: What the pages lead to on purpose: a report of the genes, and classes that the first labels made small.
SAID = ["ignore:725 of 765 genes", "ignore:classes with fewer than 3 labelled cells"]
#: What scanpy's plots warn of.
SAID += ["ignore:FigureCanvasAgg", "ignore:The set_bad function"]


def blocks(page: Path, language: str) -> list[str]:
    """Code blocks of a language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def run_all(codes: list[str]) -> dict[str, object]:
    """Run blocks one after the other in the same namespace, as a reader does."""
    space: dict[str, object] = {}
    for code in codes:
        exec(compile(code, "page", "exec"), space)
    plt.close("all")
    return space


@pytest.fixture
def one_epoch(monkeypatch):
    """Training of an example ends after an epoch: what it prints is another test's."""
    monkeypatch.setattr(cl.model.Celler, "train", partialmethod(cl.model.Celler.train, max_epochs=1))


@pytest.mark.filterwarnings(*SAID)
def test_readme_example_without_a_reference():
    space = run_all(blocks(ROOT / "README.md", "python")[:1])
    assert space["query"].obs["celler_cl_id"].str.match(r"CL:\d{7}$").all()


@pytest.mark.filterwarnings(*SAID)
def test_readme_example_with_a_reference(one_epoch, capsys):
    query = run_all(blocks(ROOT / "README.md", "python")[1:])["query"]
    assert query.obs["celler"].nunique() > 5
    printed = capsys.readouterr().out
    assert all(name in printed for name in query.obs["cell_type"].unique())


@pytest.mark.filterwarnings(*SAID)
def test_page_for_celltypist_users(capsys):
    adata = run_all(blocks(ROOT / "docs" / "from_celltypist.md", "python"))["adata"]
    page = (ROOT / "docs" / "from_celltypist.md").read_text("utf-8")
    columns = re.findall(r"`(celler_\w+)`", page)
    assert len(columns) >= 4
    assert set(columns) <= set(adata.obs)


@pytest.mark.filterwarnings(*SAID)
def test_skill_for_agents(one_epoch, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    space = run_all(blocks(ROOT / "docs" / "skill" / "SKILL.md", "python"))
    assert (tmp_path / "my_model" / "config.json").exists()
    assert "celler_confidence" in space["query"].obs


@pytest.mark.filterwarnings(*SAID)
def test_page_without_a_reference():
    query = run_all(blocks(ROOT / "docs" / "no_reference.md", "python"))["query"]
    is_regulatory = (query.obs["cell_type"] == "CD4+/CD25 T Reg") & (query.obs["own"] == "Unknown")
    assert is_regulatory.sum() == 58
    assert (query.obs["own_label"] == "regulatory T cell")[is_regulatory].sum() > 25


@pytest.mark.filterwarnings(*SAID)
def test_shell_commands_without_a_reference(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cl.datasets.pbmc68k().write_h5ad("query.h5ad")
    lines = "".join(blocks(ROOT / "docs" / "no_reference.md", "bash")).splitlines()
    assert len(lines) == 3
    for line in lines:
        assert main(shlex.split(line)[1:]) == 0
    assert ad.read_h5ad("labelled.h5ad").obs["celler"].nunique() > 10
    assert "pancreatic D cell (CL:0000173)" in capsys.readouterr().out


def test_readme_counts_the_tissues(capsys):
    assert main(["tissues"]) == 0
    n_tissues = capsys.readouterr().out.count("types, atlases:")
    named, more = re.search(
        r"the atlases hold: ([\w, ]+) and (\d+) more", (ROOT / "README.md").read_text("utf-8")
    ).groups()
    assert len(named.split(", ")) + int(more) == n_tissues


PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "user_guide").glob("*.md")]
BLOCKS = ["".join(blocks(page, "bash")).replace("\\\n", "") for page in PAGES]  # a line may go on on the next
LINES = sorted({line for block in BLOCKS for line in block.splitlines() if line[:7] == "celler "})


@pytest.mark.parametrize("line", LINES)
def test_shell_command_of_a_page_is_one(line):
    """Its options exist; what stands in brackets may be left out and may not."""
    for kept in (re.sub(r"\[.*?\]", "", line), line.replace("[", "").replace("]", "")):
        assert _parser().parse_args(shlex.split(kept, comments=True)[1:])
