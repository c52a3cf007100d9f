"""A bundle is data: what its manifest names is not imported unless its user says so."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_support import config, publish_tiny, running

import askance
from askance.calibration.config import load_config
from askance.calibration.live import evaluate
from askance.calibration.pipeline import evaluate_bundle
from askance.classifiers import trusting
from askance.classifiers.loading import EXAMPLES
from askance.classifiers.trust import is_trusted
from askance.detectors import Bundle
from askance.errors import AskanceError, BundleError, ConfigError
from askance.service.config import ServerConfig
from askance.service.runtime.model import LoadedBundle

LINE = r"the bundle's classifier is built by 'trap:build', which a bundle alone may not have imported"
PARTS = st.sampled_from(
    [
        "os",
        "torchvision",
        "timm",
        "transformers",
        "trap",
        "trap.models",
        "build",
        "system",
        "resnet18",
        "lenet",
        "",
        "*",
        ".",
    ]
)
TRAP = """
open({marker!r}, "w")
from service_support import TinyClassifier as build
"""


@pytest.fixture
def sprung(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is there once the module `trap` has been imported."""
    (tmp_path / "trap.py").write_text(TRAP.format(marker=str(tmp_path / "sprung")))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trap", raising=False)
    publish_tiny(tmp_path / "bundle", "trap:build")
    return tmp_path / "sprung"


@given(PARTS, PARTS, st.lists(PARTS), st.booleans())
def test_only_what_is_shipped_or_allowed_is_trusted(module: str, name: str, allowed: list[str], whole: bool) -> None:
    """By its whole name or its module's; neither patterns nor packages above are taken for it."""
    factory = f"{module}:{name}" if whole else name
    expected = (
        factory in allowed or module in allowed or module in ("torchvision", "timm") if whole else factory in EXAMPLES
    )
    assert is_trusted(factory, allowed) is expected


@pytest.mark.parametrize("factory", ["os:system", "subprocess:run", "builtins:exec", "torch.hub:load", "shutil:rmtree"])
def test_no_function_of_python_builds_a_classifier(factory: str) -> None:
    with pytest.raises(ConfigError, match="which a bundle alone may not have imported: if you trust it, allow it"):
        trusting(["my_package"])(factory, {"command": "touch sprung"}, {})


def test_opening_imports_nothing(sprung: Path) -> None:
    bundle = sprung.with_name("bundle")
    config = load_config(Path(__file__).parents[1] / "configs" / "digits.toml")
    with pytest.raises(
        ConfigError, match=r"bundle: its classifier is built by 'trap:build', the config's by 'digits_cnn'"
    ):
        evaluate_bundle(Bundle.open(bundle), config)
    for attempt in (
        lambda: askance.open(bundle),
        lambda: askance.open(bundle, allowed_factories=["trap.models", "tra", "trap:other"]),
        lambda: LoadedBundle.open(bundle, trusting(())),
        lambda: evaluate(bundle, {}, attacks=[]),
    ):
        with pytest.raises(AskanceError, match=LINE):
            attempt()
        assert not sprung.exists()
    with askance.open(bundle, allowed_factories=["trap"]) as screen:
        assert screen.class_names[0] == "ant"
    assert sprung.exists()


def test_the_commands_import_nothing(sprung: Path) -> None:
    bundle = sprung.with_name("bundle")
    path = os.pathsep.join([str(sprung.parent), str(Path(__file__).parent)])

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "askance", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PYTHONPATH": path},
        )

    for command in (("inspect", bundle), ("serve", bundle, "--port", "0", "--metrics-port", "0")):
        done = run(*command)
        assert done.returncode == 2
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("askance: ")]
        assert "if you trust it, allow it (--allow-factory trap:build, or allowed_factories)" in line
        assert not sprung.exists()
    assert "classifier  tiny (trap:build)" in run("inspect", bundle).stdout  # what is in it is said all the same
    done = run("inspect", bundle, "--allow-factory", "trap:build")
    assert done.returncode == 0, done.stderr
    assert sprung.exists()


def test_a_server_keeps_what_it_has(sprung: Path) -> None:
    """A bundle put in the place of one that is served, by whoever can write there, is refused like any other."""

    async def main() -> None:
        async with running(settings=config()) as service:
            server = service.server
            before = server.repository.default.version
            server._load = lambda: LoadedBundle.open(
                sprung.with_name("bundle"), trusting(server.config.bundles.allowed_factories)
            )
            with pytest.raises(BundleError, match=LINE):
                await server.reload()
            assert server.repository.default.version == before
            assert service.value("askance_bundle_reloads_total", result="failure") == 1

    asyncio.run(main())
    assert not sprung.exists()


def test_the_setting(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text('[bundles]\nallowed_factories = ["my_package.models:build"]\n')
    assert ServerConfig.load(path).bundles.allowed_factories == ("my_package.models:build",)
    assert ServerConfig.load().bundles.allowed_factories == ()
