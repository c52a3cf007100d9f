"""The benchmarks: a smoke run gives every figure; the figures themselves are nobody's promise."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from graphs_support import with_graphs

from benchmarks.load import percentile
from benchmarks.timing import Pairs, interleave

REPOSITORY = Path(__file__).resolve().parent.parent
DETECTORS = {"library_network", "introspection", "self_organizing_map", "semantic_signature"}
SPREAD = {"median", "least", "greatest"}


def numbers(content: Any) -> Iterator[float]:
    """Every number in a JSON value."""
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list):
        for item in content:
            yield from numbers(item)
    elif isinstance(content, int | float):
        yield content


def quick(module: str, file: Path) -> tuple[str, dict[str, Any]]:
    """What a quick run on random images prints, and the JSON that it writes."""
    done = subprocess.run(
        [sys.executable, "-m", module, "--quick", "--json", str(file)],
        cwd=REPOSITORY,
        env={name: value for name, value in os.environ.items() if name != "ASKANCE_DATA"}
        | {"PYTHONPATH": with_graphs()},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    content: dict[str, Any] = json.loads(file.read_text())
    return done.stdout, content


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The JSON of a quick run on random images."""
    printed, content = quick("benchmarks", tmp_path_factory.mktemp("benchmarks") / "figures.json")
    assert "LeNet: random images, random weights" in printed
    return content


@pytest.mark.acceptance
@pytest.mark.lasting
def test_a_quick_run_gives_positive_figures_only(figures: dict[str, Any]) -> None:
    assert set(figures) == {
        *("environment", "fixtures", "screening", "peaks", "roofline", "library", "serving", "seconds")
    }
    assert set(figures["environment"]) == {"cpus", "cpu", "threads", "torch", "python", "load"}
    for part in set(figures) - {"environment"}:
        found = list(numbers(figures[part]))
        assert found
        assert all(math.isfinite(value) and value >= 0 for value in found), part


@pytest.mark.acceptance
@pytest.mark.lasting
def test_every_network_is_screened_at_both_batch_sizes(figures: dict[str, Any]) -> None:
    by_torch = [row for row in figures["screening"] if row["engine"] == "torch"]
    assert [(row["network"], row["views"], row["batch"]) for row in by_torch] == [
        (network, views, batch)
        for network, with_views in (("LeNet", 3), ("ResNet44", 10))  # as their configs have them
        for views in (0, with_views)
        for batch in (1, 32)
    ]
    by_graph = [row for row in figures["screening"] if row["engine"] == "onnxruntime"]
    assert [(row["network"], row["views"], row["batch"], row["bare"]) for row in by_graph] == [
        ("LeNet", 0, batch, bare) for batch in (1, 32) for bare in ("torch", "onnxruntime")
    ]
    for row in figures["screening"]:
        assert set(row) == {
            *("network", "views", "engine", "bare", "batch", "pairs", "bare_ms", "screened_ms", "ratio", "stages_ms")
        }
        assert set(row["ratio"]) == SPREAD
        stages = {"graph"} if row in by_graph else {"classify", *DETECTORS}
        assert set(row["stages_ms"]) == {
            *("fused", "explanations and results"),
            *stages,
            *(("constellation",) if row["views"] else ()),
        }


@pytest.mark.acceptance
@pytest.mark.lasting
def test_a_graph_takes_at_least_what_its_products_do(figures: dict[str, Any]) -> None:
    rows = {(row["part"], row["batch"]): row for row in figures["roofline"]}
    assert list(rows) == [(part, batch) for part in ("bare", "screened") for batch in (1, 32)]
    for batch in (1, 32):
        assert rows["screened", batch]["million_operations"] > rows["bare", batch]["million_operations"]
        assert rows["screened", batch]["nodes"] > rows["screened", batch]["products"] > 4
    # LeNet: 20 filters of 1 x 5 x 5 at 24 x 24 places, 50 of 20 x 5 x 5 at 8 x 8, and two layers after them
    multiplications = 20 * 24**2 * 25 + 50 * 8**2 * 20 * 25 + 800 * 500 + 500 * 10
    assert rows["bare", 1]["million_operations"] == 2 * multiplications / 1e6
    assert rows["bare", 32]["million_operations"] == pytest.approx(32 * 2 * multiplications / 1e6)


@pytest.mark.acceptance
@pytest.mark.lasting
def test_every_library_is_built_both_ways(figures: dict[str, Any]) -> None:
    assert [(row["network"], row["layer"], row["rows"]) for row in figures["library"]] == [
        (fixture["network"], layer, rows)
        for fixture in figures["fixtures"]
        for layer, rows in fixture["library_rows"].items()
    ]
    for row in figures["library"]:
        assert set(row["ratio"]) == SPREAD


