"""The bundle: an exact round trip, one-line refusals, and nothing left behind by a failed publication."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundle_support import (
    EVALUATION,
    REPORT,
    edit,
    publish_trained,
    refused,
    replace_file,
    replace_tensors,
    screen_of,
)
from torch import Tensor
from toy import NAMES, Trained, answered, new_detectors

from askance.answers import Answer
from askance.classifiers import DigitsCNN, build_classifier
from askance.detectors import Bundle, Screen
from askance.detectors.reader import TorchReader, read
from askance.errors import AskanceError, BundleError, CalibrationError, FileError, NotFittedError
from askance.judgement import Calibration
from askance.judgement.conformal import p_value

KINDS = ("library_network", "introspection", "self_organizing_map", "semantic_signature", "constellation")


# The round trip


def test_round_trip_is_exact(trained: Trained, published: Path) -> None:
    images, labels = trained.part("evaluate")
    images = torch.cat([images, trained.attack(images[:50], labels[:50], 0.2, 5)])
    before, after = trained.screen()(images, explain=True), screen_of(published)(images, explain=True)
    assert answered(after) == answered(before)  # dataclasses of floats: equal to the last bit
    bundle_id = Bundle.open(published).manifest.id
    assert {answer.bundle_id for answer in after if isinstance(answer, Answer)} == {bundle_id}
    opened = Bundle.open(published)
    for kind, detector in opened.detectors().items():
        original = trained.detectors[kind]
        assert type(detector) is type(original)
        assert detector.options == original.options
        state = original.state_dict()
        assert detector.state_dict().keys() == state.keys()
        for name, tensor in detector.state_dict().items():
            assert tensor.dtype == state[name].dtype, name
            assert torch.equal(tensor, state[name]), name
        assert not detector.training
    calibration = opened.calibration()
    assert trained.calibration is not None
    assert calibration.levels == trained.calibration.levels
    assert trained.calibration.single_pass is not None
    assert calibration.single_pass is not None
    for found, made in (
        (calibration.fused, trained.calibration.fused),
        (calibration.single_pass, trained.calibration.single_pass),
    ):
        assert found.fusion.names == made.fusion.names
        assert found.fusion.weights.shape == (1, 4 * len(made.fusion.names))
        assert found.fusion.background.two_sided == made.fusion.background.two_sided
        kept, own = (
            {**one.fusion.background.arrays(), "weights": one.fusion.weights, "biases": one.fusion.biases}
            for one in (found, made)
        )
        assert kept.keys() == own.keys()
        for name, array in kept.items():
            assert array.dtype == own[name].dtype, name
            assert np.array_equal(array, own[name]), name
        assert np.array_equal(found.table, made.table)
        assert np.array_equal(found.fusion.offsets, made.fusion.offsets)
    for kind in KINDS:
        assert np.array_equal(calibration.tables[kind], trained.calibration.tables[kind])
    evaluation = opened.evaluation()
    assert evaluation.auroc == {"pgd": {"fused": 0.875}}
    assert evaluation.as_json() == EVALUATION


def test_a_single_pass_leaves_the_copies_out(trained: Trained, published: Path) -> None:
    """One forward pass an image, the other detectors' words unchanged, the fused score by its own calibration."""
    images = trained.part("evaluate")[0][:40]
    whole, single = Bundle.open(published).screen(build_classifier), single_pass_of(published)
    sizes: list[int] = []
    single.reader.tap.module.register_forward_hook(lambda _module, inputs, _output: sizes.append(len(inputs[0])))
    assert trained.calibration is not None
    assert trained.calibration.single_pass is not None
    names = trained.calibration.single_pass.fusion.names
    assert len(names) < len(trained.calibration.fused.fusion.names)
    for (_, _, full), (_, _, short) in zip(answered(whole(images)), answered(single(images)), strict=True):
        assert [word.name for word in short.detectors] == [kind for kind in KINDS if kind != "constellation"]
        for mine, theirs in zip(short.detectors, full.detectors, strict=False):
            assert mine.score == pytest.approx(theirs.score, abs=1e-4)
    assert sizes[0] == len(images)
    assert set(sizes[1:]) <= {1}  # what the last bits could decide is judged again alone
    with torch.no_grad():
        readings = read(single.reader.detectors, single.reader.tap(images))
    expected = trained.calibration.single_pass.fusion.score(readings)
    found = [screening.fused for _, _, screening in answered(single(images))]
    assert [word.score for word in found] == pytest.approx(expected.tolist())
    p = p_value(expected, trained.calibration.single_pass.table)
    assert [word.p_value for word in found] == pytest.approx(p.tolist())


