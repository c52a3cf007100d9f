"""What a notebook shows: small tables in HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_COLOURS = {"CLEAN": "#2a7f3f", "SUSPECT": "#b8860b", "ADVERSARIAL": "#b22222", "BLOCKED": "#b22222"}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table, without a head where that is empty; cells are escaped here."""
    top = f"<thead>{_row('th', head)}</thead>" if head else ""
    return f"<table>{top}<tbody>{''.join(_row('td', row) for row in rows)}</tbody></table>"


def _row(cell: str, content: Sequence[str]) -> str:
    # Jupyter would set all to the right, words too
    return "<tr>" + "".join(f"<{cell} style='text-align:left'>{escape(one)}</{cell}>" for one in content) + "</tr>"


def headline(said: str, verdict: str, reason: str = "") -> str:
    """A line: what was said, the verdict in its colour, and a reason."""
    colour = _COLOURS.get(verdict, "inherit")
    line = f"<b>{escape(said)}</b> <b style='color:{colour}'>{escape(verdict)}</b>"
    return f"{line} <i>{escape(reason)}</i>" if reason else line