@pytest.mark.acceptance
@pytest.mark.lasting
def test_both_servers_are_loaded_by_one_client_and_by_many(figures: dict[str, Any]) -> None:
    assert [row["clients"] for row in figures["serving"]] == [1, 16]
    for row in figures["serving"]:
        for part in ("askance", "no_op", "ratio"):
            assert set(row[part]) == {"requests_per_second", "p50_ms", "p99_ms"}
        assert set(row["stages_ms"]) == {"decode", "queue", "graph", "fused", "respond"}
        assert row["requests"] >= row["clients"]
    assert figures["serving"][0]["mean_batch"] == 1


@pytest.mark.acceptance
@pytest.mark.lasting
def test_a_quick_run_of_workers_gives_a_ratio(tmp_path: Path) -> None:
    printed, found = quick("benchmarks.scaling", tmp_path / "workers.json")
    assert "LeNet, 16 clients: " in printed
    assert [(row["network"], row["clients"]) for row in found["scaling"]] == [("LeNet", 16), ("LeNet", 64)]
    for row in found["scaling"]:
        assert row["workers"] == len(os.sched_getaffinity(0))
        assert set(row["ratio"]) == SPREAD
        assert min(numbers([row["one"], row["all"], row["ratio"]])) > 0


@pytest.mark.acceptance
@pytest.mark.lasting
def test_a_quick_run_of_growth_gives_every_curve(tmp_path: Path) -> None:
    _, found = quick("benchmarks.growth", tmp_path / "growth.json")
    assert set(found["curves"]) == {"rows", "rows of long libraries", "width", "classes", "components", "batch"}
    for curve in found["curves"].values():
        assert len(curve["sizes"]) == len(curve["milliseconds"]) == 2
        assert min(curve["milliseconds"]) > 0
        assert math.isfinite(curve["exponent"])


def test_ratios_go_pair_by_pair() -> None:
    ratio = Pairs(base=[1.0, 2.0, 4.0], other=[3.0, 4.0, 4.0]).ratio
    assert (ratio.median, ratio.least, ratio.greatest) == (2.0, 1.0, 3.0)
    assert str(ratio) == "2 (1..3)"


@pytest.mark.parametrize(("warm_up", "expected"), [(True, "aaabbb" * 2), (False, "ab" + "aabb" * 2)])
def test_calls_are_interleaved(warm_up: bool, expected: str) -> None:
    calls: list[str] = []
    pairs = interleave(lambda: calls.append("a"), lambda: calls.append("b"), pairs=2, calls=2, warm_up=warm_up)
    assert "".join(calls) == expected
    assert len(pairs.base) == len(pairs.other) == 2


def run_of(screened: float, built: float, requests: float, spread: float = 0.1) -> dict[str, Any]:
    """Figures of a run with one ratio of each part, and so much about it."""

    def ratio(median: float) -> dict[str, float]:
        return {"median": median, "least": median - spread, "greatest": median + spread}

    called = {"network": "LeNet", "views": 0, "engine": "torch", "bare": "torch", "batch": 1}
    return {
        "screening": [{**called, "ratio": ratio(screened)}],
        "library": [{"network": "LeNet", "layer": "conv1", "ratio": ratio(built)}],
        "serving": [{"clients": 16, "ratio": {"requests_per_second": ratio(requests), "p50_ms": ratio(3.0)}}],
    }


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (run_of(2.0, 3.0, 1.0), []),
        (run_of(2.19, 2.81, 0.81), []),  # they overlap
        (run_of(1.0, 9.0, 5.0), []),  # for the better
        (
            run_of(2.21, 3.0, 1.0),
            ["screening network=LeNet views=0 engine=torch bare=torch batch=1: 2 (1.9..2.1), now"],
        ),
        (run_of(2.0, 2.7, 1.0), ["library network=LeNet layer=conv1: 3 (2.9..3.1), now 2.7 (2.6..2.8)"]),
        (run_of(2.0, 3.0, 0.7), ["serving clients=16 requests_per_second: 1 (0.9..1.1), now 0.7 (0.6..0.8)"]),
    ],
)
def test_what_is_worse_by_more_than_it_spreads_is_named(
    tmp_path: Path, new: dict[str, Any], expected: list[str]
) -> None:
    files = [tmp_path / "old.json", tmp_path / "new.json"]
    for file, content in zip(files, (run_of(2.0, 3.0, 1.0), new), strict=True):
        file.write_text(json.dumps(content))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.compare", *map(str, files)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == bool(expected), done.stderr
    lines = done.stdout.splitlines()
    assert lines == ["nothing is worse by more than it spreads"] if not expected else len(lines) == len(expected)
    assert all(line.startswith(start) for line, start in zip(lines, expected, strict=False))


def test_what_are_no_figures_cannot_be_compared(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[]")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.compare", str(tmp_path / "x.json"), str(tmp_path / "x.json")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "expected what --json writes" in done.stderr


@pytest.mark.parametrize(("share", "expected"), [(0.5, 2.0), (0.51, 3.0), (0.99, 4.0), (0.01, 1.0)])
def test_percentiles_are_values_that_were_measured(share: float, expected: float) -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], share) == expected
