"""The docs: messages they quote exist, pages stand in the guide, and links of a built site lead somewhere."""

import ast
import re
import runpy
import subprocess
import sys
import tomllib
import zlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "user_guide"


def texts_of(tree: ast.Module) -> list[str]:
    """Every text of a module, what is filled in as "…"; texts that are joined with + stand as one."""

    def text(node: ast.AST) -> str | None:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value
        if isinstance(node, ast.JoinedStr):
            return "".join(text(part) or "" if isinstance(part, ast.Constant) else filled(part) for part in node.values)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return f"{text(node.left) or '…'}{text(node.right) or '…'}"
        return None

    def filled(node: ast.AST) -> str:
        """What is filled in, "…"; of words that follow a number their plural."""
        call = getattr(node, "value", None)
        name = getattr(call.func, "id", "") if isinstance(call, ast.Call) else ""
        words = text(call.args[1]) or "" if name in ("agreed", "counted") else "…"
        return f"… {words}" if name == "counted" else words

    return [found for node in ast.walk(tree) if (found := text(node))]


def source_texts() -> list[str]:
    files = sorted((ROOT / "celler").rglob("*.py"))
    return [found for path in files for found in texts_of(ast.parse(path.read_text("utf-8")))]


def quoted_messages() -> list[str]:
    """The terms of the definition lists of the troubleshooting page."""
    page = (GUIDE / "troubleshooting.md").read_text("utf-8")
    return re.findall(r"^`(.+)`\n: ", page, flags=re.MULTILINE)


def says(source: str, message: str) -> bool:
    """Whether the parts of ``message`` between "…" stand in ``source``, in their order."""
    parts = [part.strip() for part in message.split("…") if part.strip()]
    return re.search(".*".join(map(re.escape, parts)), source, flags=re.DOTALL) is not None


@pytest.mark.parametrize("message", quoted_messages())
def test_troubleshooting_message_is_in_the_source(message):
    assert any(says(text, message) for text in source_texts()), message


def test_quoted_messages_with_a_message_that_does_not_exist():
    assert len(quoted_messages()) > 40
    assert not any(says(text, "all … cells of … are unlabeled") for text in source_texts())


def test_user_guide_index_has_every_page():
    index = (GUIDE / "index.md").read_text("utf-8")
    pages = {path.stem for path in GUIDE.glob("*.md")} - {"index"}
    assert pages <= set(index.split("```{toctree}")[1].split("```")[0].split())


def check_links(site: Path) -> subprocess.CompletedProcess[str]:
    script = ROOT / ".ci" / "check_links.py"
    return subprocess.run([sys.executable, script, site], capture_output=True, text=True)


def test_check_links_with_broken_links(tmp_path):
    (tmp_path / "a.html").write_text('<p id="here"><a href="b.html#there">b</a><a href="#here">a</a>')
    (tmp_path / "b.html").write_text('<p id="there"><a href="https://x.org/y">out</a><img src="i.png" alt="a cell">')
    (tmp_path / "i.png").write_bytes(b"")
    assert check_links(tmp_path).returncode == 0
    (tmp_path / "b.html").write_text('<a href="a.html#gone">a</a><a href="c.html">c</a>')
    checked = check_links(tmp_path)
    assert checked.returncode == 1
    assert checked.stdout.splitlines()[:3] == [
        "a.html: b.html#there",
        "b.html: a.html#gone",
        "b.html: c.html",
    ]


def test_check_links_with_pictures_and_scripts(tmp_path):
    head = '<link rel="stylesheet" href="https://x.org/a.css"><link rel="canonical" href="https://x.org/">'
    body = '<img src="i.png" alt=""><img src="i.png" alt="i.png"><script src="https://x.org/a.js"></script>'
    (tmp_path / "a.html").write_text(head + body)
    (tmp_path / "i.png").write_bytes(b"")
    assert check_links(tmp_path).stdout.splitlines()[:4] == [
        "a.html: https://x.org/a.css is fetched from another server",
        "a.html: i.png has no description",
        "a.html: i.png has no description",
        "a.html: https://x.org/a.js is fetched from another server",
    ]