def single_pass_of(path: Path) -> Screen[TorchReader]:
    return Bundle.open(path).screen(build_classifier, single_pass=True)


def test_what_a_bundle_holds(published: Path) -> None:
    files = {str(path.relative_to(published)) for path in published.rglob("*") if path.is_file()}
    tensors = {f"{kind}.safetensors" for kind in (*KINDS, "classifier", "calibration", "sentinels")}
    assert files == tensors | {"manifest.json", "evaluation.json", "report/index.html"}
    assert (published / "report/index.html").read_bytes() == REPORT
    assert published.stat().st_mode & 0o777 == 0o755
    assert not [path for path in published.parent.iterdir() if path != published]

    manifest = json.loads((published / "manifest.json").read_text())
    assert manifest["schema_version"] == 9
    assert manifest["classifier"]["class_names"] == list(NAMES)
    assert manifest["classifier"]["preprocessing"]["mean"] == [0.3]
    assert [entry["kind"] for entry in manifest["detectors"]] == list(KINDS)
    assert manifest["evaluation"] == {"accuracy": 0.98}
    assert manifest["provenance"] == {"seeds": {"fit": 0}}
    assert manifest["calibration"]["samples"] == manifest["calibration"]["fusion_samples"] == 300
    for name, stored in manifest["files"].items():
        content = (published / name).read_bytes()
        assert stored == {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    assert set(manifest["files"]) == files - {"manifest.json"}
    assert len(manifest["id"]) == 64


def test_manifest_thresholds_flag_what_the_p_values_flag(trained: Trained, published: Path) -> None:
    thresholds = Bundle.open(published).manifest.calibration.thresholds
    images, labels = trained.part("evaluate")
    results = screen_of(published)(torch.cat([images, trained.attack(images, labels, 0.2, 5)]))
    others = {"fused", "fused_single_pass", "fused_second_look", "unfamiliar", "doubtful", "unfamiliar_single_pass"}
    assert set(thresholds) == {*KINDS, *others}
    for _, _, screening in answered(results):
        for word in (screening.fused, *screening.detectors):
            for level in ("suspect", "adversarial"):
                assert (word.score > thresholds[word.name][level]) == (level in word.flags)


def test_id_is_the_hash_of_all_content(trained: Trained, published: Path, tmp_path: Path) -> None:
    manifest = Bundle.open(published).manifest
    assert manifest == manifest.model_copy(update={"id": "", "checksum": ""}).sealed()
    weights = {name: tensor + 1e-6 for name, tensor in trained.classifier.state_dict().items()}
    assert publish_trained(trained, tmp_path / "other", weights=weights).id != manifest.id
    assert publish_trained(trained, tmp_path / "summary", summary={"accuracy": 0.97}).id != manifest.id


# Refusals


def damage(path: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    (path / name).write_bytes(change((path / name).read_bytes()))


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("name", ["classifier.safetensors", "introspection.safetensors", "calibration.safetensors"])
def test_an_altered_or_truncated_file_is_refused(bundle: Path, name: str) -> None:
    text = rf"{name} has been altered or truncated \(its SHA-256 is not the manifest's\)"
    whole = (bundle / name).read_bytes()
    damage(bundle, name, flip)
    refused(bundle, text)
    for size in (0, 5, len(whole) - 1):
        (bundle / name).write_bytes(whole[:size])
        refused(bundle, text)
    (bundle / name).write_bytes(whole)
    screen_of(bundle)


@pytest.mark.parametrize("name", ["classifier.safetensors", "library_network.safetensors", "evaluation.json"])
def test_a_missing_file_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    refused(bundle, rf"{name} cannot be read \(No such file or directory\): the bundle is incomplete")


def test_no_bundle_at_all(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "is not a bundle: it has no readable manifest.json")
    refused(tmp_path, "is not a bundle: it has no readable manifest.json")
    (tmp_path / "file").write_text("{}")
    refused(tmp_path / "file", "is not a bundle: it has no readable manifest.json")


@pytest.mark.parametrize("content", [b"", b"{", b"not json", b"\xff\xfe\x00", b'{"schema_version": 3'])
def test_a_manifest_that_is_not_json(bundle: Path, content: bytes) -> None:
    (bundle / "manifest.json").write_bytes(content)
    refused(bundle, "manifest.json is not JSON: the bundle is damaged")


def drop(tensors: dict[str, Tensor], name: str) -> None:
    del tensors[name]


@pytest.mark.parametrize("version", [0, 1, 2, 3, 4, 5, 6, 7, None, "8"])
def test_another_schema_version_is_refused(bundle: Path, version: Any) -> None:
    edit(bundle, lambda manifest: manifest.update(schema_version=version))
    refused(
        bundle,
        f"has schema version {version!r}, this askance reads version 9: "
        "make it anew with `askance calibrate CONFIG --out BUNDLE`",
    )


def test_json_that_is_no_manifest(bundle: Path) -> None:
    (bundle / "manifest.json").write_text("[]")
    refused(bundle, "has schema version None, this askance reads version 9")
    (bundle / "manifest.json").write_text('{"schema_version": 9}')
    refused(bundle, "manifest.json is not valid: .*Field required")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["calibration"]["levels"].update(adversarial=0.02),
        lambda m: m["classifier"]["class_names"].reverse(),
        lambda m: m["detectors"].pop(),
        lambda m: m["provenance"].update(seeds={"fit": 1}),
        lambda m: m.update(created="2020-01-02T03:04:05+00:00"),
        lambda m: m.update(id="0" * 64),
    ],
    ids=["levels", "class names", "detector", "provenance", "created", "id"],
)
def test_an_altered_manifest_is_refused(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    edit(bundle, change, sealed=False)
    refused(bundle, r"manifest\.json has been altered \((its content|all of it) does not hash to its (id|checksum)\)")


def test_an_unknown_manifest_key_is_named(bundle: Path) -> None:
    edit(bundle, lambda manifest: manifest.update(surprise=1))
    refused(bundle, "manifest.json is not valid: surprise: Extra inputs are not permitted")


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname"])
def test_a_file_outside_the_bundle_is_never_read(bundle: Path, name: str) -> None:
    (bundle.parent / "secret").write_text("secret")
    edit(bundle, lambda manifest: manifest["files"].update({name: {"sha256": "0" * 64, "size": 6}}))
    refused(bundle, f"the manifest names a file outside the bundle, '{name}'")


def test_an_entry_of_another_file_is_refused(bundle: Path) -> None:
    edit(bundle, lambda manifest: manifest["detectors"][0].update(sha256="0" * 64))
    refused(bundle, r"library_network\.safetensors does not belong to this manifest")
    edit(bundle, lambda manifest: manifest["classifier"].update(file="weights.bin"))
    refused(bundle, r"weights\.bin does not belong to this manifest")


def test_a_signed_file_that_is_not_safetensors(bundle: Path) -> None:
    replace_file(bundle, "introspection.safetensors", b"garbage")
    refused(bundle, r"introspection\.safetensors is not a safetensors file")


def test_weights_of_another_classifier_are_refused(bundle: Path) -> None:
    replace_tensors(bundle, "classifier.safetensors", lambda tensors: tensors.update(DigitsCNN(classes=7).state_dict()))
    refused(bundle, r"the weights do not fit classifier 'digits_cnn': fc2\.bias|fc2\.weight is \[7, 64\]")


def test_detectors_that_do_not_fit_are_refused(bundle: Path, tmp_path: Path) -> None:
    def fresh(name: str) -> Path:
        return Path(shutil.copytree(bundle, tmp_path / name))

    path = fresh("kind")
    edit(path, lambda manifest: manifest["detectors"][0].update(kind="library"))
    with pytest.raises(BundleError, match="unknown detector 'library': did you mean 'library_network'"):
        screen_of(path)
    path = fresh("options")
    edit(path, lambda manifest: manifest["detectors"][0]["options"].update(neighbours=3))
    refused(path, "options of library_network are not valid: neighbours: Extra inputs are not permitted")
    path = fresh("state")
    replace_tensors(path, "introspection.safetensors", lambda tensors: drop(tensors, "mean"))
    with pytest.raises(BundleError, match=r"state of introspection does not fit its options: missing \['mean'\]"):
        screen_of(path)
    path = fresh("layer")
    edit(path, lambda manifest: manifest["detectors"][2]["options"].update(map_layers=["relu2", "pool", "fc1", "fc9"]))
    refused(path, "the classifier has no layer 'fc9': did you mean 'fc")
    path = fresh("table")
    replace_tensors(path, "calibration.safetensors", lambda tensors: drop(tensors, "scores/introspection"))
    refused(path, "the calibration has no table 'scores/introspection'")
    path = fresh("unfitted")
    replace_tensors(
        path, "self_organizing_map.safetensors", lambda tensors: tensors.update({"maps.0.yardstick": torch.empty(0)})
    )
    refused(path, "self_organizing_map is not fitted: calibrate again")


def test_a_manifest_rewritten_with_sorted_keys_is_refused_or_means_the_same(bundle: Path, trained: Trained) -> None:
    """`jq -S` changes nothing that the id covers; the libraries must not then read each other's layers."""
    images, _ = trained.part("evaluate")
    expected = screen_of(bundle)(images[:5])
    content = json.loads((bundle / "manifest.json").read_text())
    layers = {"relu2": 0.8, "conv1": 0.9, "fc2": 0.9, "fc1": 0.85}
    assert set(content["detectors"][0]["options"]["thresholds"]) == set(layers)
    thresholds = json.dumps(content["detectors"][0]["options"]["thresholds"])
    reordered = json.dumps(content).replace(thresholds, json.dumps(layers))
    assert reordered != json.dumps(content)
    for text in (json.dumps(content, sort_keys=True), reordered):
        assert json.loads(text) == content
        (bundle / "manifest.json").write_text(text)
        try:
            results = screen_of(bundle)(images[:5])
        except AskanceError:
            continue
        assert results == expected


# Publication


def test_an_existing_path_is_refused(trained: Trained, tmp_path: Path) -> None:
    for path in (tmp_path / "folder", tmp_path / "file"):
        if path.name == "folder":
            path.mkdir()
        else:
            path.write_text("mine")
        with pytest.raises(BundleError, match=f"{path} exists and a bundle is never changed: choose another path"):
            publish_trained(trained, path)
    assert (tmp_path / "file").read_text() == "mine"
    assert not list((tmp_path / "folder").iterdir())


def nothing_left(folder: Path) -> bool:
    return not folder.exists() or not list(folder.iterdir())


def test_a_failed_publication_leaves_nothing_behind(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bundle"
    calls = 0

    def full_disk(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(FileError, match=f"cannot write {path}: No space left on device: make room there"):
            publish_trained(trained, path)
    assert calls == 3
    assert nothing_left(tmp_path)

    def interrupted(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            publish_trained(trained, path)
    assert nothing_left(tmp_path)
    with pytest.raises(ValueError, match=r"Out of range float|not JSON compliant"):
        publish_trained(trained, path, evaluation={"auroc": float("nan")})
    with pytest.raises(NotFittedError, match="LibraryNetwork is not fitted"):
        publish_trained(trained, path, detectors=new_detectors())
    assert nothing_left(tmp_path)
    publish_trained(trained, path)  # and the next attempt succeeds
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("which", ["tables", "fused", "single_pass"])
def test_too_few_calibration_samples_are_refused(trained: Trained, tmp_path: Path, which: str) -> None:
    assert trained.calibration is not None
    whole: Calibration = copy.deepcopy(trained.calibration)
    one: Any = getattr(whole, which)
    cut = {k: t[:98] for k, t in one.items()} if which == "tables" else replace(one, table=one.table[:98])
    changes: dict[str, Any] = {which: cut}
    short = replace(whole, **changes)
    with pytest.raises(CalibrationError, match=r"adversarial = 0\.01 needs at least 99 calibration samples, got 98"):
        publish_trained(trained, tmp_path / "bundle", calibration=short)
    assert nothing_left(tmp_path)


def test_publishing_does_not_touch_what_it_saves(trained: Trained, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in trained.classifier.state_dict().items()}
    publish_trained(trained, tmp_path / "deep" / "er" / "bundle")  # parents are made
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.classifier.state_dict().items())
    Bundle.open(tmp_path / "deep" / "er" / "bundle")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": ["caf\udce9", *NAMES[1:]]}, r"classifier\.class_names: the name 'caf\\udce9' holds a"),
        ({"class_names": ["One", *NAMES[1:]]}, r"classifier\.class_names: two classes are called 'One' and 'one'"),
        ({"name": "net\n"}, r"classifier\.name: the name 'net\\n' holds a control character"),
    ],
    ids=["no UTF-8", "alike", "a line break"],
)
def test_names_that_no_metric_can_carry_are_refused(bundle: Path, change: dict[str, Any], message: str) -> None:
    """A server of such a bundle answered every scrape of /metrics with 500."""
    edit(bundle, lambda manifest: manifest["classifier"].update(change))
    refused(bundle, rf"manifest\.json is not valid: {message}")
