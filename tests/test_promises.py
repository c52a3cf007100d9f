"""What a bundle promised when it was published holds when it is opened, whoever has had a hand in it meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle_support import edit, publish_trained, refused, replace_file, replace_tensors, screen_of, seal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save
from service_support import config
from torch import Tensor, nn
from toy import Trained, answered

import askance
from askance.answers import Answer
from askance.classifiers import build_classifier
from askance.detectors import Bundle, Screen
from askance.errors import AskanceError, BundleError, ScreenError
from askance.judgement import Levels
from askance.screening import bundle as bundle_module
from askance.screening.arrays import described, stored
from askance.screening.sentinels import MOST_IMAGES
from askance.screening.tables import BACKGROUND, FUSION
from askance.service.runtime.model import LoadedBundle
from askance.service.server import Server


def proved(path: Path, *, single_pass: bool = False) -> Screen:
    """Opened as a server does."""
    loaded = LoadedBundle.open(path, build_classifier, single_pass=single_pass)
    loaded.warm_up()
    return loaded.screen


# Tables and levels


def change_table(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({name: change(tensors[name]).contiguous()})


C = "libraries.0.connections"


def with_nan(values: Tensor) -> Tensor:
    return torch.cat([values[..., :-1], torch.full_like(values[..., :1], torch.nan)], dim=-1)


REASONS = ("scores/unfamiliar", "scores/doubtful", "scores/unfamiliar_single_pass")
TABLES = ("scores/introspection", *(f"scores/fused{kind}" for kind in ("", "_single_pass", "_second_look")), *REASONS)
CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "is not sorted": lambda values: values.flip(-1),
    "holds NaN or infinity": with_nan,
    "levels? needs|needs at least 99 calibration samples|samples in the manifest are not": lambda v: v[..., :98],
    "expected sorted clean scores": lambda values: values[..., :0],
    r"expected sorted clean scores:": lambda values: values.half(),
    r"\[300, 1\]|\[[0-9]+, 300, 1\]": lambda values: values.unsqueeze(-1),
}


@pytest.mark.parametrize("match", CHANGES)
@pytest.mark.parametrize("name", TABLES)
def test_tables_are_sorted_finite_and_long_enough(bundle: Path, name: str, match: str) -> None:
    replace_tensors(bundle, "calibration.safetensors", change_table(name, CHANGES[match]))
    refused(bundle, match)


@pytest.mark.parametrize("match", [one for one in CHANGES if not one.startswith("levels")])
@pytest.mark.parametrize("name", ["clean", "doubts"])
def test_so_are_those_of_the_background(bundle: Path, name: str, match: str) -> None:
    replace_tensors(bundle, "calibration.safetensors", change_table(f"background/{name}", CHANGES[match]))
    refused(bundle, match)


def test_and_those_of_benign_images_where_there_are_some(bundle: Path, tmp_path: Path) -> None:
    """There are none in this bundle; any that a calibration could have made will do."""

    def refilled(path: Path, change: Callable[[Tensor], Tensor]) -> Path:
        shutil.copytree(bundle, path)

        def refill(tensors: dict[str, Tensor]) -> None:
            tensors["background/benign"] = change(tensors["background/clean"]).clone().contiguous()

        replace_tensors(path, "calibration.safetensors", refill)
        return path

    assert len(screen_of(refilled(tmp_path / "some", lambda clean: clean[:, ::3])).class_names) == 10
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        "'background/benign' is not sorted": lambda clean: clean.flip(-1),
        "'background/benign' holds NaN or infinity": with_nan,
        r"'background/benign' is float64 \[\d+, 300\], expected sorted": Tensor.double,
        "has not two tables for each of": lambda clean: clean[1:],
        "has not two tables for each of .*": lambda clean: clean[1:, :0],
    }
    for number, (match, change) in enumerate(changes.items()):
        refused(refilled(tmp_path / str(number), change), match)


NUMBERS = "are not finite float64 numbers"
BACKGROUNDS: dict[str, tuple[str, Callable[[Tensor], Tensor], str]] = {
    "clean: a row less": ("clean", lambda t: t[1:], "has not two tables for each of"),
    "doubts: two rows": ("doubts", lambda t: t.repeat(2, 1), "has not two tables for each of"),
    "two_sided: others": ("two_sided", torch.logical_not, "two_sided in the manifest are not those of its tables"),
    "two_sided: one less": ("two_sided", lambda t: t[1:], "two_sided in the manifest are not those of its tables"),
    "two_sided: numbers": ("two_sided", Tensor.float, "two_sided in the manifest are not those of its tables"),
    "knots: descending": ("conditioning.knots", lambda t: t.flip(0), "knots or spreads are out of order"),
    "knots: one less": ("conditioning.knots", lambda t: t[1:], rf"knots {NUMBERS} of shape \[5\]"),
    "spread: zero": ("conditioning.spread", lambda t: 0 * t, "knots or spreads are out of order"),
    "spread: negative": ("conditioning.spread", Tensor.neg, "knots or spreads are out of order"),
    "centre: one more": ("conditioning.centre", lambda t: torch.cat([t, t[:1]]), f"centre {NUMBERS}"),
    "location: a class less": ("conditioning.location", lambda t: t[:-1], r"location .* \[16, \d+\], as 10 classes"),
    "scale: a class more": ("conditioning.scale", lambda t: torch.cat([t, t[:1]]), f"scale {NUMBERS} .* 10 classes"),
    "scale: flat": ("conditioning.scale", Tensor.flatten, f"scale {NUMBERS}"),
} | {
    f"{name}: {how}": (f"conditioning.{name}", change, f"{name} {NUMBERS}")
    for name in ("knots", "centre", "spread", "location", "scale")
    for how, change in {"NaN": with_nan, "float32": Tensor.float}.items()
}  # fmt: skip


@pytest.mark.parametrize(("name", "change", "match"), BACKGROUNDS.values(), ids=BACKGROUNDS)
def test_a_background_is_one_that_a_calibration_makes(
    bundle: Path, name: str, change: Callable[[Tensor], Tensor], match: str
) -> None:
    replace_tensors(bundle, "calibration.safetensors", change_table(f"background/{name}", change))
    refused(bundle, match)


@pytest.mark.parametrize(
    "name", [*(f"background/{part}" for part in BACKGROUND), *(f"fused/{part}" for part in FUSION)]
)
def test_no_part_of_the_fused_score_is_missing(bundle: Path, name: str) -> None:
    def removed(tensors: dict[str, Tensor]) -> None:
        del tensors[name]

    replace_tensors(bundle, "calibration.safetensors", removed)
    refused(bundle, f"the calibration has no table '{name}'")


@pytest.mark.parametrize("fused", ["fused", "fused_single_pass"])
def test_opinions_are_finite_and_weigh_every_reading(bundle: Path, tmp_path: Path, fused: str) -> None:
    changes: list[tuple[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], str]] = [
        ("NaN", lambda w, b: (with_nan(w), b), f"weights of {fused} are not finite float64 numbers"),
        ("a bias of NaN", lambda w, b: (w, with_nan(b)), f"biases of {fused} are not finite float64 numbers"),
        ("float32", lambda w, b: (w.float(), b), f"weights of {fused} are not finite float64 numbers"),
        ("flat", lambda w, b: (w.flatten(), b), f"weights of {fused} are not finite float64 numbers"),
        ("fewer", lambda w, b: (w[:, 1:], b), r"fusion takes weights of shape \[2, \d+\], got \[2, \d+\]"),
        ("a bias less", lambda w, b: (w, b[1:]), r"fusion takes weights of shape \[1, \d+\], got \[2, \d+\]"),
    ]

    def two(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        empty = tensors[f"{fused}/weights"]
        return torch.ones(2, empty.shape[1], dtype=empty.dtype) / 9, torch.zeros(2, dtype=empty.dtype)

    for name, change, match in [("whole", lambda w, b: (w, b), ""), *changes]:
        path = Path(shutil.copytree(bundle, tmp_path / name))

        def replaced(tensors: dict[str, Tensor], change: Any = change) -> None:
            weights, biases = change(*two(tensors))
            tensors |= {f"{fused}/weights": weights.contiguous(), f"{fused}/biases": biases.contiguous()}

        replace_tensors(path, "calibration.safetensors", replaced)
        if match:
            refused(path, match)
        else:
            screen_of(path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t[1:], "offsets of fused are not one for each of 10"),
        (with_nan, f"offsets of fused {NUMBERS}"),
        (Tensor.float, f"offsets of fused {NUMBERS}"),
    ],
    ids=["a class less", "NaN", "float32"],
)
def test_offsets_are_one_for_each_class(bundle: Path, change: Callable[[Tensor], Tensor], match: str) -> None:
    replace_tensors(bundle, "calibration.safetensors", change_table("fused/offsets", change))
    refused(bundle, match)


def test_a_table_that_nothing_reads_is_refused(bundle: Path) -> None:
    replace_tensors(bundle, "calibration.safetensors", lambda tensors: tensors.update(extra=torch.zeros(3)))
    refused(bundle, "has a table 'extra' that nothing reads")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c["thresholds"]["fused"].update(suspect=1e9), "calibration's thresholds in the manifest are not"),
        (lambda c: c["thresholds"].pop("introspection"), "calibration's thresholds in the manifest are not"),
        (lambda c: c.update(samples=301), "calibration's samples in the manifest are not"),
        (lambda c: c.update(fusion_samples=299), "calibration's fusion_samples in the manifest are not"),
        (lambda c: c["levels"].update(suspect=0.04), "calibration's thresholds in the manifest are not"),
        (lambda c: c["levels"].update(adversarial=1e-3), r"adversarial = 0\.001 needs at least 999 calibration"),
        (lambda c: c["levels"].update(suspect=0.9), "levels must satisfy 0 < adversarial <= suspect <= 0.5"),
        (lambda c: c["levels"].update(adversarial=0), "levels must satisfy"),
        (lambda c: c["components"].pop(), "has not two tables for each of"),
        (lambda c: c["components"].append(c["components"][0]), "names a detector or a component twice"),
        (lambda c: c["two_sided"].pop(), "two_sided in the manifest are not those of its tables"),
        (lambda c: c["components"].reverse(), "two_sided in the manifest are not those of its tables"),
        (lambda c: c["single_pass"].append("introspection/nothing"), "a component that the fused score has not"),
    ],
)
def test_thresholds_and_levels_are_those_of_the_tables(
    bundle: Path, change: Callable[[dict[str, Any]], None], match: str
) -> None:
    edit(bundle, lambda manifest: change(manifest["calibration"]))
    refused(bundle, match)


def test_levels_are_sane_from_the_first() -> None:
    Levels(suspect=0.5, adversarial=0.5)
    with pytest.raises(ValueError, match=r"adversarial <= suspect <= 0\.5"):
        Levels(suspect=0.51)


# Tensors


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        (
            "library_network",
            lambda t: t.update({C: t[C][:-1]}),
            rf"{C} is float64 \[\d+, 10\] finite, expected float64",
        ),
        (
            "introspection",
            lambda t: t.update(mean=with_nan(t["mean"])),
            r"mean is float\d+ \[\d+\], expected .* finite",
        ),
        ("classifier", lambda t: t.update(more=torch.zeros(1)), r"more is float32 \[1\] finite, expected absent"),
        ("classifier", lambda t: t.pop("fc1.bias"), r"fc1.bias is absent, expected float32 \[64\] finite"),
    ],
    ids=["shorter", "NaN", "one more", "one less"],
)
def test_tensors_are_what_they_were(
    bundle: Path, name: str, change: Callable[[dict[str, Tensor]], None], match: str
) -> None:
    """A library with one connection less answered most images, and failed for the others with their whole batch."""
    replace_tensors(bundle, f"{name}.safetensors", change, described_anew=False)
    refused(bundle, rf"{name}.safetensors has not the tensors that the manifest tells of \({match}")


def test_tensors_in_words() -> None:
    tensors = {
        "a": torch.tensor([[1.0, 2.0]]),
        "b": torch.tensor([3, -1, 9]),
        "c": torch.tensor([1.0, torch.inf], dtype=torch.float64),
        "d": torch.empty(0, 2, dtype=torch.int64),
        "e": torch.tensor(True),
        "f": torch.tensor([1.0]).to(torch.float8_e4m3fn),
        "g": torch.tensor([1.0, -3e38], dtype=torch.bfloat16),
        "h": torch.tensor([torch.nan], dtype=torch.bfloat16),
    }
    assert described(stored(save(tensors))) == {
        "a": "float32 [1, 2] finite",
        "b": "int64 [3] -1 to 9",
        "c": "float64 [2]",
        "d": "int64 [0, 2]",
        "e": "bool []",
        "f": "float8_e4m3fn [1]",  # which numpy has not
        "g": "bfloat16 [2] finite",
        "h": "bfloat16 [1]",
    }


# Sentinels


def test_what_sentinels_are(published: Path) -> None:
    manifest, tensors = Bundle.open(published).manifest, load_file(published / "sentinels.safetensors")
    clean, attacked = tensors["clean"], tensors["attacked"]
    assert (clean.dtype, attacked.dtype) == (torch.uint8, torch.float32)
    assert len(clean) == len(attacked) == MOST_IMAGES
    expected = manifest.sentinels.expected
    assert {one.verdicts["fused"].value for one in expected[:16]} == {"CLEAN"}
    of_attacked = [one.verdicts["fused"].value for one in expected[16:]]
    assert of_attacked == sorted(of_attacked, key=["ADVERSARIAL", "SUSPECT", "CLEAN"].index)
    assert of_attacked.count("ADVERSARIAL") >= 4
    assert len({one.label for one in expected[:16]}) >= 8
    assert set(expected[0].verdicts) == {"fused", "fused_single_pass"}
    images = torch.cat([clean.float() / 255, attacked])
    for one, (prediction, verdict, screening) in zip(expected, answered(screen_of(published)(images)), strict=True):
        assert prediction.label == one.label
        assert verdict == one.verdicts["fused"]
        assert screening.fused.score == pytest.approx(one.scores["fused"], abs=1e-4)
    for single_pass in (False, True):
        proved(published, single_pass=single_pass).close()


def with_weights(path: Path, change: Callable[[Tensor], Tensor], name: str = "fc1.weight") -> None:
    replace_tensors(path, "classifier.safetensors", lambda tensors: tensors.update({name: change(tensors[name])}))


def test_weights_of_nan_are_refused(bundle: Path) -> None:
    """They passed, and 16 of 16 images then failed."""
    with_weights(bundle, lambda weights: torch.full_like(weights, torch.nan))
    refused(bundle, r"the weights fc1\.weight hold NaN or infinity: calibrate again")


LINE = (
    r"answers \d+ of its 32 sentinel images otherwise than when it was calibrated \(the first: .*\): its weights, "
    r"or what computes with them, have changed; calibrate again on this machine"
)


@pytest.mark.parametrize(
    "change",
    [lambda w: 1e30 * w, torch.zeros_like, lambda w: -w, lambda w: w.flip(0), lambda w: 1.2 * w],
    ids=["overflow", "zero", "negated", "permuted", "scaled"],
)
@pytest.mark.parametrize("single_pass", [False, True])
def test_other_weights_are_noticed(bundle: Path, change: Callable[[Tensor], Tensor], single_pass: bool) -> None:
    with_weights(bundle, lambda weights: change(weights).contiguous())
    with pytest.raises(BundleError, match=LINE) as caught:
        proved(bundle, single_pass=single_pass)
    assert str(caught.value).startswith(f"bundle {Bundle.open(bundle).manifest.id[:12]} answers ")
    with pytest.raises(BundleError, match=LINE) as caught:
        askance.open(bundle, single_pass=single_pass)
    assert str(caught.value).startswith(f"{bundle} answers ")


def test_another_library_is_noticed(bundle: Path) -> None:
    """Nothing in the bundle has changed; what computes with it has."""

    def build(*given: Any) -> nn.Module:
        classifier = build_classifier(*given)
        classifier.get_submodule("relu2").register_forward_hook(lambda _module, _inputs, out: out * 1.1)
        return classifier

    loaded = LoadedBundle.open(bundle, build)
    with pytest.raises(BundleError, match=LINE):
        loaded.warm_up()


@pytest.mark.parametrize("scale", [1e-6, 1e-5, 1e-4, 5e-4])
def test_the_rounding_of_another_machine_is_no_fault(published: Path, scale: float) -> None:
    """A GPU's TF32 keeps ten bits: 5e-4. Some images then cross a step of a score; such are no sentinels."""
    for seed in range(5):
        generator = torch.Generator().manual_seed(100 + seed)

        def rounded(_module: nn.Module, _inputs: Any, out: Tensor, generator: torch.Generator = generator) -> Tensor:
            return out * (1 + scale * torch.randn(out.shape, generator=generator))

        def build(*given: Any, hook: Any = rounded) -> nn.Module:
            classifier = build_classifier(*given)
            for module in classifier.modules():
                if isinstance(module, (nn.Conv2d, nn.Linear)):
                    module.register_forward_hook(hook)
            return classifier

        LoadedBundle.open(published, build).warm_up()


