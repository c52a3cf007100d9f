"""Word vectors of the class names, from any word2vec or GloVe file.

Three layouts are read, each plain or compressed by gzip: word2vec's text (a header of two numbers, then a word and its
numbers a line), GloVe's (the same without the header) and word2vec's binary. A file is walked once and only the words
of classes are kept: the large ones hold millions, some of them no valid UTF-8, which are nobody's class.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from askance.errors import ConfigError, DataError, did_you_mean, printable

Vector = NDArray[np.float32]
MOST_NUMBERS = 100_000  # of a vector: a header that says more is none
LONGEST_LINE = 32 * MOST_NUMBERS  # bytes; more is no text
_GZIP, _BOM = b"\x1f\x8b", b"\xef\xbb\xbf"
_CHUNK = 1 << 20  # bytes of a binary file at a time


def class_vectors(path: Path, class_names: Sequence[str], words: Mapping[str, str]) -> Tensor:
    """The vectors of the classes in their order, float32 [K, n].

    Args:
        path: word2vec's format, binary if it is called .bin or .bin.gz, or GloVe's.
        class_names: K names; each is looked up as it stands, then in lower case.
        words: {class name: word} for classes that the file knows by another word.

    Raises:
        ConfigError: the file cannot be read, or `words` names no class.
        DataError: a class has no vector, one that is constant or not finite, or another class's; the message names it
            and the mapping option.
    """
    for name in words:
        if name not in class_names:
            raise ConfigError(f"word_vectors.words maps {name!r}, not a class: {did_you_mean(name, class_names)}")
    wanted = {name: words.get(name, name) for name in class_names}
    vectors = _read(path, {form for word in wanted.values() for form in (word, word.lower())})
    rows: dict[str, Vector] = {}
    for name, word in wanted.items():
        found = next((vectors[form] for form in (word, word.lower()) if form in vectors), None)
        if found is None:
            raise DataError(f"class {name!r} has no vector in {path.name} (looked for {word!r}): {_mapping(name)}")
        if not np.isfinite(found).all() or (found == found[0]).all():
            raise DataError(
                f"the vector of class {name!r} in {path.name} is constant or holds NaN or infinity: nothing correlates "
                f"with it; {_mapping(name)}"
            )
        for other, vector in rows.items():
            if np.array_equal(vector, found):
                raise DataError(
                    f"the classes {other!r} and {name!r} have the same vector in {path.name}: nothing tells them "
                    f"apart; {_mapping(name)}"
                )
        rows[name] = found
    return torch.from_numpy(np.stack(list(rows.values())))


def _mapping(name: str) -> str:
    return f'map it to a word that has one, [word_vectors] words = {{ "{name}" = "..." }}'


def _read(path: Path, words: Collection[str]) -> dict[str, Vector]:
    """The vectors of those of `words` that a file has; the first, where it has several of one."""
    binary = path.suffix == ".bin" or path.suffixes[-2:] == [".bin", ".gz"]
    by_bytes = {word.encode("utf-8", "surrogatepass"): word for word in words}
    found: dict[str, Vector] = {}
    try:
        with path.open("rb") as file:
            packed = file.read(2) == _GZIP
            file.seek(0)
            content = cast("BinaryIO", gzip.GzipFile(fileobj=file)) if packed else file
            for word, vector in (_binary if binary else _text)(content, by_bytes):
                found.setdefault(by_bytes[word], vector)
    except (EOFError, ValueError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigError(f"{path} is not a word2vec or GloVe file: {printable(str(error))}") from None
    except OSError as error:
        raise ConfigError(f"cannot read the word vectors {path}: {error.strerror or error}") from None
    return found


def _text(file: BinaryIO, words: Collection[bytes]) -> Iterator[tuple[bytes, Vector]]:
    lines: Iterator[tuple[int, bytes]] = enumerate(iter(partial(file.readline, LONGEST_LINE), b""), 1)
    number, first = next(lines, (1, b""))
    first = first.removeprefix(_BOM)
    header = _header(first)
    count, size = header or (None, len(first.split()) - 1)
    if header is None:
        _numbers(first, number, size)
        lines = chain([(number, first)], lines)
    seen = 0
    for number, line in lines:
        if seen == count:
            return
        if not line.strip():
            continue
        seen += 1
        word = line.split(None, 1)[0]
        if seen == 1 or word in words:
            vector = _numbers(line, number, size)
            if word in words:
                yield word, vector
    if count is not None and seen < count:
        raise ValueError(f"its header says {count} words, it has {seen}")


def _binary(file: BinaryIO, words: Collection[bytes]) -> Iterator[tuple[bytes, Vector]]:
    header = _header(file.readline(LONGEST_LINE))
    if header is None:
        raise ValueError("it has no header of two numbers")
    (count, size), chunk, place = header, b"", 0
    for seen in range(count):
        while (end := chunk.find(b" ", place)) < 0 or len(chunk) < end + 1 + 4 * size:
            more = file.read(_CHUNK)
            if not more or len(chunk) - place > LONGEST_LINE:  # nobody's word is that long
                raise ValueError(f"its header says {count} words of {size} numbers, it has {seen}")
            chunk, place = chunk[place:] + more, 0
        word, start = chunk[place:end].strip(), end + 1
        place = start + 4 * size
        if word in words:
            yield word, np.frombuffer(chunk[start:place], "<f4").astype(np.float32)


def _header(line: bytes) -> tuple[int, int] | None:
    """The header's count of words and of each one's numbers; None where the line is none."""
    try:
        count, size = (int(part) for part in line.split())
    except ValueError:
        return None
    if count < 1 or not 2 <= size <= MOST_NUMBERS:
        raise ValueError(f"its header says {count} words of {size} numbers")
    return count, size


def _numbers(line: bytes, number: int, size: int) -> Vector:
    parts = line.split()[1:]
    if len(parts) != size or size < 2:
        raise ValueError(f"line {number} has {len(parts)} numbers after its word, expected {max(size, 2)}")
    try:
        with np.errstate(over="ignore"):  # infinity, which is told of where it is a class's
            return np.array([float(part) for part in parts], dtype=np.float32)
    except ValueError:
        raise ValueError(f"line {number} holds something else than numbers after its word") from None
