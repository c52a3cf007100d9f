"""The table [model]: what clients of another server call things, and normalise, is taken and echoed as they have it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from inference_support import IMAGES, SERVER, found_by
from rest_support import as_json, ask
from service_support import (
    AT_ONCE_TOML,
    CLASSES,
    GREY,
    Running,
    config,
    publish_tiny,
    running,
    tiny_screen,
    tiny_served,
)

from askance.errors import ConfigError
from askance.screening.images import ROUNDING, ImageError, of_normalised
from askance.service.config import ServerConfig
from askance.service.launch import launched
from askance.service.pb.inference import inference_pb2 as pb
from askance.service.pb.inference import inference_pb2_grpc
from askance.service.protocols.inference_tensors import OUTPUT_NAMES, outputs_of
from askance.service.server import Server

OLD_CLIENT = Path(__file__).with_name("triton_old_client.py")
MODEL = """
[model]
names = ["resnet50"]
versions = ["1"]
input = "normalised"
inputs = { input__0 = "image", files = "encoded" }
outputs = { output__0 = "logits", classes = "label" }
"""
ALIASES: dict[str, Any] = {
    "names": ["resnet50", "resnet"],
    "versions": ["1", "latest"],
    "inputs": {"input__0": "image", "files": "encoded"},
    "outputs": {"output__0": "probabilities", "classes": "label"},
}
NORMALISED = {"model": {"input": "normalised"}}


def normalised(images: np.ndarray[Any, Any] = IMAGES) -> np.ndarray[Any, Any]:
    return ((images / 255 - GREY.mean[0]) / GREY.std[0]).astype(np.float32)


@pytest.fixture(scope="module")
def old_client(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an unmodified tritonclient with the names of another server got."""
    folder = tmp_path_factory.mktemp("old")
    bundle = publish_tiny(folder / "bundle", "service_support:TinyClassifier")
    settings = folder / "server.toml"
    settings.write_text(AT_ONCE_TOML.read_text() + MODEL)
    with launched(["-c", SERVER.replace(repr(str(AT_ONCE_TOML)), repr(str(settings))), str(folder / "bundle")]) as said:
        found = found_by(OLD_CLIENT, folder, *(f"{said.host}:{port}" for port in (said.port, said.rest_port)))
    return found | {"version": bundle[:12]}


@pytest.mark.parametrize("carrier", ["grpc", "rest"])
def test_an_application_of_another_server_runs_unmodified(old_client: dict[str, Any], carrier: str) -> None:
    found, version = old_client[carrier], old_client["version"]
    assert found["ready"]
    assert found["said"] == ["resnet50", "1"]
    assert found["outputs"] == ["output__0"]
    assert found["default"][:2] == ["output__0", "classes"]
    assert {"verdict", "probabilities"} < set(found["default"])
    with torch.no_grad():
        own = tiny_screen().reader.classify(torch.from_numpy(IMAGES).float() / 255)
    np.testing.assert_allclose(found["logits"], own, rtol=1e-3, atol=1e-4)
    assert [text.split(":")[2] for text in found["top"]] == [CLASSES[i] for i in own.argmax(axis=1)]
    assert (found["metadata"]["name"], found["metadata"]["versions"]) == ("resnet50", [version, "1"])
    assert [one["name"] for one in found["metadata"]["inputs"]] == ["input__0", "files"]
    assert found["metadata"]["outputs"][0]["name"] == "output__0"
    described = found["config"].get("config", found["config"])
    assert (described["name"], described["input"][0]["name"]) == ("resnet50", "input__0")
    assert described["parameters"]["input"] == {"string_value": "normalised"}
    assert json.loads(described["parameters"]["mean"]["string_value"]) == list(GREY.mean)
    (row,) = found["statistics"]["model_stats"]
    assert (row["name"], row["version"]) == ("resnet50", "1")
    index = found["index"] if isinstance(found["index"], list) else found["index"]["models"]
    named = {(one["name"], one["version"]) for one in index}
    assert named == {(name, one) for name in ("tiny", "resnet50") for one in (version, "1")}


def stub_of(service: Running) -> Any:
    return inference_pb2_grpc.GRPCInferenceServiceStub(service.channel)  # type: ignore[no-untyped-call]


