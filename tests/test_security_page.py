"""docs/security.md: each row of who can see what names tests, and they exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text()
NAMED = re.findall(r"`(tests/\w+\.py)::(\w+)`", PAGE)


def defined_in(file: str) -> set[str]:
    """The tests in a file, by name."""
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_test_that_is_named_exists() -> None:
    assert len(NAMED) > 20
    assert [f"{file}::{name}" for file, name in NAMED if name not in defined_in(file)] == []


def test_every_row_of_who_can_see_what_is_tried() -> None:
    section = PAGE.partition("## Who can see what")[2].partition("\n### ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20
    assert [row for row in rows if "`tests/" not in row.split(" | ")[-1]] == []


def test_every_file_of_what_somebody_may_try_exists() -> None:
    section = PAGE.partition("## What somebody may try")[2]
    files = re.findall(r"`(test_\w+\.py)`", section)
    assert len(files) > 10
    assert all((ROOT / "tests" / file).is_file() for file in files)
