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
from triton_support import OUTPUTS, load, refusals, refused, rows, spoilt, state
from tritonclient.grpc import model_config_pb2, service_pb2


def inputs_of(name: str, values: Any, datatype: str, *, raw: bool = True) -> list[Any]:
    tensor = triton.InferInput(name, values.shape, datatype)
    tensor.set_data_from_numpy(values)
    return [tensor]


def plain(result: Any, names: tuple[str, ...] = OUTPUTS) -> dict[str, Any]:
    """All outputs, and what goes with them."""
    response = result.get_response()
    content = {name: rows(result.as_numpy(name)) for name in names}
    return content | {"id": response.id, "bundle_id": response.parameters["bundle_id"].string_param}


def sync_checks(client: Any, model: str, images: Any, files: Any) -> dict[str, Any]:
    floats = (images / 255).astype(np.float32)
    some = [triton.InferRequestedOutput(name) for name in ("verdict", "explanation", "p_value")]

    def infer(name: str, values: Any, datatype: str, **more: Any) -> Any:
        return client.infer(more.pop("model", model), inputs_of(name, values, datatype), **more)

    subset = infer("image", images, "UINT8", outputs=some)
    return state(client, model) | {
        "server": client.get_server_metadata(as_json=True),
        "metadata": client.get_model_metadata(model, as_json=True),
        "config": client.get_model_config(model, as_json=True),
        "index": client.get_model_repository_index(as_json=True),
        "uint8": plain(infer("image", images, "UINT8", request_id="seven")),
        "fp32": plain(infer("image", floats, "FP32")),
        "encoded": plain(infer("encoded", files, "BYTES")),
        "subset": plain(subset, ("verdict", "explanation", "p_value")),
        "subset_names": [output.name for output in subset.get_response().outputs],
        "spoiled": plain(infer("image", spoilt(images), "FP32")),
        "statistics": client.get_inference_statistics(model, as_json=True),
        "refused": refusals(client, infer, triton.InferRequestedOutput, images)
        | {"deadline": refused(lambda: infer("image", images, "UINT8", client_timeout=1e-6))},
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
    images, files = load(path)
    with triton.InferenceServerClient(target) as client:
        found = sync_checks(client, model, images, files) | {"stream": stream_checks(client, model, images)}
    found["protocol"] = protocol()
    found["asyncio"] = asyncio.run(asyncio_checks(target, model, images))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:4])