def request(name: str = "image", images: np.ndarray[Any, Any] = IMAGES, **fields: Any) -> pb.ModelInferRequest:
    datatype = {"u": "UINT8", "f": "FP32"}[images.dtype.kind]
    tensor = pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=images.shape)
    sent: dict[str, Any] = {"model_name": "tiny", "inputs": [tensor], "raw_input_contents": [images.tobytes()]}
    return pb.ModelInferRequest(**(sent | fields))


async def refused(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return str(caught.value.details())


def test_our_own_names_are_taken_and_echoed_beside_the_others() -> None:
    async def main() -> None:
        async with running(tiny_served(), config(model=ALIASES)) as service:
            stub, version = stub_of(service), service.server.repository.default.version
            for model, asked, said in (
                ("tiny", "", version),
                ("resnet50", "", version),
                ("resnet", "latest", "latest"),
                ("tiny", version, version),
            ):
                for name in ("image", "input__0"):
                    wanted = ["verdict", "output__0", "probabilities", "classes"]
                    outputs = [pb.ModelInferRequest.InferRequestedOutputTensor(name=one) for one in wanted]
                    answer = await stub.ModelInfer(
                        request(name, model_name=model, model_version=asked, outputs=outputs)
                    )
                    assert (answer.model_name, answer.model_version) == (model, said)
                    assert [one.name for one in answer.outputs] == wanted
                    assert answer.raw_output_contents[1] == answer.raw_output_contents[2]
            metadata = await stub.ModelMetadata(pb.ModelMetadataRequest(name="tiny"))
            assert metadata.name == "tiny"
            plain = await stub.ModelInfer(request())
            unexplained = [one.name for one in metadata.outputs if one.name != "explanation"]
            assert [one.name for one in plain.outputs] == unexplained
            assert [one.name for one in plain.outputs][:3] == ["output__0", "classes", "index"]

    asyncio.run(main())


def test_errors_speak_the_names_that_the_client_used() -> None:
    async def main() -> None:
        async with running(tiny_served(), config(model=ALIASES)) as service:
            stub, version = stub_of(service), service.server.repository.default.version
            assert await refused(stub.ModelInfer(request("pixels"))) == (
                "inputs[0].name: expected input__0 or files, got 'pixels'"
            )
            line = await refused(stub.ModelInfer(request("input__0", IMAGES[:, :, :4])))
            assert line.startswith("input__0.shape: expected [N, 1, 8, 8]")
            line = await refused(stub.ModelInfer(request("image", np.full((1, 1, 8, 8), 9, np.float32))))
            assert line.startswith("image: expected finite values in [0, 1], got 9")
            tensor = pb.ModelInferRequest.InferInputTensor(name="files", datatype="BYTES", shape=[1])
            tensor.contents.bytes_contents.append(b"nonsense")
            line = await refused(stub.ModelInfer(pb.ModelInferRequest(model_name="tiny", inputs=[tensor])))
            assert line.startswith("files: expected a PNG, JPEG or WebP image")
            outputs = [pb.ModelInferRequest.InferRequestedOutputTensor(name="nothing")]
            line = await refused(stub.ModelInfer(request(outputs=outputs)))
            assert line.startswith("outputs: expected names among output__0, classes, index, logits, verdict")
            assert await refused(stub.ModelInfer(request(model_name="vgg"))) == (
                f"model 'vgg' is not served: tiny or resnet50 or resnet version {version}, 1, latest is"
            )

    asyncio.run(main())


def test_the_default_version_cannot_be_unloaded_by_another_name_either() -> None:
    async def main() -> None:
        async with running(tiny_served(), config(model=ALIASES, anonymous=["predict", "admin"])) as service:
            unload = pb.RepositoryModelUnloadRequest(model_name="resnet50")
            unload.parameters["version"].string_param = "1"
            version = service.server.repository.default.version
            line = await refused(stub_of(service).RepositoryModelUnload(unload))
            assert line == f"version {version} is the default one: stop the server instead"
            await stub_of(service).RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="resnet50"))

    asyncio.run(main())


def test_an_alias_grants_nothing() -> None:
    async def main() -> None:
        settings = config(model={"outputs": {"output__0": "logits", "p": "p_value"}}, anonymous=["predict"])
        async with running(tiny_served(), settings) as service:
            for name, role in (("output__0", "logits"), ("p", "scores")):
                outputs = [pb.ModelInferRequest.InferRequestedOutputTensor(name=name)]
                line = await refused(stub_of(service).ModelInfer(request(outputs=outputs)))
                assert line.startswith(f"the output {name} takes a client with the role '{role}'")
            plain = await stub_of(service).ModelInfer(request())
            assert [one.name for one in plain.outputs] == ["label", "index", "probabilities", "verdict", "error"]

    asyncio.run(main())


