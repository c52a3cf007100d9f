"""Who a client is and what it may do: tokens, certificates, roles, disclosure; over real TLS."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import trustme
from pydantic import ValidationError
from service_support import config, noise, running, status_of, tiny_screen, until
from tls_support import Pems

from askance.__main__ import run as askance
from askance.__main__ import run as run_askance
from askance.errors import ConfigError
from askance.service.call import ANONYMOUS, Role
from askance.service.client import Client
from askance.service.client_messages import Credentials, request_of, token_of
from askance.service.errors import Code, StatusError
from askance.service.guard.access import Access, ClientConfig, Shown, new_token
from askance.service.guard.tls import Certificates, TlsConfig
from askance.service.pb.askance.v1 import screening_pb2 as pb
from askance.service.pb.askance.v1 import screening_pb2_grpc
from askance.service.pb.inference import inference_pb2, inference_pb2_grpc
from askance.service.protocols.inference_tensors import outputs_of

TOKENS = {name: new_token() for name in ("gateway", "analyst", "operator", "nothing")}
ROLES: dict[str, list[Role]] = {
    "gateway": [Role.PREDICT],
    "analyst": [Role.PREDICT, Role.LOGITS, Role.SCORES, Role.EXPLANATIONS],
    "operator": [Role.ADMIN],
    "nothing": [],
}
CLIENTS = tuple(
    ClientConfig(name=name, token_sha256=TOKENS[name][1], roles=frozenset(roles)) for name, roles in ROLES.items()
)
UNAUTHENTICATED, DENIED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED
INVALID = grpc.StatusCode.INVALID_ARGUMENT


def bearer(name: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {TOKENS[name][0]}")]


# Identities


def test_a_token_is_known_by_its_hash_alone() -> None:
    token, digest = new_token()
    assert digest == hashlib.sha256(token.encode()).hexdigest()
    assert len(token) >= 43  # 256 bits
    assert token != new_token()[0]
    access = Access(CLIENTS, [Role.PREDICT])
    for name, roles in ROLES.items():
        found = access.identify(Shown([value for _, value in bearer(name)]))
        assert (found.name, found.roles) == (name, frozenset(roles))
    assert access.identify(Shown()).name == ANONYMOUS
    assert TOKENS["gateway"][0] not in repr(access.__dict__)


@pytest.mark.parametrize(
    "metadata",
    [
        [("authorization", "Bearer wrong")],
        [("authorization", "Bearer ")],
        [("authorization", f"Basic {TOKENS['gateway'][0]}")],
        [("authorization", TOKENS["gateway"][0])],
        [("authorization", f"Bearer {TOKENS['gateway'][1]}")],  # the hash is no token
        [*bearer("gateway"), *bearer("analyst")],
    ],
    ids=["wrong", "empty", "basic", "bare", "the hash", "two"],
)
def test_a_token_of_nobodys_is_refused_not_taken_for_an_anonymous_one(metadata: list[tuple[str, str]]) -> None:
    with pytest.raises(StatusError) as caught:
        Access(CLIENTS, list(Role)).identify(Shown([value for _, value in metadata]))
    assert caught.value.code is Code.UNAUTHENTICATED
    assert all(word not in str(caught.value) for word in ("wrong", TOKENS["gateway"][0]))


def test_a_certificate_is_known_by_its_names() -> None:
    known = ClientConfig(name="edge", certificate="edge.example", roles=frozenset({Role.SCORES}))
    access = Access([known], [])
    assert access.identify(Shown(certificates=["other", "edge.example"])).name == "edge"
    assert access.identify(Shown(certificates=["other"])).name == ANONYMOUS


def test_a_client_must_be_known_by_something() -> None:
    with pytest.raises(ValidationError, match="a client is known by token_sha256 or by certificate: give one"):
        ClientConfig(name="nobody")
    with pytest.raises(ValidationError, match="token_sha256"):
        ClientConfig(name="plain", token_sha256="secret")


# Roles over gRPC

GRANTED = (
    "the server's settings grant roles (access.clients; for everyone access.anonymous, or askance serve --disclose)"
)


@asynccontextmanager
async def guarded(anonymous: Iterable[Role] = ()) -> AsyncIterator[Any]:
    async with running(settings=config(clients=CLIENTS, anonymous=frozenset(anonymous))) as service:
        yield service


def infer(names: Iterable[str] = ()) -> inference_pb2.ModelInferRequest:
    images = np.stack([noise(1), noise(2)])
    tensor = inference_pb2.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=images.shape)
    request = inference_pb2.ModelInferRequest(model_name="tiny", inputs=[tensor], raw_input_contents=[images.tobytes()])
    for name in names:
        request.outputs.add(name=name)
    return request


@pytest.mark.parametrize(
    ("name", "code"),
    [("gateway", None), ("analyst", None), ("operator", DENIED), ("nothing", DENIED), (None, UNAUTHENTICATED)],
)
def test_who_may_predict(name: str | None, code: grpc.StatusCode | None) -> None:
    async def main() -> None:
        metadata = [] if name is None else bearer(name)
        async with guarded() as service:
            stub: Any = inference_pb2_grpc.GRPCInferenceServiceStub(service.channel)  # type: ignore[no-untyped-call]
            for call in (
                service.stub.Screen(request_of(noise(1)), metadata=metadata),
                service.stub.Describe(pb.DescribeRequest(), metadata=metadata),
                stub.ModelInfer(infer(), metadata=metadata),
            ):
                if code is None:
                    await call
                else:
                    assert (await status_of(call))[0] is code
            # probes carry no token
            assert (await stub.ServerReady(inference_pb2.ServerReadyRequest())).ready
            if code is not None:
                reason = "forbidden" if code is DENIED else "unauthenticated"
                assert service.value("askance_rejected_total", reason=reason) == 3
                assert service.value("askance_requests_total", method="Screen", code=code.name) == 1

    asyncio.run(main())


def test_scores_are_for_whom_they_are_granted() -> None:
    async def main() -> None:
        async with guarded([Role.PREDICT]) as service:
            for metadata in ([], bearer("gateway")):
                answer = await service.stub.Screen(request_of(noise(1)), metadata=metadata)
                assert answer.prediction.name and answer.probabilities and answer.verdict
                assert not (answer.HasField("p_value") or answer.HasField("score"))
                assert not (answer.detectors or answer.reasons)
                call = service.stub.Screen(request_of(noise(1), explain=True), metadata=metadata)
                show = "" if metadata else "send a bearer token, or a certificate, of one; "
                assert await status_of(call) == (
                    DENIED if metadata else UNAUTHENTICATED,
                    f"explain takes a client with the role 'explanations': {show}{GRANTED}",
                )
            answer = await service.stub.Screen(request_of(noise(1), explain=True), metadata=bearer("analyst"))
            assert 0 < answer.p_value <= 1
            assert [reason.name for reason in answer.reasons] == ["manipulated", "unfamiliar", "doubtful"]
            assert answer.reasons[0].p_value == answer.p_value
            assert all(word.HasField("explanation") for word in answer.detectors)

    asyncio.run(main())


def test_outputs_are_for_whom_they_are_granted() -> None:
    every = list(outputs_of(tiny_screen()))
    plain = ["label", "index", "probabilities", "verdict", "error"]

    async def main() -> None:
        async with guarded() as service:
            stub: Any = inference_pb2_grpc.GRPCInferenceServiceStub(service.channel)  # type: ignore[no-untyped-call]
            response = await stub.ModelInfer(infer(), metadata=bearer("gateway"))
            assert [output.name for output in response.outputs] == plain
            for name in every:
                call = stub.ModelInfer(infer([name]), metadata=bearer("gateway"))
                if name in plain:
                    assert (await call).outputs[0].name == name
                else:
                    code, line = await status_of(call)
                    role = {"explanation": "explanations", "logits": "logits"}.get(name, "scores")
                    assert (code, line) == (
                        DENIED,
                        f"the output {name} takes a client with the role '{role}': {GRANTED}",
                    )
            response = await stub.ModelInfer(infer(every), metadata=bearer("analyst"))
            assert [output.name for output in response.outputs] == every

    asyncio.run(main())


@pytest.mark.parametrize("detail", ["verdict", "scores", "explanations"])
def test_a_detail_names_the_outputs_and_takes_their_roles(detail: str) -> None:
    prediction = ["label", "index", "probabilities", "verdict", "error"]
    scores = ["p_value", "score", "p_values", "scores", "reasons"]
    names = {
        "verdict": prediction,
        "scores": prediction + scores,
        "explanations": [*prediction, *scores, "explanation"],
    }

    def detailed(*outputs: str) -> inference_pb2.ModelInferRequest:
        request = infer(outputs)
        request.parameters["detail"].string_param = detail
        return request

    async def main() -> None:
        async with guarded() as service:
            stub: Any = inference_pb2_grpc.GRPCInferenceServiceStub(service.channel)  # type: ignore[no-untyped-call]
            response = await stub.ModelInfer(detailed(), metadata=bearer("analyst"))
            assert {output.name for output in response.outputs} == set(names[detail])
            if detail != "verdict":
                code, _ = await status_of(stub.ModelInfer(detailed(), metadata=bearer("gateway")))
                assert code is DENIED
            code, line = await status_of(stub.ModelInfer(detailed("label"), metadata=bearer("analyst")))
            assert (code, line) == (INVALID, "outputs: expected none beside parameters[detail], got 1")
            wrong = infer()
            wrong.parameters["detail"].string_param = "everything"
            code, line = await status_of(stub.ModelInfer(wrong, metadata=bearer("analyst")))
            expected = "parameters[detail]: expected a string among verdict, scores, explanations, got 'everything'"
            assert (code, line) == (INVALID, expected)

    asyncio.run(main())


def test_a_stream_is_refused_as_a_whole() -> None:
    async def main() -> None:
        async with guarded() as service:
            call = service.stub.ScreenStream(iter([request_of(noise(1))]))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                _ = [answer async for answer in call]
            assert caught.value.code() is UNAUTHENTICATED
            granted = service.stub.ScreenStream(iter([request_of(noise(1))]), metadata=bearer("gateway"))
            answers = [answer async for answer in granted]
            assert [answer.WhichOneof("outcome") for answer in answers] == ["response"]
            assert answers[0].response.p_value == 0.0

    asyncio.run(main())


def test_reflection_can_be_switched_off() -> None:
    async def main() -> None:
        async with running(settings=config(reflection=False)) as service:
            method = service.channel.stream_stream(
                "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                request_serializer=bytes,
                response_deserializer=bytes,
            )
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                _ = [answer async for answer in method(iter([b""]))]
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    asyncio.run(main())


def test_no_token_reaches_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with guarded() as service:
            await service.stub.Screen(request_of(noise(1)), metadata=bearer("gateway"))
            await status_of(
                service.stub.Screen(request_of(noise(1)), metadata=[("authorization", "Bearer a-wrong-secret")])
            )

    with caplog.at_level(0):
        asyncio.run(main())
    assert all(word not in caplog.text for word in ("a-wrong-secret", TOKENS["gateway"][0]))


# TLS


@pytest.fixture
def pems(tmp_path: Path) -> Pems:
    return Pems(tmp_path, trustme.CA())


@asynccontextmanager
async def over_tls(pems: Pems, *, mutual: bool, **settings: Any) -> AsyncIterator[Any]:
    certificate, key = pems.issue("server", "127.0.0.1", "localhost")
    tls = TlsConfig(certificate=certificate, key=key, client_ca=pems.ca if mutual else None)
    async with running(settings=config(tls=tls, **settings)) as service:
        yield service


async def ask(service: Any, credentials: Credentials) -> str:
    """The prediction, or the status code of the failure."""

    def call() -> str:
        with Client(service.target, timeout=10, credentials=credentials) as client:
            try:
                return client.screen(noise(1)).label or ""
            except Exception as error:
                return f"{error}"

    return await asyncio.to_thread(call)


def test_tls_serves_whoever_believes_it(pems: Pems) -> None:
    async def main() -> None:
        async with over_tls(pems, mutual=False) as service:
            assert await ask(service, Credentials(ca=pems.ca)) in ("ant", "bee", "cat", "dog")
            foreign = pems.write("other.pem", trustme.CA().cert_pem.bytes())
            assert await ask(service, Credentials(ca=foreign)) not in ("ant", "bee", "cat", "dog")
            assert await ask(service, Credentials()) not in ("ant", "bee", "cat", "dog")

    asyncio.run(main())


def test_mutual_tls_wants_a_certificate_of_its_own_authority(pems: Pems) -> None:
    from datetime import UTC, datetime, timedelta

    known = ClientConfig(name="edge", certificate="edge.example", roles=frozenset({Role.PREDICT}))

    async def main() -> None:
        async with over_tls(pems, mutual=True, clients=(known,), anonymous=frozenset()) as service:

            async def with_certificate(files: tuple[Path, Path]) -> str:
                return await ask(service, Credentials(pems.ca, None, *files))

            classes = ("ant", "bee", "cat", "dog")
            assert await with_certificate(pems.issue("edge", "edge.example")) in classes
            assert await ask(service, Credentials(ca=pems.ca)) not in classes
            foreign = pems.issue("foreign", "edge.example", authority=trustme.CA())
            assert await with_certificate(foreign) not in classes
            yesterday = datetime.now(UTC) - timedelta(days=1)
            expired = pems.issue(
                "expired", "edge.example", not_before=yesterday - timedelta(days=1), not_after=yesterday
            )
            assert await with_certificate(expired) not in classes
            # of the right authority, but nobody's
            assert "send a bearer token, or a certificate, of one" in await with_certificate(
                pems.issue("guest", "guest.example")
            )

    asyncio.run(main())


def test_a_renewed_certificate_is_served_and_a_broken_one_is_not(pems: Pems, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with over_tls(pems, mutual=False) as service:
            classes = ("ant", "bee", "cat", "dog")
            old = pems.ca.read_bytes()
            first, second = pems.write("first.pem", old), pems.folder / "second.pem"
            assert await ask(service, Credentials(ca=first)) in classes
            pems.authority = trustme.CA()
            pems.issue("server", "127.0.0.1")
            second.write_bytes(pems.authority.cert_pem.bytes())
            assert await ask(service, Credentials(ca=second)) in classes
            assert await ask(service, Credentials(ca=first)) not in classes
            pems.write("server.key", b"half of a ke")
            assert await ask(service, Credentials(ca=second)) in classes
            await until(lambda: "the certificates are not renewed: tls: " in caplog.text)

    asyncio.run(main())


def test_files_that_are_no_certificate_are_refused_at_the_start(pems: Pems) -> None:
    certificate, key = pems.issue("server", "127.0.0.1")
    with pytest.raises(ConfigError, match=r"tls: .*none\.pem cannot be read: No such file or directory"):
        Certificates(TlsConfig(certificate=pems.folder / "none.pem", key=key))
    other, _ = pems.issue("other", "127.0.0.1")
    with pytest.raises(ConfigError, match=r"tls: .*other\.pem and .*server\.key are not a certificate and its key"):
        pems.issue("server", "127.0.0.1")
        Certificates(TlsConfig(certificate=other, key=key))
    assert certificate.exists()


# The client


def test_a_token_never_goes_in_the_clear_over_a_network(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a token for 10\.0\.0\.1:8500 would be sent in the clear"):
        Client("10.0.0.1:8500", credentials=Credentials(token="secret"))
    for here in ("127.0.0.1:1", "[::1]:1", "localhost:1"):
        Client(here, credentials=Credentials(token="secret")).close()
    path = tmp_path / "token"
    path.write_text("  abc-DEF_1\n")
    assert token_of(path) == "abc-DEF_1"
    for bad in ("", "two words", "tab\there", "é"):
        path.write_text(bad)
        with pytest.raises(ConfigError, match="holds no token"):
            token_of(path)


def test_the_command_makes_tokens_and_sends_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> int:
        return askance(arguments)

    assert run("token") == 0
    token, line = capsys.readouterr().out.splitlines()
    digest = line.removeprefix('token_sha256 = "').removesuffix('"')
    assert hashlib.sha256(token.encode()).hexdigest() == digest
    client = ClientConfig(name="cli", token_sha256=digest, roles=frozenset({Role.PREDICT, Role.SCORES}))
    image, held = tmp_path / "image.png", tmp_path / "token"
    held.write_text(token)
    from PIL import Image

    Image.fromarray(noise(3)[0]).save(image)

    async def main() -> list[int]:
        async with running(settings=config(clients=(client,), anonymous=frozenset())) as service:
            plain = ["screen", str(image), "--target", service.target]
            known = [*plain, "--token-file", str(held), "--json", str(tmp_path / "out.json")]
            return [await asyncio.to_thread(run, *arguments) for arguments in (plain, known)]

    assert asyncio.run(main()) == [2, 0]
    (row,) = json.loads((tmp_path / "out.json").read_text())["images"]
    assert 0 < row["p_value"] <= 1


def test_explaining_without_the_role_names_it_once_and_what_grants_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    for path in paths:
        Image.fromarray(noise(3)[0]).save(path)

    async def main() -> int:
        async with running(settings=config(anonymous=frozenset({Role.PREDICT}))) as service:
            return await asyncio.to_thread(run_askance, ["screen", *paths, "--target", service.target, "--explain"])

    assert asyncio.run(main()) == 2
    said = capsys.readouterr()
    assert said.err == (
        f"askance: {', '.join(paths)}: explain takes a client with the role 'explanations': "
        f"send a bearer token, or a certificate, of one; {GRANTED}\n"
    )
    assert "explanations" not in said.out


def test_the_stub_needs_no_more_than_metadata() -> None:
    """A plain gRPC client in any language: the header, and nothing of ours."""

    async def main() -> None:
        async with guarded() as service, grpc.aio.insecure_channel(service.target) as channel:
            stub: Any = screening_pb2_grpc.ScreeningStub(channel)  # type: ignore[no-untyped-call]
            assert (await stub.Screen(request_of(noise(1)), metadata=bearer("gateway"))).prediction.name

    asyncio.run(main())
