"""Several bundles at once: the default one, a candidate that is compared unseen, and replaced ones that are kept."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from service_support import (
    AT_ONCE_TOML,
    CREATED,
    NO_SENTINELS,
    Valve,
    config,
    http_get,
    marked,
    noise,
    process_serving,
    publish_tiny,
    status_of,
    tiny_screen,
    until,
)
from test_policy import batch
from test_repository import opener
from toy import Whole, whole

from askance.errors import BundleError
from askance.service.call import Role
from askance.service.client import Client
from askance.service.client_messages import request_of
from askance.service.guard.access import ClientConfig, new_token
from askance.service.pb.askance.v1 import screening_pb2_grpc
from askance.service.pb.inference import inference_pb2 as pb
from askance.service.pb.inference import inference_pb2_grpc
from askance.service.runtime.model import LoadedBundle
from askance.service.server import Server

TOKEN, DIGEST = new_token()
ADMIN = ClientConfig(name="operator", token_sha256=DIGEST, roles=frozenset({Role.ADMIN}))
AUTHORIZED = [("authorization", f"Bearer {TOKEN}")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three bundles of one classifier that differ in their p-values."""
    made = tmp_path_factory.mktemp("bundles")
    for name, shift in (("one", 0.0), ("two", 0.7), ("three", -0.4)):
        publish_tiny(made / name, "service_support:TinyClassifier", shift=shift)
    return made


def served(letter: str, screen: Any = None) -> LoadedBundle:
    return LoadedBundle(letter * 64, CREATED, "tiny", tiny_screen() if screen is None else screen, NO_SENTINELS)


def ask(version: str = "") -> pb.ModelInferRequest:
    request = batch(noise(3)[None], "p_value")
    request.model_version = version
    return request


def p_value(response: pb.ModelInferResponse) -> float:
    return float(np.frombuffer(response.raw_output_contents[0], "<f8")[0])


class Service:
    """A server with several bundles, and what tests ask of it."""

    def __init__(self, server: Server, channel: grpc.aio.Channel) -> None:
        self.server = server
        self.oip: Any = inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        self.screening: Any = screening_pb2_grpc.ScreeningStub(channel)  # type: ignore[no-untyped-call]

    def value(self, name: str, **labels: str) -> float | None:
        return self.server.metrics.registry.get_sample_value(name, labels)

    async def versions(self) -> list[str]:
        index = await self.oip.RepositoryIndex(pb.RepositoryIndexRequest())
        assert {(one.name, one.state) for one in index.models} == {("tiny", "READY")}
        answer = await self.oip.ModelMetadata(pb.ModelMetadataRequest(name="tiny"))
        assert list(answer.versions) == [one.version for one in index.models]
        return list(answer.versions)

    async def unload(self, version: str) -> None:
        request = pb.RepositoryModelUnloadRequest(model_name="tiny")
        request.parameters["unload_dependents"].bool_param = False  # as Triton's client sends it
        if version:
            request.parameters["version"].string_param = version
        await self.oip.RepositoryModelUnload(request, metadata=AUTHORIZED)


@asynccontextmanager
async def serving(
    load: Callable[[], LoadedBundle], candidate: Callable[[], LoadedBundle] | None = None, **settings: Any
) -> AsyncIterator[Service]:
    async with Server(config(clients=(ADMIN,), **settings)) as server:
        await server.deploy(load, candidate)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.ports.port}") as channel:
            yield Service(server, channel)


def test_each_version_answers_those_who_name_it_and_the_default_all_others(folder: Path) -> None:
    async def main() -> None:
        one, two = opener(folder / "one"), opener(folder / "two")
        async with serving(one, two) as service:
            first, second = await service.versions()
            alone = {}
            for load in (one, two):
                loaded = load()
                (result,) = loaded.screen(torch.from_numpy(noise(3)).float()[None] / 255)
                alone[loaded.version] = whole(result).fused.p_value
                loaded.screen.close()
            assert len(set(alone.values())) == 2
            for asked, answers in (("", first), (first, first), (second, second)):
                response = await service.oip.ModelInfer(ask(asked))
                assert response.model_version == answers
                assert p_value(response) == alone[answers]
                ready = await service.oip.ModelReady(pb.ModelReadyRequest(name="tiny", version=asked))
                assert ready.ready
            assert (await service.screening.Screen(request_of(noise(3)))).bundle_id[:12] == first
            code, line = await status_of(service.oip.ModelInfer(ask("f" * 12)))
            assert code is grpc.StatusCode.NOT_FOUND
            assert line == f"model 'tiny ffffffffffff' is not served: tiny version {first}, {second} is"

    asyncio.run(main())


