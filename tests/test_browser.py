"""The page of a run in a real browser, where there is one: its console, its width, its colours."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sim import simulate
from sim.results.comparison import Run
from sim.results.page import page_text
from spec.load import load_design

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCHEMES = {"dark": 0, "light": 1}
PROBE = """<script>
addEventListener("load", () => {
  const part = (text) => text.match(/[\\d.]+/g).slice(0, 3).map((value) => {
    const share = value / 255;
    return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  const light = (text) => { const [r, g, b] = part(text); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const back = light(getComputedStyle(document.body).backgroundColor);
  let least = 99, smallest = 99, out = [];
  for (const one of document.querySelectorAll("body *")) {
    const style = getComputedStyle(one), place = one.getBoundingClientRect();
    const inside = one.closest(".wide");
    if (!inside && place.right > innerWidth + 0.5) out.push(one.tagName + " " + place.right);
    const told = [...one.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!told || !place.width || one.tagName === "SCRIPT") continue;
    const front = light(one.namespaceURI.endsWith("svg") ? style.fill : style.color);
    const [more, less] = front > back ? [front, back] : [back, front];
    least = Math.min(least, (more + 0.05) / (less + 0.05));
    smallest = Math.min(smallest, parseFloat(style.fontSize));
  }
  const seen = {inner: innerWidth, scroll: document.documentElement.scrollWidth, dark: back < 0.5,
    contrast: least, font: smallest, out: out.slice(0, 5)};
  document.body.append(Object.assign(document.createElement("pre"),
    {id: "seen", textContent: JSON.stringify(seen)}));
});
</script></body>"""
"""What a browser finds; put into a copy of the page, which has no script of its own."""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")


def shown(text: str, folder: Path, width: int, scheme: str) -> tuple[dict, list[str]]:
    """Return what a browser without network measures of a page, and what it says on its console."""
    file = folder / "page.html"
    file.write_text(text.replace("</body>", PROBE))
    done = subprocess.run(
        [
            str(BROWSER),
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *("--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND"),
            f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
            *(f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900"),
            *("--enable-logging=stderr", "--v=0", "--dump-dom", file.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "HOME": str(folder)},
    )
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.S)
    assert found, done.stderr[-2000:]
    return json.loads(found[1]), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def check_shown(text: str, folder: Path, width: int, scheme: str) -> None:
    """Nothing on the console, nothing beyond the window, every text legible (WCAG AA), in its scheme."""
    seen, console = shown(text, folder, width, scheme)
    assert console == []
    assert seen["inner"] == width
    assert seen["scroll"] <= width
    assert seen["out"] == []
    assert seen["dark"] == (scheme == "dark")
    assert seen["contrast"] >= 4.5
    assert seen["font"] >= 11


@pytest.fixture(scope="module")
def page() -> str:
    """Return the page of two runs beside an earlier one with a long name."""
    runs = [
        (simulate("deepseek-v3", design, scale=64, tokens=24, routing="zipf:1"), load_design(design))
        for design in ("fpga", "pim")
    ]
    report = runs[0][0].as_json()
    earlier = [Run.of({**report, "model": "a-model-of-a-name-" * 5}, "earlier: ")]
    return page_text(runs, {"--model": "deepseek-v3", "--report": "/" + "folder/" * 60}, earlier=earlier)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", [1280, 800])
def test_the_page_in_a_browser(tmp_path, page, width, scheme) -> None:
    check_shown(page, tmp_path, width, scheme)


PLANTED = """<script>nothing.there</script><p style="width: 2000px">wide</p>
<p style="color: #888; background: none">pale</p><p style="font-size: 8px">small</p>"""


@pytest.mark.slow
def test_what_is_wrong_in_a_browser_is_seen(tmp_path, page) -> None:
    seen, console = shown(page.replace("</h1>", f"</h1>{PLANTED}", 1), tmp_path, 800, "light")
    assert any("nothing is not defined" in line for line in console)
    assert seen["scroll"] > 800
    assert seen["out"] == ["P 2024"]
    assert seen["contrast"] < 4.5
    assert seen["font"] == 8
