"""The commands of `askance review`: what a server has kept for people, on the machine that keeps it."""

from __future__ import annotations

import getpass
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from askance.arguments import JsonOption
from askance.errors import AskanceError, did_you_mean

if TYPE_CHECKING:
    from askance.service.review.store import ReviewStore

app = typer.Typer(help="What a server has kept for people to look at.", no_args_is_help=True, rich_markup_mode=None)

MARKS = ("false-alarm", "attack", "unsure")
VERDICTS = ("CLEAN", "SUSPECT", "ADVERSARIAL")
FolderArgument = Annotated[Path, typer.Argument(metavar="FOLDER", help="The server's setting review.folder.")]
RequestArgument = Annotated[str, typer.Argument(metavar="ID", help="Of a request, as `list` has it.")]


def _one_of(known: tuple[str, ...], given: str | None) -> str | None:
    if given is not None and given not in known:
        raise typer.BadParameter(f"unknown {given!r}: {did_you_mean(given, known)}")
    return given


def _mark(given: str | None) -> str | None:
    return _one_of(MARKS, given)


def _verdict(given: str | None) -> str | None:
    return _one_of(VERDICTS, given)


def _who() -> str:
    """Whose looking is noted."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user of no name, as in containers
        return "nobody known"


def _opened(folder: Path) -> closing[ReviewStore]:
    from askance.service.review.store import ReviewStore

    return closing(ReviewStore(folder, must_exist=True))


def _is_not_kept(name: str) -> AskanceError:
    return AskanceError(f"no request {name!r} is kept: `askance review list` shows those that are")


@app.command("list", short_help="The requests that are kept, the latest first.")
def list_requests(
    folder: FolderArgument,
    verdict: Annotated[
        str | None, typer.Option(help=f"Only these: {', '.join(VERDICTS)}.", metavar="VERDICT", callback=_verdict)
    ] = None,
    mark: Annotated[
        str | None, typer.Option(help=f"Only those with it: {', '.join(MARKS)}.", metavar="MARK", callback=_mark)
    ] = None,
    client: Annotated[
        str | None,
        typer.Option(metavar="CLIENT", help="Only that one's: its name, or an anonymous one's address or network."),
    ] = None,
    unmarked: Annotated[bool, typer.Option("--unmarked", help="Only those that nobody has looked at.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="The most.")] = 50,
    json: JsonOption = None,
) -> None:
    """The requests that are kept in FOLDER, the latest first."""
    from rich.table import Table

    from askance.output import also_as_json, console
    from askance.service.review.store import Mark

    with _opened(folder) as store:
        given = None if mark is None else Mark(mark)
        found = store.listed(_who(), verdict=verdict, mark=given, unmarked=unmarked, client=client, limit=limit)
    with also_as_json(json, {"requests": [one.as_dict() for one in found]}):
        table = Table("id", "when", "client", "prediction", "verdict", "p-value", "mark")
        for one in found:
            when = datetime.fromtimestamp(one.at).astimezone().isoformat(sep=" ", timespec="seconds")
            table.add_row(one.id, when, one.client, one.label, one.verdict, f"{one.p_value:.2g}", one.mark or "-")
        console.print(table)


@app.command(short_help="One request: who sent it, and what each detector saw.")
def show(
    folder: FolderArgument,
    request: RequestArgument,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Also write its image, encoded as it came.")
    ] = None,
    json: JsonOption = None,
) -> None:
    """One request of FOLDER: who sent it, and what each detector saw."""
    from askance.output import also_as_json, console
    from askance.writing import SECRET, write_whole

    with _opened(folder) as store:
        try:
            found = store.one(request, _who())
            if out is not None:
                _, content = store.content(request, _who())
                write_whole(out, content, SECRET)
        except KeyError:
            raise _is_not_kept(request) from None
    with also_as_json(json, found.as_dict()):
        lines = {
            "client": f"{found.client} ({found.address})",
            "request": found.request_id,
            "bundle": found.bundle[:12],
            "kept": "it was flagged" if found.why == "flagged" else "drawn by chance",
            "image": f"{found.media}, {found.bytes} bytes",
            "mark": "none" if found.mark is None else f"{found.mark}, by {found.marked_by}",
        }
        for name, value in lines.items():
            console.print(f"{name:9}{value}", soft_wrap=True, markup=False)
        for line in found.words:
            console.print(line, soft_wrap=True, markup=False)


@app.command(short_help="Say what a request is.")
def label(
    folder: FolderArgument,
    request: RequestArgument,
    mark: Annotated[str, typer.Argument(metavar="MARK", help=f"One of {', '.join(MARKS)}.", callback=_mark)],
) -> None:
    """Say what a request of FOLDER is: false-alarm, attack or unsure."""
    from askance.service.review.store import Mark

    with _opened(folder) as store:
        try:
            store.mark(request, Mark(mark), _who())
        except KeyError:
            raise _is_not_kept(request) from None


@app.command(short_help="Write images into a folder that `askance calibrate` reads.")
def export(
    folder: FolderArgument,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Must not exist.")],
    mark: Annotated[
        str, typer.Option(help=f"Those with it: {', '.join(MARKS)}.", metavar="MARK", callback=_mark)
    ] = "false-alarm",
) -> None:
    """Write the images of FOLDER that have a mark into another folder, below the class that was predicted, with
    requests.json beside them: `source = "folder:..."` of a config reads it.
    """
    from askance.output import console
    from askance.service.review.exporting import export_images
    from askance.service.review.store import Mark

    with _opened(folder) as store:
        written = export_images(store, Mark(mark), out, _who())
    console.print(f"{written} images in {out}", soft_wrap=True, markup=False)