def test_other_sentinels_than_the_manifests(bundle: Path, tmp_path: Path) -> None:
    for number, change in enumerate(
        [
            lambda tensors: tensors.update(clean=tensors["clean"][1:]),
            lambda tensors: tensors.update(clean=tensors["clean"].float()),
            lambda tensors: tensors.update(attacked=tensors["attacked"][:, :, 1:].contiguous()),
            lambda tensors: tensors.pop("attacked"),
            lambda tensors: tensors.update(more=tensors["clean"].clone()),
        ]
    ):
        path = Path(shutil.copytree(bundle, tmp_path / str(number)))
        replace_tensors(path, "sentinels.safetensors", change)
        for opened in (proved, askance.open):
            with pytest.raises(BundleError, match="its sentinels are not the images that the manifest tells of"):
                opened(path)
    edit(bundle, lambda manifest: manifest["sentinels"]["expected"][0].update(label="zero or so"))
    with pytest.raises(BundleError, match=r"answers 1 of its 32 sentinel images otherwise.*in place of 'zero or so'"):
        proved(bundle)


def test_images_too_large_for_many(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("askance.detectors.choosing.MOST_BYTES", 64 * 4 * 3)
    publish_trained(trained, tmp_path / "few")
    tensors = load_file(tmp_path / "few" / "sentinels.safetensors")
    assert (len(tensors["clean"]), len(tensors["attacked"])) == (12, 3)
    monkeypatch.setattr("askance.detectors.choosing.MOST_BYTES", 1)
    publish_trained(trained, tmp_path / "one")
    tensors = load_file(tmp_path / "one" / "sentinels.safetensors")
    assert (len(tensors["clean"]), len(tensors["attacked"])) == (1, 0)
    proved(tmp_path / "one").close()


def test_no_candidate_at_all(trained: Trained, tmp_path: Path) -> None:
    publish_trained(
        trained, tmp_path / "none", clean=torch.empty(0, 1, 8, 8, dtype=torch.uint8), attacked=torch.empty(0, 1, 8, 8)
    )
    assert Bundle.open(tmp_path / "none").manifest.sentinels.expected == ()
    proved(tmp_path / "none").close()


# Files


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # the names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path.name)
    finally:
        os.chdir(before)


def a_device(path: Path) -> None:
    try:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
        pytest.skip("only root makes devices")


NOT_FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "fifo": (a_fifo, "is no plain file"),
    "socket": (a_socket, "is no plain file"),
    "device": (a_device, "is no plain file"),
    "folder": (Path.mkdir, "is no plain file"),
    "link out": (lambda path: path.symlink_to("/etc/hostname"), "is a link: copy the bundle with its files"),
    "link to a device": (lambda path: path.symlink_to("/dev/zero"), "is a link"),
    "link within": (lambda path: path.symlink_to("classifier.safetensors"), "is a link"),
    "link to nothing": (lambda path: path.symlink_to("nowhere"), "is a link"),
}


