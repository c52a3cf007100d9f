"""What both checking programs of tritonclient do alike; the client, over gRPC or HTTP, comes from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tritonclient.utils import InferenceServerException

OUTPUTS = ("label", "index", "probabilities", "verdict", "p_value", "score", "p_values", "scores", "error", "reasons")


def load(path: str) -> tuple[Any, Any]:
    """Images [N, 1, 8, 8], and the same as files, BYTES [N, 1]."""
    content = np.load(path)
    ends = np.cumsum(content["lengths"])
    pieces = [content["files"][end - n : end].tobytes() for n, end in zip(content["lengths"], ends, strict=True)]
    return content["images"], np.array(pieces, dtype=object)[:, None]


def rows(array: Any) -> list[list[Any]] | None:
    """An array's rows, bytes as text; None for none."""
    if array is None:
        return None
    return [[x.decode() if isinstance(x, bytes) else x for x in row] for row in array.tolist()]


def spoilt(images: Any) -> Any:
    """As floats, the second with a NaN."""
    floats = (images / 255).astype(np.float32)
    floats[1, 0, 0, 0] = np.nan
    return floats


def refused(call: Callable[[], Any]) -> list[str]:
    """The status and the message of a call that fails."""
    try:
        call()
    except InferenceServerException as error:
        return [str(error.status()), str(error.message())]
    raise AssertionError("the call succeeded")


def state(client: Any, model: str) -> dict[str, Any]:
    """Whether the server lives, is ready, and which models are."""
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": [
            client.is_model_ready(model),
            client.is_model_ready("another"),
            client.is_model_ready(model, "12"),
        ],
    }


def refusals(client: Any, infer: Callable[..., Any], output: Callable[[str], Any], images: Any) -> dict[str, Any]:
    """What is said to requests that are wrong, whichever way they come."""
    wide = images.astype(np.float64)
    wrong: dict[str, Callable[[], Any]] = {
        "shape": lambda: infer("image", images[:, :, :4], "UINT8"),
        "datatype": lambda: infer("image", wide, "FP64"),
        "name": lambda: infer("pixels", images, "UINT8"),
        "model": lambda: infer("image", images, "UINT8", model="another"),
        "version": lambda: infer("image", images, "UINT8", model_version="12"),
        "output": lambda: infer("image", images, "UINT8", outputs=[output("nothing")]),
        "batch": lambda: infer("image", np.repeat(images, 100, axis=0), "UINT8"),
        "only_nan": lambda: infer("image", spoilt(images)[1:2], "FP32"),
        "shared_memory": client.get_system_shared_memory_status,
    }
    return {name: refused(call) for name, call in wrong.items()}