INVENTORIES = ROOT / "docs" / "inventories"
PROJECTS = tomllib.loads((INVENTORIES / "objects.toml").read_text("utf-8"))


@pytest.mark.parametrize("project", PROJECTS)
def test_inventory_is_that_of_the_list(project):
    written = (INVENTORIES / f"{project}.inv").read_bytes().split(b"\n", 4)
    write = runpy.run_path(str(INVENTORIES / "write.py"))
    assert written[0] == b"# Sphinx inventory version 2"
    assert zlib.decompress(written[4]).decode() == write["inventory"](PROJECTS[project]["pages"])


def test_inventory_with_a_function_and_a_class():
    inventory = runpy.run_path(str(INVENTORIES / "write.py"))["inventory"]
    pages = {"api/$.html#$": ["function:pack.run"], "tensors.html#$": ["pack.Tensor"]}
    assert inventory(pages).splitlines() == [
        "pack.Tensor py:class 1 tensors.html#$ -",
        "pack.run py:function 1 api/pack.run.html#$ -",
    ]


def test_drawings_name_files_that_exist():
    drawn = runpy.run_path(str(ROOT / "docs" / "development" / "drawings.py"))
    steps = [files for each in ("LABELS", "STORE") for column in drawn[each].values() for _, files in column]
    room, found = "", []
    for name in ", ".join(steps).split(", "):
        if "/" in name:
            room = name.split("/")[0]
        if name.startswith("_") or "/" in name:
            found.append(ROOT / "celler" / room / f"{name.split('/')[-1]}.py")
    assert len(found) > 20
    assert [path for path in found if not path.exists()] == []


def test_drawings_are_those_of_the_script():
    drawn = runpy.run_path(str(ROOT / "docs" / "development" / "drawings.py"))
    for name in ("labels", "store"):
        picture = (ROOT / "docs" / "images" / f"{name}.svg").read_text("utf-8")
        assert picture == drawn["drawing"](drawn[name.upper()])


def test_pages_are_within_their_budget_of_words():
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("*/*.md")]
    # 22,000 for the pages of models with a reference; no_reference.md stands for half of the readers, and promises.md,
    # the messages of checks and the measurements across studies for what was silent before; the pages for users of
    # other tools, for agents and on releases for those who come from elsewhere;
    # 1,700 for the newcomer's log and the plots before and after; 900 for a million and 41.3 million cells, and for
    # speed before and after.
    assert sum(len(page.read_text("utf-8").split()) for page in pages) <= 31_800


#: Pages of the development section and the changelog may be longer.
LONGEST = 1_500


def n_words(page: Path) -> int:
    """Words that a reader sees: without code blocks, formulas, comments and the signs of tables."""
    text = re.sub(r"(?s)^```.*?^```|<!--.*?-->|\$\$.*?\$\$", "", page.read_text("utf-8"), flags=re.MULTILINE)
    return len(re.findall(r"\w[\w'’.,-]*", re.sub(r"\]\([^)]*\)", "]", text)))


@pytest.mark.parametrize("folder", ["docs", "docs/user_guide", "docs/api", "docs/skill"])
def test_no_page_is_longer_than_a_reader_reads(folder):
    lengths = {page.name: n_words(page) for page in (ROOT / folder).glob("*.md")}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_promises_name_tests_that_exist():
    folder = ROOT / "tests" / "reliability"
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (GUIDE / "promises.md").read_text("utf-8"))
    assert len(named) > 10
    assert all(f"def {test}(" in (folder / file).read_text("utf-8") for file, test in named)


def test_contributing_names_every_room():
    page = (ROOT / "docs" / "contributing.md").read_text("utf-8")
    rooms = {path.parent.name for path in (ROOT / "celler").glob("*/__init__.py")}
    assert rooms == set(re.findall(r"^  (\w+)/", page, flags=re.MULTILINE))
