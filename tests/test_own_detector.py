"""examples/own_detector as users have it: its wheel beside the wheel of askance, and then without it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from calibration_support import DigitsRun
from wheel_support import Users, build_wheel, new_users

from askance.detectors import Bundle
from askance.screening.manifest import PackageEntry

pytestmark = [pytest.mark.acceptance, pytest.mark.lasting]
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture(scope="module")
def own_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own_wheel")
    source = folder / "own_detector"
    shutil.copytree(EXAMPLES / "own_detector", source)  # a build leaves files in the source
    return build_wheel(source, folder)


@pytest.fixture(scope="module")
def users(wheel: Path, own_wheel: Path, digits_run: DigitsRun, tmp_path_factory: pytest.TempPathFactory) -> Users:
    """Both wheels installed; in the folder, what its config names."""
    folder = tmp_path_factory.mktemp("users")
    weights = Path("configs", "weights", "digits_cnn.safetensors")
    (folder / weights).parent.mkdir(parents=True)
    shutil.copy(digits_run.config.classifier.weights, folder / weights)
    shutil.copytree(EXAMPLES, folder / "examples")
    users = new_users(wheel, folder, tmp_path_factory.mktemp("environment"))
    users.pip("install", "--quiet", "--no-deps", own_wheel)
    return users


@pytest.fixture(scope="module")
def bundle(users: Users) -> Path:
    done = users.run("-m", "askance", "calibrate", "examples/own_detector/digits.toml", "--out", "own-bundle")
    assert done.returncode == 0, done.stderr
    return users.folder / "own-bundle"


@pytest.fixture
def uninstalled(users: Users, own_wheel: Path) -> Iterator[None]:
    users.pip("uninstall", "--yes", "askance-own-detector")
    yield
    users.pip("install", "--quiet", "--no-deps", own_wheel)


def test_its_config_calibrates(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    packages = {detector.kind: detector.package for detector in opened.manifest.detectors}
    own = PackageEntry(name="askance-own-detector", version="1.0")
    assert packages == {"self_organizing_map": None, "activation_norm": own}
    evaluation = opened.evaluation()
    assert evaluation.baselines == ("max_softmax", "margin")
    ours = ("self_organizing_map", "activation_norm", "fused", "fused_untrained", "unfamiliar", "doubtful")
    assert evaluation.scorers == (*ours, "max_softmax", "margin")
    assert evaluation.attacks["signs"].kind == "random_signs"
    assert evaluation.attacks["signs"].successful > 0
    assert evaluation.attacks["signs"].median_distance["linf"] == pytest.approx(0.3, abs=1e-3)
    assert evaluation.auroc["pgd"]["activation_norm"] > 0.55
    assert evaluation.auroc["pgd"]["margin"] > 0.6


def test_inspect_names_its_package(users: Users, bundle: Path) -> None:
    done = users.run("-m", "askance", "inspect", str(bundle))
    assert done.returncode == 0, done.stderr
    assert "packages    askance-own-detector 1.0\n" in done.stdout
    assert "│ activation_norm " in done.stdout


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("activation_norm", "activation_nrm"), ("random_signs", "random_sings"), ('"margin"', '"margn"')],
)
def test_its_names_are_known_where_one_is_misspelt(users: Users, right: str, wrong: str) -> None:
    config = users.folder / "examples" / "own_detector" / "misspelt.toml"
    config.write_text(config.with_name("digits.toml").read_text().replace(right, wrong))
    done = users.run("-m", "askance", "calibrate", str(config), "--out", "never")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    name = right.strip('"')
    assert f"did you mean {name!r}? known: " in done.stderr


ASK = """
import askance
from askance.service.launch import launched

arguments = ["-m", "askance", "serve", "own-bundle", "--port", "0", "--metrics-port", "0", "--disclose"]
with launched(arguments) as serving, askance.Client(serving.target) as client:
    answer = client.screen("examples/digit.png", explain=True)
own = answer.screening.detectors[1]
print(answer.label, own.name, *sorted(own.explanation))
"""


def test_serve_and_client_know_it(users: Users, bundle: Path) -> None:
    done = users.run("-c", ASK)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "one activation_norm length usual\n"


@pytest.mark.usefixtures("uninstalled")
@pytest.mark.parametrize("command", ["inspect", "serve"])
def test_without_it_one_line_says_what_to_install(users: Users, bundle: Path, command: str) -> None:
    done = users.run("-m", "askance", command, "own-bundle")
    assert ("activation_norm" in done.stdout) is (command == "inspect")  # what is in it is said all the same
    assert (done.returncode, done.stderr) == (
        2,
        "askance: own-bundle: the detector activation_norm comes from the package askance-own-detector 1.0, which is "
        "not installed: pip install askance-own-detector==1.0\n",
    )
