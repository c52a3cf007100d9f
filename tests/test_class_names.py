"""What classes may be called, and how the names of a config are matched to the data's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calibration_support import CONFIGS, DigitsRun
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from prometheus_client.exposition import generate_latest
from test_pipeline import edited
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset, random_split

from askance.calibration.config import Config, load_config
from askance.calibration.data import load_pools, named
from askance.calibration.images import make_images
from askance.calibration.inputs import load_inputs
from askance.calibration.live_data import images_of, splits_of
from askance.errors import ConfigError, DataError
from askance.screening.class_names import MOST_CHARACTERS, fault_in, folded, names_of, order_fault
from askance.service.observability.metrics import BundleDescription, Metrics

FAULTS = {
    "blank": (["cat", " \t"], r"a class is called ' \\t': expected a name that is not blank"),
    "empty": (["", "dog"], "a class is called '': expected a name that is not blank"),
    "twice": (["cat", "dog", "cat"], "two classes are called 'cat': class names must differ"),
    "by case": (
        ["Straße", "STRASSE"],
        "two classes are called 'Straße' and 'STRASSE': class names must differ by more than case or blanks",
    ),
    "by blanks": (["cat", "cat "], "two classes are called 'cat' and 'cat ': class names must differ by more than"),
    "no width": (["\u200b", "dog"], r"a class is called '\\u200b': expected a name that is not blank"),
    "by what has no width": (
        ["cat", "c\u200dat\u200b"],
        "two classes are called .*: class names must differ by more than case or blanks",
    ),
    "by composition": (
        ["caf\u00e9", "cafe\u0301"],
        "two classes are called .*: class names must differ by more than case or blanks",
    ),
    "a line break": (["cat\n", "dog"], r"the name 'cat\\n' holds a control character, or is no UTF-8: rename"),
    "an escape": (["\x1b[2J", "dog"], r"the name '\\x1b\[2J' holds a control character"),
    "another line break": (["a\u2028b", "dog"], r"the name 'a\\u2028b' holds a control character"),
    "no UTF-8": (["caf\udce9", "dog"], r"the name 'caf\\udce9' holds a control character, or is no UTF-8"),
    "long": (
        ["x" * 201, "dog"],
        r"a class name has 201 characters \('xxxxxxxxxxxxxxxxxxxx'\.\.\.\): expected at most 200",
    ),
}


@pytest.mark.parametrize(("names", "message"), FAULTS.values(), ids=FAULTS)
def test_names_that_cannot_be(names: list[str], message: str) -> None:
    """From data, from a config and for live data alike."""
    assert fault_in(names) is not None
    y = np.arange(len(names))
    with pytest.raises(DataError, match=f"^here: {message}"):
        make_images(np.zeros((len(names), 4, 4), np.uint8), y, tuple(names), "here")
    with pytest.raises(DataError, match=f"^live: {message}") as caught:
        images_of((np.zeros((len(names), 4, 4), np.uint8), y), names, "live")
    assert str(caught.value).isprintable()


def test_a_config_names_the_key(tmp_path: Path) -> None:
    text = (CONFIGS / "digits.toml").read_text()
    path = tmp_path / "c.toml"
    path.write_text(text.replace("[classifier]\n", '[classifier]\nclass_names = ["one", "ONE"]\n'))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == (
        f"{path}: classifier.class_names: two classes are called 'one' and 'ONE': class names must differ by more than "
        "case or blanks"
    )
    path.write_text(text.replace("[data]\n", '[data]\nclasses = ["one", "one"]\n'))
    with pytest.raises(ConfigError, match=r"data\.classes: two classes are called 'one': class names must differ$"):
        load_config(path)


@given(st.lists(st.text(max_size=MOST_CHARACTERS + 5), min_size=1, max_size=5))
def test_what_passes_can_be_a_label_and_a_line(names: list[str]) -> None:
    fault = fault_in(names)
    if fault is not None:
        assert len(fault.splitlines()) == 1
        return
    assert len({folded(name) for name in names}) == len(names)
    metrics = Metrics(8)
    metrics.serves(BundleDescription("id", "net", 0.0, names, ("d",), {"suspect": 0.05}, "torch", ("classify",), 99))
    page = generate_latest(metrics.registry).decode("utf-8")
    assert page.count("askance_predictions_total{") == len(names)
    assert all(len(name.splitlines()) == 1 for name in names)


def test_bytes_and_numbers_are_names_too() -> None:
    assert names_of(np.array([b"cat", "caf\u00e9".encode()])) == ("cat", "caf\u00e9")
    assert names_of(np.arange(3)) == ("0", "1", "2")
    assert names_of([("tench", "Tinca tinca"), ("crane",)]) == ("tench, Tinca tinca", "crane")
    assert names_of(np.array(["cat", "dog"])) == ("cat", "dog")
    for given_, message in (
        ([b"caf\xe9"], r"the class name b'caf\\xe9' is no UTF-8: rename the class"),
        (np.array([0.5, 1]), "a class name is float64, '0.5': expected text"),
        ("cat", "the class names are one string, 'cat': expected a list of names"),
    ):
        with pytest.raises(DataError, match=message):
            names_of(given_)


def test_bytes_in_an_npz_are_read(tmp_path: Path) -> None:
    content: dict[str, Any] = {"x": np.zeros((2, 4, 4), np.uint8), "y": np.arange(2)}
    np.savez(tmp_path / "a.npz", classes=np.array([b"cat", b"dog"]), **content)
    source = f"npz:{tmp_path / 'a.npz'}"
    config = load_config(CONFIGS / "digits.toml").data.model_copy(update={"source": source})
    assert load_pools(config)["train"].classes == ("cat", "dog")
    np.savez(tmp_path / "a.npz", classes=np.array([b"cat", b"\xff"]), **content)
    with pytest.raises(DataError, match=r"^npz:.*a\.npz: the class name b'\\xff' is no UTF-8: rename the class$"):
        load_pools(config)
    np.savez(tmp_path / "a.npz", classes=np.array([1.0, 2.0]), **content)
    with pytest.raises(DataError, match="a class name is float64"):
        load_pools(config)


OWN = ("zero", "one", "two")


@pytest.mark.parametrize(
    ("names", "place", "other"),
    [(("one", "zero", "two"), 0, 1), (("nought", "two", "deux"), 1, 2), (("a", "b", "ONE"), 2, 1)],
)
def test_the_datas_own_names_in_another_order_are_refused(names: Sequence[str], place: int, other: int) -> None:
    with pytest.raises(DataError) as caught:
        named(names, OWN)
    assert str(caught.value) == (
        f"class_names has {names[place]!r} as class {place}, which is class {other} of the data: the data's order is "
        "zero, one, two; name the classes in that order"
    )


def test_other_names_are_fine() -> None:
    assert named(None, OWN) == OWN
    assert named(("Zero", "one", "zwei"), OWN) == ("Zero", "one", "zwei")
    # ImageNet has two cranes: either may keep the name, if the other gets one of its own
    assert named(("crane", "ox", "crane (machine)"), ("crane", "ox", "crane"))[0] == "crane"
    assert named(("crane (bird)", "ox", "crane"), ("crane", "ox", "crane"))[2] == "crane"
    with pytest.raises(DataError, match="class_names has 'crane' as class 1, which is class 0 of the data"):
        named(("crane (bird)", "crane", "ox"), ("crane", "ox", "crane"))


@given(st.permutations(OWN))
def test_a_permutation_passes_only_where_it_changes_nothing(names: list[str]) -> None:
    assert (order_fault(names, OWN) is None) == (tuple(names) == OWN)


def test_a_config_with_the_names_in_another_order_is_refused(digits_run: DigitsRun, tmp_path: Path) -> None:
    names = ", ".join(f'"{name}"' for name in reversed(digits_run.bundle.manifest.classifier.class_names))
    config: Config = edited(
        digits_run, tmp_path, ('factory = "digits_cnn"', f'factory = "digits_cnn"\nclass_names = [{names}]')
    )
    with pytest.raises(DataError, match="class_names has 'nine' as class 0, which is class 9 of the data: the data's"):
        load_inputs(config)


class Pair(Dataset[Any]):
    """Two images of three classes."""

    classes = OWN

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return torch.zeros(1, 4, 4), i % 3


@pytest.mark.parametrize("data", [Pair(), Subset(Pair(), range(6))], ids=["data set", "part of one"])
def test_live_names_are_matched_to_the_data_sets_own(data: Dataset[Any]) -> None:
    assert images_of(data, None, "fit").classes == OWN
    assert images_of(data, ("null", "eins", "zwei"), "fit").classes == ("null", "eins", "zwei")
    with pytest.raises(DataError, match=r"^fit: class_names has 'one' as class 0, which is class 1 of the data"):
        splits_of(dict.fromkeys(("fit", "calibrate", "fuse", "evaluate"), data), ("one", "zero", "two"), 0)


class Numbers(TensorDataset):
    classes = ("zero", "one", "two")

    def __init__(self) -> None:
        super().__init__(torch.zeros(6, 1, 2, 2), torch.arange(6) % 3)


class Augmented(Dataset[Any]):
    """What people write around a data set."""

    def __init__(self, dataset: Numbers) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]


@pytest.mark.parametrize("wrapped", ["concatenated", "random_split", "own", "class_to_idx"])
def test_names_of_a_data_set_in_wrappers_are_matched_too(wrapped: str) -> None:
    named_set = Numbers()
    plain = TensorDataset(*named_set.tensors)
    wrap: dict[str, Any] = {
        "concatenated": ConcatDataset([named_set, named_set]),
        "random_split": DataLoader(random_split(named_set, [3, 3])[0]),
        "own": Augmented(named_set),
        "class_to_idx": plain,
    }
    if wrapped == "class_to_idx":
        plain.class_to_idx = {"two": 2, "one": 1, "zero": 0}  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="class_names has 'one' as class 0, which is class 1 of the data"):
        images_of(wrap[wrapped], ["one", "zero", "two"], "fit")


LIVE_LABELS: dict[str, tuple[Any, str]] = {
    "one-hot": (torch.eye(3), r"fit: image 0 has the label 'tensor\(\[1\., 0\., 0\.\]\)': expected the number of its"),
    "text": (["a", "b", "c"], "fit: image 0 has the label 'a': expected the number of its class, 0, 1, "),
    "halves": (torch.tensor([0, 0.5, 1]), r"fit: image 1 has the label 'tensor\(0\.5000\)': expected the number"),
    "huge": (torch.tensor([0, 1, 10**9]), "fit: label 1000000000 is out of range: expected less than 1000000$"),
    "fewer": (torch.tensor([0, 1]), "data has 3 images and 2 labels: expected one for each"),
}


@pytest.mark.parametrize(("labels", "message"), LIVE_LABELS.values(), ids=LIVE_LABELS)
def test_live_labels_that_are_none_are_one_line(labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"^{message}") as caught:
        images_of((torch.zeros(3, 1, 2, 2), labels), None, "fit")
    assert len(str(caught.value).splitlines()) == 1


def test_whole_floats_are_labels() -> None:
    assert images_of((torch.zeros(3, 1, 2, 2), torch.tensor([0.0, 1.0, 1.0])), None, "fit").y.tolist() == [0, 1, 1]


def test_live_data_without_length_is_one_line() -> None:
    stream: Any = (pair for pair in [(torch.zeros(1, 2, 2), 0)])
    with pytest.raises(DataError, match="data is generator, which has no length: make a list"):
        images_of(stream, None, "fit")


def test_a_mapping_is_no_list_of_names() -> None:
    names: Any = {1: "one", 0: "zero"}
    with pytest.raises(DataError, match="the class names are a mapping: expected a list"):
        names_of(names)


def test_live_pictures_are_read_as_the_server_reads_them() -> None:
    grey = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4))
    palette, flags = grey.convert("P"), grey.convert("1")
    images = images_of(([palette, palette.transpose(Image.Transpose.ROTATE_90)], [0, 1]), ("a", "b"), "fit")
    assert images.x.shape == (2, 3, 4, 4)
    assert images_of(([flags, flags], [0, 1]), ("a", "b"), "fit").x.shape == (2, 1, 4, 4)
    for picture, message in (
        (grey.convert("RGBA"), r"an image without alpha \(flatten it first\), got RGBA with alpha"),
        (Image.fromarray(np.zeros((4, 4), np.uint16)), "a greyscale or RGB image, got I;16"),
    ):
        with pytest.raises(DataError, match=f"^fit: image 1: expected {message}$"):
            images_of(([flags, picture], [0, 1]), ("a", "b"), "fit")
