"""What tests ask over HTTP, with a client that adds nothing of its own."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np
from numpy.typing import NDArray

INFER = "/v2/models/tiny/infer"
LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Reply:
    """An HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """Its body's JSON, without what follows it."""
        length = self.headers.get(LENGTH)
        return json.loads(self.body if length is None else self.body[: int(length)])

    @property
    def error(self) -> str:
        """The line of a refusal, which holds nothing else."""
        (line,) = self.json.values()
        assert set(self.json) == {"error"}
        assert "\n" not in line
        return str(line)

    @property
    def outputs(self) -> dict[str, Any]:
        """The data of outputs that came as JSON, flat."""
        return {output["name"]: output.get("data") for output in self.json["outputs"]}


async def ask(
    port: int,
    path: str,
    body: bytes | Mapping[str, Any] | AsyncIterator[bytes] | None = None,
    *,
    method: str | None = None,
    headers: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
    host: str = "127.0.0.1",
) -> Reply:
    """Ask a server on this machine: POST where there is a body, else GET; over TLS where a context is given."""
    content = json.dumps(body).encode() if isinstance(body, Mapping) else body
    url = f"{'http' if tls is None else 'https'}://{host}:{port}{path}"
    async with (
        aiohttp.ClientSession(trust_env=False) as session,
        session.request(
            method or ("GET" if content is None else "POST"),
            url,
            data=content,
            headers=headers,
            ssl=True if tls is None else tls,
        ) as answer,
    ):
        return Reply(answer.status, answer.headers, await answer.read())


def as_json(images: NDArray[Any], **more: Any) -> dict[str, Any]:
    """A request for images, flat numbers."""
    datatype = {"u": "UINT8", "f": "FP32"}[images.dtype.kind]
    tensor = {"name": "image", "datatype": datatype, "shape": images.shape, "data": images.flatten().tolist()}
    return {"inputs": [tensor], **more}


def as_binary(content: bytes, **tensor: Any) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a request with one tensor behind its JSON."""
    described = {"parameters": {"binary_data_size": len(content)}, **tensor}
    head = json.dumps({"inputs": [described]}).encode()
    return head + content, {LENGTH: str(len(head))}


def binary_images(images: NDArray[Any]) -> tuple[bytes, dict[str, str]]:
    """The same for pixels."""
    datatype = {"u": "UINT8", "f": "FP32"}[images.dtype.kind]
    return as_binary(np.ascontiguousarray(images).tobytes(), name="image", datatype=datatype, shape=images.shape)
