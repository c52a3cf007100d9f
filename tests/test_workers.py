"""Several workers as one server: real processes on one port, killed, reloaded and drained under load."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families as parsed
from service_support import AT_ONCE_TOML, SERVE, http_get, noise, process_serving, publish_tiny, wait_for

from askance.errors import AskanceError, ConfigError
from askance.service import cpus
from askance.service.client import Client
from askance.service.client_messages import ServiceError, request_of
from askance.service.config import ServerConfig
from askance.service.errors import Code, StatusError
from askance.service.launch import Serving
from askance.service.pb.askance.v1 import screening_pb2_grpc
from askance.service.pb.inference import inference_pb2, inference_pb2_grpc
from askance.service.workers import supervisor
from askance.service.workers.line import Line, LineClosedError

TINY = "service_support:TinyClassifier"
PORTS = ("--port", "0", "--metrics-port", "0")
WORKERS = 2


class Seen:
    """A server of several workers, seen from outside.

    Args:
        process: the supervisor's.
        serving: what it said.
    """

    def __init__(self, process: subprocess.Popen[str], serving: Serving) -> None:
        self.process, self.serving = process, serving

    def get(self, path: str) -> tuple[int, str]:
        return http_get(f"http://127.0.0.1:{self.serving.metrics_port}{path}")

    def values(self, name: str) -> dict[tuple[str, ...], float]:
        """The values of a series, by those of its labels in the order of their names."""
        return {
            tuple(value for _, value in sorted(sample.labels.items())): sample.value
            for family in parsed(self.get("/metrics")[1])
            for sample in family.samples
            if sample.name == name
        }

    def value(self, name: str) -> float:
        """The sum of a series."""
        return sum(self.values(name).values())

    def workers(self) -> list[int]:
        """Their processes."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(child) for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]

    @contextmanager
    def stub(self) -> Iterator[screening_pb2_grpc.ScreeningStub]:
        """By a connection of its own."""
        with grpc.insecure_channel(self.serving.target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            yield screening_pb2_grpc.ScreeningStub(channel)  # type: ignore[no-untyped-call]


@contextmanager
def served(bundle: Path, *arguments: str, workers: int = WORKERS) -> Iterator[Seen]:
    with process_serving(
        bundle, *PORTS, "--workers", str(workers), "--config", AT_ONCE_TOML, *arguments, stderr=subprocess.PIPE
    ) as (process, serving):
        yield Seen(process, serving)


class Load:
    """Clients, each with a connection of its own, that call until they are told to stop.

    Args:
        seen: the server.
        clients: how many.
        again: whether one whose call fails connects anew, or leaves.
    """

    def __init__(self, seen: Seen, clients: int = 8, *, again: bool = True) -> None:
        self.outcomes: Counter[str] = Counter()
        self.failed: list[float] = []  # when the calls that failed began
        self._seen = seen
        self._again = again
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._call) for _ in range(clients)]

    def _call(self) -> None:
        outcome = "OK"
        while not self._stopped.is_set() and (self._again or outcome == "OK"):
            with self._seen.stub() as stub:
                outcome = "OK"
                while outcome == "OK" and not self._stopped.is_set():
                    began = time.monotonic()
                    try:
                        stub.Screen(request_of(noise(1)), timeout=60)
                    except grpc.RpcError as error:
                        outcome = error.code().name
                    with self._lock:
                        self.outcomes[outcome] += 1
                        self.failed += [] if outcome == "OK" else [began]

    def reached(self, more: int) -> None:
        """Wait for so many more answers."""
        goal = self.outcomes["OK"] + more
        wait_for(lambda: self.outcomes["OK"] >= goal)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()


