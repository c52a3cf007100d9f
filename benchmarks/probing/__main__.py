"""`python -m benchmarks.probing BUNDLE CONFIG`, or `make bench-probing ARGS="BUNDLE CONFIG"`.

Attackers ask a server with `probing.response = "block"` until they are refused; with `--renew` they go on by other
accounts until they have what they want. Honest clients send frames to the same code in this process.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from askance.calibration.config import load_config
from askance.calibration.data import load_splits
from askance.calibration.progress import say
from askance.errors import AskanceError
from askance.output import console, write_json
from benchmarks.probing.honest import honest
from benchmarks.probing.naming import Named, attacked
from benchmarks.probing.renewing import Renewed, renewing


def main(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE")],
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Of its images.")],
    epsilon: Annotated[float, typer.Option(help="The budget of Square, NES and SPSA.")] = 0.2,
    victims: Annotated[int, typer.Option(min=1, help="Of each attack.")] = 10,
    most: Annotated[int, typer.Option(min=1, help="Questions of an attacker.")] = 500,
    most_alike: Annotated[int, typer.Option(min=0, help="The server's setting.")] = 0,
    renew: Annotated[bool, typer.Option("--renew", help="Go on by other accounts, and count these.")] = False,
    honest_questions: Annotated[int, typer.Option(min=0, help="Of honest clients.")] = 100_000,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE")] = None,
) -> None:
    """Attack a live server of BUNDLE, and have honest clients ask."""
    try:
        loaded = load_config(config)
        splits = load_splits(loaded.data, loaded.splits, loaded.classifier.preprocessing)
        images, found = splits["evaluate"], list[Named | Renewed]()
        for one in (
            renewing(bundle, images, epsilon, victims, most_alike)
            if renew
            else attacked(bundle, images, epsilon, victims, most, most_alike)
        ):
            found.append(one)
            console.print(str(one), soft_wrap=True, markup=False)
        others = honest(bundle, splits["fuse"], honest_questions) if honest_questions else None
    except AskanceError as error:
        say(f"benchmarks.probing: {error}")
        raise typer.Exit(2) from None
    if others:
        console.print(str(others), soft_wrap=True, markup=False)
    write_json(
        json_file,
        {
            "epsilon": epsilon,
            "most_alike": most_alike,
            "renew": renew,
            "attacks": [asdict(one) for one in found],
            "honest": others and asdict(others),
        },
    )


if __name__ == "__main__":
    typer.run(main)
