"""What a notebook shows: small tables in HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_COLOURS = {"CLEAN": "#2a7f3f", "SUSPECT": "#b8860b", "ADVERSARIAL": "#b22222", "BLOCKED": "#b22222"}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table; cells are escaped here."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def headline(said: str, verdict: str, reason: str = "") -> str:
    """A line: what was said, the verdict in its colour, and a reason."""
    colour = _COLOURS.get(verdict, "inherit")
    line = f"<b>{escape(said)}</b> <b style='color:{colour}'>{escape(verdict)}</b>"
    return f"{line} <i>{escape(reason)}</i>" if reason else line
