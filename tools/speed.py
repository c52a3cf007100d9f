"""Write the tables of docs/results/speed.md, and draw them, from the JSON beside it.

    python tools/speed.py

make bench, bench-peers, bench-large, bench-workers, bench-growth and bench-bounds put it there: ARGS="--json
docs/results/speed.json", and so on.
"""

from __future__ import annotations

import json
import math
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullFormatter
from tables import RESULTS, replace_section

from askance.calibration.markdown import table

ENGINES = {"torch": "#7a7a7a", "onnxruntime": "#00796b"}
NAMES = {"torch": "torch", "onnxruntime": "the graph"}
TICKS = (1, 2, 5, 10, 20)
PAGE = RESULTS / "speed.md"


def screening(rows: list[dict[str, Any]]) -> str:
    """One call, screened and bare."""
    return table(
        ("one call", "bare", "screened", "screened / bare"),
        (
            (
                f"{_call(row)}, {NAMES[row['engine']]} beside {NAMES[row['bare']]}",
                f"{row['bare_ms']:.2f} ms",
                f"{row['screened_ms']:.2f} ms",
                _ratio(row["ratio"]),
            )
            for row in rows
        ),
    )


def stages(rows: list[dict[str, Any]]) -> str:
    """Where the time of a screened call goes."""
    own = [row for row in rows if row["bare"] == "torch"]
    names = list(dict.fromkeys(stage for row in own for stage in row["stages_ms"]))
    return table(
        ("ms", *(name.replace("_", " ") for name in names)),
        (
            (
                f"{_call(row)}, {NAMES[row['engine']]}",
                *(f"{row['stages_ms'][name]:.2f}" if name in row["stages_ms"] else "" for name in names),
            )
            for row in own
        ),
    )


def serving(rows: list[dict[str, Any]]) -> str:
    """The server beside one that does nothing."""
    figures = {"requests_per_second": "requests/s", "p50_ms": "p50, ms", "p99_ms": "p99, ms"}
    return table(
        ("over gRPC", "askance", "no-op servicer", "ratio"),
        (
            (
                f"{title}, {_clients(row['clients'])}",
                _figure(row["askance"][name]),
                _figure(row["no_op"][name]),
                f"{row['ratio'][name]['median']:.2g}",
            )
            for row in rows
            for name, title in figures.items()
        ),
    )


def roofline(peaks: dict[str, Any], rows: list[dict[str, Any]], screened: list[dict[str, Any]]) -> str:
    """What a graph's products take at least, beside what the whole of it takes."""

    def taken(row: dict[str, Any]) -> str:
        (own,) = (one for one in screened if one["engine"] == one["bare"] == "onnxruntime" and _is_of(one, row))
        return f"{own['bare_ms'] if row['part'] == 'bare' else own['stages_ms']['graph']:.2f} ms"

    single, double = (peaks["operations"][width] / 1e9 for width in ("4", "8"))
    return (
        f"{single:.0f} and {double:.0f} x 10^9 operations a second in single and double precision, "
        f"{peaks['bandwidth'] / 1e9:.1f} GB/s.\n\n"
    ) + table(
        ("graph", "nodes", "products", "10^6 operations", "MB", "at least", "takes"),
        (
            (
                f"{row['network']}, batch {row['batch']}, "
                + ("bare" if row["part"] == "bare" else "with views" if row["views"] else "a single pass"),
                f"{row['nodes']:,}",
                str(row["products"]),
                f"{row['million_operations']:.1f}",
                f"{row['megabytes']:.1f}",
                f"{row['least_ms']:.2f} ms",
                taken(row),
            )
            for row in rows
        ),
    )


def _is_of(cost: dict[str, Any], row: dict[str, Any]) -> bool:
    return (cost["network"], cost["batch"], bool(cost["views"])) == (row["network"], row["batch"], row["views"])


def peers(rows: list[dict[str, Any]]) -> str:
    """All detectors on, beside servers with the bare classifier."""
    return table(
        ("server", "clients", "requests/s", "p50", "p99", "requests/s beside the better MLServer", "p50"),
        (
            (
                row["server"],
                str(row["clients"]),
                _figure(row["requests_per_second"]),
                f"{_figure(row['p50_ms'])} ms",
                f"{_figure(row['p99_ms'])} ms",
                *(_ratio(row["ratio"][figure]) for figure in ("requests_per_second", "p50_ms")),
            )
            for row in rows
        ),
    )


