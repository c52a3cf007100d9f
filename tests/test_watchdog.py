"""What hangs, and what nobody reads: the process knows, says so, and always stops."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from marks import LASTING
from service_support import (
    SERVE,
    Valve,
    config,
    http_get,
    marked,
    noise,
    publish_tiny,
    running,
    tiny_served,
    until,
    wait_for,
)
from test_service_lifecycle import TESTS, process_of, script

from askance.service.client import Client
from askance.service.client_messages import request_of
from askance.service.launch import Serving
from askance.service.observability.stderr import QueuedStream
from askance.service.watchdog import Watchdog

# The event loop hangs, soon after the server serves, until there is a file that the test makes.
HANGING = """
import asyncio, time
from askance.service.server import Server
deploy = Server.deploy
def hang():
    while not Path(sys.argv[1]).exists():
        time.sleep(0.002)
async def deploy_and_hang(self, *arguments):
    served = await deploy(self, *arguments)
    asyncio.get_running_loop().call_later(0.3, hang)
    return served
Server.deploy = deploy_and_hang
config = ServerConfig(port=0, metrics_port=0, inference={"stall_seconds": float(sys.argv[3])},
                      shutdown={"drain_seconds": float(sys.argv[2])})
run(tiny_served, config, lambda serving: print(serving, flush=True))
"""
# Every line of the log many times over, and what does not go through the log at all.
TALKING = """
import ctypes, os, threading, warnings
from askance.service.server import Server
warnings.simplefilter("always")
class Talking(Valve):
    def __call__(self, *arguments):
        for _ in range(100):
            warnings.warn("a warning " * 20)
            print("a line " * 20, file=sys.stderr)
            ctypes.CDLL(None).write(2, b"a line of C's" * 20, 260)
        return super().__call__(*arguments)
