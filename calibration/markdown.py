"""Tables in Markdown, for the pages that are made of figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def number(value: float) -> str:
    """0.9871 -> .987, 1.0 -> 1.0."""
    return f"{value:.3f}".lstrip("0") if value < 0.9995 else "1.0"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], others: str = "---:") -> str:
    """A Markdown table, its first column left, the others as they are told: right, or left with "---"."""
    lines = [head, ("---", *(others for _ in head[1:])), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