def large(costs: list[dict[str, Any]]) -> str:
    """Networks of ImageNet's size."""
    return table(
        ("network", "images", "fitted in", "memory at most", "read / bare, torch", "read / bare, the graph"),
        (
            (
                cost["network"],
                str(cost["images"]),
                f"{sum(cost['fit_seconds'].values()):.0f} s",
                f"{cost['peak_gigabytes']:.1f} GB",
                _ratio(cost["ratios"]["torch"]),
                _ratio(cost["ratios"]["onnxruntime"]) if cost["graph"] is None else f"none: {cost['graph']}",
            )
            for cost in costs
        ),
    )


def workers(rows: list[dict[str, Any]]) -> str:
    """Several workers beside one."""
    return table(
        ("requests/s over gRPC, a single pass", f"{rows[0]['workers']} workers", "one, pinned to a core", "ratio"),
        (
            (
                f"{row['network']}, {_clients(row['clients'])}",
                _figure(row["all"]),
                _figure(row["one"]),
                _ratio(row["ratio"]),
            )
            for row in rows
        ),
    )


def growth(curves: dict[str, Any]) -> str:
    """How readings grow."""
    return table(
        ("one image", "from", "to", "grows by the power"),
        (
            (
                curve["what"],
                *(
                    f"{size:,}: {_figure(ms)} ms"
                    for size, ms in (
                        (curve["sizes"][end], curve["milliseconds"][end]) for end in (0, len(curve["sizes"]) - 1)
                    )
                ),
                f"**{curve['exponent']:.2f}**",
            )
            for curve in curves.values()
        ),
    )


def short_lists(configs: dict[str, Any]) -> str:
    """Look-up by short lists beside every row."""
    return table(
        ("library", "rows", "looked at", "compared in full", "recall", "time, one image", "time, 32 images"),
        (
            (
                f"{name}, `{layer}`",
                f"{one['rows']:,} of {one['width']:,}",
                *(
                    (
                        f"{one['looked_at']} of {one['cells']:,} cells, in {one['dimensions']} dimensions"
                        if one["cells"]
                        else f"every row, in {one['dimensions']} dimensions",
                        f"{one['listed']:,}",
                        f"{one['recall']:.3f}",
                        *(_ratio(ratio) for ratio in one["times"].values()),
                    )
                    if one["dimensions"]
                    else ("every row", f"{one['rows']:,}", "1", "**1**", "**1**")
                ),
            )
            for name, found in configs.items()
            for layer, one in found["library"]["layers"].items()
        ),
    )


def detection(configs: dict[str, Any]) -> str:
    """What bounded readings detect."""
    rows = [
        (f"{name}, 1 - CPL", how, _auroc(one))
        for name, found in configs.items()
        for how, one in found["library"]["auroc"].items()
    ]
    rows += [
        (f"{name}, minor distance of `{layer}`", f"{count} of {next(iter(parts))} numbers", _auroc(one))
        for name, found in configs.items()
        for layer, parts in found["map"].items()
        for count, one in parts.items()
    ]
    return table(("reading", "looks at", "AUROC"), rows)


def _auroc(of: dict[str, Any]) -> str:
    low, high = of["interval"]
    return f"**{of['auroc']:.3f}** <sub>{low:.3f} to {high:.3f}</sub>"


def draw_growth(curves: dict[str, Any]) -> None:
    """A panel for each curve, beside a line of slope one."""
    figure, panels = plt.subplots(1, len(curves), figsize=(3 * len(curves), 2.9), layout="constrained", sharey=True)
    for (name, curve), axes in zip(curves.items(), panels, strict=True):
        sizes, times = curve["sizes"], curve["milliseconds"]
        axes.plot(sizes, times, "o-", color=ENGINES["onnxruntime"], markersize=4)
        straight = [times[-1] * size / sizes[-1] for size in sizes]
        axes.plot(sizes, straight, "--", color="grey", linewidth=0.8)
        axes.set(xscale="log", yscale="log", xlabel=name)
        axes.set_xlim(left=10 ** int(math.log10(sizes[0])) * 0.8)
        axes.xaxis.set_minor_formatter(NullFormatter())  # names of less than a power of ten stand on one another
        axes.set_title(f"power {curve['exponent']:.2f}", fontsize=9)
        axes.grid(visible=True, linewidth=0.3)
    panels[0].set_ylabel("ms")
    panels[0].set_ylim(bottom=0.05)
    figure.savefig(RESULTS.parent / "images" / "growth.png", dpi=120)
    plt.close(figure)