def test_workers_count_as_one_server(tmp_path: Path) -> None:
    bundle_id = publish_tiny(tmp_path / "B", TINY)
    with served(tmp_path / "B") as seen:
        assert seen.serving.bundle_id == bundle_id[:12]
        assert len(seen.workers()) == WORKERS
        assert seen.get("/healthz") == (200, "serving\n")
        assert seen.get("/livez") == (200, "live\n")
        assert seen.values("askance_workers") == {(): WORKERS}
        with Load(seen) as load:
            load.reached(300)
        answered = load.outcomes["OK"]
        assert set(load.outcomes) == {"OK"}
        assert seen.values("askance_requests_total")["OK", "Screen"] == answered
        assert seen.value("askance_request_seconds_count") == answered
        assert seen.value("askance_verdicts_total") == answered  # pools of one, for tests
        assert seen.value("askance_predictions_total") == answered
        assert seen.values("askance_p_value_count") == dict.fromkeys(
            [("fused",), ("library_network",), ("self_organizing_map",)], answered
        )
        assert seen.value("askance_bundle_info") == 1
        assert seen.values("askance_expected_false_positive_rate") == {("adversarial",): 0.01, ("suspect",): 0.05}
        assert not [family.name for family in parsed(seen.get("/metrics")[1]) if "pooled" in family.name]
        with grpc.insecure_channel(seen.serving.target) as channel:
            stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            (row,) = stub.ModelStatistics(inference_pb2.ModelStatisticsRequest(name="tiny")).model_stats
        assert row.inference_count == answered
        assert row.last_inference > 1_700_000_000_000


def test_few_requests_are_shown_to_nobody_however_many_workers_they_reach(tmp_path: Path) -> None:
    publish_tiny(tmp_path / "B", TINY)
    (tmp_path / "s.toml").write_text("[metrics]\npool_requests = 12\npool_seconds = 0.0\n")
    arguments = (tmp_path / "B", *PORTS, "--workers", "2", "--config", tmp_path / "s.toml")
    with process_serving(*arguments) as (process, serving):
        seen = Seen(process, serving)
        for number in range(1, 25):
            with seen.stub() as stub:
                stub.Screen(request_of(noise(number)))
            assert seen.value("askance_verdicts_total") == number - number % 12
        assert seen.values("askance_requests_total")["OK", "Screen"] == 24


def test_of_a_worker_that_is_killed_its_calls_alone_fail(tmp_path: Path) -> None:
    publish_tiny(tmp_path / "B", TINY)
    with served(tmp_path / "B") as seen:
        before = seen.workers()
        with Load(seen) as load:
            load.reached(200)
            os.kill(before[0], signal.SIGKILL)
            wait_for(lambda: not Path(f"/proc/{before[0]}").exists())  # its ports are closed when its memory is gone
            gone = time.monotonic()
            wait_for(lambda: seen.value("askance_workers") == WORKERS and len(seen.workers()) == WORKERS)
            load.reached(200)
        assert set(load.outcomes) == {"OK", "UNAVAILABLE"}
        assert max(load.failed) < gone  # while it dies its port still takes connections
        assert before[1] in seen.workers()
        assert seen.values("askance_worker_restarts_total") == {(): 1}
        # what it had answered is counted; of the calls that failed it may have counted what it was about to answer
        counted = seen.values("askance_requests_total")["OK", "Screen"]
        assert load.outcomes["OK"] <= counted <= sum(load.outcomes.values())


def test_all_load_anew_when_one_is_asked_to(tmp_path: Path) -> None:
    first = publish_tiny(tmp_path / "1", TINY)
    second = publish_tiny(tmp_path / "2", TINY, shift=0.5)
    link = tmp_path / "B"
    link.symlink_to("1")
    settings = tmp_path / "s.toml"
    settings.write_text('[access]\nanonymous = ["predict", "admin"]\n[rollout]\nkeep_versions = 1\n')
    with process_serving(link, *PORTS, "--workers", "2", "--config", settings) as (process, serving):
        seen = Seen(process, serving)

        def told() -> set[str]:
            """Who answers on many connections."""
            bundles = set()
            for _ in range(24):
                with seen.stub() as stub:
                    bundles.add(stub.Screen(request_of(noise(1))).bundle_id)
            return bundles

        assert told() == {first}
        link.unlink()
        link.symlink_to("2")
        with grpc.insecure_channel(serving.target) as channel:
            stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            stub.RepositoryModelLoad(inference_pb2.RepositoryModelLoadRequest(model_name="tiny"))
            assert told() == {second}
            assert seen.values("askance_bundle_reloads_total")["success",] == 2

            def unload(version: str) -> grpc.StatusCode:
                named = {"version": inference_pb2.ModelRepositoryParameter(string_param=version)}
                try:
                    stub.RepositoryModelUnload(
                        inference_pb2.RepositoryModelUnloadRequest(model_name="tiny", parameters=named)
                    )
                except grpc.RpcError as error:
                    return error.code()
                return grpc.StatusCode.OK

            assert unload(second[:12]) is grpc.StatusCode.FAILED_PRECONDITION
            assert unload(first[:12]) is grpc.StatusCode.OK
            assert unload(first[:12]) is grpc.StatusCode.NOT_FOUND
            (tmp_path / "2" / "manifest.json").write_text("{")
            with pytest.raises(grpc.RpcError) as refused:
                stub.RepositoryModelLoad(inference_pb2.RepositoryModelLoadRequest(model_name="tiny"))
            assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert told() == {second}
        link.unlink()
        link.symlink_to("1")
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: told() == {first})


