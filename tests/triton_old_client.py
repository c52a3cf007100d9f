"""An application written for another server, over gRPC and HTTP: python triton_old_client.py GRPC REST FILE.npz.

It asks for the model, version and tensors that it knows, sends what it has normalised itself, and reads output 0. Run
in a process of its own: tritonclient defines the package `inference`, too.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

MODEL, VERSION, INPUT, OUTPUT = "resnet50", "1", "input__0", "output__0"
MEAN, STD = 0.5, 0.25


def asked(triton: Any, client: Any, images: Any) -> dict[str, Any]:
    pixels = ((images / 255 - MEAN) / STD).astype(np.float32)
    tensor = triton.InferInput(INPUT, pixels.shape, "FP32")
    tensor.set_data_from_numpy(pixels)
    output = triton.InferRequestedOutput(OUTPUT)
    named = client.infer(MODEL, [tensor], model_version=VERSION, outputs=[output])
    plain = client.infer(MODEL, [tensor]).get_response()
    top = client.infer(MODEL, [tensor], outputs=[triton.InferRequestedOutput(OUTPUT, class_count=1)])
    more = {"as_json": True} if triton is triton_grpc else {}
    response = named.get_response(**more)
    default = plain["outputs"] if isinstance(plain, dict) else [{"name": one.name} for one in plain.outputs]
    return {
        "ready": client.is_model_ready(MODEL, VERSION) and client.is_model_ready(MODEL),
        "metadata": client.get_model_metadata(MODEL, VERSION, **more),
        "config": client.get_model_config(MODEL, VERSION, **more),
        "statistics": client.get_inference_statistics(MODEL, VERSION, **more),
        "index": client.get_model_repository_index(**more),
        "said": [response["model_name"], response["model_version"]],
        "outputs": [one["name"] for one in response["outputs"]],
        "default": [one["name"] for one in default],
        "logits": named.as_numpy(OUTPUT).tolist(),
        "top": [row[0].decode() for row in top.as_numpy(OUTPUT)],
    }


def main() -> None:
    """Ask, and print what came."""
    grpc_target, rest_target, path = sys.argv[1:]
    images = np.load(path)["images"]
    found = {
        "grpc": asked(triton_grpc, triton_grpc.InferenceServerClient(grpc_target), images),
        "rest": asked(triton_http, triton_http.InferenceServerClient(rest_target), images),
    }
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
