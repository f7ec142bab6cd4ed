"""Encoder-decoder models on OpenVINO, which openvino-genai does not run: the encoder once for a batch, then, token by
token, the decoder as optimum-intel 2.2 exports it."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from hfpipe.backends import batching
from hfpipe.backends.openvino import loading
from hfpipe.backends.openvino.decoding import OpenVINOBackend
from hfpipe.backends.scheduling import token_budget
from hfpipe.errors import HFPipeError, UnsupportedModel
from hfpipe.machine import available_memory
from hfpipe.models.folder import openvino_models

DEFAULT_BATCH_SIZE = 32

_INPUTS = {"input_ids", "encoder_hidden_states", "encoder_attention_mask", "beam_idx"}


class Seq2SeqBackend(OpenVINOBackend, batching.BatchEngine):
    """Runs the two models of an encoder-decoder folder, `batch_size` rows at once."""

    mode = "encoder and decoder"
    flight = batching.Row

    def __init__(self, folder: str, device: str, options: dict[str, Any], batch_size: int | None = None) -> None:
        super().__init__(batch_size or DEFAULT_BATCH_SIZE)
        self._device = device
        self._encoder, self._decoder = compiled(folder, device, options)

    def close(self) -> None:
        super().close()
        self._encoder = self._decoder = None

    def _budget(self) -> float:
        return token_budget(available_memory(), self._bytes_per_token)

    def _begin(self, rows: list[batching.Row]) -> batching.Batch:
        encoder, decoder = self._encoder, self._decoder
        if encoder is None or decoder is None:
            raise self._closed_error()
        return Batch(encoder, decoder, [row.request.token_ids for row in rows])

    def _explained(self, error: Exception) -> HFPipeError:
        return loading.explained(error, self._device)


def compiled(folder: Any, device: str, options: dict[str, Any]) -> list[Any]:
    """The encoder and the decoder. Raises UnsupportedModel for a decoder that was exported otherwise."""
    core = ov.Core()
    models = [core.read_model(file) for file in openvino_models(folder)]
    if (names := {port.any_name for port in models[-1].inputs}) != _INPUTS:
        raise UnsupportedModel(
            f"The decoder in {folder} takes {', '.join(sorted(names))}, and not {', '.join(sorted(_INPUTS))}.",
            hint="Export the model anew, with its state in the decoder (hfpipe export).",
        )
    return [core.compile_model(model, device, options) for model in models]


class Batch(batching.Batch):
    """The encoded prompts of some rows, int64 [batch, time], and what the decoder remembers.

    A row that is done stays in its place until half of them are, and is computed for nothing: OpenVINO 2026.4 can end
    the process where the state of a model loses rows. The decoder then reads what is left of them anew.
    """

    def __init__(self, encoder: Any, decoder: Any, prompts: list[tuple[int, ...]]) -> None:
        width = max(map(len, prompts))
        # Learned positions count from the left.
        ids = np.array([[*one, *[0] * (width - len(one))] for one in prompts], dtype=np.int64)
        self._mask = np.array([[1] * len(one) + [0] * (width - len(one)) for one in prompts], dtype=np.int64)
        encoded = encoder.create_infer_request().infer({"input_ids": ids, "attention_mask": self._mask})
        self._encoded = encoded["last_hidden_state"].copy()
        self._decoder, self._request = decoder, decoder.create_infer_request()
        self._places = list(range(len(prompts)))
        # Of each place, what its decoder has been given, and of that what the request has read.
        self._given = np.zeros((len(prompts), 0), dtype=np.int64)
        self._read = 0

    def infer(self, ids: list[tuple[int, ...]]) -> NDArray[Any]:
        """The logits after each of the newest `ids`, floats [row, time, vocabulary]."""
        new = np.zeros((len(self._given), len(ids[0])), dtype=np.int64)
        new[self._places] = ids
        self._given = np.concatenate([self._given, new], axis=1)
        inputs = {
            "input_ids": self._given[:, self._read :],
            "encoder_hidden_states": self._encoded,
            "encoder_attention_mask": self._mask,
            "beam_idx": np.arange(len(self._given), dtype=np.int32),
        }
        self._read = self._given.shape[1]
        logits: NDArray[Any] = self._request.infer(inputs)["logits"]
        return logits[self._places, -len(ids[0]) :]

    def logits(self, ids: list[tuple[int, ...]]) -> NDArray[Any]:
        return self.infer(ids)[:, -1]

    def keep(self, rows: list[int]) -> None:
        self._places = [self._places[row] for row in rows]
        if len(self._places) <= len(self._given) // 2:
            places, self._places = self._places, list(range(len(rows)))
            self._encoded, self._mask, self._given = self._encoded[places], self._mask[places], self._given[places]
            self._request, self._read = self._decoder.create_infer_request(), 0
