"""Requests as openvino-genai takes them, and what it gives back for one of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

from hfpipe.backends.base import failure, finish_reason
from hfpipe.errors import BackendError, OutOfMemory
from hfpipe.types import TokenEvent, TokenRequest

# What the engine raises, through its binding.
FAILURES = (RuntimeError, ValueError, IndexError, MemoryError)

_NO_TOKEN = 2**31 - 1


class Flight:
    """A request on its way through the engine, with the tokens that it has given. Its handle must be kept: dropping it
    stops the request."""

    def __init__(self, request: TokenRequest) -> None:
        self.request = request
        self.token_ids: list[int] = []
        self.handle: Any = None
        self.cancelled = False
        # The largest in which memory was too short for it.
        self.window = 0

    @property
    def tokens(self) -> int:
        """What it may come to: its prompt and the longest answer."""
        return len(self.request.token_ids) + self.request.max_tokens

    @property
    def can_go_on(self) -> bool:
        """Whether the engine could be given what is left: what was drawn so far cannot be drawn again."""
        return not self.token_ids or self.request.sampling.temperature == 0

    def left(self) -> TokenRequest:
        """What is still to be generated, as a request: from the prompt and the tokens so far."""
        if not self.token_ids:
            return self.request
        whole = (*self.request.token_ids, *self.token_ids)
        return replace(self.request, token_ids=whole, max_tokens=self.request.max_tokens - len(self.token_ids))

    def stop(self) -> None:
        if self.handle is not None:
            self.handle.stop()

    def read(self) -> Iterator[TokenEvent]:
        """The tokens that are ready. `read` of the handle with nothing queued would wait for ever."""
        reason = None
        while reason is None and self.handle.can_read():
            for output in self.handle.read().values():
                for token in output.generated_ids:
                    self.token_ids.append(token)
                    reason = finish_reason(self.request, len(self.token_ids), token)
                    yield TokenEvent(self.request.id, (token,), reason)
        status = self.handle.get_status()
        if reason is not None or status == genai.GenerationStatus.RUNNING:
            return
        # A step that had nothing else to do calls a stopped request IGNORED.
        if self.cancelled or status in (genai.GenerationStatus.STOP, genai.GenerationStatus.CANCEL):
            yield TokenEvent(self.request.id, finish_reason="stop")
        elif status == genai.GenerationStatus.IGNORED:
            yield failure(self.request.id, OutOfMemory("The KV cache has no room for this request."))
        else:
            yield failure(
                self.request.id, BackendError(f"OpenVINO ended after {len(self.token_ids)} tokens: {status}.")
            )


def tensor(request: TokenRequest) -> ov.Tensor:
    """int64 [1, time]"""
    return ov.Tensor(np.array([request.token_ids], dtype=np.int64))


def generation_config(request: TokenRequest) -> genai.GenerationConfig:
    """Everything is set: the engine would take an end token that is not from the folder's own generation config."""
    config, sampling = genai.GenerationConfig(), request.sampling
    config.apply_chat_template = False
    config.max_new_tokens = request.max_tokens
    config.ignore_eos = not request.eos_token_ids
    # Where there is none, an id that no model has: an unset one would be taken from the folder.
    config.eos_token_id = min(request.eos_token_ids, default=_NO_TOKEN)
    config.stop_token_ids = {config.eos_token_id, *request.eos_token_ids}
    config.repetition_penalty = sampling.repetition_penalty
    if sampling.temperature > 0:
        config.do_sample = True
        config.temperature = sampling.temperature
        config.top_p = sampling.top_p
        config.min_p = sampling.min_p
        config.rng_seed = sampling.seed
        if sampling.top_k > 0:
            config.top_k = sampling.top_k
    return config