def _ratio(of: dict[str, float]) -> str:
    return f"**{of['median']:.2g}** <sub>{of['least']:.2g} to {of['greatest']:.2g}</sub>"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _clients(count: int) -> str:
    return "1 client" if count == 1 else f"{count} clients"


def _call(row: dict[str, Any]) -> str:
    views = f"{row['views']} views" if row["views"] else "a single pass"
    return f"{row['network']}, batch {row['batch']}, {views}"


def draw(rows: list[dict[str, Any]]) -> None:
    """Screened / bare torch, a bar for each engine."""
    own = [row for row in rows if row["bare"] == "torch"]
    calls = list(dict.fromkeys(_call(row) for row in own))
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.45 * len(calls)), layout="constrained")
    for row in own:
        y = calls.index(_call(row)) + (0.2 if row["engine"] == "onnxruntime" else -0.2)
        ratio = row["ratio"]
        ends = [[ratio["median"] - ratio["least"]], [ratio["greatest"] - ratio["median"]]]
        axes.barh(y, ratio["median"], 0.36, color=ENGINES[row["engine"]], xerr=ends, error_kw={"linewidth": 0.8})
        axes.annotate(f"{ratio['median']:.2g}", (ratio["greatest"], y), (4, 0), textcoords="offset points", fontsize=7,
                      va="center")  # fmt: skip
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", yticks=range(len(calls)), yticklabels=calls, ylim=(len(calls) - 0.5, -0.5))
    axes.set_xlabel("screened / bare classifier in torch, with the least and greatest of the pairs")
    axes.set_xticks(TICKS, labels=map(str, TICKS))
    axes.margins(x=0.1)
    handles = [Rectangle((0, 0), 1, 1, color=colour) for colour in ENGINES.values()]
    figure.legend(handles, [f"screened by {NAMES[name]}" for name in ENGINES], loc="outside lower center", ncols=2,
                  fontsize=8)  # fmt: skip
    figure.savefig(RESULTS.parent / "images" / "speed.png", dpi=120)
    plt.close(figure)


def main() -> None:
    """Write the sections, draw the picture."""
    mpl.use("Agg")
    figures = json.loads((RESULTS / "speed.json").read_text(encoding="utf-8"))
    machine = figures["environment"]
    libraries = "; ".join(
        f"{one['network']}'s libraries hold {sum(one['library_rows'].values()):,} rows" for one in figures["fixtures"]
    )
    replace_section(
        PAGE,
        "machine",
        f"{machine['cpus']} cores ({machine['cpu']}), torch {machine['torch']} and ONNX Runtime with one thread each;\n"
        f"{libraries}.",
    )
    replace_section(PAGE, "screening", screening(figures["screening"]))
    replace_section(PAGE, "stages", stages(figures["screening"]))
    replace_section(PAGE, "roofline", roofline(figures["peaks"], figures["roofline"], figures["screening"]))
    replace_section(PAGE, "serving", serving(figures["serving"]))
    served = json.loads((RESULTS / "peers.json").read_text(encoding="utf-8"))["served"]
    replace_section(PAGE, "peers", peers(served))
    costs = json.loads((RESULTS / "large.json").read_text(encoding="utf-8"))
    replace_section(PAGE, "large", large(list(costs.values())))
    scaled = json.loads((RESULTS / "workers.json").read_text(encoding="utf-8"))
    replace_section(PAGE, "workers", workers(scaled["scaling"]))
    curves = json.loads((RESULTS / "growth.json").read_text(encoding="utf-8"))["curves"]
    replace_section(PAGE, "growth", growth(curves))
    bounds = json.loads((RESULTS / "bounds.json").read_text(encoding="utf-8"))["configs"]
    replace_section(PAGE, "short-lists", short_lists(bounds))
    replace_section(PAGE, "bounded", detection(bounds))
    draw(figures["screening"])
    draw_growth(curves)


if __name__ == "__main__":
    main()
