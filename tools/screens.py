"""Take pictures of a bundle of digits: python tools/screens.py BUNDLE (with Debian's chromium installed).

docs/images/report.png is the first screen of its report; inside.png the activation map, the sorted network and a map of
codes; live.png the live page of a server that is asked with clean digits, and then with PGD's.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from sklearn.datasets import load_digits
from torch import Tensor

import askance
from askance.calibration.attacks import PGD, PixelClassifier, perturb
from askance.classifiers import build_classifier
from askance.detectors import Bundle
from askance.service.launch import launched

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
INSIDE = ("The activation map", "The network, sorted", "Maps of codes")
WIDTH, HEIGHT, ACROSS = 1180, 820, 760
HELD_OUT = 1497  # of 1,797 digits the last 300


def panel(page: Page, title: str) -> Image.Image:
    """One panel's heading and figure."""
    section = page.locator(f"section:has(h2:text-is('{title}'))")
    section.scroll_into_view_if_needed()
    section.locator("svg.main-svg").first.wait_for()
    page.wait_for_timeout(500)
    return Image.open(io.BytesIO(section.screenshot())).convert("RGB")


def asked(target: str, images: Tensor, seconds: float) -> None:
    """A client that asks for so long, one image after the other."""
    end = time.monotonic() + seconds
    with askance.Client(target) as client:
        while time.monotonic() < end:
            for image in images.numpy():
                client.screen(image)


def live(bundle: Path, browser: Browser) -> None:
    """The live page under an attack."""
    opened = Bundle.open(bundle)
    entry = opened.manifest.classifier
    digits = load_digits()
    images = torch.tensor(digits.images[HELD_OUT:], dtype=torch.float32)[:, None] / 16
    predict = PixelClassifier(opened.classifier(build_classifier), entry.preprocessing)
    labels = torch.tensor(digits.target[HELD_OUT:])
    attacked = perturb(predict, PGD(name="pgd", kind="pgd", epsilon=0.15), images[:60], labels[:60], 0)
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "server.toml"
        settings.write_text('port = 0\nmetrics_port = 0\n[review]\nfolder = "kept"\n')
        with launched(["-m", "askance", "serve", str(bundle), "--config", str(settings)]) as serving:
            asked(serving.target, images, 60)
            asked(serving.target, attacked, 8)
            page = browser.new_page(viewport={"width": WIDTH, "height": 2 * HEIGHT}, color_scheme="light")
            page.goto(f"http://{serving.metrics_host}:{serving.metrics_port}/")
            page.locator("#legend span").first.wait_for()
            page.wait_for_timeout(1500)
            page.screenshot(path=IMAGES / "live.png")


def main(bundle: str) -> None:
    """All pictures."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        live(Path(bundle), browser)
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
