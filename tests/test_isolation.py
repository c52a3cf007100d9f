"""Clients that misbehave change nothing for the others: a thousand mixed requests to a live server."""

from __future__ import annotations

import asyncio
from pathlib import Path

from service_support import noise, process_serving, publish_tiny

from benchmarks.isolation import BAD, measure


def test_a_thousand_mixed_requests(tmp_path: Path) -> None:
    publish_tiny(tmp_path / "bundle", "service_support:TinyClassifier")
    ports = ("--port", "0", "--metrics-port", "0")
    with process_serving(tmp_path / "bundle", *ports, "--disclose") as (_, serving):
        found = asyncio.run(measure(serving.target, [noise(seed) for seed in range(60)], requests=1040))
    assert (found.good, found.bad) == (520, 520)
    assert found.different_verdicts == 0
    assert found.largest_difference <= 1e-5
    assert set(found.codes) == set(BAD)
    for kind in ("nan", "damaged", "shape"):
        assert set(found.codes[kind]) == {"INVALID_ARGUMENT"}
    assert set(found.codes["batch"]) == {"OK"}
    # whoever asks for next to no time may be lucky
    assert set(found.codes["cancel"]) <= {"OK", "CANCELLED"}
    assert set(found.codes["timeout"]) <= {"OK", "DEADLINE_EXCEEDED"}
    assert "CANCELLED" in found.codes["cancel"]
    assert "DEADLINE_EXCEEDED" in found.codes["timeout"]
