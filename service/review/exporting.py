"""Exporting: requests that people have marked, as a folder of images that `askance calibrate` reads."""

from __future__ import annotations

import tempfile
from pathlib import Path
from urllib.parse import quote

import orjson

from askance.errors import AskanceError
from askance.service.review.store import MEDIA, Mark, ReviewStore
from askance.writing import cannot_write


def export_images(store: ReviewStore, mark: Mark, out: Path, who: str) -> int:
    """Write the images with a mark into a folder of their own for each class that was predicted, and what is known of
    them into requests.json; all of it or nothing.

    Pixels that came as numbers are PNG files of 8 bits.

    Args:
        store: what is kept.
        mark: what people say of them.
        out: the folder; must not exist.
        who: asks; that is noted.

    Returns:
        How many they are.

    Raises:
        AskanceError: the folder exists, cannot be written, or nothing has that mark.
    """
    found = store.listed(who, mark=mark)
    if out.exists():
        raise AskanceError(f"{out} exists already: choose another folder")
    if not found:
        raise AskanceError(f"no request is marked {mark}: mark some on the live page, or by `askance review label`")
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-", ignore_cleanup_errors=True) as made:
            whole = Path(made) / "whole"
            whole.mkdir(mode=0o700)
            for one in found:
                media, content = store.shown(one.id, who)
                of_class = whole / _folder_name(one.label)
                of_class.mkdir(exist_ok=True)
                (of_class / f"{one.id}.{MEDIA[media]}").write_bytes(content)
            (whole / "requests.json").write_bytes(
                orjson.dumps([one.as_dict() for one in found], option=orjson.OPT_INDENT_2)
            )
            whole.rename(out)
    except OSError as error:
        raise cannot_write(str(out), error) from None
    return len(found)


def _folder_name(label: str) -> str:
    """A class's name as a folder's, another for each class: what a path may not hold is percent-encoded."""
    name = quote(label, safe=" ,()+")
    return f"%2E{name[1:]}" if name.startswith(".") else name