@pytest.mark.acceptance
@pytest.mark.lasting
def test_a_worker_that_comes_back_to_another_bundle_makes_all_load_it(tmp_path: Path) -> None:
    first = publish_tiny(tmp_path / "1", TINY)
    second = publish_tiny(tmp_path / "2", TINY, shift=0.5)
    link = tmp_path / "B"
    link.symlink_to("1")
    with served(link) as seen:
        assert [labels[2] for labels in seen.values("askance_bundle_info")] == [first]
        link.unlink()
        link.symlink_to("2")
        os.kill(seen.workers()[0], signal.SIGKILL)
        wait_for(lambda: [labels[2] for labels in seen.values("askance_bundle_info")] == [second])


def test_all_are_drained(tmp_path: Path) -> None:
    publish_tiny(tmp_path / "B", TINY)
    with served(tmp_path / "B") as seen:
        workers = seen.workers()
        with Load(seen, again=False) as load:
            load.reached(200)
            seen.process.terminate()
            for worker in workers:  # as systemd does, and a terminal's Ctrl-C
                os.kill(worker, signal.SIGTERM)
            assert seen.process.wait(60) == 0
        assert set(load.outcomes) == {"OK", "UNAVAILABLE"}
        assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]
        assert seen.process.stderr is not None
        assert {line.split()[2] for line in seen.process.stderr} == {"INFO"}