def test_another_version_takes_the_role_scores_and_counts_for_no_alert() -> None:
    async def main() -> None:
        settings = {"anonymous": frozenset({Role.PREDICT})}
        async with serving(lambda: served("a"), lambda: served("b"), **settings) as service:
            request = batch(noise(3)[None], "verdict")
            for version, code in (("", None), ("a" * 12, None), ("b" * 12, grpc.StatusCode.UNAUTHENTICATED)):
                request.model_version = version
                call = service.oip.ModelInfer(request)
                assert (None if code is None else (await status_of(call))[0]) is code
                if code is None:
                    assert (await call).model_version == "a" * 12
        async with serving(lambda: served("a"), lambda: served("b")) as service:
            await service.oip.ModelInfer(ask("b" * 12))
            await service.oip.ModelInfer(ask())
            assert service.value("askance_p_value_count", detector="fused") == 1

    asyncio.run(main())


def test_a_version_is_unloaded_by_name_and_the_default_one_never(folder: Path) -> None:
    async def main() -> None:
        async with serving(opener(folder / "one"), opener(folder / "two")) as service:
            first, second = await service.versions()
            plain = service.oip.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="tiny"))
            assert (await status_of(plain))[0] is grpc.StatusCode.UNAUTHENTICATED
            for version in ("", first):
                code, line = await status_of(service.unload(version))
                assert code is grpc.StatusCode.FAILED_PRECONDITION
                assert line == f"version {first} is the default one: stop the server instead"
            await service.unload(second)
            assert await service.versions() == [first]
            assert service.server.repository.candidate is None
            assert service.value("askance_candidate_info", id=opener(folder / "two")().bundle_id) is None
            assert (await status_of(service.unload(second)))[0] is grpc.StatusCode.NOT_FOUND
            assert (await status_of(service.oip.ModelInfer(ask(second))))[0] is grpc.StatusCode.NOT_FOUND
            assert (await service.oip.ModelInfer(ask())).model_version == first

    asyncio.run(main())


def test_replaced_bundles_are_kept_up_to_a_number() -> None:
    async def main() -> None:
        async with serving(lambda: served("a"), keep_versions=2) as service:
            for letter in "bcd":
                service.server._load = partial(served, letter)
                await service.server.reload()
            assert [version[0] for version in await service.versions()] == ["d", "b", "c"]
            assert (await service.oip.ModelInfer(ask("b" * 12))).model_version == "b" * 12
            service.server._load = lambda: served("b")  # back to one that is kept
            await service.server.reload()
            assert [version[0] for version in await service.versions()] == ["b", "c", "d"]
            await until(lambda: not service.server.repository._retiring)

    asyncio.run(main())


def test_a_candidate_sees_what_was_answered_and_its_word_is_counted(folder: Path) -> None:
    images = [noise(seed) for seed in range(40)]
    batch_of_all = torch.stack([torch.from_numpy(image).float() / 255 for image in images])
    said: list[list[Whole]] = []
    for name in ("one", "three"):
        loaded = opener(folder / name)()
        said.append([whole(result) for result in loaded.screen(batch_of_all)])
    expected = Counter((a.verdict.value, b.verdict.value) for a, b in zip(*said, strict=True))
    assert len(expected) > 1

    async def main() -> None:
        async with serving(opener(folder / "one"), opener(folder / "three")) as service:
            for image in images:
                await service.screening.Screen(request_of(image))

            def compared() -> float:
                return service.value("askance_candidate_images_total", outcome="compared") or 0.0

            await until(lambda: compared() == len(images))
            for answered in ("CLEAN", "SUSPECT", "ADVERSARIAL"):
                for candidate in ("CLEAN", "SUSPECT", "ADVERSARIAL"):
                    count = service.value("askance_candidate_verdicts_total", served=answered, candidate=candidate)
                    assert count == expected[answered, candidate]
            assert service.value("askance_candidate_predictions_total", agreement="same") == len(images)
            assert service.value("askance_candidate_p_value_count") == len(images)
            ours = [result.fused.p_value <= 0.5 for result in said[1]]
            assert service.value("askance_candidate_p_value_bucket", le="0.5") == sum(ours)
            # what clients are told is the default one's, and only that is in its metrics
            assert service.value("askance_p_value_count", detector="fused") == len(images)
            # a request that names the candidate is no comparison
            await service.oip.ModelInfer(ask((await service.versions())[1]))
            assert compared() == len(images)

    asyncio.run(main())


