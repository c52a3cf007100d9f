"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def in_a_folder(path: Path | None) -> Path | None:
    """Refuse a path whose folder does not exist, before any work is done rather than after."""
    if path is not None and not path.absolute().parent.is_dir():
        raise typer.BadParameter(f"cannot write {path}: there is no folder {path.absolute().parent}")
    return path


ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="A TOML config, such as configs/digits.toml.")]
BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle's folder.")]
JsonOption = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Also write the figures as JSON.", callback=in_a_folder),
]
AllowOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-factory",
        metavar="MODULE:CALLABLE",
        help="May be imported to build the bundle's classifier.",
    ),
]
SignatureOption = Annotated[
    Path | None,
    typer.Option(
        "--require-signature",
        metavar="KEYRING",
        help="Take only what one of these public keys (PEM) has signed.",
    ),
]
