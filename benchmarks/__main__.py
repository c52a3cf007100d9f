"""Entry point: measures everything and prints the tables; `python -m benchmarks`, or `make bench`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from askance.calibration.progress import say
from askance.errors import AskanceError
from askance.output import console, write_json
from benchmarks import library, roofline, screening, serving
from benchmarks.environment import prepare
from benchmarks.fixtures import NETWORKS, Fixture, fit
from benchmarks.report import print_construction, print_fixture, print_rooflines, print_screening, print_serving
from benchmarks.roofline import Peaks
from benchmarks.sizes import FULL, QUICK, Sizes


def main(
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures as JSON.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A smoke run: tiny sizes, figures that mean little.")] = False,
    fit_images: Annotated[
        int | None, typer.Option(min=100, help="Images the detectors are fitted on, instead of each network's default.")
    ] = None,
    pairs: Annotated[int | None, typer.Option(min=2, help="Measurements of each call, instead of 25.")] = None,
) -> None:
    """Measure askance beside what it is built on, as ratios. Real images are used where ASKANCE_DATA names them."""
    sizes = QUICK if quick else FULL
    if fit_images is not None:
        sizes = replace(sizes, fit_images=dict.fromkeys(sizes.fit_images, fit_images))
    if pairs is not None:
        sizes = replace(sizes, pairs=pairs)
    try:
        write_json(json_file, measure(sizes))
    except AskanceError as error:  # such as data that is not where ASKANCE_DATA says
        say(f"benchmarks: {error}")
        raise typer.Exit(2) from None


def measure(sizes: Sizes) -> dict[str, Any]:
    """Measure everything, print it as it comes, and return it JSON-ready."""
    start = time.perf_counter()
    environment = prepare()
    console.print(str(environment), soft_wrap=True)
    fixtures = []
    for network in NETWORKS:
        say(f"fitting {network().name}")
        fixtures.append(fit(network(), sizes.fit_images[network().name], sizes.calibration_images))
        print_fixture(fixtures[-1])
    say("screening")
    exported = [
        (fixture, with_views, screening.exported(fixture, sizes, with_views=with_views))
        for fixture in fixtures
        for with_views in (False, True)
    ]
    screened = [
        cost
        for fixture, with_views, graphs in exported
        for cost in screening.measure(fixture, sizes, graphs, with_views=with_views)
    ]
    print_screening(screened)
    peaks = Peaks.measured()
    rooflines = [
        found
        for fixture, with_views, graphs in exported
        for found in roofline.measure(fixture.network.name, sizes, graphs, peaks, with_views=with_views)
    ]
    print_rooflines(peaks, rooflines)
    say("library construction")
    built = [library.measure(fixture, layer, sizes) for fixture in fixtures for layer in fixture.rows]
    print_construction(built)
    say("serving")
    first, _, graphs = exported[0]
    served = serving.measure(first, sizes, graphs)
    print_serving(served)
    seconds = time.perf_counter() - start
    console.print(f"measured in {seconds:.0f} s")
    return {
        "environment": asdict(environment),
        "fixtures": [_described(fixture) for fixture in fixtures],
        "screening": _rows(screened),
        "peaks": asdict(peaks),
        "roofline": _rows(rooflines),
        "library": _rows(built),
        "serving": _rows(served),
        "seconds": seconds,
    }


def _described(fixture: Fixture) -> dict[str, Any]:
    return {
        "network": fixture.network.name,
        "data": fixture.data,
        "fit_images": sum(len(capture) for capture in fixture.fitted_on),
        "fit_seconds": fixture.seconds,
        "library_rows": fixture.rows,
        "library_megabytes": fixture.row_megabytes,
    }


def _rows(costs: Sequence[Any]) -> list[dict[str, Any]]:
    return [asdict(cost) for cost in costs]


if __name__ == "__main__":
    typer.run(main)