def test_workers_without_a_supervisor_end(tmp_path: Path) -> None:
    publish_tiny(tmp_path / "B", TINY)
    command = [sys.executable, "-c", SERVE, str(tmp_path / "B"), *PORTS, "--workers", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        serving = Serving.parse(process.stdout.readline())
        assert serving is not None
        workers = Seen(process, serving).workers()
        process.kill()
    wait_for(lambda: not [worker for worker in workers if Path(f"/proc/{worker}").exists()])


def test_a_hanging_worker_is_killed(tmp_path: Path) -> None:
    publish_tiny(tmp_path / "B", TINY)
    (tmp_path / "s.toml").write_text("[inference]\nstall_seconds = 0.5\n")
    with process_serving(tmp_path / "B", *PORTS, "--workers", "2", "--config", tmp_path / "s.toml") as (
        process,
        serving,
    ):
        seen = Seen(process, serving)
        before = seen.workers()
        os.kill(before[0], signal.SIGSTOP)
        wait_for(lambda: seen.value("askance_worker_restarts_total") == 1)
        wait_for(lambda: seen.value("askance_workers") == WORKERS)
        assert before[1] in seen.workers()


@pytest.mark.parametrize("workers", ["2", "auto"])
def test_a_bundle_that_is_refused_ends_it_in_one_line(tmp_path: Path, workers: str) -> None:
    command = [sys.executable, "-c", SERVE, str(tmp_path / "none"), *PORTS, "--workers", workers]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert re.fullmatch(r"askance: .*none.*\n", ended.stderr)


def test_a_port_in_use_is_said_in_one_line(tmp_path: Path) -> None:
    publish_tiny(tmp_path / "B", TINY)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for option in ("--port", "--rest-port", "--metrics-port"):
            arguments = {"--port": "0", "--metrics-port": "0", "--workers": "2", option: str(port)}
            flat = [text for pair in arguments.items() for text in pair]
            command = [sys.executable, "-c", SERVE, str(tmp_path / "B"), *flat]
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            assert ended.returncode == 2
            assert ended.stderr.startswith(f"askance: port {port} on 127.0.0.1 is in use: ")
            assert ended.stderr.count("\n") == 1


@pytest.mark.acceptance
@pytest.mark.lasting
def test_a_second_server_does_not_share_the_port(tmp_path: Path) -> None:
    publish_tiny(tmp_path / "B", TINY)
    with served(tmp_path / "B", "--rest-port", "0") as seen:
        for workers in ("1", "2"):
            command = [sys.executable, "-c", SERVE, str(tmp_path / "B"), "--metrics-port", "0"]
            command += ["--port", str(seen.serving.port), "--workers", workers]
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            assert f"port {seen.serving.port} on 127.0.0.1 is in use" in ended.stderr
        status, text = http_get(f"http://127.0.0.1:{seen.serving.rest_port}/v2/models/tiny")
        assert (status, '"name":"tiny"' in text) == (200, True)


def test_the_supervisor_holds_no_torch(tmp_path: Path) -> None:
    publish_tiny(tmp_path / "B", TINY)
    with served(tmp_path / "B") as seen:
        maps = Path(f"/proc/{seen.process.pid}/maps").read_text()
        assert "libtorch" not in maps
        assert "libtorch" in Path(f"/proc/{seen.workers()[0]}/maps").read_text()
        with Client(seen.serving.target) as client, pytest.raises(ServiceError, match="explain"):
            client.screen(noise(1), explain=True)


@pytest.mark.parametrize(("said", "expected"), [("auto", 0), ("3", 3), (1, 1), (0, 0)])
def test_how_many(said: object, expected: int) -> None:
    assert ServerConfig.load(None, {"workers": said}).workers == expected


@pytest.mark.parametrize("said", ["fast", "-1", "1.5", ""])
def test_what_is_no_number_of_processes(said: str) -> None:
    with pytest.raises(
        ConfigError, match=f"^workers: expected how many processes, or \"auto\", got '{re.escape(said)}'$"
    ):
        ServerConfig.load(None, {"workers": said})


def test_other_systems_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ConfigError, match=r"^workers: Linux alone spreads connections over processes, got 3: "):
        supervisor.Supervisor(tmp_path, ServerConfig(workers=3))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "200000 100000\n"}, 2.0),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "what\n"}, None),
        ({}, None),
    ],
)
def test_a_containers_quota_counts(tmp_path: Path, files: dict[str, str], expected: float | None) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert cpus.quota(tmp_path) == expected
    assert cpus.available(tmp_path) == (min(2, cpus.available()) if expected else cpus.available(tmp_path / "none"))


class TestLine:
    """Both ends in one process."""

    @staticmethod
    def ends() -> tuple[Line, Line]:
        one, other = Pipe()
        return Line(one, "one"), Line(other, "other")

    def test_both_ask_at_a_time(self) -> None:
        one, other = self.ends()
        one.listen({"twice": lambda value: 2 * other_asks(value)})
        other.listen({"more": lambda value: value + 1})

        def other_asks(value: int) -> int:
            asked: int = one.ask("more", value)
            return asked

        assert other.ask("twice", 3) == 8

    def test_a_question_waits_for_who_listens_later(self) -> None:
        one, other = self.ends()
        answer = one.begin("how")
        assert not answer.done()
        other.listen({"how": lambda: "well"})
        assert answer.result(60) == "well"

    def test_errors_for_people_arrive_as_they_were(self) -> None:
        def refuse() -> None:
            raise StatusError(Code.NOT_FOUND, "no such version", "invalid")

        one, other = self.ends()
        other.listen({"refuse": refuse, "fail": lambda: 1 // 0})
        with pytest.raises(StatusError, match="no such version") as caught:
            one.ask("refuse")
        assert (caught.value.code, caught.value.reason) == (Code.NOT_FOUND, "invalid")
        with pytest.raises(AskanceError, match="ZeroDivisionError, see the log"):
            one.ask("fail")

    def test_who_is_gone_answers_nothing(self) -> None:
        ours, theirs = Pipe()
        line, gone = Line(ours, "the other"), threading.Event()
        line.listen({}, gone.set)
        asked = line.begin("anything")
        theirs.close()
        with pytest.raises(LineClosedError, match="the other is gone"):
            asked.result(60)
        assert gone.wait(60)
        with pytest.raises(LineClosedError):
            line.ask("more")
