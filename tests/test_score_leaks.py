"""An attacker who may predict and reads the metrics page: from no series on it can he tell how one image was judged.

He looks at whatever changed on the page, so that a series that is added later is tried, too.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from google.protobuf.json_format import MessageToDict
from marks import LASTING
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families
from scipy.stats import spearmanr
from service_support import AT_ONCE, Running, config, noise, tiny_screen, tiny_served, until, untypical
from toy import Whole, whole

from askance.answers import Verdict
from askance.service.call import REQUEST_ID, Role
from askance.service.client_messages import request_of
from askance.service.observability.pooled import P_VALUE_BUCKETS, POOL_REQUESTS, coarse
from askance.service.pb.inference import inference_pb2, inference_pb2_grpc
from askance.service.server import Server
from askance.service.settings import Policy

Series = tuple[str, tuple[tuple[str, str], ...]]
POOLED = {"pool_requests": POOL_REQUESTS, "pool_seconds": 0.0}
SURE = 0.95  # of the images told rightly: more than that is no chance
COUNT = 4 * POOL_REQUESTS


def odd(seed: int) -> NDArray[np.uint8]:
    """An image that is flagged, and no two alike."""
    image = untypical()
    changed = np.random.default_rng(seed).integers(0, image.size, 2)
    image.reshape(-1)[changed] ^= 255
    return image


def images() -> list[NDArray[np.uint8]]:
    """Half of them flagged, in no order that time, too, could follow."""
    made = [noise(seed) for seed in range(COUNT // 2)] + [odd(seed) for seed in range(COUNT // 2)]
    return [made[i] for i in np.random.default_rng(0).permutation(COUNT)]


IMAGES = images()
WORDS: list[Whole] = [
    whole(one) for one in tiny_screen()(torch.stack([torch.from_numpy(image).float() / 255 for image in IMAGES]))
]


def p_values() -> dict[str, NDArray[np.float64]]:
    """What is kept from him, as numbers: the p-values of each detector, and of each reason."""
    found = {"fused": np.array([one.fused.p_value for one in WORDS])}
    for i, word in enumerate(WORDS[0].detectors):
        found[word.name] = np.array([one.detectors[i].p_value for one in WORDS])
    for i, reason in enumerate(WORDS[0].reasons):
        found[reason.name] = np.array([one.reasons[i].p_value for one in WORDS])
    return found


def bits() -> dict[str, NDArray[np.bool_]]:
    """What is kept from him, as bits: verdicts, flags, the buckets of p-values."""
    found = {str(verdict): np.array([one.verdict is verdict for one in WORDS]) for verdict in Verdict}
    for name, values in p_values().items():
        found |= {f"{name} <= {bound}": values <= bound for bound in P_VALUE_BUCKETS}
    found |= {
        f"predicted {label}": np.array([one.label == label for one in WORDS]) for label in tiny_screen().class_names
    }
    return found


def accuracy(changes: NDArray[np.float64], bit: NDArray[np.bool_]) -> float:
    """Of the best threshold on what changed, either way round."""
    order = np.argsort(changes, kind="stable")
    hits, values = bit[order], changes[order]
    # above each place where the value changes they say yes, below it no
    right = np.concatenate([[hits.sum()], hits.sum() + np.cumsum(np.where(hits, -1, 1))])
    places = np.concatenate([[True], values[1:] != values[:-1], [True]])
    best = max(right[places].max(), (len(bit) - right[places]).max())
    return float(best) / len(bit)


@dataclass
class Attacker:
    """Sends images one by one and looks at the page after each.

    Attributes:
        changes: of each series on the page, by request.
        told: what the answers said, which is no secret.
    """

    changes: dict[Series, NDArray[np.float64]]
    told: list[str]

    def wrong(self, bit: NDArray[np.bool_]) -> float:
        """The share of the images that he gets wrong who has the answers and not the page."""
        likely = [bit[np.array(self.told) == word].mean() for word in self.told]
        return float(np.minimum(likely, 1 - np.array(likely)).mean())

    def found(self) -> dict[str, Series]:
        """The secrets that a series tells, and which one; what his answers tell him, he needs no page for."""
        secrets: dict[str, Series] = {}
        doubts = {name: self.wrong(bit) for name, bit in bits().items()}
        for series, changes in self.changes.items():
            for name, values in p_values().items():
                # a p-value of 1 is no find: whatever counts requests goes up by 1
                same = (np.isclose(changes, values, rtol=0, atol=1e-9) & (values < 1)).sum()
                rank = 0.0 if len(set(changes)) < 3 else abs(float(spearmanr(changes, values)[0]))
                if same >= 3 or rank > SURE:
                    secrets[f"p-values of {name}"] = series
            for name, bit in bits().items():
                # a threshold on noise, such as the time of a request, finds some of a few by chance
                if doubts[name] >= 0.1 and 1 - accuracy(changes, bit) < min(doubts[name] / 4, 1 - SURE):
                    secrets[name] = series
        return secrets


Page = dict[Series, float]
Look = Callable[[Running], Awaitable[Page]]


async def metrics(service: Running) -> Page:
    """Every series of the metrics page."""
    status, text = await service.get("/metrics")
    assert status == 200
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def statistics(service: Running) -> Page:
    """Every number of ModelStatistics."""
    stub: Any = inference_pb2_grpc.GRPCInferenceServiceStub(service.channel)  # type: ignore[no-untyped-call]
    answer = await stub.ModelStatistics(inference_pb2.ModelStatisticsRequest())
    return dict(numbers(MessageToDict(answer, always_print_fields_with_no_presence=True)))


def numbers(said: Any, path: str = "") -> Iterator[tuple[Series, float]]:
    """The numbers in a message, by where they are."""
    if isinstance(said, dict | list):
        for key, value in said.items() if isinstance(said, dict) else enumerate(said):
            yield from numbers(value, f"{path}.{key}")
    elif str(said).isdecimal():
        yield (path, ()), float(said)


async def ask(service: Running, image: NDArray[np.uint8]) -> str:
    """What an anonymous client is told of an image."""
    try:
        answer = await service.stub.Screen(request_of(image))
    except grpc.aio.AioRpcError as error:
        return str(error.code())
    assert not (answer.HasField("p_value") or answer.HasField("score") or answer.detectors)
    return f"{answer.verdict}"


async def settled(service: Running) -> None:
    """Until a candidate, too, has seen what was asked."""
    candidate = service.server.repository.candidate
    if candidate is not None:
        await until(candidate._answered.empty)
        await asyncio.get_running_loop().run_in_executor(service.server._inference, lambda: None)
        await asyncio.sleep(0.005)  # its result is counted on this loop


async def attack(service: Running, look: Look) -> Attacker:
    for image in IMAGES:  # the first of a kind take longer, whatever they are
        await ask(service, image)
    await settled(service)
    before, told, steps = await look(service), [], []
    for image in IMAGES:
        told.append(await ask(service, image))
        await settled(service)
        after = await look(service)
        assert set(after) == set(before), "a series appeared, whose name alone may tell something"
        steps.append({series: after[series] - before[series] for series in after})
        before = after
    changed = {series for step in steps for series, change in step.items() if change}
    assert changed
    return Attacker({series: np.array([step[series] for step in steps]) for series in changed}, told)


@asynccontextmanager
async def victim(policy: str, pool: Mapping[str, float], candidate: bool = False) -> AsyncIterator[Running]:
    """A server whose anonymous clients get predictions, and verdicts where the policy shows them."""
    settings = config(policy=policy, metrics=dict(pool), anonymous=frozenset({Role.PREDICT}))
    async with Server(settings) as server:
        another = replace(tiny_served(), bundle_id="b" * 64)
        await server.deploy(tiny_served, (lambda: another) if candidate else None)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.ports.port}") as channel:
            yield Running(server, channel)


def attacked(policy: str, pool: Mapping[str, float], look: Look, candidate: bool = False) -> Attacker:
    async def main() -> Attacker:
        async with victim(policy, pool, candidate) as service:
            return await attack(service, look)

    return asyncio.run(main())


def test_the_attacker_finds_what_is_there_to_be_found() -> None:
    """Else that he finds nothing says nothing."""
    for told in (["?"] * COUNT, [str(one.verdict) for one in WORDS]):
        values: dict[Series, NDArray[np.float64]] = {(name, ()): ps for name, ps in p_values().items()}
        assert set(Attacker(values, told).found()) >= {f"p-values of {name}" for name in p_values()}
    blind = Attacker({(name, ()): bit.astype(float) for name, bit in bits().items()}, ["?"] * COUNT).found()
    assert {"ADVERSARIAL", "CLEAN", "fused <= 0.01", "self_organizing_map <= 0.5"} <= set(blind)


@pytest.mark.parametrize("candidate", [False, True], ids=["alone", "with a candidate"])
def test_without_a_pool_verdicts_and_buckets_can_be_read_off(candidate: bool) -> None:
    found = attacked("monitor", AT_ONCE, metrics, candidate).found()
    assert {"ADVERSARIAL", "CLEAN", "fused <= 0.01", "self_organizing_map <= 0.5", "doubtful <= 0.5"} <= set(found)
    assert len(found) > 10


@pytest.mark.parametrize(
    ("policy", "candidate"),
    [
        pytest.param(policy, candidate, marks=() if candidate and policy is Policy.BLOCK else LASTING)
        for policy, candidate in product(Policy, (False, True))
    ],
)
def test_no_series_tells_how_an_image_was_judged(policy: Policy, candidate: bool) -> None:
    assert attacked(policy.value, POOLED, metrics, candidate).found() == {}


@pytest.mark.acceptance
@pytest.mark.lasting
@pytest.mark.parametrize("policy", Policy)
def test_model_statistics_tell_nothing_of_how_an_image_was_judged(policy: Policy) -> None:
    assert attacked(policy.value, POOLED, statistics).found() == {}


def untimed(page: Page) -> Page:
    """Without times, which are never the same."""
    return {series: value for series, value in page.items() if not re.search("seconds|_created", series[0])}


async def learnt(sent: Sequence[NDArray[np.uint8]]) -> Page:
    """What the page shows after these and no others, times left out."""
    async with victim("monitor", POOLED) as service:
        for image in sent:
            await ask(service, image)
        return untimed(await metrics(service))


def alike_and_not() -> tuple[int, int, int]:
    """Two images of other p-values in the same buckets, and one in another."""
    rows = [tuple(ps[i] for ps in p_values().values()) for i in range(COUNT)]
    said = [(*map(coarse, row), one.label) for row, one in zip(rows, WORDS, strict=True)]
    pairs = ((i, j) for i in range(COUNT) for j in range(i) if said[i] == said[j] and rows[i] != rows[j])
    one, other = next(pairs)
    return one, other, next(i for i in range(COUNT) if said[i] != said[one])


def test_as_many_copies_of_one_image_as_are_shown_together_tell_its_buckets_and_no_more() -> None:
    """The price of an aggregate: he needs so many requests, so much time, and learns a bucket."""
    one, other, different = alike_and_not()

    async def main() -> None:
        first, second, third = [await learnt([IMAGES[i]] * POOL_REQUESTS) for i in (one, other, different)]
        assert first == second
        assert first != third
        assert first[("askance_p_value_count", (("detector", "fused"),))] == POOL_REQUESTS

    asyncio.run(main())


def test_a_victim_among_requests_that_the_attacker_knows_shows_its_buckets_and_no_more() -> None:
    """Differencing: he knows what his own requests add, and one that is not his is left."""
    one, other, _ = alike_and_not()
    own = [noise(900)] * (POOL_REQUESTS - 1)

    async def main() -> None:
        assert await learnt([*own, IMAGES[one]]) == await learnt([*own, IMAGES[other]])

    asyncio.run(main())


def test_copies_of_an_image_in_one_request_are_one_request() -> None:
    batch = np.stack([odd(1)] * 32)
    tensor = inference_pb2.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=batch.shape)
    request = inference_pb2.ModelInferRequest(model_name="tiny", inputs=[tensor], raw_input_contents=[batch.tobytes()])

    async def main() -> None:
        async with victim("monitor", POOLED, candidate=True) as service:
            stub: Any = inference_pb2_grpc.GRPCInferenceServiceStub(service.channel)  # type: ignore[no-untyped-call]
            await stub.ModelInfer(request)
            await settled(service)
            for name in ("askance_p_value_count", "askance_verdicts_total", "askance_candidate_verdicts_total"):
                assert sum(value for (series, _), value in (await metrics(service)).items() if series == name) == 0

    asyncio.run(main())


async def form(service: Running, image: NDArray[np.uint8]) -> tuple[Any, ...]:
    """What of an answer is not the prediction itself: which fields it has, or its error, and what comes along."""
    call = service.stub.Screen(request_of(image))
    said: tuple[Any, ...]
    try:
        said = tuple(field.name for field, _ in (await call).ListFields())
    except grpc.aio.AioRpcError as error:
        said = (error.code(), error.details())
    along = [(key, "" if key == REQUEST_ID else value) for key, value in await call.trailing_metadata()]
    return (*said, *sorted(along))


def test_under_monitor_all_answers_have_one_form() -> None:
    async def main() -> None:
        async with victim("monitor", AT_ONCE) as service:
            assert len({await form(service, image) for image in IMAGES}) == 1

    asyncio.run(main())


def test_under_block_all_blocked_images_get_one_error() -> None:
    """However sure the detectors are of them."""
    bad = [i for i, word in enumerate(WORDS) if word.verdict is Verdict.ADVERSARIAL]
    assert len({tuple(ps[i] for ps in p_values().values()) for i in bad}) > 1

    async def main() -> None:
        async with victim("block", AT_ONCE) as service:
            assert len({await form(service, IMAGES[i]) for i in bad}) == 1

    asyncio.run(main())
