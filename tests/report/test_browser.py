"""The page in a browser: every chart is decoded, nothing is wider than the window, and the console is silent."""

import json
import re
import shutil
import subprocess

import pytest
from report_cases import annotated

from celler.tl import report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")

#: Shows the report in a frame of a width, and writes what a reader would see of it into the page.
FRAME = """<!DOCTYPE html><title>frame</title>
<iframe src="report.html" style="width:{width}px;height:3000px;border:0"></iframe>
<pre id="found"></pre>
<script>
addEventListener("load", () => {{
  const page = document.querySelector("iframe").contentDocument;
  const images = [...page.images].map(image => image.complete && image.naturalWidth > 50);
  const wide = [...page.body.querySelectorAll("*")].filter(node => !node.closest(".wide") && !node.closest(".skip")
    && node.getBoundingClientRect().right > {width} + 1).map(node => node.tagName);
  const fits = page.documentElement.scrollWidth <= {width};
  document.getElementById("found").textContent = JSON.stringify({{images, wide, fits}});
}});
</script>"""


@pytest.mark.parametrize("width", [1280, 400])
def test_report_in_chromium(tmp_path, width):
    hostile = "<img src=x onerror=console.error(1)><script>console.error(2)</script>" + "long" * 30
    report(annotated([hostile, "T", "Rare"]), tmp_path / "report.html", truth_key="truth", title=hostile)
    (tmp_path / "frame.html").write_text(FRAME.format(width=width))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--virtual-time-budget=10000"]
    command = [str(CHROMIUM), *options, "--dump-dom", (tmp_path / "frame.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(re.search(r'<pre id="found">(.+?)</pre>', done.stdout)[1])
    assert found == {"images": [True] * 5, "wide": [], "fits": True}
    assert "CONSOLE" not in done.stderr
