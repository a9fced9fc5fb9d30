"""Compiled code without a place to keep it: a read-only installation in a read-only home."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from celler._utils import _compile
from celler._utils._cache_folder import provide_cache_folder
from celler._utils._compile import compiled

PACKAGE = Path(_compile.__file__).parents[1]
#: Root writes everywhere, unless it gives up the right to.
WITHOUT_RIGHTS = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
SCRIPT = """
import os, celler, numpy as np
from scipy import sparse
from celler.data._tokenizer import Tokenizer
print(os.environ.get("NUMBA_CACHE_DIR"))
X = sparse.csr_matrix(np.array([[0, 2, 1]], np.float32))
print(Tokenizer()(X, np.arange(3, dtype=np.int32)).gene_ids.tolist())
"""


def run_read_only(tmp_path, script, **environment):
    """Run in a process that can write neither the package, nor numba, nor its home."""
    prefix = WITHOUT_RIGHTS if os.geteuid() == 0 else []
    if prefix and shutil.which("setpriv") is None:
        pytest.skip("root may write everywhere, and setpriv is missing")
    home, code = tmp_path / "home", tmp_path / "code"
    shutil.copytree(PACKAGE, code / "celler", ignore=shutil.ignore_patterns("__pycache__"))
    home.mkdir()
    for folder in (home, *(path for path in code.rglob("*") if path.is_dir()), code):
        folder.chmod(0o555)
    known = {name: value for name, value in os.environ.items() if name not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    known |= {"HOME": str(home), "PYTHONPATH": str(code), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    command = [*prefix, sys.executable, "-c", script]
    done = subprocess.run(command, env=known, capture_output=True, text=True, check=False, cwd=tmp_path)
    for folder in (home, code, *(path for path in code.rglob("*") if path.is_dir())):
        folder.chmod(0o755)
    return done


def test_compiled_where_nothing_can_be_kept(tmp_path):
    """numba itself may have a place next to it; the package has none."""
    done = run_read_only(tmp_path, SCRIPT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == "[[1, 2]]"


def test_provide_cache_folder_is_private_and_goes_away(tmp_path):
    """Where numba lies in the same read-only place, a folder of the process lets scanpy and others be imported."""
    script = (
        "from types import SimpleNamespace; from pathlib import Path\n"
        "from celler._utils import _cache_folder as place\n"
        "place.find_spec = lambda name: SimpleNamespace(origin=place.__file__)\n"
        "place.provide_cache_folder(); import os; folder = Path(os.environ['NUMBA_CACHE_DIR'])\n"
        "print(folder); print(oct(folder.stat().st_mode & 0o777))\n" + SCRIPT
    )
    done = run_read_only(tmp_path, script, TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    folder, mode, found, tokens = done.stdout.splitlines()
    assert (mode, found, tokens) == ("0o700", folder, "[[1, 2]]")
    assert Path(folder).parent == tmp_path
    assert not Path(folder).exists()


def test_provide_cache_folder_leaves_a_given_one(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    provide_cache_folder()
    assert os.environ["NUMBA_CACHE_DIR"] == str(tmp_path)


@pytest.mark.parametrize("error", [RuntimeError, OSError])
def test_compiled_without_a_cache_gives_the_same(monkeypatch, error):
    def njit(cache=False, **options):
        if cache:
            raise error("cannot cache function: no locator available")
        return numba.njit(**options)

    numba = _compile.numba
    monkeypatch.setattr(_compile, "numba", SimpleNamespace(njit=njit))
    assert compiled(lambda x: x + 1)(2) == 3
