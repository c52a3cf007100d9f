"""Fixtures: the real data's folder, and a small classifier of scikit-learn's digits with its fitted detectors."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from bundle_support import publish_trained
from calibration_support import ATTACKED, DigitsRun, digits_run_in, run_digits
from filelock import FileLock
from graphs_support import with_graphs, without_graphs
from hypothesis import settings
from playwright.sync_api import Browser, sync_playwright
from toy import Trained, fit_everything, train_digits
from wheel_support import build_wheel

from askance.calibration import pipeline, recalibration
from askance.errors import ExportError
from askance.service.observability.log import GRPC, OWN, Ids

# Tensors here are small: a second thread per operation only contends with other processes (fifteenfold, measured).
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of commands in processes of their own

settings.register_profile("fuzz", max_examples=1000)

REPOSITORY = Path(__file__).resolve().parent.parent

# Longest first: begun last, a minute's file would be run alone, while the other worker waits. And one at first of those
# that need the digits run, which it makes for all: the other worker would wait for that, too.
LONGEST = (
    *("docs_config", "tutorial", "benchmarks", "fuzz", "disk", "attacks", "workers", "score_leaks", "pipeline"),
    *("aware", "graph", "readme", "abuse", "worst_messages"),
    *("haproxy", "own_detector", "papers", "examples", "margins"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Attacked images of tests stay out of the user's cache, and the user's out of tests."""
    os.environ["ASKANCE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def _no_graphs() -> Iterator[None]:
    """Graphs, which take seconds, are made where a test asks for them (`graphs`, test_graph.py)."""

    def left_out(*_: object) -> None:
        raise ExportError("left out of tests")

    with pytest.MonkeyPatch.context() as patched:
        for module in (pipeline, recalibration):
            patched.setattr(module, "graphs_of", left_out)
        patched.setenv("PYTHONPATH", without_graphs())  # of commands in processes of their own
        yield


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands in processes of their own make graphs, as they do for everybody."""
    monkeypatch.setenv("PYTHONPATH", with_graphs())


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """A server that is run in this process leaves no log of its own behind."""
    yield
    root = logging.getLogger()
    for handler in [one for one in root.handlers if any(isinstance(part, Ids) for part in one.filters)]:
        root.removeHandler(handler)
    for name in (*OWN, GRPC):
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def data_root() -> Path:
    root = Path(os.environ.get("ASKANCE_DATA") or REPOSITORY.parent / "shared" / "data")
    if not root.is_dir():
        pytest.skip(f"no real data at {root}: set ASKANCE_DATA to its folder")
    return root.resolve()


@pytest.fixture(scope="session")
def trained() -> Trained:
    return fit_everything(train_digits())


@pytest.fixture(scope="session")
def published(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle, to be read and nothing else."""
    path = tmp_path_factory.mktemp("bundles") / "digits"
    publish_trained(trained, path)
    return path


@pytest.fixture
def bundle(published: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(published, tmp_path / "digits"))


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> DigitsRun:
    """In a copy of the worker's own: tests write beside its config. So are the attacked images, in the tests' cache."""
    made = made_once(tmp_path_factory, "digits", run_digits)
    shutil.copytree(made / ATTACKED, os.environ["ASKANCE_CACHE"], dirs_exist_ok=True)
    own, rest = tmp_path_factory.mktemp("digits"), shutil.ignore_patterns(ATTACKED)
    return digits_run_in(Path(shutil.copytree(made, own, ignore=rest, dirs_exist_ok=True)))


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (built,) = made_once(tmp_path_factory, "wheel", partial(build_wheel, REPOSITORY)).glob("*.whl")
    return built


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that whichever of xdist's workers asks first makes for all of them."""
    session = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        session = session.parent
    folder = session / f"made-once-{name}"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            begun = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=session))
            make(begun)
            begun.rename(folder)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium. Its driver has an event loop on this thread until the module ends: test asyncio before."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()
