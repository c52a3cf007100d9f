"""Files that people name may be anything: a device that never ends is one line, not a wait, wherever one is taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from askance import reading
from askance.calibration.config import load_config
from askance.calibration.sources import SOURCES, load_source
from askance.calibration.word_vectors import class_vectors
from askance.errors import AskanceError
from askance.service.client_messages import Credentials, readable, token_of
from askance.service.config import ServerConfig

ENDLESS = Path("/dev/zero")

TAKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a calibration's config": (load_config, "has more than 1 MiB: it is another file"),
    "a server's settings": (ServerConfig.load, "has more than 1 MiB: it is another file"),
    "a token": (token_of, "has more than 1 MiB: it is another file"),
    "a certificate": (lambda path: Credentials(ca=path).channel_credentials("a:1"), "has more than 1 MiB: it is"),
    "word vectors": (lambda path: class_vectors(path, ["a", "b"], {}), "is not a word2vec or GloVe file: line 1 has 0"),
    **{
        kind: (lambda path, kind=kind: load_source(f"{kind}:{path}"), "is neither a plain file nor a folder")  # type: ignore[misc]
        for kind, source in SOURCES.items()
        if source.is_path
    },
}


@pytest.fixture(autouse=True)
def limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller than it is, for the sake of time."""
    monkeypatch.setattr(reading, "MOST_BYTES", 1 << 20)


@pytest.mark.parametrize("what", TAKEN)
def test_what_never_ends_is_one_line(what: str) -> None:
    read, message = TAKEN[what]
    with pytest.raises(AskanceError, match=message) as caught:
        read(ENDLESS)
    assert "\n" not in str(caught.value)


def test_one_endless_image_spoils_no_other(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"content")
    failed: dict[int, AskanceError] = {}
    assert list(readable([ENDLESS, tmp_path / "image"], failed)) == [b"content"]  # type: ignore[arg-type]
    assert str(failed[0]) == "/dev/zero cannot be read: it has more than 1 MiB: it is another file"


def test_word_vectors_without_an_end(tmp_path: Path) -> None:
    header = tmp_path / "vectors.bin"
    header.write_bytes(b"3 4\n" + b"x" * 5_000_000)
    with pytest.raises(AskanceError, match="its header says 3 words of 4 numbers, it has 0"):
        class_vectors(header, ["a", "b"], {})


def test_a_file_as_large_as_any_may_be_is_read(tmp_path: Path) -> None:
    largest = tmp_path / "largest"
    largest.write_bytes(bytes(1 << 20))
    assert len(reading.content_of(largest)) == 1 << 20
    largest.write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(OSError, match="it has more than 1 MiB"):
        reading.content_of(largest)
