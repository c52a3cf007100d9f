"""What the README and the docs tell people to type works as it stands there."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from calibration_support import DigitsRun, changed

from askance.service.launch import Serving, launched, started

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted((ROOT / "docs").glob("**/*.md"))


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a page, by the word after their fence."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [code for word, code in found if word == language]


IN_PROCESS, OVER_THE_WIRE, LIVE = blocks(README, "python")
QUICKER = (("attacked_images = 300", "attacked_images = 60"), ("cycles = 10", "cycles = 1"))

PREAMBLE = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

torch.manual_seed(0)
classifier = nn.Sequential()
classifier.add_module("flat", nn.Flatten())
classifier.add_module("features", nn.Linear(16, 12))
classifier.add_module("relu", nn.ReLU())
classifier.add_module("fc", nn.Linear(12, 2))
# two classes that are told by their brighter half, and a classifier that knows
x = torch.rand(1600, 1, 4, 4) * 0.5
y = torch.arange(1600) % 2
x[y == 0, :, :2] += 0.5
x[y == 1, :, 2:] += 0.5
optimizer = torch.optim.Adam(classifier.parameters(), lr=0.02)
for _ in range(60):
    optimizer.zero_grad()
    nn.functional.cross_entropy(classifier((x - 0.5) / 0.5), y).backward()
    optimizer.step()
train_set, a, b, c = (TensorDataset(x[i : i + 400], y[i : i + 400]) for i in range(0, 1600, 400))
"""


def run(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path, digits_run: DigitsRun) -> Path:
    """A folder with what the README's blocks name."""
    (tmp_path / "digits-bundle").symlink_to(digits_run.bundle.path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def test_six_lines_in_process(folder: Path) -> None:
    label, verdict, p_value = run(IN_PROCESS, folder).split()
    assert label == "one"
    assert verdict in ("CLEAN", "SUSPECT", "ADVERSARIAL")
    assert 0 < float(p_value) <= 1


def test_the_clients_lines(folder: Path) -> None:
    with launched(
        ["-m", "askance", "serve", str(folder / "digits-bundle"), "--port", "0", "--metrics-port", "0"]
    ) as at:
        assert "127.0.0.1:8500" in OVER_THE_WIRE
        shown = run(OVER_THE_WIRE.replace("127.0.0.1:8500", at.target), folder)
    assert shown.strip() in ("CLEAN", "SUSPECT", "ADVERSARIAL")


@pytest.mark.acceptance
def test_a_bundle_from_a_live_classifier(folder: Path) -> None:
    code = PREAMBLE + LIVE + "print(bundle.manifest.calibration.samples)\n"
    assert run(code, folder).strip() == "400"


@pytest.mark.acceptance
@pytest.mark.usefixtures("graphs")
@pytest.mark.timeout(900)
def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block under Use, typed in a copy of what it names; the server's ports are free ones, attacks are few, and the
    error estimator's training is short.
    """
    shutil.copytree(ROOT / "configs", tmp_path / "configs", ignore=shutil.ignore_patterns("digits_cnn.safetensors"))
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    config = tmp_path / "configs" / "digits.toml"
    config.write_text(changed(config.read_text(), *QUICKER))
    monkeypatch.chdir(tmp_path)
    block = README[README.index("## Use") :]
    lines = re.findall(r"^askance ([^#\n]+?)\s*#", block[: block.index("```\n\n")], re.MULTILINE)
    names = ["train", "calibrate", "inspect", "explain", "figures", "serve", "screen"]
    assert [line.split()[0] for line in lines] == names
    *before, serve, screen = (["-m", "askance", *shlex.split(line)] for line in lines)
    said = {
        name: subprocess.run([sys.executable, *command], check=True, capture_output=True, text=True).stdout
        for name, command in zip(names, before, strict=False)
    }
    assert "library network (" in said["explain"]
    assert "paper 004: 5 figures" in said["figures"]
    assert (tmp_path / "figures" / "unfolded.svg").exists()
    with started([*serve, "--port", "0", "--metrics-port", "0"]) as (process, serving):
        assert isinstance(serving, Serving)
        done = subprocess.run(
            [sys.executable, *screen, "--target", serving.target], check=False, capture_output=True, text=True
        )
        process.terminate()
        assert process.wait(60) == 0
    assert done.returncode == 0, done.stderr
    assert " one " in done.stdout
    assert "digit.png: self organizing map (" in done.stdout


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Of the pages that are not part of the site, whose own links its build checks."""
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not link.startswith("http") and not (ROOT / link).exists()] == []


def test_pages_that_are_named_are_there() -> None:
    """Whoever reads a comment, or a page, can open the page that it names."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    files = [Path(name) for name in listed.stdout.split("\0") if name]
    if not files:
        pytest.skip("not a checkout")
    pages = {one.name for one in files if one.suffix == ".md"}
    named: dict[str, str] = {}
    for one in files:
        if one.suffix in {".py", ".toml", ".md", ".html", ".yml", ".yaml"} and (ROOT / one).is_file():
            for page in re.findall(r"\b\w+\.md\b", (ROOT / one).read_text(encoding="utf-8")):
                named.setdefault(page, str(one))
    assert {page: where for page, where in named.items() if page not in pages} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_of_the_docs_parse(page: Path) -> None:
    for block in blocks(page.read_text(encoding="utf-8"), "python"):
        compile(block, str(page), "exec")


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda page: page.name)
def test_lines_are_wrapped(page: Path) -> None:
    """At 120 columns, where Markdown allows it: not tables, links and code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    long = [line for line in text.splitlines() if len(line) > 120 and not line.startswith(("|", "!["))]
    assert [line for line in long if "](" not in line] == []


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = README + (ROOT / "CONTRIBUTING.md").read_text() + "".join(page.read_text() for page in PAGES)
    typed = "\n".join([*blocks(text, ""), *re.findall(r"`[^`\n]+`", text)])
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", typed, re.MULTILINE))
    assert named - targets == set()
