"""Report: the tables for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from askance.output import console
from benchmarks.fixtures import Fixture
from benchmarks.library import ConstructionCost
from benchmarks.roofline import Peaks, Roofline
from benchmarks.screening import TORCH, ScreeningCost
from benchmarks.serving import ASKANCE, NO_OP, ServingCost


def print_fixture(fixture: Fixture) -> None:
    """One network's header: what was fitted on what, and how many library rows that made."""
    rows = ", ".join(f"{layer} {count}" for layer, count in fixture.rows.items())
    images = sum(len(capture) for capture in fixture.fitted_on)
    console.print(
        f"{fixture.network.name}: {fixture.data}; detectors fitted on {images} images in {fixture.seconds:.0f} s; "
        f"library rows {rows} ({fixture.row_megabytes:.0f} MB)",
        soft_wrap=True,
    )


def print_screening(costs: Sequence[ScreeningCost]) -> None:
    """Screened calls beside bare ones, then where their time goes."""
    table = _table("screening beside the bare classifier, one call")
    for column in (
        "network",
        "views",
        "engine",
        "bare",
        "batch",
        "bare ms",
        "screened ms",
        "screened / bare: median (min..max)",
        "pairs",
    ):
        table.add_column(column, justify="left" if column in ("network", "engine", "bare") else "right")
    for cost in costs:
        bare, screened = f"{cost.bare_ms:.2f}", f"{cost.screened_ms:.2f}"
        table.add_row(
            cost.network,
            str(cost.views),
            cost.engine,
            cost.bare,
            *(str(cost.batch), bare, screened, str(cost.ratio), str(cost.pairs)),
        )
    console.print(table)
    split = _table("where a screened call's time goes, median ms (share)")
    split.add_column("stage")
    own = [cost for cost in costs if cost.bare == TORCH]
    for cost in own:
        split.add_column(f"{cost.network}, {cost.views} views, batch {cost.batch}, {cost.engine}", justify="right")
    for stage in dict.fromkeys(stage for cost in own for stage in cost.stages_ms):
        split.add_row(stage, *(_share(cost, stage) for cost in own))
    console.print(split)


def _share(cost: ScreeningCost, stage: str) -> str:
    if stage not in cost.stages_ms:
        return "-"
    return f"{cost.stages_ms[stage]:.2f} ({cost.stages_ms[stage] / sum(cost.stages_ms.values()):.0%})"


def print_rooflines(peaks: Peaks, found: Sequence[Roofline]) -> None:
    """What graphs' convolutions and matrix products take at least."""
    table = _table(
        f"at least: {peaks.operations[4] / 1e9:.0f} and {peaks.operations[8] / 1e9:.0f} x 10^9 operations a second in "
        f"single and double precision, {peaks.bandwidth / 1e9:.1f} GB/s of memory"
    )
    for column in ("network", "", "batch", "nodes", "products", "10^6 operations", "MB", "at least, ms"):
        table.add_column(column, justify="left" if column in ("network", "") else "right")
    for one in found:
        part = f"{one.part}, with views" if one.views else one.part
        figures = f"{one.million_operations:.1f}", f"{one.megabytes:.1f}", f"{one.least_ms:.2f}"
        table.add_row(one.network, part, *map(str, (one.batch, one.nodes, one.products)), *figures)
    console.print(table)


def print_construction(costs: Sequence[ConstructionCost]) -> None:
    """Library construction both ways."""
    table = _table("library construction: the one-by-one walk beside blocks, same rows")
    for column in (
        *("network", "layer", "images", "numbers", "rows", "blocks s", "walk s"),
        *("walk / blocks: median (min..max)", "pairs"),
    ):
        table.add_column(column, justify="left" if column in ("network", "layer") else "right")
    for cost in costs:
        table.add_row(
            cost.network,
            cost.layer,
            *map(str, (cost.images, cost.numbers, cost.rows)),
            f"{cost.blocks_seconds:.3f}",
            f"{cost.walk_seconds:.3f}",
            str(cost.ratio),
            str(cost.pairs),
        )
    console.print(table)


def print_serving(costs: Sequence[ServingCost]) -> None:
    """The server beside a no-op one, then where the time of its requests goes."""
    table = _table(
        f"serving {costs[0].network} over gRPC beside a no-op server, medians of {costs[0].rounds} slices each"
    )
    table.add_column("")
    for cost in costs:
        for column in (ASKANCE, NO_OP, "ratio: median (min..max)"):
            table.add_column(f"{_clients(cost)}\n{column}", justify="right")
    for figure, name in (("requests_per_second", "requests/s"), ("p50_ms", "p50 ms"), ("p99_ms", "p99 ms")):
        cells = ((f"{c.askance[figure]:.4g}", f"{c.no_op[figure]:.4g}", str(c.ratio[figure])) for c in costs)
        table.add_row(name, *(cell for group in cells for cell in group))
    console.print(table)
    split = _table("the askance server's own metrics, mean ms: decode, queue, respond per image; the others per batch")
    split.add_column("stage")
    for cost in costs:
        split.add_column(f"{_clients(cost)}, {cost.mean_batch:.1f} images a batch", justify="right")
    for stage in costs[0].stages_ms:
        split.add_row(stage, *(f"{cost.stages_ms.get(stage, 0.0):.3f}" for cost in costs))
    console.print(split)


def _clients(cost: ServingCost) -> str:
    return "1 client" if cost.clients == 1 else f"{cost.clients} clients"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left")
