"""Requests kept for people: the store, by hand and by several processes, its bounds, the commands, what is exported."""

from __future__ import annotations

import asyncio
import io
import json
import sqlite3
import stat
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from prometheus_client import CollectorRegistry
from review_support import answered, kept
from service_support import config, noise, running, until, untypical

from askance.__main__ import run
from askance.answers import Verdict
from askance.calibration.sources import pools_of
from askance.errors import AskanceError
from askance.service.client_messages import request_of
from askance.service.review.exporting import _folder_name
from askance.service.review.keeper import WAITING, Keeper
from askance.service.review.store import ARRAY, FILE, Kept, Mark, ReviewStore, encoded


@pytest.mark.parametrize(
    ("client", "found"),
    [
        ("camera", ["a"]),
        ("ipv4:10.0.0.1", ["b"]),  # not the camera's, which has a name
        ("ipv6:2001:db8::/64", ["c", "d"]),
        ("ipv6:2001:db8::1", ["c"]),
        ("ipv6:2001:db8:0:1::/64", []),
        ("ipv4:10.0.0.0/99", []),
        ("anonymous", []),
    ],
)
def test_a_client_is_asked_for_by_what_it_is_named_for(client: str, found: list[str], tmp_path: Path) -> None:
    store = ReviewStore(tmp_path / "kept")
    store.keep(kept("a"), b"")
    for name, address in (("b", "ipv4:10.0.0.1"), ("c", "ipv6:2001:db8::1"), ("d", "ipv6:2001:db8::2")):
        store.keep(kept(name, client="anonymous", address=address), b"")
    assert sorted(one.id for one in store.listed("me", client=client)) == found


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    store = ReviewStore(tmp_path / "kept")
    one = kept("a")
    store.keep(one, b"0123456789")
    assert store.listed("me") == [one]
    assert store.one("a", "me") == one
    assert store.content("a", "me") == ("image/png", b"0123456789")
    given = Mark.ATTACK
    store.mark("a", given, "ada")
    (marked,) = store.listed("me", mark=given)
    assert (marked.mark, marked.marked_by) == (given, "ada")
    assert store.listed("me", unmarked=True) == store.listed("me", verdict="ADVERSARIAL") == []
    for missing in (
        lambda: store.one("b", "me"),
        lambda: store.content("b", "me"),
        lambda: store.mark("b", given, "x"),
    ):
        with pytest.raises(KeyError):
            missing()
    looked = [(who, what, name) for _, who, what, name in store.accesses()]
    assert looked[:3] == [("me", "list", None), ("me", "show", "a"), ("me", "image", "a")]
    assert ("ada", "mark attack", "a") in looked
    store.close()
    again = ReviewStore(tmp_path / "kept")
    assert again.listed("me") == [marked]
    again.close()


def test_what_is_kept_is_its_owners_alone(tmp_path: Path) -> None:
    store = ReviewStore(tmp_path / "kept")
    store.keep(kept("a"), b"0123456789")
    assert stat.S_IMODE((tmp_path / "kept").stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "kept").iterdir()} == {0o600}
    store.close()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 60), st.booleans()), min_size=1, max_size=25))
def test_there_is_never_more_than_the_quota(sizes: list[tuple[int, bool]]) -> None:
    """And the latest is kept; those with a mark go last."""
    with tempfile.TemporaryDirectory() as folder:
        store = ReviewStore(Path(folder), max_bytes=100)
        for i, (size, marked) in enumerate(sizes):
            store.keep(kept(f"{i:03}", at=time.time() + i, size=size), b"x" * size)
            there = store.listed("me")
            assert sum(one.bytes for one in there) <= 100
            if marked and any(one.id == f"{i:03}" for one in there):
                store.mark(f"{i:03}", Mark.UNSURE, "me")
        assert sorted(one.id for one in there) == [one.id for one in reversed(there)]
        database = sqlite3.connect(Path(folder) / FILE)
        names = [{row[0] for row in database.execute(f"SELECT id FROM {table}")} for table in ("requests", "images")]
        assert names[0] == names[1]  # no image without its request, and none without an image
        database.close()
        store.close()


def test_what_has_a_mark_makes_room_last(tmp_path: Path) -> None:
    store = ReviewStore(tmp_path, max_bytes=30)
    for i in range(3):
        store.keep(kept(str(i), at=time.time() + i), b"0123456789")
    store.mark("0", Mark.ATTACK, "me")
    store.keep(kept("3", at=time.time() + 3), b"0123456789")
    assert [one.id for one in store.listed("me")] == ["3", "2", "0"]
    store.keep(kept("huge", size=31), b"x" * 31)  # more than all together may be
    assert [one.id for one in store.listed("me")] == ["3", "2", "0"]
    store.close()


