"""torchvision beside a torch build that its binary operators do not match: import it without them."""

from __future__ import annotations

import importlib
import importlib.util
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

import torch

# What torchvision's Python code refers to when it is imported, as its binary would have declared it.
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_fragments: list[torch.library.Library] = []  # a Library's declarations last as long as the object


def prepare_torchvision() -> None:
    """Make torchvision importable, by anyone; call this before the first import of it.

    The published torchvision wheel does not match the CPU build of torch: its operators do not load, and the import
    fails with "operator torchvision::nms does not exist". Declaring the two operators that the import mentions makes
    transforms, models and data sets work. Where the operators load, nothing is declared.
    """
    if not _fragments and not _operators_load():
        library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            library.define(schema)
        _fragments.append(library)


def import_torchvision() -> ModuleType:
    """Import torchvision; call this before any other import of it.

    Returns:
        The module `torchvision`.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
    """
    prepare_torchvision()
    return importlib.import_module("torchvision")


def _operators_load() -> bool:
    """Whether torchvision's binary loads: torchvision tries the same when it is imported, to no lasting harm."""
    if hasattr(torch.ops.torchvision, "nms"):  # torchvision was imported already
        return True
    spec = importlib.util.find_spec("torchvision")
    folders = spec.submodule_search_locations if spec is not None else None
    binaries = [Path(folder) / f"_C{suffix}" for folder in folders or () for suffix in EXTENSION_SUFFIXES]
    for binary in binaries:
        if binary.exists():
            try:
                torch.ops.load_library(str(binary))
            except (ImportError, OSError):
                return False
            return hasattr(torch.ops.torchvision, "nms")
    return False
