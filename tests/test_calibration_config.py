"""The calibration config: what it refuses, and in which words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from calibration_support import CONFIGS, digits_folder

from askance.calibration.config import load_config
from askance.calibration.paths import data_root, find
from askance.errors import ConfigError


def edited(folder: Path, old: str, new: str) -> Path:
    path = digits_folder(folder)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch_size = 300", "batchsize = 300", "unknown key 'batchsize': did you mean 'batch_size'?"),
        (
            "neighbors = 3",
            "neighbours = 3",
            "unknown key 'detectors.library_network.neighbours': did you mean 'neighbors'?",
        ),
        (
            "[data]\nsource",
            "[data]\nsourc",
            "'data.source' is missing|unknown key 'data.sourc': did you mean 'source'?",
        ),
        (
            "epsilon = 0.2",
            "epsilon = 3",
            "evaluation.attacks.0.epsilon: Input should be less than or equal to 1, got 3",
        ),
        ("channels = 1", "channels = 2", "classifier.preprocessing.channels: Input should be 1 or 3, got 2"),
        ("mean = [0.306]", "mean = [0.3, 0.3]", "mean and std need one number for each of the 1 channels"),
        ("adversarial = 0.01", "adversarial = 0.1", "levels must satisfy 0 < adversarial <= suspect <= 0.5"),
        ('name = "pgd"', 'name = "fgsm"', "two rows share the name 'fgsm'"),
        ('kind = "pgd"', 'kind = "pdg"', "evaluation.attacks.1.kind: unknown 'pdg': did you mean 'pgd'"),
        ("[levels]", "[levels", "is not valid TOML"),
    ],
    ids=lambda value: value if "=" in value and len(value) < 30 else None,
)
def test_refusals_name_the_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(edited(tmp_path, old, new))
    assert "\n" not in str(caught.value) or "TOML" in str(caught.value)


def test_a_missing_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the config .*nowhere\.toml: No such file"):
        load_config(tmp_path / "nowhere.toml")


def test_no_detector_at_all(tmp_path: Path) -> None:
    path = digits_folder(tmp_path)
    head, _, rest = path.read_text().partition("[detectors.library_network]")
    path.write_text(head + "[detectors]\n[levels]" + rest.partition("[levels]")[2])
    with pytest.raises(ConfigError, match="at least one detector is needed: library_network, introspection"):
        load_config(path)


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.toml") if path.stem != "server"))
def test_the_shipped_configs_are_valid(name: str) -> None:
    assert name.partition("_")[0] in load_config(CONFIGS / f"{name}.toml").name


def test_paths_are_found_beside_the_config_then_under_the_data_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, root = tmp_path / "beside", tmp_path / "root"
    beside.mkdir()
    root.mkdir()
    (root / "vectors.txt").touch()
    monkeypatch.delenv("ASKANCE_DATA", raising=False)
    assert data_root() is None
    assert find(Path("vectors.txt"), beside) == beside / "vectors.txt"
    monkeypatch.setenv("ASKANCE_DATA", str(root))
    assert find(Path("vectors.txt"), beside) == root / "vectors.txt"
    (beside / "vectors.txt").touch()
    assert find(Path("vectors.txt"), beside) == beside / "vectors.txt"
    assert find(Path("nowhere.txt"), beside) == beside / "nowhere.txt"


def test_data_beside_the_config_is_found_there(tmp_path: Path) -> None:
    text = (CONFIGS / "digits.toml").read_text().replace('source = "sklearn:digits"', 'source = "npz:some.npz"')
    path = tmp_path / "c.toml"
    path.write_text(text)
    assert load_config(path).data.source == "npz:some.npz"
    (tmp_path / "some.npz").touch()
    assert load_config(path).data.source == f"npz:{tmp_path / 'some.npz'}"


ATTACKS = """
attacks = [
    {{ name = "a", kind = "pgd", epsilon = "8/255" }},
    {{ name = "b", {second} }},
]
"""


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ('kind = "cw", confidnce = 2', "unknown key 'evaluation.attacks.1.confidnce': did you mean 'confidence'"),
        ('kind = "fgsm", epsilom = 0.1', "unknown key 'evaluation.attacks.1.epsilom': did you mean 'epsilon'"),
        ('kind = "fgsm"', "the key 'evaluation.attacks.1.epsilon' is missing"),
        ("epsilon = 0.1", "the key 'evaluation.attacks.1.kind' is missing"),
        (
            'kind = "fgsm", epsilon = "8/0"',
            'evaluation.attacks.1.epsilon: expected a number, or a fraction such as "8/255"',
        ),
        ('kind = "spsa", epsilon = 2', "evaluation.attacks.1.epsilon: Input should be less than or equal to 1, got 2"),
    ],
    ids=lambda value: value[:24],
)
def test_mistakes_in_an_attack_name_its_key(tmp_path: Path, second: str, message: str) -> None:
    head = (CONFIGS / "digits.toml").read_text().partition("[[evaluation.attacks]]")[0]
    path = tmp_path / "c.toml"
    path.write_text(head + ATTACKS.format(second=second))
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load_config(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            'ladder = false\nbaselines = ["lid"]',
            "the baseline lid is trained on an attack: give one in evaluation.seen",
        ),
        ('baselines = ["vim"]', "evaluation.baselines.0: unknown 'vim': known: max_softmax, energy"),
        ('baselines = ["max_sofmax"]', "evaluation.baselines.0: unknown 'max_sofmax': did you mean 'max_softmax'"),
        (
            'seen = [{ name = "f", kind = "fgsm", epsilon = 0.1 }, { name = "p", kind = "pgd", epsilon = 0.1 }]',
            "seen attacks must be of one kind, got fgsm and pgd",
        ),
        (
            'ladder = true\nseen = [{ name = "s", kind = "stopped_pgd", epsilon = 0.1 }]',
            "give seen attacks or the ladder, not both",
        ),
        ('controls = [{ name = "c", kind = "clip" }, { name = "c", kind = "blur" }]', "two rows share the name 'c'"),
    ],
    ids=["no seen attack", "unknown baseline", "misspelt baseline", "two kinds", "both", "one name twice"],
)
def test_mistakes_in_the_evaluation(tmp_path: Path, lines: str, message: str) -> None:
    text = (CONFIGS / "digits.toml").read_text().replace("attacked_images = 300\n", f"{lines}\n")
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(path)


@pytest.mark.parametrize("text", ["seed = " + "9" * 5000, "seed = " + "[" * 9999 + "]" * 9999], ids=["long", "deep"])
def test_what_toml_has_no_words_for_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"c\.toml is not valid TOML: ") as caught:
        load_config(tmp_path / "c.toml")
    assert len(str(caught.value).splitlines()) == 1
