"""Move the project to another address: change it in every file that names it.

    python docs/development/address.py https://github.com/you/cells [https://cells.example.org]

``[project.urls]`` of pyproject.toml has the addresses that hold now; tests/test_pyproject.py compares every file.
"""

import argparse
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXTS = {".cff", ".md", ".py", ".toml", ".yaml", ".yml"}
#: Folders that no commit has, or that are made from others.
LEFT_OUT = {".git", ".venv", ".venv-test", "_build", "generated", "node_modules"}


def files(root: Path) -> list[Path]:
    """Texts of the repository that may name an address."""
    found = (path for path in root.rglob("*") if path.suffix in TEXTS and path.is_file())
    return sorted(path for path in found if not LEFT_OUT & set(path.relative_to(root).parts))


def move(root: Path, source: str, docs: str | None = None) -> list[Path]:
    """Replace the addresses of pyproject.toml in all files; return those that changed."""
    urls = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["urls"]
    old, new = (url.removeprefix("https://github.com/") for url in (urls["Source"], source))
    owners = [name.split("/")[0] for name in (old, new)]
    forms = ("github.com/{}", "githubusercontent.com/{}")
    pairs = [(form.format(old), form.format(new)) for form in forms]
    pairs += [(form.format(owners[0]), form.format(owners[1])) for form in ("contact:\n  - {}\n", '["@{}"]')]
    pairs += [(urls["Documentation"], docs or urls["Documentation"])]
    changed = []
    for path in files(root):
        before = after = path.read_text("utf-8")
        for pair in pairs:
            after = after.replace(*pair)
        if after != before:
            path.write_text(after, encoding="utf-8")
            changed.append(path)
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="of the repository on GitHub")
    parser.add_argument("docs", nargs="?", help="of the documentation")
    options = parser.parse_args()
    for path in move(ROOT, options.source.rstrip("/"), options.docs and options.docs.rstrip("/")):
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
