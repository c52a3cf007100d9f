"""A detector, an attack, a baseline and a data source from other packages; and what is said of broken ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from calibration_support import CONFIGS

from askance.detectors import DETECTORS, Bundle
from askance.errors import AskanceError, BundleError
from askance.inside.curves import Curves
from askance.plugins import Family, Package

REPOSITORY = Path(__file__).resolve().parent.parent
MODULE = '''
from typing import Any, ClassVar, Literal

import torch

from askance.calibration.attacks import Attack, Pixels
from askance.calibration.baselines import Baseline
from askance.calibration.sources import SOURCES, Source
from askance.detectors import Detector, Options, Reading
from askance.errors import DataError


class OddOptions(Options):
    odd_layer: str


class Odd(Detector[OddOptions]):
    """The distance to the mean clean activation of a layer."""

    kind: ClassVar[str] = "odd_distance"
    options_class: ClassVar[type[Options]] = OddOptions

    def __init__(self, options):
        super().__init__(options)
        self.register_buffer("mean", torch.empty(0))

    @property
    def layers(self):
        return (self.options.odd_layer,)

    @property
    def is_fitted(self):
        return self.mean.numel() > 0

    @torch.no_grad()
    def fit(self, clean, held_out=None):
        self.mean = torch.cat([capture.flat(self.options.odd_layer) for capture in clean]).mean(dim=0)
        return self

    def diagnose(self, clean, held_out):
        return {"mean": float(torch.cat([self.score(capture) for capture in held_out]).mean())}

    def read(self, capture):
        self.require_fitted()
        distance = (capture.flat(self.options.odd_layer) - self.mean).norm(dim=1)
        return Reading(distance, {"distance": distance}, evidence={"distance": distance})

    def explain_one(self, evidence):
        return {"distance": round(float(evidence["distance"]), 4)}


class Darken(Attack):
    """Takes some brightness away."""

    kind: Literal["darken"]
    epsilon: Pixels

    def perturbation(self, predict, classes):
        return lambda images, labels: images - self.epsilon


class Brightness(Baseline):
    """How dark an image's logits are."""

    name: ClassVar[str] = "greatest_logit"
    title: ClassVar[str] = "the greatest logit, nobody"

    def score(self, inputs):
        return -inputs.logits.double().amax(dim=1)


class Again(Source):
    """The digits by another name."""

    kind: ClassVar[str] = "again"
    spelling: ClassVar[str] = "again:digits"

    @classmethod
    def load(cls, what):
        if what != "digits":
            raise DataError(f"again:{what} is not there")
        return SOURCES["sklearn"].load(what)