def test_normalised_floats_are_the_pixels_that_they_were_made_of() -> None:
    """Over gRPC and HTTP; bytes, and the tensors of askance.v1.Screening, are pixels all the same."""

    async def main() -> None:
        async with running(tiny_served(), config(rest_port=0, **NORMALISED)) as service:
            port, stub = service.server.ports.others["rest"], stub_of(service)
            as_bytes = await stub.ModelInfer(request())
            floats = await stub.ModelInfer(request(images=normalised()))
            found = [
                dict(zip((o.name for o in a.outputs), a.raw_output_contents, strict=True)) for a in (as_bytes, floats)
            ]
            for name in ("label", "verdict"):
                assert found[0][name] == found[1][name]
            scores = [np.frombuffer(one["score"]) for one in found]
            np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4, atol=1e-5)
            reply = await ask(port, "/v2/models/tiny/infer", as_json(normalised()))
            np.testing.assert_allclose(reply.outputs["score"], scores[0], rtol=1e-4, atol=1e-5)

            wrong = normalised()[:1].copy()
            wrong[0, 0, 3, 4] = 12
            pixel = 12 * GREY.std[0] + GREY.mean[0]
            line = (
                f"image: expected pixels in [0, 1] normalised by mean {list(GREY.mean)} and std {list(GREY.std)}, "
                f"got 12 at [0, 3, 4], which would be the pixel {pixel:g}"
            )
            assert await refused(stub.ModelInfer(request(images=wrong))) == line
            assert (await ask(port, "/v2/models/tiny/infer", as_json(wrong))).error == line

    asyncio.run(main())


@pytest.mark.parametrize("pixel", [-ROUNDING / 2, 0.0, 1.0, 1 + ROUNDING / 2])
def test_rounding_noise_of_a_normalisation_is_no_error(pixel: float) -> None:
    sent = np.full(GREY.shape, (pixel - GREY.mean[0]) / GREY.std[0], np.float32)
    assert float(np.abs(of_normalised(sent, GREY) - round(pixel)).max()) < 1e-6


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_no_normalised_pixel(value: float) -> None:
    sent = np.zeros(GREY.shape, np.float32)
    sent[0, 1, 2] = value
    with pytest.raises(ImageError, match=rf"got {value:g} at \[0, 1, 2\]$"):
        of_normalised(sent, GREY)


def test_what_a_client_may_be_told_is_what_an_answer_can_hold() -> None:
    assert tuple(outputs_of(tiny_screen())) == OUTPUT_NAMES


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (
            'outputs = { out = "logit" }',
            "model.outputs: there is no 'logit' to be called 'out': did you mean 'logits'?",
        ),
        (
            'outputs = { label = "probabilities" }',
            "model.outputs: 'probabilities' cannot be called 'label': that is another",
        ),
        ('outputs = { a = "label", b = "label" }', "model.outputs: 'label' has two other names, 'a' and 'b'"),
        ('inputs = { x = "pixels" }', "model.inputs: there is no 'pixels' to be called 'x': known: image, encoded"),
        (
            'inputs = { encoded = "image" }',
            "model.inputs: 'image' cannot be called 'encoded': that is another one's own",
        ),
        ('versions = ["0123456789ab"]', "model.versions: 0123456789ab could be a bundle's own"),
        ('names = ["a/b"]', "model.names.0: string should match pattern"),
        ('input = "normalized"', "model.input: unknown 'normalized': did you mean 'normalised'?"),
        ("name = 'old'", "unknown setting 'model.name': did you mean 'names'?"),
    ],
)
def test_a_name_that_cannot_be_is_refused_in_one_line(tmp_path: Path, model: str, line: str) -> None:
    path = tmp_path / "server.toml"
    path.write_text(f"port = 0\nmetrics_port = 0\n[model]\n{model}\n")

    async def listen() -> None:
        async with Server(ServerConfig.load(path)):
            pass

    with pytest.raises(ConfigError) as caught:
        asyncio.run(listen())
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
