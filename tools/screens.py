"""Take pictures of a bundle's report: python tools/screens.py BUNDLE (with Debian's chromium installed).

docs/images/report.png is its first screen; inside.png the activation map, the sorted network and a map of codes.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
INSIDE = ("The activation map", "The network, sorted", "Maps of codes")
WIDTH, HEIGHT, ACROSS = 1180, 820, 760


def panel(page: Page, title: str) -> Image.Image:
    """One panel's heading and figure."""
    section = page.locator(f"section:has(h2:text-is('{title}'))")
    section.scroll_into_view_if_needed()
    section.locator("svg.main-svg").first.wait_for()
    page.wait_for_timeout(500)
    return Image.open(io.BytesIO(section.screenshot())).convert("RGB")


def main(bundle: str) -> None:
    """Both pictures."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto((Path(bundle) / "report" / "index.html").resolve().as_uri())
        page.screenshot(path=IMAGES / "report.png")
        page.set_viewport_size({"width": ACROSS, "height": HEIGHT})
        parts = [panel(page, title) for title in INSIDE]
        browser.close()
    whole = Image.new("RGB", (sum(one.width for one in parts), max(one.height for one in parts)), "white")
    for place, one in enumerate(parts):
        whole.paste(one, (place * ACROSS, 0))
    whole.resize((whole.width // 2, whole.height // 2), Image.Resampling.LANCZOS).save(IMAGES / "inside.png")


if __name__ == "__main__":
    main(sys.argv[1])
