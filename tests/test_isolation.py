"""Clients that misbehave change nothing for the others: a thousand mixed requests to a live server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from service_support import noise, publish_tiny
from test_deployment import SCRIPT

from benchmarks.isolation import BAD, measure
from service.launch import Serving


def test_a_thousand_mixed_requests(tmp_path: Path) -> None:
    publish_tiny(tmp_path / "bundle", "service_support:TinyClassifier")
    program = SCRIPT.format(tests=str(Path(__file__).parent))
    options = [str(tmp_path / "bundle"), "--port", "0", "--metrics-port", "0", "--disclose"]
    with subprocess.Popen([sys.executable, "-c", program, *options], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            serving = next(said for line in process.stdout if (said := Serving.parse(line)))
            found = asyncio.run(measure(serving.target, [noise(seed) for seed in range(60)], requests=1040))
        finally:
            process.terminate()
            assert process.wait(30) == 0
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