'''
ENTRY_POINTS = """
[askance.detectors]
odd_distance = odd_ones:Odd

[askance.attacks]
darken = odd_ones:Darken

[askance.baselines]
greatest_logit = odd_ones:Brightness

[askance.sources]
again = odd_ones:Again
"""
CALIBRATE = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from askance.calibration.config import load_config
from askance.calibration.option_tables import attacks_table, baselines_table, sources_table
from askance.calibration.pipeline import calibrate
from askance.calibration.training import train
from askance.classifiers import build_classifier
from askance.detectors import Bundle

folder = Path(sys.argv[1])
config = load_config(folder / "odd.toml")
train(config)
calibrate(config, folder / "bundle")
screen = Bundle.open(folder / "bundle").screen(build_classifier)
answers = screen(torch.zeros(2, 1, 8, 8), explain=True)
print(json.dumps({
    "answer": answers[0].as_dict(),
    "tables": attacks_table() + baselines_table() + sources_table(),
}))
"""


def install(folder: Path, name: str, entry_points: str, module: str = "", version: str = "1.2") -> None:
    """What an installer leaves of a package of one module."""
    if module:
        (folder / f"{name}.py").write_text(module)
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(textwrap.dedent(entry_points))


def run(code: str, *arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    folders = [str(path)] * (path is not None) + [str(REPOSITORY)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, check=False
    )


@dataclass(frozen=True)
class OddRun:
    """A calibration with a package that brings a detector, an attack, a baseline and a source."""

    packages: Path
    bundle: Path
    said: Mapping[str, Any]


@pytest.fixture(scope="module")
def odd_run(tmp_path_factory: pytest.TempPathFactory) -> OddRun:
    folder, packages = tmp_path_factory.mktemp("odd"), tmp_path_factory.mktemp("packages")
    install(packages, "odd_ones", ENTRY_POINTS, MODULE)
    head, _, rest = (CONFIGS / "digits.toml").read_text().partition("[detectors.library_network]")
    sections = '[detectors.self_organizing_map]\nmap_layers = ["fc1"]\nside = 4\nepochs = 2\n'
    sections += '[detectors.odd_distance]\nodd_layer = "fc1"\n'
    evaluation = """
    [evaluation]
    attacked_images = 40
    baselines = ["max_softmax", "greatest_logit"]
    benign_images = 0
    seen = [{ name = "s", kind = "fgsm", epsilon = 0.2 }]
    attacks = [{ name = "dark", kind = "darken", epsilon = "1/2" }, { name = "f", kind = "fgsm", epsilon = 0.3 }]
    """
    text = head.replace("epochs = 30", "epochs = 3").replace("sklearn:digits", "again:digits")
    levels = rest[rest.index("[levels]") : rest.index("[evaluation]")]
    (folder / "odd.toml").write_text(text + sections + levels + textwrap.dedent(evaluation))
    done = run(CALIBRATE, str(folder), path=packages)
    assert done.returncode == 0, done.stderr
    return OddRun(packages, folder / "bundle", json.loads(done.stdout.splitlines()[-1]))


def test_they_appear_wherever_ours_do(odd_run: OddRun) -> None:
    bundle = Bundle.open(odd_run.bundle)
    ours, theirs = bundle.manifest.detectors
    assert (ours.kind, ours.package) == ("self_organizing_map", None)
    assert theirs.package is not None
    assert (theirs.kind, theirs.package.name, theirs.package.version) == ("odd_distance", "odd_ones", "1.2")
    assert theirs.options == {"odd_layer": "fc1"}
    assert bundle.manifest.provenance["config"]["detectors"]["odd_distance"] == theirs.options

    evaluation = bundle.evaluation()
    our_columns = {"self_organizing_map", "odd_distance", "fused", "fused_untrained", "unfamiliar", "doubtful"}
    scorers = {*our_columns, "max_softmax", "greatest_logit"}
    assert evaluation.baselines == ("max_softmax", "greatest_logit")
    assert evaluation.attacks["dark"].kind == "darken"
    assert evaluation.attacks["dark"].successful > 0
    assert set(evaluation.auroc["dark"]) == scorers
    assert evaluation.diagnostics["odd_distance"]["mean"] > 0
    drawn = Curves.model_validate_json((odd_run.bundle / "report" / "curves.json").read_text())
    assert set(drawn.shares) == scorers
    assert "dark" in drawn.detected
    assert "odd distance" in (odd_run.bundle / "report" / "index.html").read_text()

    words = odd_run.said["answer"]["detectors"]
    assert [word["name"] for word in words] == ["self_organizing_map", "odd_distance"]
    assert words[1]["explanation"].keys() == {"distance"}
    for name in ("darken", "greatest_logit", "again:digits"):
        assert f"`{name}`" in odd_run.said["tables"]


def test_a_bundle_without_its_package_is_refused_in_one_line_that_names_it(odd_run: OddRun) -> None:
    with pytest.raises(BundleError) as caught:
        Bundle.open(odd_run.bundle).detectors()
    assert str(caught.value) == (
        f"{odd_run.bundle}: the detector odd_distance comes from the package odd_ones 1.2, which is not installed: "
        "pip install odd_ones==1.2"
    )
    done = run("from askance.__main__ import main; main()", "inspect", str(odd_run.bundle))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "pip install odd_ones==1.2" in done.stderr


def test_a_detector_of_the_same_name_from_another_package_is_not_taken(odd_run: OddRun, tmp_path: Path) -> None:
    install(tmp_path, "impostor", "[askance.detectors]\nodd_distance = impostor:Odd\n", MODULE)
    code = "import sys; from pathlib import Path; from askance.detectors import Bundle; "
    done = run(code + "Bundle.open(Path(sys.argv[1])).detectors()", str(odd_run.bundle), path=tmp_path)
    assert "comes from the package odd_ones 1.2, which is not installed" in done.stderr


def test_a_mistake_in_its_section_is_told_as_ours_are(odd_run: OddRun, tmp_path: Path) -> None:
    text = (odd_run.bundle.parent / "odd.toml").read_text().replace("odd_layer =", "odd_layers =")
    (tmp_path / "c.toml").write_text(text)
    done = run(
        "from askance.__main__ import main; main()",
        *("calibrate", str(tmp_path / "c.toml"), "--out", str(tmp_path / "b")),
        path=odd_run.packages,
    )
    assert "unknown key 'detectors.odd_distance.odd_layers': did you mean 'odd_layer'?" in done.stderr


# Broken packages, over a family made for it


class Base(ABC):
    """What members derive from."""

    name: ClassVar[str]


class Ours(Base):
    """A member of the house."""

    name: ClassVar[str] = "ours"


SOMEBODY = """
from test_plugins import Base

class Good(Base):
    name = "good"

class Nameless(Base):
    pass
"""


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def family() -> Family[Base]:
    return Family("askance.test_family", Base, (Ours,), name_of=lambda member: member.name, reserved=("kept",))


def test_no_detector_takes_the_name_of_another_column() -> None:
    assert {"fused", "fused_single_pass", "manipulated", "unfamiliar", "doubtful"} <= DETECTORS.taken


def test_a_family_is_ours_then_theirs(packages: Path) -> None:
    install(packages, "somebody_a", "[askance.test_family]\ngood = somebody_a:Good\n", SOMEBODY)
    members = family()
    assert list(members) == ["ours", "good"]
    assert len(members) == 2
    assert members["good"].__name__ == "Good"
    assert list(members) == ["ours", "good"]
    assert members.package("good") == Package("somebody_a", "1.2")
    assert members.package("ours") is None
    assert "better" not in members
    with pytest.raises(KeyError):
        members["better"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("good = nowhere_to_be_found:Good", "cannot be imported \\(No module named 'nowhere_to_be_found'\\): mend or"),
        ("good = somebody_b:Better", "cannot be imported \\(module 'somebody_b' has no attribute 'Better'\\)"),
        ("good = somebody_b:Base.__name__", "is no subclass of Base"),
        ("good = somebody_b:Nameless", "has no name of its own: expected 'good'"),
        ("better = somebody_b:Good", "calls itself 'good': the entry point must have the same name"),
        ("ours = somebody_b:Good", "takes the name of askance's own: rename it, or uninstall it"),
        ("kept = somebody_b:Good", "takes the name of askance's own: rename it, or uninstall it"),
    ],
    ids=["no module", "no class", "no subclass", "no name", "another name", "our name", "a kept name"],
)
def test_a_broken_package_is_one_line_that_names_it(packages: Path, entry: str, message: str) -> None:
    install(packages, "somebody_b", f"[askance.test_family]\n{entry}\n", SOMEBODY)
    with pytest.raises(AskanceError, match=message) as caught:
        dict(family())
    assert len(str(caught.value).splitlines()) == 1
    assert "of askance.test_family in the package somebody_b" in str(caught.value)


def test_a_broken_package_harms_only_those_who_want_it(packages: Path) -> None:
    install(packages, "somebody_c", "[askance.test_family]\ngood = nowhere_to_be_found:Good\n")
    assert family()["ours"] is Ours


def test_two_packages_with_one_name(packages: Path) -> None:
    for name in ("somebody_d", "somebody_e"):
        install(packages, name, f"[askance.test_family]\ngood = {name}:Good\n", SOMEBODY)
    with pytest.raises(AskanceError, match="share a name: uninstall one of them"):
        list(family())


def test_nobody_else_is_here() -> None:
    assert all(DETECTORS.package(kind) is None for kind in DETECTORS)
