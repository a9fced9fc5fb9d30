"""pyproject.toml: dependencies are imported, and every file has its addresses."""

import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
URLS = PYPROJECT["project"]["urls"]
ADDRESS = runpy.run_path(str(ROOT / "docs" / "development" / "address.py"))


def test_dependencies_are_imported():
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in PYPROJECT["project"]["dependencies"]}
    modules = set()
    for path in (ROOT / "celler").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add((node.module or "").split(".")[0])
    of_module = packages_distributions()
    imported = {name.lower().replace("_", "-") for m in modules for name in of_module.get(m, ())}
    assert names - imported == set()


def named(pattern: str) -> dict[str, set[str]]:
    """Matches of a pattern in the texts of the repository, by file."""
    texts = {path: path.read_text("utf-8") for path in ADDRESS["files"](ROOT) if path != Path(__file__)}
    return {
        str(path.relative_to(ROOT)): set(found) for path, text in texts.items() if (found := re.findall(pattern, text))
    }


def test_addresses_are_those_of_pyproject():
    source, docs = URLS["Source"], URLS["Documentation"]
    of_source = named(r"https://(?:raw\.githubusercontent|github)\.com/[\w-]+/celler\b")
    of_docs = named(r"https://celler\.[\w.-]*\w")
    raw = source.replace("github.com", "raw.githubusercontent.com")
    assert {"README.md", "CITATION.cff", "docs/development/meta.yaml"} <= set(of_source)
    assert set().union(*of_source.values()) <= {source, raw}
    assert {"README.md", ".github/ISSUE_TEMPLATE/config.yml"} <= set(of_docs)
    assert set().union(*of_docs.values()) == {docs}
    assert all(url.startswith((source, docs)) for url in URLS.values())


def test_move_changes_every_file(tmp_path):
    for name in ("pyproject.toml", "README.md", "CITATION.cff", "docs/development/meta.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text("utf-8"), encoding="utf-8")
    changed = ADDRESS["move"](tmp_path, "https://github.com/you/cells", "https://cells.example.org")
    assert len(changed) == 4
    urls = tomllib.loads((tmp_path / "pyproject.toml").read_text("utf-8"))["project"]["urls"]
    assert urls["Source"] == "https://github.com/you/cells"
    assert urls["Documentation"] == "https://cells.example.org"
    assert urls["Issues"] == "https://github.com/you/cells/issues"
    listing = yaml.safe_load((tmp_path / "docs" / "development" / "meta.yaml").read_text("utf-8"))
    assert (listing["project_home"], listing["contact"]) == (urls["Source"], ["you"])
    texts = "".join(path.read_text("utf-8") for path in changed)
    assert URLS["Source"] not in texts
    assert URLS["Documentation"] not in texts


def test_index_shows_the_readme_with_absolute_links():
    """The substitutions of pyproject.toml, applied as the build applies them, leave no link inside the repository."""
    text = (ROOT / "README.md").read_text("utf-8")
    for rule in PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 20
    assert [link for link in links if not link.startswith("https://")] == []
    inside = [link.partition("/main/")[2] for link in links if "/main/" in link]
    assert [path for path in inside if not (ROOT / path).exists()] == []
    assert any(link.endswith("docs/images/readme.png") and "raw." in link for link in links)


#: Fields of the scverse ecosystem's entries as of August 2026, and words its lists have for our kind of package.
FIELDS = {
    *("name", "description", "project_home", "documentation_home", "install", "primary_category", "tags", "license"),
    *("language", "contact", "test_command", "category"),
}


def test_scverse_entry_has_its_fields():
    listing = yaml.safe_load((ROOT / "docs" / "development" / "meta.yaml").read_text("utf-8"))
    assert set(listing) >= FIELDS
    assert listing["install"] == {"pypi": PYPROJECT["project"]["name"]}
    assert listing["primary_category"] in listing["tags"]
    assert re.fullmatch(r"10\.\d{4,9}/[-._;()/:A-Za-z0-9]+", listing["publications"][0])


#: What conda-forge calls a package of the index.
CONDA = {"torch": "pytorch", "matplotlib": "matplotlib-base"}


def test_conda_recipe_has_the_dependencies():
    recipe = yaml.safe_load((ROOT / "docs" / "development" / "recipe.yaml").read_text("utf-8"))
    project = PYPROJECT["project"]
    run = [re.sub(r"[<>=].*", "", entry).strip() for entry in recipe["requirements"]["run"]]
    expected = {CONDA.get(name, name) for name in (re.match(r"[\w-]+", r)[0] for r in project["dependencies"])}
    assert set(run) == expected | {"python"}
    floors = dict(re.match(r"([\w-]+)(>=\S+)", r).groups() for r in project["dependencies"])
    named_floors = dict(entry.split(" ", 1) for entry in recipe["requirements"]["run"])
    assert named_floors == {CONDA.get(n, n): f for n, f in floors.items()} | {"python": ">=${{ python_min }}"}
    assert recipe["context"] == {"version": project["version"], "python_min": project["requires-python"].lstrip(">=")}
    assert recipe["about"]["license"] == project["license"]


def test_pipeline_module_names_the_version_of_the_package():
    folder = ROOT / "docs" / "development" / "nf-core"
    version = PYPROJECT["project"]["version"]
    assert f"celler=={version}" in (folder / "Dockerfile").read_text("utf-8")
    assert f"celler=={version}" in (folder / "environment.yml").read_text("utf-8")


@pytest.mark.parametrize("name", ["CITATION.cff", ".github/ISSUE_TEMPLATE/bug.yml", ".github/workflows/release.yaml"])
def test_file_of_the_repository_is_yaml(name):
    assert isinstance(yaml.safe_load((ROOT / name).read_text("utf-8")), dict)


@pytest.mark.skipif(shutil.which("bash") is None, reason="the step runs in bash")
@pytest.mark.parametrize(("prefix", "status"), [("v", 0), ("", 0), ("v1", 1)])
def test_release_stops_where_tag_and_version_differ(prefix, status):
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yaml").read_text("utf-8"))
    step = next(step for step in workflow["jobs"]["build"]["steps"] if "TAG" in step.get("env", {}))
    version = PYPROJECT["project"]["version"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"TAG": f"{prefix}{version}", "PATH": path}
    command = ["bash", "-euo", "pipefail", "-c", step["run"]]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == status
    assert (version in ran.stdout) == bool(status)


def test_source_distribution_has_what_its_wheel_needs():
    sdist = PYPROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    fragments = PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["fragments"]
    needed = ["/celler", "/.ci", *(f"/{fragment['path']}" for fragment in fragments)]
    assert set(needed) <= set(sdist)
    assert [path for path in sdist if not (ROOT / path[1:]).exists()] == []