@pytest.mark.parametrize("kind", NOT_FILES)
@pytest.mark.parametrize("name", ["manifest.json", "calibration.safetensors", "report/index.html"])
@pytest.mark.timeout(30)
def test_what_is_no_file_is_not_opened(bundle: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, match = NOT_FILES[kind]
    (bundle / name).unlink()
    make(bundle / name)
    opened: list[Any] = []
    own = os.open

    def noted(path: Any, *given: Any, **more: Any) -> int:
        opened.append(path)
        return own(path, *given, **more)

    monkeypatch.setattr(os, "open", noted)
    refused(bundle, match)
    assert bundle / name not in opened


def test_a_link_in_the_middle_is_not_followed(bundle: Path, tmp_path: Path) -> None:
    (bundle / "report").rename(tmp_path / "elsewhere")
    (bundle / "report").symlink_to(tmp_path / "elsewhere")
    refused(bundle, "report/index.html is a link")


def test_a_link_to_the_bundle_is_followed_once(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(bundle)
    assert Bundle.open(tmp_path / "current").manifest == Bundle.open(bundle).manifest
    (tmp_path / "circle").symlink_to("circle")
    refused(tmp_path / "circle", "circle (cannot be found: its links lead in a circle|is not a bundle)")


def test_only_what_bundles_hold_is_read(bundle: Path) -> None:
    (bundle / "README").write_text("mine")
    os.mkfifo(bundle / "mine.fifo")
    Bundle.open(bundle)
    content = (bundle / "README").read_bytes()
    replace_file(bundle, "README", content)
    refused(bundle, "the manifest names a file that bundles do not hold, 'README'")


@pytest.mark.parametrize(
    "name", ["report/../../secret", "report//x", "/etc/passwd", "report/a\nb", ".", "a\\..\\b", "x\0y"]
)
def test_no_name_leads_elsewhere(bundle: Path, name: str) -> None:
    edit(bundle, lambda manifest: manifest["files"].update({name: {"sha256": "0" * 64, "size": 1}}))
    refused(bundle, "the manifest names a file outside the bundle")


def test_sizes_are_known_before_anything_is_read(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (bundle / "classifier.safetensors").stat().st_size
    with (bundle / "classifier.safetensors").open("r+b") as file:
        file.truncate(2**40)  # of nothing
    refused(bundle, f"classifier.safetensors has {2**40} bytes, expected at most {whole}: it is another file")
    with (bundle / "manifest.json").open("r+b") as file:
        file.truncate(2**40)
    refused(bundle, f"manifest.json has {2**40} bytes, expected at most {16 * 2**20}")


def test_no_manifest_makes_more_be_read_than_bundles_have(bundle: Path) -> None:
    edit(bundle, lambda manifest: manifest["files"]["report/index.html"].update(size=2**40))
    refused(
        bundle, rf"the manifest tells of {2**40}|tells of \d+ bytes in all, expected at most {bundle_module.MOST_BYTES}"
    )


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 99_000_000) + b"{}",
        struct.pack("<Q", 2) + b"{}" + b"more",
        b'\x40\0\0\0\0\0\0\0{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}',
        b"",
    ],
    ids=["2^63", "99 MB", "more", "a shape", "nothing"],
)
def test_headers_that_lie(bundle: Path, header: bytes) -> None:
    for name in ("classifier.safetensors", "introspection.safetensors", "calibration.safetensors"):
        path = Path(shutil.copytree(bundle, bundle.with_name(name)))
        replace_file(path, name, header)
        refused(path, f"{name} is not a safetensors file")


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b'{"schema_version": 9, "x": NaN}',
        b'{"schema_version": 9, "x": -Infinity}',
        b'{"a": ' + b"9" * 9999,
    ],
    ids=["deep", "NaN", "infinity", "digits"],
)
def test_json_that_python_alone_takes(bundle: Path, text: bytes) -> None:
    (bundle / "manifest.json").write_bytes(text)
    refused(bundle, "manifest.json is not JSON: the bundle is damaged")
    shutil.rmtree(bundle)


