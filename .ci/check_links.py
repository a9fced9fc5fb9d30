"""Offline check of a built site: links and anchors lead somewhere, images are described, nothing is fetched elsewhere.

python .ci/check_links.py docs/_build/html
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links of a page, and the anchors that others may point to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.faults: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors |= {values[name] or "" for name in ("id", "name") if name in values}
        link = values.get("href" if tag in ("a", "link") else "src")
        if link:
            self.links.append(link)
        description = (values.get("alt") or "").strip()
        if tag == "img" and (not description or description.endswith((".png", ".svg"))):
            self.faults.append(f"{link} has no description")
        # a link of the head is fetched, unless it only names the page's place or a neighbour
        is_fetched = "src" in values or (tag == "link" and "stylesheet" in (values.get("rel") or ""))
        if is_fetched and urlsplit(link or "").netloc:
            self.faults.append(f"{link} is fetched from another server")


def broken(site: Path) -> list[str]:
    """``page: link`` for each that leads nowhere, and what else is wrong with a page."""
    # _static holds the theme's templates, which are no pages
    files = [path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts]
    pages = {path.resolve(): Page(path.read_text("utf-8")) for path in files}
    found = []
    for path, page in pages.items():
        found += [f"{path.relative_to(site.resolve())}: {fault}" for fault in page.faults]
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            is_there = target.exists()
            if is_there and parts.fragment and target in pages:
                is_there = unquote(parts.fragment) in pages[target].anchors
            if not is_there:
                found.append(f"{path.relative_to(site.resolve())}: {link}")
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    lines = broken(folder)
    print("\n".join([*lines, f"{len(lines)} faults in {folder}"]))
    sys.exit(bool(lines))
