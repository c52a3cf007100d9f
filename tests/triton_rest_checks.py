"""What an unmodified tritonclient gets over HTTP, as JSON: python triton_rest_checks.py HOST:PORT MODEL FILE.npz.

Run in a process of its own: tritonclient brings an event loop of its own, and packages with names that ours have.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import numpy as np
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from triton_support import OUTPUTS, load, refusals, refused, rows, spoilt, state


def inputs_of(name: str, values: Any, datatype: str, *, binary: bool = True) -> list[Any]:
    tensor = triton.InferInput(name, values.shape, datatype)
    tensor.set_data_from_numpy(values, binary_data=binary)
    return [tensor]


def plain(result: Any, names: tuple[str, ...] = OUTPUTS) -> dict[str, Any]:
    """All outputs, and what goes with them."""
    content: dict[str, Any] = {name: rows(result.as_numpy(name)) for name in names}
    response = result.get_response()
    return content | {"id": response.get("id", ""), "bundle_id": response["parameters"]["bundle_id"]}


def sync_checks(client: Any, model: str, images: Any, files: Any) -> dict[str, Any]:
    floats = (images / 255).astype(np.float32)
    as_json = [triton.InferRequestedOutput(name, binary_data=False) for name in OUTPUTS]
    some = [triton.InferRequestedOutput(name) for name in ("verdict", "explanation", "p_value")]
    top = [triton.InferRequestedOutput("probabilities", class_count=2)]
    top_json = [triton.InferRequestedOutput("probabilities", binary_data=False, class_count=2)]

    def infer(name: str, values: Any, datatype: str, **more: Any) -> Any:
        binary = more.pop("binary", True)
        return client.infer(more.pop("model", model), inputs_of(name, values, datatype, binary=binary), **more)

    subset = infer("image", images, "UINT8", outputs=some)
    return state(client, model) | {
        "server": client.get_server_metadata(),
        "metadata": client.get_model_metadata(model),
        "config": client.get_model_config(model),
        "index": client.get_model_repository_index(),
        "uint8": plain(infer("image", images, "UINT8", request_id="seven")),
        "fp32": plain(infer("image", floats, "FP32")),
        "encoded": plain(infer("encoded", files, "BYTES")),
        "json": plain(infer("image", images, "UINT8", binary=False, outputs=as_json)),
        "json_fp32": plain(infer("image", floats, "FP32", binary=False, outputs=as_json)),
        "subset": plain(subset, ("verdict", "explanation", "p_value")),
        "subset_names": [output["name"] for output in subset.get_response()["outputs"]],
        "spoiled": plain(infer("image", spoilt(images), "FP32")),
        "classes": [
            rows(infer("image", images, "UINT8", outputs=asked).as_numpy("probabilities")) for asked in (top_json, top)
        ],
        "async": plain(client.async_infer(model, inputs_of("image", images, "UINT8")).get_result()),
        "statistics": client.get_inference_statistics(model),
        "all_statistics": client.get_inference_statistics(),
        "refused": refusals(client, infer, triton.InferRequestedOutput, images)
        | {
            "compressed": refused(lambda: infer("image", images, "UINT8", request_compression_algorithm="gzip")),
            "admin": refused(lambda: client.load_model(model)),
            "deadline": refused(lambda: infer("image", images, "UINT8", timeout=1)),
        },
    }


async def asyncio_checks(target: str, model: str, images: Any) -> dict[str, Any]:
    async with triton_aio.InferenceServerClient(target) as client:
        results = await asyncio.gather(
            *(client.infer(model, inputs_of("image", image[None], "UINT8")) for image in images)
        )
        return {
            "live": await client.is_server_live(),
            "ready": await client.is_server_ready(),
            "model_ready": await client.is_model_ready(model),
            "metadata": await client.get_model_metadata(model),
            "single": [plain(result) for result in results],
        }


def main(target: str, model: str, path: str) -> None:
    images, files = load(path)
    with triton.InferenceServerClient(target, concurrency=2) as client:
        found = sync_checks(client, model, images, files)
    found["asyncio"] = asyncio.run(asyncio_checks(target, model, images))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:4])
