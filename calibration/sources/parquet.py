"""Parquet and Arrow files, as Hugging Face's data sets are stored in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from askance.calibration.images import Images, make_images
from askance.calibration.progress import say
from askance.calibration.sources.encoded import EncodedSource, decoded, numbered
from askance.calibration.sources.source import Pools, located
from askance.errors import DataError, extra_needed, listed, one_line
from askance.screening.class_names import names_of
from askance.screening.preprocessing import Preprocessing

SUFFIXES = (".parquet", ".arrow")
IMAGE, LABEL = "image", "label"  # what the columns are called where the schema does not say which they are


class Parquet(EncodedSource):
    """A data set of Hugging Face's on disk: a .parquet or .arrow file, or a folder of them (test*: the pool `test`)."""

    kind: ClassVar[str] = "parquet"
    spelling: ClassVar[str] = "parquet:PATH"

    @classmethod
    def read(cls, what: str, preprocessing: Preprocessing | None) -> Pools:
        """All its images."""
        return _load(what, preprocessing)


def _load(what: str, preprocessing: Preprocessing | None) -> Pools:
    source, root = f"parquet:{what}", located(what)
    if not root.exists():
        raise DataError(f"{source}: there is no such file or folder")
    parts = _parts(source, root)
    try:
        import pyarrow as pa
    except ModuleNotFoundError:
        raise DataError(f"{source}: {extra_needed('pyarrow', 'parquet')}") from None
    pools = []
    for files in parts:
        try:
            table = pa.concat_tables([_read(file) for file in files])
        except (pa.ArrowException, OSError) as error:
            names = listed([file.name for file in files])
            raise DataError(f"{source}: {names} cannot be read: {one_line(error)}") from None
        pools.append(_images(source, table, preprocessing))
    if len(pools) == 1:
        return pools[0], None
    train, test = pools
    return train, test


def _parts(source: str, root: Path) -> list[list[Path]]:
    """The files of each pool: whatever begins with "test", by its own name or its folder's, is of the second."""
    if root.is_file():
        return [[root]]
    pools: dict[str, list[Path]] = {"train": [], "test": [], "validation": []}
    for file in sorted(root.rglob("*")):
        if file.suffix in SUFFIXES and not file.name.startswith("cache-"):  # what `datasets` keeps of its own work
            names = [part.lower() for part in file.relative_to(root).parts]
            pool = next((pool for pool in ("test", "validation") if any(n.startswith(pool) for n in names)), "train")
            pools[pool].append(file)
    if not any(pools.values()):
        raise DataError(f"{source} holds no {' or '.join(SUFFIXES)} files")
    if pools["validation"] and (pools["train"] or pools["test"]):
        say(f"{source}: left out: {listed([file.name for file in pools['validation']])}; name the file to have it")
        del pools["validation"]
    return [files for files in pools.values() if files]


def _read(file: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet

    if file.suffix == ".parquet":
        return pa.parquet.read_table(file)
    with pa.memory_map(str(file)) as mapped:
        return pa.ipc.open_stream(mapped).read_all()


def _images(source: str, table: Any, preprocessing: Preprocessing | None) -> Images:
    features = _features(table)
    image = _column(source, table, features, "Image", IMAGE)
    if image is None:
        raise DataError(
            f"{source} has no column of images: expected one called {IMAGE!r}, or of the feature Image; it has "
            f"{listed(table.column_names)}"
        )
    arrays = np.stack(decoded(source, _contents(source, table[image].to_pylist()), preprocessing))
    label = _column(source, table, features, "ClassLabel", LABEL)
    if label is None:
        return make_images(arrays, None, (), source)
    labels = table[label].to_pylist()
    if not all(isinstance(one, int) for one in labels):
        raise DataError(f"{source}: the column {label!r} holds more than integers: expected the number of a class")
    names: Sequence[Any] | None = features.get(label, {}).get("names")
    numbers, by_number = numbered(labels, source)
    return make_images(arrays, numbers, names_of(names) if names else by_number, source)


def _features(table: Any) -> dict[str, Any]:
    """What `datasets` keeps of the columns in the schema; empty where another program wrote the file."""
    content = (table.schema.metadata or {}).get(b"huggingface")
    try:
        found: dict[str, Any] = json.loads(content)["info"]["features"] if content else {}
    except (ValueError, KeyError, TypeError):
        return {}
    return {name: feature for name, feature in found.items() if isinstance(feature, dict)}


def _column(source: str, table: Any, features: dict[str, Any], kind: str, usual: str) -> str | None:
    """The one column of a feature, else the one that is called as usual; None where there is neither."""
    columns: list[str] = table.column_names
    found = [name for name in columns if features.get(name, {}).get("_type") == kind]
    if len(found) > 1 and usual not in found:
        raise DataError(f"{source} has several columns of {kind}, {listed(found)}: call the one meant {usual!r}")
    if len(found) == 1:
        return found[0]
    return usual if usual in columns else None


def _contents(source: str, cells: list[Any]) -> Iterator[tuple[str, bytes]]:
    for i, cell in enumerate(cells):
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(content, bytes):
            raise DataError(
                f"{source}: image {i} holds no bytes, a path at most: save the data set with its images in it "
                "(embed_external_files=True)"
            )
        yield f"image {i}", content
