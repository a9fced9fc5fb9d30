"""Scripts of docs/benchmarks: what they import from the package exists."""

import ast
import importlib
from importlib.util import find_spec

import pytest
import scripts

FILES = sorted(scripts.FOLDER.glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_scripts_import_existing_names(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("celler"):
            if "_celltypist" in node.module and not find_spec("celltypist"):
                pytest.skip("extra: benchmark")
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"line {node.lineno}: {alias.name}"