config = ServerConfig(port=0, metrics_port=0, log={"level": "debug"})
run(lambda: tiny_served(Talking()), config, lambda serving: print(serving, flush=True))
"""


def test_an_event_loop_that_hangs_is_known_and_two_signals_end_it(tmp_path: Path) -> None:
    with process_of(HANGING, str(tmp_path / "never"), "0.5", "0.1") as (process, serving):
        base = f"http://127.0.0.1:{serving.metrics_port}"
        wait_for(lambda: http_get(f"{base}/healthz") == (503, "stalled\n"))
        wait_for(lambda: "askance_stalled 1.0" in http_get(f"{base}/metrics")[1])
        wait_for(lambda: http_get(f"{base}/livez") == (503, "hung\n"))
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)  # one signal waits for what may come back
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 1
        assert process.stderr is not None
        *lines, last = process.stderr.read().splitlines()
        assert any(line.endswith("ERROR the event loop is stalled: no answer for 0.1 s") for line in lines)
        assert last == "askance: ended by force, 0.5 s after the second signal to stop: something in it hangs"


def test_an_event_loop_that_comes_back_serves(tmp_path: Path) -> None:
    with process_of(HANGING, str(tmp_path / "release"), "20", "0.1") as (process, serving):
        base = f"http://127.0.0.1:{serving.metrics_port}"
        wait_for(lambda: http_get(f"{base}/healthz") == (503, "stalled\n"))
        process.send_signal(signal.SIGHUP)  # is not lost
        (tmp_path / "release").touch()
        wait_for(lambda: http_get(f"{base}/healthz") == (200, "serving\n"))
        wait_for(lambda: http_get(f"{base}/livez") == (200, "live\n"))
        wait_for(lambda: 'askance_bundle_reloads_total{result="unchanged"} 1.0' in http_get(f"{base}/metrics")[1])
        with Client(serving.target) as client:
            assert client.screen(noise(1)).label
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_a_hung_inference_thread_is_not_live_and_says_so_until_it_is_back() -> None:
    async def main() -> None:
        valve = Valve()
        async with running(tiny_served(valve), config(stall_seconds=0.05)) as service:
            assert await service.get("/livez") == (200, "live\n")
            valve.shut()
            held = asyncio.ensure_future(service.stub.Screen(request_of(marked(0.1))))
            await until(lambda: service.server.admission.state == "stalled")
            assert (await service.get("/healthz")) == (503, "stalled\n")
            while await service.get("/livez") != (503, "hung\n"):
                await asyncio.sleep(0.01)
            assert service.value("askance_stalled") == 1
            valve.opened.set()
            assert (await held).prediction.name
            await until(lambda: service.server.admission.state == "serving")
            assert await service.get("/livez") == (200, "live\n")
            assert service.value("askance_stalled") == 0

    asyncio.run(main())


def test_the_watchdog_ends_with_its_loop() -> None:
    async def main() -> Watchdog:
        watchdog = Watchdog(lambda: 0.0, 0.01, lambda: None)
        watchdog.start()
        return watchdog

    watchdog = asyncio.run(main())
    assert watchdog._thread is not None
    watchdog._thread.join(60)
    assert not watchdog._thread.is_alive()


def test_a_standard_error_that_nobody_reads_keeps_nobody_waiting() -> None:
    command = [sys.executable, "-c", script(TALKING)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=TESTS.parent, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            serving = Serving.parse(process.stdout.readline())
            assert serving is not None
            url = f"http://127.0.0.1:{serving.metrics_port}/metrics"
            with Client(serving.target) as client:
                while (dropped := lost_lines(url)) == 0:
                    assert client.screen(noise(1)).label
            # read again, it says how many are lost
            said = next(line for line in process.stderr if "lines of this log are lost" in line)
            found = re.search(r"WARNING (\d+) lines of this log are lost", said)
            assert found is not None
            assert int(found[1]) >= dropped
            with Client(serving.target) as client:
                assert client.screen(noise(1)).label
        finally:
            process.terminate()
        rest = process.stderr.read()
        assert process.wait(60) == 0
        assert rest.splitlines()[-1].endswith("INFO draining")


def lost_lines(url: str) -> float:
    (line,) = (one for one in http_get(url)[1].splitlines() if one.startswith("askance_log_lines_dropped_total "))
    return float(line.split()[1])


def test_a_stopping_server_does_not_wait_for_a_reader() -> None:
    command = [sys.executable, "-c", script(TALKING)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=TESTS.parent, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        serving = Serving.parse(process.stdout.readline())
        assert serving is not None
        with Client(serving.target) as client:
            while lost_lines(f"http://127.0.0.1:{serving.metrics_port}/metrics") == 0:
                client.screen(noise(1))
        process.terminate()
        assert process.wait(60) == 0


@pytest.mark.parametrize("number", [1, 2], ids=["stdout", "stderr"])
@pytest.mark.parametrize(
    "redirection",
    [">&-", *(pytest.param(one, marks=LASTING) for one in ("> /dev/full", "> >(true)"))],
)
def test_a_server_serves_whatever_becomes_of_its_output(tmp_path: Path, number: int, redirection: str) -> None:
    """The line that says where goes to the log, where standard output takes none."""
    publish_tiny(tmp_path / "bundle", "service_support:TinyClassifier")
    command = ["bash", "-c", f'exec "$@" {number}{redirection}', "bash", sys.executable, "-c", SERVE]
    command += [str(tmp_path / "bundle"), "--port", "0", "--metrics-port", "0"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            said = process.stderr if number == 1 else process.stdout
            assert said is not None
            line = next(line for line in said if "askance: serving bundle" in line)
            serving = Serving.parse(line[line.index("askance:") :])
            assert serving is not None
            assert ("standard output cannot be written" in line) is (number == 1)
            with Client(serving.target) as client:
                assert client.screen(noise(1)).label
        finally:
            process.terminate()
        assert process.wait(60) == 0


def test_what_is_queued_is_written_in_order_and_a_full_disk_is_counted(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        stream = QueuedStream(file.fileno())
        for i in range(100):
            print(i, file=stream)
        assert stream.drained(60)
    assert (tmp_path / "log").read_text().split() == [str(i) for i in range(100)]
    with Path("/dev/full").open("wb", buffering=0) as full:
        stream = QueuedStream(full.fileno())
        stream.write("one\ntwo\n")
        assert stream.drained(60)
        assert stream.dropped == 2