def test_after_its_time_a_request_is_let_go(tmp_path: Path) -> None:
    store = ReviewStore(tmp_path, keep_seconds=60)
    store.keep(kept("old", at=time.time() - 61), b"0123456789")
    store.keep(kept("new"), b"0123456789")
    assert [one.id for one in store.listed("me")] == ["new"]
    store.close()


def test_several_write_at_a_time(tmp_path: Path) -> None:
    """As the workers of a server do: each has the file open by itself."""
    stores = [ReviewStore(tmp_path) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: stores[i % 4].keep(kept(f"{i:03}"), b"0123456789"), range(40)))
    assert [len(store.listed("me")) for store in stores] == [40] * 4
    for store in stores:
        store.close()


def test_a_write_that_fails_changes_nothing(tmp_path: Path) -> None:
    store = ReviewStore(tmp_path)
    store.keep(kept("a"), b"0123456789")
    with pytest.raises(sqlite3.IntegrityError):
        store.keep(kept("a"), b"another one")
    assert [one.id for one in store.listed("me")] == ["a"]
    assert store.content("a", "me")[1] == b"0123456789"
    store.close()


def test_what_is_no_store_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(AskanceError, match=r"holds no requests for review: expected review.sqlite3 there"):
        ReviewStore(tmp_path, must_exist=True)
    (tmp_path / FILE).write_bytes(b"no database" * 100)
    with pytest.raises(AskanceError, match=r"^requests for review cannot be kept in .*: file is not a database$"):
        ReviewStore(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(AskanceError, match="cannot be kept"):
        ReviewStore(tmp_path / "file")
    newer = tmp_path / "newer"
    newer.mkdir()
    database = sqlite3.connect(newer / FILE)
    database.execute("PRAGMA user_version = 7")
    database.close()
    with pytest.raises(AskanceError, match=r"is of another askance \(version 7, here 1\)"):
        ReviewStore(newer)


def test_images_are_kept_as_they_came() -> None:
    png = io.BytesIO()
    Image.new("L", (4, 4), 7).save(png, "PNG")
    pixels = np.full((1, 4, 4), 7 / 255, np.float32)
    assert encoded(png.getvalue(), pixels) == ("image/png", png.getvalue())
    assert encoded(memoryview(b"\xff\xd8\xff rest"), pixels) == ("image/jpeg", b"\xff\xd8\xff rest")
    assert encoded(b"RIFF....WEBP", pixels)[0] == "image/webp"
    media, content = encoded(None, pixels)  # pixels that a picture holds
    assert media == "image/png"
    assert (np.asarray(Image.open(io.BytesIO(content))) == 7).all()
    colour = np.stack([pixels[0], pixels[0] * 2, pixels[0] * 3])
    media, content = encoded(None, colour)
    assert (media, Image.open(io.BytesIO(content)).getpixel((0, 0))) == ("image/png", (7, 14, 21))
    between = np.full((1, 4, 4), 0.1, np.float32)  # 25.5 of 255
    media, content = encoded(None, between)
    assert media == ARRAY
    np.testing.assert_array_equal(np.load(io.BytesIO(content)), between)


def of(keeper: Keeper) -> dict[str, float]:
    (family,) = keeper._outcomes.collect()
    return {sample.labels["outcome"]: sample.value for sample in family.samples if sample.name.endswith("_total")}


def test_a_keeper_takes_what_is_flagged_and_some_of_the_rest(tmp_path: Path) -> None:
    draws = iter([0.2, 0.05, 0.9])
    keeper = Keeper(ReviewStore(tmp_path), 0.1, CollectorRegistry(), lambda: next(draws))
    for verdict in (Verdict.CLEAN, Verdict.ADVERSARIAL, Verdict.CLEAN, Verdict.SUSPECT, Verdict.CLEAN):
        keeper.offer(answered(verdict))
    keeper.stop()
    assert of(keeper) == {"kept": 3, "dropped": 0, "failed": 0}
    store = ReviewStore(tmp_path)
    found = store.listed("me")
    assert sorted((one.verdict, one.why) for one in found) == [
        ("ADVERSARIAL", "flagged"),
        ("CLEAN", "sample"),
        ("SUSPECT", "flagged"),
    ]
    assert found[0].words[0].startswith("ant (90.0%): ")
    store.close()


def test_no_request_waits_for_a_slow_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, go = ReviewStore(tmp_path), threading.Event()
    keep = store.keep

    def slowly(one: Kept, content: bytes) -> None:
        assert go.wait(60)
        keep(one, content)

    monkeypatch.setattr(store, "keep", slowly)
    keeper = Keeper(store, 0.0, CollectorRegistry())
    for _ in range(WAITING + 10):
        keeper.offer(answered(Verdict.SUSPECT))
    assert of(keeper)["dropped"] == 10
    go.set()
    keeper.stop()
    assert of(keeper) == {"kept": WAITING, "dropped": 10, "failed": 0}


def test_a_full_disk_is_told_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = ReviewStore(tmp_path)
    keep = store.keep

    def full(one: Kept, content: bytes) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(store, "keep", full)
    keeper = Keeper(store, 0.0, CollectorRegistry())
    keeper.offer(answered(Verdict.SUSPECT))
    while not of(keeper)["failed"]:
        time.sleep(0.01)
    monkeypatch.setattr(store, "keep", keep)
    keeper.offer(answered(Verdict.SUSPECT))
    keeper.stop()
    assert of(keeper) == {"kept": 1, "dropped": 0, "failed": 1}
    assert "a request could not be kept for review: database or disk is full" in caplog.text


def test_a_server_keeps_what_it_flags(tmp_path: Path) -> None:
    """As it came, with who sent it; clients see nothing of that."""

    async def main() -> None:
        async with running(settings=config(review={"folder": tmp_path / "kept"})) as service:
            png = io.BytesIO()
            Image.fromarray(untypical()[0]).save(png, "PNG")
            await service.stub.Screen(request_of(png.getvalue()))
            await service.stub.Screen(request_of(untypical()))
            await service.stub.Screen(request_of(noise(1)))
            await until(lambda: service.value("askance_reviews_total", outcome="kept") == 2)
            store = ReviewStore(tmp_path / "kept")
            found = store.listed("me")
            assert [one.client for one in found] == ["anonymous"] * 2
            assert {one.verdict for one in found} <= {"SUSPECT", "ADVERSARIAL"}
            assert store.content(found[-1].id, "me") == ("image/png", png.getvalue())
            _, content = store.shown(found[0].id, "me")
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), untypical()[0])
            store.close()

    asyncio.run(main())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, each with two images, all but one marked."""
    store = ReviewStore(tmp_path / "kept")
    for i, label in enumerate(("ant", "a/b", "ant", "a/b")):
        media, content = encoded(None, np.full((1, 8, 8), i / 255, np.float32))
        store.keep(kept(f"{i:04}", at=time.time() + i, size=len(content), label=label, media=media), content)
    for i in range(3):
        store.mark(f"{i:04}", Mark.FALSE_ALARM, "me")
    store.close()
    return tmp_path / "kept"


def test_the_commands(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = tmp_path / "l.json"
    assert run(["review", "list", str(folder), "--unmarked", "--json", str(listed)]) == 0
    assert [one["id"] for one in json.loads(listed.read_text())["requests"]] == ["0003"]
    assert run(["review", "label", str(folder), "0003", "attack"]) == 0
    image = tmp_path / "image.png"
    assert run(["review", "show", str(folder), "0003", "--out", str(image)]) == 0
    said = capsys.readouterr().out
    assert "client   camera (ipv4:10.0.0.1)\n" in said
    assert "mark     attack, by " in said
    assert (np.asarray(Image.open(image)) == 3).all()
    assert stat.S_IMODE(image.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "{}", "none"], "no request 'none' is kept: `askance review list` shows those that are"),
        (["label", "{}", "0000", "false-alrm"], "did you mean 'false-alarm'?"),
        (["list", "{}", "--verdict", "SUSPCT"], "did you mean 'SUSPECT'?"),
        (["list", "{}/nowhere"], "holds no requests for review: expected review.sqlite3 there"),
        (["export", "{}", "--out", "{}"], "exists already: choose another folder"),
        (["export", "{}", "--out", "{}-out", "--mark", "unsure"], "no request is marked unsure: mark some"),
    ],
)
def test_mistakes_are_told_in_a_line(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["review", *(part.format(folder) for part in arguments)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_what_is_exported_can_be_calibrated_on(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "alarms"
    assert run(["review", "export", str(folder), "--out", str(out)]) == 0
    assert sorted(str(file.relative_to(out)) for file in out.rglob("*.*")) == [
        "a%2Fb/0001.png",
        "ant/0000.png",
        "ant/0002.png",
        "requests.json",
    ]
    images, _ = pools_of(f"folder:{out}", None)
    assert images.classes == ("a%2Fb", "ant")
    assert images.y.tolist() == [0, 1, 1]
    assert images.x[:, 0, 0, 0].tolist() == [1, 0, 2]
    assert [one["id"] for one in json.loads((out / "requests.json").read_text())] == ["0002", "0001", "0000"]


@given(st.lists(st.text(min_size=1, max_size=12), min_size=2, max_size=6, unique=True))
def test_each_class_has_a_folder_of_its_own(labels: list[str]) -> None:
    names = [_folder_name(label) for label in labels if label.isprintable()]
    assert len(set(names)) == len(names)
    assert all("/" not in name and not name.startswith(".") and name.isascii() for name in names)