def test_who_may_read(published: Path) -> None:
    """Noise patterns and sampled neurons are in detectors' files, their seeds in the manifest, images in the report."""
    modes = {str(path.relative_to(published)): path.stat().st_mode & 0o777 for path in published.rglob("*")}
    public = {"evaluation.json": 0o644, "report": 0o755}
    assert {name: modes.pop(name) for name in public} == public
    assert set(modes.values()) == {0o600}
    assert {"constellation.safetensors", "library_network.safetensors", "manifest.json"} <= set(modes)


@pytest.mark.parametrize("name", ["manifest.json", "constellation.safetensors"])
def test_whose_a_bundle_is_is_said(bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.open

    def denied(path: Any, *given: Any, **more: Any) -> int:
        if str(path).endswith(name):
            raise PermissionError(13, "Permission denied")
        return own(path, *given, **more)

    monkeypatch.setattr(os, "open", denied)
    refused(
        bundle, rf"{name} cannot be read \(Permission denied\): a bundle's files are their owner's alone, user \d+: run"
    )


# Any single change


def verdicts_of(screen: Screen, images: Tensor) -> list[tuple[str, str]]:
    answers: list[Answer | ScreenError] = screen(images)
    return [(prediction.label, verdict.value) for prediction, verdict, _ in answered(answers)]


@dataclass(frozen=True, repr=False)
class HeldOut:
    """Images that nothing of the bundle has seen, and what it says of them."""

    images: Tensor
    verdicts: list[tuple[str, str]]


@pytest.fixture(scope="module")
def held_out(trained: Trained, published: Path) -> HeldOut:
    images, labels = (part[:60] for part in trained.part("evaluate"))
    images = torch.cat([images, trained.attack(images[:20], labels[:20], 0.2, 5)])
    return HeldOut(images, verdicts_of(proved(published), images))


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of some JSON, by the keys that lead there."""
    if path:
        yield path
    if isinstance(content, dict):
        for key, value in content.items():
            yield from places(value, (*path, key))
    elif isinstance(content, list):
        for i, value in enumerate(content):
            yield from places(value, (*path, i))


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["\n", "\ud800", "../x", "lenet", "os:system", "CLEAN", "relu2", "library_network", "\x1b[2J"]),
    st.lists(st.integers(0, 3), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def mutated(content: dict[str, Any], data: st.DataObject) -> None:
    """Change a manifest in one place."""
    part = data.draw(st.sampled_from(list(content)))  # first, because most places are in few of them
    path = data.draw(st.sampled_from([(part, *rest) for rest in [(), *places(content[part])]]))
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    key, value = path[-1], parent[path[-1]]
    kinds = ["remove", "odd"]
    kinds += ["reverse", "repeat"] if isinstance(value, list) and value else []
    kinds += ["add"] if isinstance(value, dict) else []
    kinds += ["scale", "shift"] if isinstance(value, (int, float)) and not isinstance(value, bool) else []
    match data.draw(st.sampled_from(kinds)):
        case "remove":
            del parent[key]
        case "odd":
            parent[key] = data.draw(ODD)
        case "reverse":
            parent[key] = value[::-1]
        case "repeat":
            parent[key] = [*value, value[0]]
        case "add":
            value["surprise"] = data.draw(ODD)
        case "scale":
            parent[key] = value * data.draw(st.sampled_from([-1, 0, 2, 10]))
        case _:
            parent[key] = value + data.draw(st.sampled_from([-1, 1]))


def refused_or_the_same(path: Path, held_out: HeldOut) -> None:
    images, expected = held_out.images, held_out.verdicts
    try:
        screen = proved(path)
    except AskanceError as error:
        assert isinstance(error, BundleError)
        assert str(error).isprintable()
        assert len(str(error)) < 2000
        return
    try:
        assert verdicts_of(screen, images) == expected
    finally:
        screen.close()


@settings(
    max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(data=st.data())
def test_any_change_of_the_manifest_is_refused_or_changes_nothing(
    published: Path, bundle: Path, held_out: HeldOut, data: st.DataObject
) -> None:
    content = json.loads((published / "manifest.json").read_text())
    mutated(content, data)
    seal(content)
    (bundle / "manifest.json").write_text(json.dumps(content))
    refused_or_the_same(bundle, held_out)


TENSOR_CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "nan": lambda t: torch.full_like(t, torch.nan) if t.is_floating_point() else t,
    "infinite": lambda t: torch.full_like(t, torch.inf) if t.is_floating_point() else t,
    "empty": lambda t: t[:0] if t.ndim else t,
    "shorter": lambda t: t[:-1] if t.ndim and len(t) else t,
    "flat": lambda t: t.flatten(),
    "deeper": lambda t: t.unsqueeze(0),
    "flipped": lambda t: t.flip(0) if t.ndim else t,
    "negated": lambda t: -t if t.is_floating_point() else t,
    "integers": lambda t: t.long() if t.is_floating_point() else t.double(),
}


@settings(
    max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(data=st.data())
def test_any_change_of_the_tables_and_detectors_is_refused_or_changes_nothing(
    published: Path, bundle: Path, held_out: HeldOut, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(path.name for path in published.glob("*.safetensors"))))
    tensors = load_file(published / name)
    tensor = data.draw(st.sampled_from(sorted(tensors)))
    # what was learned may be changed so little that the sentinels are within their tolerance: who fears that asks for a
    # signature
    learned = name not in ("calibration.safetensors", "sentinels.safetensors") or tensor.split("/")[-1] in FUSION
    changes = [one for one in TENSOR_CHANGES if not learned or one not in ("flipped", "negated")]
    change = data.draw(st.sampled_from([*changes, "removed", "renamed"]))
    shutil.copy(published / name, bundle / name)
    shutil.copy(published / "manifest.json", bundle / "manifest.json")

    def changed(tensors: dict[str, Tensor]) -> None:
        value = tensors.pop(tensor)
        if change == "renamed":
            tensors[f"{tensor}\n"] = value
        elif change != "removed":
            tensors[tensor] = TENSOR_CHANGES[change](value).contiguous()

    replace_tensors(bundle, name, changed, described_anew=False)
    refused_or_the_same(bundle, held_out)
    shutil.copy(published / name, bundle / name)


@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(data=st.data())
def test_any_other_score_of_a_table_is_refused_or_changes_no_verdict(
    published: Path, bundle: Path, held_out: HeldOut, data: st.DataObject
) -> None:
    """What decides is the score at a threshold, and that is in the manifest, too."""
    table = data.draw(st.sampled_from(TABLES[:3]))
    position, step = data.draw(st.integers(0, 299)), data.draw(st.sampled_from([-1, 1, 0.01, 1e9]))
    shutil.copy(published / "calibration.safetensors", bundle / "calibration.safetensors")
    shutil.copy(published / "manifest.json", bundle / "manifest.json")

    def nudged(values: Tensor) -> Tensor:
        near = values[min(max(position + int(step), 0), 299)] if abs(step) == 1 else values[position] * (1 + step)
        return torch.where(torch.arange(300) == position, near, values)

    replace_tensors(bundle, "calibration.safetensors", change_table(table, nudged))
    refused_or_the_same(bundle, held_out)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"{", "evaluation.json is not JSON: calibrate again"),
        (b'{"classifier": NaN}', "evaluation.json is not JSON: calibrate again"),
        (b"[" * 100_000, "evaluation.json is not JSON: calibrate again"),
        (b"[]", "evaluation.json is not valid"),
        (b'{"classifier": {"accuracy": "all"}}', r"evaluation.json is not valid: classifier\.accuracy"),
    ],
    ids=["cut short", "NaN", "deep", "a list", "no number"],
)
def test_figures_that_are_none(bundle: Path, content: bytes, match: str) -> None:
    replace_file(bundle, "evaluation.json", content)
    with pytest.raises(BundleError, match=match) as caught:
        Bundle.open(bundle).evaluation()
    assert str(caught.value).isprintable()


# A server


def test_a_server_judges_a_bundle_before_it_answers(bundle: Path, published: Path) -> None:
    """A bundle whose every image would fail, or be judged otherwise, does not take the place of one that works."""
    served = {"now": published}

    def load() -> LoadedBundle:
        return LoadedBundle.open(served["now"], build_classifier)

    async def main() -> None:
        async with Server(config()) as server:
            before = (await server.deploy(load)).version
            for change in (torch.Tensor.neg, lambda weights: torch.full_like(weights, torch.nan)):
                path = Path(shutil.copytree(published, bundle.with_name(f"changed {change}")))
                with_weights(path, change)
                served["now"] = path
                with pytest.raises(BundleError, match=r"of its 32 sentinel images otherwise|hold NaN or infinity"):
                    await server.reload()
                assert server.repository.default.version == before
                async with Server(config()) as another:
                    with pytest.raises(BundleError, match=r"of its 32 sentinel images otherwise|hold NaN or infinity"):
                        await another.deploy(load)
                    assert another.admission.state == "loading"

    asyncio.run(main())