def test_a_candidate_waits_until_nobody_else_does_and_skips_what_it_cannot_keep() -> None:
    from askance.service.runtime.candidate import WAITING_IMAGES

    valve, candidate = Valve(), Valve()

    async def main() -> None:
        async with serving(lambda: served("a", valve), lambda: served("b", candidate)) as service:
            await service.screening.Screen(request_of(marked(0.1)))
            await until(lambda: candidate.seen == [0.1])
            valve.shut()
            calls = [asyncio.ensure_future(service.screening.Screen(request_of(marked(0.5))))]
            await until(valve.entered.is_set)  # alone: whatever comes together shares a batch
            calls += [
                asyncio.ensure_future(service.screening.Screen(request_of(marked(0.5))))
                for _ in range(WAITING_IMAGES + 29)
            ]
            await until(lambda: service.server.repository.held() == WAITING_IMAGES + 29)
            assert candidate.seen == [0.1]
            candidate.shut()
            valve.opened.set()
            await until(candidate.entered.is_set)  # only now that all have been answered
            assert valve.seen.count(0.5) == WAITING_IMAGES + 30
            await asyncio.gather(*calls)
            candidate.opened.set()

            def skipped() -> float:  # shown with the next image that is compared, if the live page has just looked
                return service.value("askance_candidate_images_total", outcome="skipped") or 0

            await until(lambda: skipped() >= 29)
            await until(lambda: len(candidate.seen) == 1 + WAITING_IMAGES + 30 - skipped())

    asyncio.run(main())


def test_a_candidate_that_fails_harms_nobody() -> None:
    candidate = Valve()

    async def main() -> None:
        async with serving(lambda: served("a"), lambda: served("b", candidate)) as service:
            poison = float(np.float32(Valve.POISON))
            await service.screening.Screen(request_of(marked(poison)))
            await until(lambda: service.value("askance_candidate_images_total", outcome="failed") == 1)
            await service.screening.Screen(request_of(marked(0.2)))
            await until(lambda: service.value("askance_candidate_images_total", outcome="compared") == 1)

    asyncio.run(main())


def test_a_candidate_whose_time_has_come_takes_over() -> None:
    async def main() -> None:
        async with serving(lambda: served("a"), lambda: served("b")) as service:
            assert service.value("askance_candidate_info", id="b" * 64) == 1
            service.server._load = lambda: served("b")
            await service.server.reload()
            assert await service.versions() == ["b" * 12]
            assert service.server.repository.candidate is None
            assert service.value("askance_candidate_info", id="b" * 64) is None
            service.server._load_candidate = lambda: served("c")
            await service.server.reload()
            assert await service.versions() == ["b" * 12, "c" * 12]
            assert service.value("askance_bundle_reloads_total", result="success") == 2
            assert service.value("askance_bundle_reloads_total", result="unchanged") == 2
            assert (await service.screening.Screen(request_of(noise(1)))).bundle_id == "b" * 64

    asyncio.run(main())


def test_a_bad_candidate_is_refused_and_the_one_before_stays(folder: Path) -> None:
    async def main() -> None:
        async with serving(opener(folder / "one"), opener(folder / "two")) as service:
            before = await service.versions()
            service.server._load_candidate = opener(folder / "nothing")
            with pytest.raises(BundleError, match="is not a bundle"):
                await service.server.reload()
            service.server._load, good = opener(folder / "nothing"), service.server._load
            service.server._load_candidate = opener(folder / "three")
            with pytest.raises(BundleError, match="is not a bundle"):
                await service.server.reload()
            assert (await service.versions())[0] == before[0]
            assert (await service.versions())[1] not in before  # whatever becomes of the default one
            before = await service.versions()
            service.server._load = good
            service.server._load_candidate = lambda: LoadedBundle(
                "c" * 64, CREATED, "other", tiny_screen(), NO_SENTINELS
            )
            with pytest.raises(BundleError, match="is of the classifier 'other'"):
                await service.server.reload()
            assert await service.versions() == before
            assert service.value("askance_bundle_reloads_total", result="failure") == 3

    asyncio.run(main())


def test_a_process_serves_a_bundle_and_a_candidate(folder: Path) -> None:
    options = ("--candidate", folder / "two", "--config", AT_ONCE_TOML, "--port", "0", "--metrics-port", "0")
    with process_serving(folder / "one", *options) as (_, server):
        with Client(server.target) as client:
            client.screen(noise(1))
        url = f"http://127.0.0.1:{server.metrics_port}/metrics"
        while 'askance_candidate_images_total{outcome="compared"} 1.0' not in http_get(url)[1]:
            pass
