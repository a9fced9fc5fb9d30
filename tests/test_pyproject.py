"""pyproject.toml: every dependency is one that the package imports."""

import ast
import re
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_dependencies_are_imported():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in listed}
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
