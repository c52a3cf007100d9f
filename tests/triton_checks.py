"""What an unmodified tritonclient gets from a live server, as JSON: python triton_checks.py HOST:PORT MODEL FILE.npz.

Run in a process of its own: tritonclient defines the package `inference`, too.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

OUTPUTS = ("label", "index", "probabilities", "verdict", "p_value", "score", "p_values", "scores", "error")


def inputs_of(name: str, values: Any, datatype: str, *, raw: bool = True) -> list[Any]:
    tensor = triton.InferInput(name, values.shape, datatype)
    tensor.set_data_from_numpy(values)
    return [tensor]


def plain(result: Any, names: tuple[str, ...] = OUTPUTS) -> dict[str, Any]:
    """Arrays as lists, bytes as text."""
    found = {name: result.as_numpy(name) for name in names}
    content = {
        name: None
        if array is None
        else [[x.decode() if isinstance(x, bytes) else x for x in row] for row in array.tolist()]
        for name, array in found.items()
    }
    response = result.get_response()
    return content | {"id": response.id, "bundle_id": response.parameters["bundle_id"].string_param}


def refused(call: Any) -> list[str]:
    try:
        call()
    except InferenceServerException as error:
        return [str(error.status()), str(error.message())]
    raise AssertionError("the call succeeded")


def sync_checks(client: Any, model: str, images: Any, files: Any) -> dict[str, Any]:
    floats = (images / 255).astype(np.float32)
    spoiled = floats.copy()
    spoiled[1, 0, 0, 0] = np.nan
    some = [triton.InferRequestedOutput(name) for name in ("verdict", "explanation", "p_value")]

    def infer(name: str, values: Any, datatype: str, **more: Any) -> Any:
        return client.infer(more.pop("model", model), inputs_of(name, values, datatype), **more)

    subset = infer("image", images, "UINT8", outputs=some)
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": [
            client.is_model_ready(model),
            client.is_model_ready("another"),
            client.is_model_ready(model, "12"),
        ],
        "server": client.get_server_metadata(as_json=True),
        "metadata": client.get_model_metadata(model, as_json=True),
        "config": client.get_model_config(model, as_json=True),
        "index": client.get_model_repository_index(as_json=True),
        "uint8": plain(infer("image", images, "UINT8", request_id="seven")),
        "fp32": plain(infer("image", floats, "FP32")),
        "encoded": plain(infer("encoded", files, "BYTES")),
        "subset": plain(subset, ("verdict", "explanation", "p_value")),
        "subset_names": [output.name for output in subset.get_response().outputs],
        "spoiled": plain(infer("image", spoiled, "FP32")),
        "statistics": client.get_inference_statistics(model, as_json=True),
        "refused": {
            "shape": refused(lambda: infer("image", images[:, :, :4], "UINT8")),
            "datatype": refused(lambda: infer("image", floats.astype(np.float64), "FP64")),
            "name": refused(lambda: infer("pixels", images, "UINT8")),
            "model": refused(lambda: infer("image", images, "UINT8", model="another")),
            "version": refused(lambda: infer("image", images, "UINT8", model_version="12")),
            "output": refused(lambda: infer("image", images, "UINT8", outputs=[triton.InferRequestedOutput("logits")])),
            "batch": refused(lambda: infer("image", np.repeat(images, 100, axis=0), "UINT8")),
            "only_nan": refused(lambda: infer("image", spoiled[1:2], "FP32")),
            "shared_memory": refused(client.get_system_shared_memory_status),
            "deadline": refused(lambda: infer("image", images, "UINT8", client_timeout=1e-6)),
        },
    }


def stream_checks(client: Any, model: str, images: Any) -> list[Any]:
    """Five requests through one stream, the third for a model that is not there."""
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    for i in range(5):
        name = "another" if i == 2 else model
        client.async_stream_infer(name, inputs_of("image", images[i : i + 1], "UINT8"), request_id=str(i))
    rows = []
    for _ in range(5):
        result, error = answers.get(timeout=60)
        rows.append(plain(result) if error is None else str(error))
    client.stop_stream()
    return rows


async def asyncio_checks(target: str, model: str, images: Any) -> dict[str, Any]:
    async with triton_aio.InferenceServerClient(target) as client:
        results = await asyncio.gather(
            *(client.infer(model, inputs_of("image", image[None], "UINT8")) for image in images)
        )

        async def requests() -> Any:
            for i, image in enumerate(images):
                yield {"model_name": model, "inputs": inputs_of("image", image[None], "UINT8"), "request_id": str(i)}

        streamed = [plain(result) async for result, error in client.stream_infer(requests()) if error is None]
        return {"ready": await client.is_server_ready(), "single": [plain(r) for r in results], "streamed": streamed}


def protocol() -> dict[str, Any]:
    """The messages of tritonclient's own stubs: {message: {field: [number, type, repeated]}}."""
    found: dict[str, Any] = {}

    def add(messages: Any) -> None:
        for message in messages:
            found[message.full_name] = {
                field.name: [field.number, field.type, field.is_repeated] for field in message.fields
            }
            add(message.nested_types)

    for file in (service_pb2, model_config_pb2):
        add(file.DESCRIPTOR.message_types_by_name.values())
    return found


def main(target: str, model: str, path: str) -> None:
    content = np.load(path)
    images, lengths = content["images"], content["lengths"]
    ends = np.cumsum(lengths)
    pieces = [content["files"][end - n : end].tobytes() for n, end in zip(lengths, ends, strict=True)]
    files = np.array(pieces, dtype=object)[:, None]
    with triton.InferenceServerClient(target) as client:
        found = sync_checks(client, model, images, files) | {"stream": stream_checks(client, model, images)}
    found["protocol"] = protocol()
    found["asyncio"] = asyncio.run(asyncio_checks(target, model, images))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:4])
