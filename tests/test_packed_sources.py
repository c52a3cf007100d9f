"""Image files packed into one: Hugging Face's parquet and arrow files, WebDataset's tar."""

from __future__ import annotations

import gzip
import io
import json
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from askance.calibration.images import Images
from askance.calibration.sources import load_source, pools_of
from askance.errors import DataError
from askance.screening.preprocessing import Preprocessing

pa = pytest.importorskip("pyarrow")
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), np.uint8)
LABELS = [1, 0, 1, 2, 0, 2]
NAMES = ["cat", "dog", "emu"]
FEATURES = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}


def png(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def table(labels: list[Any] | None = LABELS, features: Mapping[str, Any] | None = FEATURES, **columns: Any) -> Any:
    """As `datasets` writes them: the image a struct of bytes and path, the names of the classes in the schema."""
    content: dict[str, Any] = {"image": [{"bytes": png(one), "path": f"{i}.png"} for i, one in enumerate(PIXELS)]}
    if labels is not None:
        content["label"] = labels
    made = pa.table(content | columns)
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    return made if features is None else made.replace_schema_metadata(metadata)


def write_parquet(made: Any, path: Path) -> str:
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(made, path)
    return f"parquet:{path}"


def write_arrow(made: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, made.schema) as writer:
        writer.write_table(made)


def write_tar(path: Path, members: Mapping[str, bytes]) -> str:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return f"tar:{path}"


def samples(suffix: str = "png") -> dict[str, bytes]:
    """A WebDataset's members: the image, its label, and what else somebody keeps."""
    members: dict[str, bytes] = {}
    for i, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        members |= {
            f"a/{i:03d}.{suffix}": png(pixels),
            f"a/{i:03d}.cls": f"{label}\n".encode(),
            f"a/{i:03d}.json": b"{}",
        }
    return members


def same(images: Images, classes: list[str]) -> None:
    assert torch.equal(images.x, torch.from_numpy(PIXELS).permute(0, 3, 1, 2))
    assert images.classes == tuple(classes)
    if classes:
        assert images.y.tolist() == LABELS


def test_a_parquet_file_of_hugging_faces(tmp_path: Path) -> None:
    same(load_source(write_parquet(table(), tmp_path / "d.parquet")), NAMES)
    renamed = {"picture": FEATURES["image"], "kind": FEATURES["label"], "other": {"_type": "Value", "dtype": "string"}}
    other = table().rename_columns(["picture", "kind"]).append_column("other", [["x"] * 6])
    metadata = {b"huggingface": json.dumps({"info": {"features": renamed}}).encode()}
    same(load_source(write_parquet(other.replace_schema_metadata(metadata), tmp_path / "r.parquet")), NAMES)


def test_one_that_another_program_wrote(tmp_path: Path) -> None:
    """No schema of `datasets`: columns by their usual names, bytes as they are, classes by number, or no labels."""
    same(load_source(write_parquet(table(features=None), tmp_path / "d.parquet")), ["0", "1", "2"])
    plain = pa.table({"image": [png(one) for one in PIXELS]})
    same(load_source(write_parquet(plain, tmp_path / "x.parquet")), [])


def test_a_folder_has_two_pools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As on the hub, in data/train-*.parquet; and as save_to_disk writes it, train/*.arrow, with a cache of its own."""
    for part in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001", "validation-00000-of-00001"):
        write_parquet(table(), tmp_path / "hub" / "data" / f"{part}.parquet")
    train, test = pools_of(f"parquet:{tmp_path / 'hub'}")
    assert test is not None
    assert (len(train), len(test)) == (12, 6)
    assert "left out: validation-00000-of-00001.parquet" in capsys.readouterr().err
    for name in ("train/data-00000-of-00001.arrow", "test/data-00000-of-00001.arrow", "train/cache-1.arrow"):
        write_arrow(table(), tmp_path / "disk" / name)
    train, test = pools_of(f"parquet:{tmp_path / 'disk'}")
    assert test is not None
    same(train, NAMES)
    same(test, NAMES)


def test_a_tar_of_samples(tmp_path: Path) -> None:
    same(load_source(write_tar(tmp_path / "d.tar", samples())), ["0", "1", "2"])
    unlabelled = {name: content for name, content in samples("PNG").items() if not name.endswith(".cls")}
    same(load_source(write_tar(tmp_path / "x.tar", unlabelled)), [])


def test_what_a_tar_has_besides_is_counted_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    besides = {"a/000.json": b"{}", "b.bmp": b"", "a/001.left.png": b"", "c.cls": b"1", "README": b"", ".hidden": b""}
    members = {name: content for name, content in samples().items() if name.endswith((".png", ".cls"))}
    same(load_source(write_tar(tmp_path / "d.tar", members)), ["0", "1", "2"])
    assert capsys.readouterr().err == ""
    same(load_source(write_tar(tmp_path / "d.tar", members | besides)), ["0", "1", "2"])
    said = " ".join(capsys.readouterr().err.split())
    assert "6 images read, 6 other entries left out (" in said
    for name in besides:
        assert name in said


@pytest.mark.parametrize("kind", ["parquet", "tar"])
@pytest.mark.parametrize("label", [10**6, 2 * 10**9])
def test_a_label_that_no_class_has_costs_no_memory(kind: str, label: int, tmp_path: Path) -> None:
    content = samples() | {"a/000.cls": str(label).encode()}
    source = (
        write_tar(tmp_path / "d.tar", content)
        if kind == "tar"
        else write_parquet(table(labels=[label, 1, 2, 0, 1, 2], features=None), tmp_path / "d.parquet")
    )
    with pytest.raises(DataError, match=f"label {label} is out of range: expected less than 1000000$"):
        load_source(source)


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_images_are_taken_as_the_classifiers_server_would(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "d"
    source = write_tar(path, samples()) if kind == "tar" else write_parquet(table(), tmp_path / "d.parquet")
    scaled = Preprocessing(channels=3, height=8, width=8, mean=(0,) * 3, std=(1,) * 3, resize="bilinear")
    assert load_source(source, scaled).x.shape == (6, 3, 8, 8)
    with pytest.raises(DataError, match=r"(image 0|a/000\.png): .*8 ?x ?8.*; a server refuses such an image, too"):
        load_source(source, scaled.model_copy(update={"resize": "refuse"}))


def test_what_a_parquet_file_is_refused_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(made: Any, message: str) -> None:
        with pytest.raises(DataError, match=message) as caught:
            load_source(write_parquet(made, tmp_path / "d.parquet"))
        assert len(str(caught.value).splitlines()) == 1

    refused(
        pa.table({"img": [b"x"], "label": [0]}), "no column of images: expected one called 'image'.*; it has img, la"
    )
    refused(pa.table({"image": [{"bytes": None, "path": "a.png"}]}), "image 0 holds no bytes, a path at most: save the")
    refused(table(labels=["cat"] * 6, features=None), "the column 'label' holds more than integers")
    refused(table(labels=[0, 1, 2, 3, 0, 1]), "label 3 is out of range")
    two = {"a": {"_type": "Image"}, "b": {"_type": "Image"}}
    twice = pa.table({"a": [b"x"], "b": [b"x"]}).replace_schema_metadata(
        {b"huggingface": json.dumps({"info": {"features": two}}).encode()}
    )
    refused(twice, "several columns of Image, a, b: call the one meant 'image'")
    (tmp_path / "e.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"e\.parquet cannot be read: "):
        load_source(f"parquet:{tmp_path / 'e.parquet'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no \.parquet or \.arrow files$"):
        load_source(f"parquet:{tmp_path / 'empty'}")
    source = write_parquet(table(), tmp_path / "d.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pyarrow is not installed: install askance with its extra 'parquet'"):
        load_source(source)


def test_what_a_tar_is_refused_for(tmp_path: Path) -> None:
    def refused(members: Mapping[str, bytes], message: str) -> None:
        with pytest.raises(DataError, match=message) as caught:
            load_source(write_tar(tmp_path / "d.tar", members))
        assert len(str(caught.value).splitlines()) == 1

    refused({"a.txt": b"x", "b.cls": b"1"}, "holds no images: expected PNG, JPEG or WebP files")
    refused({n: c for n, c in samples().items() if n != "a/003.cls"}, r"a/003\.png has no \.cls file beside it")
    refused(samples() | {"a/001.cls": b"dog"}, r"the \.cls file of a/001\.png holds b'dog': expected an integer")
    refused(samples() | {"a/001.cls": b"1" * 30}, "expected an integer")
    refused(samples() | {"a/001.cls": b"1_0"}, "expected an integer")
    refused(samples() | {"a/000.png": b"junk"}, r"a/000\.png: ")
    refused(
        samples() | {"a/000.jpg": b""},
        r"a/000\.png and a/000\.jpg are images of one sample: expected one for each name",
    )
    packed = bytearray(gzip.compress(Path(write_tar(tmp_path / "d.tar", samples())[4:]).read_bytes()))
    packed[40] ^= 255
    (tmp_path / "d.tar.gz").write_bytes(packed)
    with pytest.raises(DataError, match="is not a tar file, or a damaged one") as caught:
        load_source(f"tar:{tmp_path / 'd.tar.gz'}")
    assert len(str(caught.value).splitlines()) == 1
    (tmp_path / "no.tar").write_bytes(b"no tar")
    with pytest.raises(DataError, match=r"no\.tar is not a tar file, or a damaged one"):
        load_source(f"tar:{tmp_path / 'no.tar'}")
