"""MLServer's side, in its own environment: a TorchScript module that answers logits. Imports nothing of askance."""

from __future__ import annotations

import torch
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Classifier(MLModel):  # type: ignore[misc]
    """The module that `parameters.uri` names, on one thread as askance's."""

    async def load(self) -> bool:
        """Read the module."""
        torch.set_num_threads(1)
        self._module = torch.jit.load(self.settings.parameters.uri)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Logits of the one input, float32 [B, C, H, W] in [0, 1]."""
        images = torch.from_numpy(NumpyCodec.decode_input(payload.inputs[0]).copy())
        with torch.inference_mode():
            logits = self._module(images).numpy()
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("logits", logits)])
