"""The model that MLServer serves beside the replica: one plain float32 network, imported by MLServer alone.

LeNet 300-100 with 500 outputs and no biases, as in the replica, its weights random. In numpy: that needs no gigabyte of
torch, and multiplies such matrices with OpenBLAS.
"""

from itertools import pairwise

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

_SIZES = (784, 300, 100, 500)
_CLASSES = 10


class Plain(MLModel):
    """Images x, UINT8 [n, 28, 28], in; label and probabilities of the real classes out."""

    async def load(self) -> bool:
        """Draw the weights."""
        draw = np.random.default_rng(0).standard_normal
        self._layers = [draw((a, b), dtype=np.float32) * np.float32((2 / a) ** 0.5) for a, b in pairwise(_SIZES)]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One forward pass."""
        x = NumpyCodec.decode_input(payload.inputs[0])
        h = x.reshape(len(x), -1).astype(np.float32) / np.float32(255)
        *hidden, last = self._layers
        for layer in hidden:
            h = np.maximum(h @ layer, 0)
        logits = (h @ last)[:, :_CLASSES]
        powers = np.exp(logits - logits.max(1, keepdims=True))
        outputs = {"label": logits.argmax(1), "probabilities": powers / powers.sum(1, keepdims=True)}
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output(name, values) for name, values in outputs.items()]
        )
