"""Write one Sphinx inventory per project of objects.toml, so that the docs are built without a network."""

import tomllib
import zlib
from pathlib import Path

HERE = Path(__file__).parent
HEADER = """# Sphinx inventory version 2
# Project: {project}
# Version: stable
# The remainder of this file is compressed using zlib.
"""


def inventory(pages: dict[str, list[str]]) -> str:
    """Return the lines of an inventory: name, role, priority, page and title of each object."""
    lines = []
    for page, objects in pages.items():
        for entry in objects:
            role, _, name = entry.rpartition(":")
            # Sphinx itself puts the name for a $ at the end, but for no other.
            path = page.removesuffix("$").replace("$", name) + "$" * page.endswith("$")
            lines.append(f"{name} py:{role or 'class'} 1 {path} -\n")
    return "".join(sorted(lines))


def main() -> None:
    for project, described in tomllib.loads((HERE / "objects.toml").read_text("utf-8")).items():
        text = inventory(described["pages"]).encode()
        header = HEADER.format(project=project).encode()
        (HERE / f"{project}.inv").write_bytes(header + zlib.compress(text, 9))


if __name__ == "__main__":
    main()
