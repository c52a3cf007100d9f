"""Word vectors as people have them: word2vec's two formats and GloVe's, with their quirks."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from gensim.models.keyedvectors import KeyedVectors
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from askance.calibration.word_vectors import class_vectors
from askance.errors import AskanceError, ConfigError, DataError

GLOVE = b"the 0.5 1 -2\ncat 1 2 3.25\ndog 3 2 1\n"
HEADED = b"3 3\n" + GLOVE
CAT_AND_DOG = [[1.0, 2.0, 3.25], [3.0, 2.0, 1.0]]


def binary(words: Sequence[bytes], vectors: NDArray[np.float32], header: bytes | None = None) -> bytes:
    """word2vec's binary format."""
    rows = [word + b" " + row.astype("<f4").tobytes() + b"\n" for word, row in zip(words, vectors, strict=True)]
    return (header or b"%d %d\n" % vectors.shape) + b"".join(rows)


BINARY = binary([b"the", b"cat", b"dog"], np.array([[0.5, 1, -2], *CAT_AND_DOG], np.float32))

READ = {
    "word2vec": ("v.txt", HEADED),
    "GloVe": ("v.txt", GLOVE),
    "a byte order mark": ("v.txt", b"\xef\xbb\xbf" + HEADED),
    "GloVe with a mark": ("v.txt", b"\xef\xbb\xbf" + GLOVE),
    "an undecodable word": ("v.txt", b"the 1 2 3\ncaf\xe9 1 2 3\n" + GLOVE),
    "a word of several": ("v.txt", GLOVE + b". . . 1 2 3\n"),
    "Windows' line ends": ("v.txt", HEADED.replace(b"\n", b"\r\n")),
    "tabs": ("v.txt", GLOVE.replace(b" ", b"\t")),
    "blank lines": ("v.txt", HEADED + b"\n\n"),
    "the first of two": ("v.txt", GLOVE + b"cat 7 7 8\n"),
    "more than the header says": ("v.txt", b"3 3\n" + GLOVE + b"emu 1 2\n"),
    "compressed": ("v.txt.gz", gzip.compress(GLOVE)),
    "compressed, by another name": ("v.txt", gzip.compress(HEADED)),
    "binary": ("v.bin", BINARY),
    "binary, compressed": ("v.bin.gz", gzip.compress(BINARY)),
    "binary, an undecodable word": ("v.bin", BINARY.replace(b"the ", b"\xff\xfe ")),
}


@pytest.mark.parametrize(("name", "content"), READ.values(), ids=READ)
def test_what_is_read(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert class_vectors(tmp_path / name, ("Cat", "hound"), {"hound": "dog"}).tolist() == CAT_AND_DOG


TOO_MANY = b"99999999999 3\n"
NOT_A_FILE = "is not a word2vec or GloVe file: "
REFUSED = {
    "cut short": ("v.txt", b"4 3\n" + GLOVE, f"{NOT_A_FILE}its header says 4 words, it has 3"),
    "an absurd count": ("v.txt", TOO_MANY + GLOVE, f"{NOT_A_FILE}its header says 99999999999 words, it has 3"),
    "an absurd size": ("v.txt", b"3 999999999\n" + GLOVE, f"{NOT_A_FILE}its header says 3 words of 999999999 numbers"),
    "a negative count": ("v.txt", b"-3 3\n" + GLOVE, f"{NOT_A_FILE}its header says -3 words of 3 numbers"),
    "another size": ("v.txt", b"3 4\n" + GLOVE, f"{NOT_A_FILE}line 2 has 3 numbers after its word, expected 4"),
    "a short line": ("v.txt", b"the 1 2 3\ncat 1 2\n", f"{NOT_A_FILE}line 2 has 2 numbers after its word, expected 3"),
    "words": ("v.txt", b"once upon a time\n", f"{NOT_A_FILE}line 1 holds something else than numbers after its word"),
    "nothing": ("v.txt", b"", f"{NOT_A_FILE}line 1 has 0 numbers after its word, expected 2"),
    "half a gzip file": ("v.gz", gzip.compress(GLOVE)[:-9], f"{NOT_A_FILE}Compressed file ended before the end"),
    "no binary": ("v.bin", GLOVE, f"{NOT_A_FILE}it has no header of two numbers"),
    "a binary cut short": ("v.bin", BINARY[:-9], f"{NOT_A_FILE}its header says 3 words of 3 numbers, it has 2"),
    "an absurd binary": (
        "v.bin",
        b"99999999999 99999\n" + BINARY[4:],
        f"{NOT_A_FILE}its header says 99999999999 words of 99999 numbers, it has 0",
    ),
}


@pytest.mark.parametrize(("name", "content", "message"), REFUSED.values(), ids=REFUSED)
def test_files_that_are_something_else(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        class_vectors(tmp_path / name, ("cat", "dog"), {})
    assert str(caught.value).startswith(f"{tmp_path / name} {message}")
    assert len(str(caught.value).splitlines()) == 1


MEND = 'map it to a word that has one, [word_vectors] words = { "dog" = "..." }'
NO_NUMBERS = (
    "the vector of class 'dog' in v.txt is constant or holds NaN or infinity: nothing correlates with it; " + MEND
)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"dog nan 2 3", NO_NUMBERS),
        (b"dog 1 -inf 3", NO_NUMBERS),
        (b"dog 1 2 1e99", NO_NUMBERS),
        (b"dog 2 2 2", NO_NUMBERS),
        (
            b"dog 1 2 3.25",
            f"the classes 'cat' and 'dog' have the same vector in v.txt: nothing tells them apart; {MEND}",
        ),
    ],
)
def test_vectors_that_say_nothing(tmp_path: Path, line: bytes, message: str) -> None:
    (tmp_path / "v.txt").write_bytes(GLOVE.replace(b"dog 3 2 1", line))
    with pytest.raises(DataError) as caught:
        class_vectors(tmp_path / "v.txt", ("cat", "dog"), {})
    assert str(caught.value) == message


def test_two_classes_of_one_word(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_bytes(GLOVE)
    with pytest.raises(DataError, match=r"the classes 'cat' and 'tiger' have the same vector in v\.txt: nothing tells"):
        class_vectors(tmp_path / "v.txt", ("cat", "tiger"), {"tiger": "cat"})


WORDS = st.lists(st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1), min_size=2, unique=True)


@settings(max_examples=60, deadline=None)
@given(WORDS, st.integers(2, 5), st.integers(0, 1000), st.booleans())
def test_a_file_is_read_as_gensim_reads_it(words: list[str], size: int, seed: int, is_binary: bool) -> None:
    vectors = np.random.default_rng(seed).normal(size=(len(words), size)).astype(np.float32)
    keyed = KeyedVectors(size)
    keyed.add_vectors(words, vectors)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("v.bin" if is_binary else "v.txt")
        keyed.save_word2vec_format(str(path), binary=is_binary)
        reference = KeyedVectors.load_word2vec_format(str(path), binary=is_binary)
        found = class_vectors(path, words, {})
    assert torch.equal(found, torch.from_numpy(np.stack([reference[word] for word in words])))


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=200) | st.binary(max_size=40).map(lambda noise: HEADED + noise),
    st.sampled_from([".txt", ".bin"]),
)
def test_any_file_is_read_or_refused_in_one_line(content: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"v{suffix}"
        path.write_bytes(content)
        try:
            found = class_vectors(path, ("cat", "dog"), {})
        except AskanceError as error:
            assert len(str(error).splitlines()) == 1
            return
    assert bool(torch.isfinite(found).all())
    assert not torch.equal(found[0], found[1])
