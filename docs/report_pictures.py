"""Draw the pictures of the report's tutorial: parts of the two pages that ``tutorials/report.ipynb`` writes.

Run it after the notebook, and look at the pictures: ``python docs/report_pictures.py tutorials``. It needs Chromium.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

OUT = Path(__file__).parents[1] / "tutorials" / "images"
WIDTH, HEIGHT = 1120, 4000  # of the window; what is empty below is cut off
#: Page and parts of it that each picture shows: "top" is title and figures, the others are headings' ids.
PICTURES = {
    "report_top": ("report.html", ["top", "attention", "how"]),
    "report_labels": ("report.html", ["labels", "rare", "markers"]),
    "report_truth": ("report_truth.html", ["attention", "truth"]),
}


def part(page: str, shown: list[str]) -> str:
    """Return a page with the named parts alone."""
    sections = ", ".join(f'section[aria-labelledby="{name}"]' for name in shown if name != "top")
    top = "" if "top" in shown else "header, .tiles:not(section *) { display: none; }"
    hidden = f"nav, main > section:not({sections}) {{ display: none; }} {top} h2 {{ margin-top: 1.5rem; }}"
    return page.replace("</style>", f"{hidden} body {{ padding-bottom: 0; }}</style>", 1)


def picture(page: str, folder: Path) -> Image.Image:
    """Return what a browser shows of a page, without the empty rest of the window."""
    file, shot = folder / "page.html", folder / "page.png"
    file.write_text(page, encoding="utf-8")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}"]
    window = [f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={shot}", file.as_uri()]
    subprocess.run([browser, *options, *window], check=True, capture_output=True)
    image = Image.open(shot).convert("RGB")
    box = ImageChops.difference(image, Image.new("RGB", image.size, "white")).getbbox()
    return image.crop((0, 0, WIDTH, box[3] + 16))


def main(folder: Path) -> None:
    OUT.mkdir(exist_ok=True)
    for name, (page, shown) in PICTURES.items():
        with tempfile.TemporaryDirectory() as scratch:
            image = picture(part((folder / page).read_text("utf-8"), shown), Path(scratch))
        image.save(OUT / f"{name}.png", optimize=True)
        print(f"{name}.png", image.size, (OUT / f"{name}.png").stat().st_size)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
