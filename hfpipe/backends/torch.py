"""The torch engine: static batches of left-padded rows, each with its own sampling, that leave when they are done."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from transformers import DynamicCache
from typing_extensions import Self

from hfpipe.backends.base import Backend, as_backend_error, failure, finish_reason
from hfpipe.backends.torch_loading import device_name, load_model
from hfpipe.backends.torch_sampling import Sampler
from hfpipe.types import BackendInfo, LoadOptions, ModelSource, Reporter, TokenEvent, TokenRequest

DEFAULT_BATCH_SIZE = 8


class TorchBackend(Backend):
    """Runs a transformers causal language model: `batch_size` rows at once, one alone with `exact`."""

    name = "torch"

    def __init__(self, model: Any, *, batch_size: int | None = None, exact: bool = False) -> None:
        self.model = model
        self.batch_size = 1 if exact else batch_size or DEFAULT_BATCH_SIZE
        self.steps = 0
        self.info = BackendInfo(
            self.name,
            device_name(model),
            str(model.dtype).removeprefix("torch."),
            {"attention": str(model.config._attn_implementation)},
        )
        self._cancelled: set[str] = set()
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self._takes_logits_to_keep = "logits_to_keep" in inspect.signature(model.forward).parameters

    @classmethod
    def load(cls, source: ModelSource, options: LoadOptions, reporter: Reporter) -> Self:
        try:
            model = load_model(source, options, reporter)
        except (RuntimeError, MemoryError, OSError, ValueError, ImportError) as error:
            raise as_backend_error(error) from error
        return cls(model, batch_size=options.batch_size, exact=options.exact)

    def stream(self, requests: Iterable[TokenRequest]) -> Iterator[TokenEvent]:
        waiting = iter(requests)
        while batch := list(islice(waiting, self.batch_size)):
            yield from self._batch(batch)

    def cancel(self, request_id: str) -> None:
        self._cancelled.add(request_id)

    def close(self) -> None:
        del self.model

    def _batch(self, batch: list[TokenRequest]) -> Iterator[TokenEvent]:
        """A failure of the engine ends the rows still running, each with an event of its own."""
        rows = [_Row(request, self.model.device) for request in batch]
        try:
            yield from self._decode(rows)
        except (RuntimeError, MemoryError, ValueError, IndexError) as error:
            for row in rows:
                if not row.done:
                    yield failure(row.request.id, error)

    def _decode(self, rows: list[_Row]) -> Iterator[TokenEvent]:
        """Prefill, then a token for every row a step. Rows that are done leave the cache."""
        ids, mask = self._left_padded([row.request.token_ids for row in rows])
        cache = DynamicCache(config=self.model.config)
        while True:
            tokens = _draw(rows, self._forward(ids, mask, cache))
            self.steps += len(rows)
            for row, token in zip(rows, tokens, strict=True):
                yield row.take(token)
            yield from self._end_cancelled(rows)
            stay = [i for i, row in enumerate(rows) if not row.done]
            if not stay:
                return
            if len(stay) < len(rows):
                keep = torch.tensor(stay, device=mask.device)
                cache.batch_select_indices(keep)
                mask = mask[keep]
                rows = [rows[i] for i in stay]
            ids = torch.tensor([[tokens[i]] for i in stay], device=mask.device)
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)

    def _end_cancelled(self, rows: list[_Row]) -> Iterator[TokenEvent]:
        for row in rows:
            if row.request.id in self._cancelled:
                self._cancelled.discard(row.request.id)
                if not row.done:
                    row.done = True
                    yield TokenEvent(row.request.id, finish_reason="stop")

    def _left_padded(self, prompts: list[tuple[int, ...]]) -> tuple[torch.Tensor, torch.Tensor]:
        """ids and mask, int64 [batch, time]. The padding is masked out, so that any id will do for it."""
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.model.device)
        return ids, mask

    @torch.inference_mode()
    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """float [batch, vocabulary]: the logits of the token after the last of `ids`."""
        arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache}
        if self._takes_positions:
            arguments["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if self._takes_logits_to_keep:
            arguments["logits_to_keep"] = 1
        logits: torch.Tensor = self.model(**arguments, use_cache=True, return_dict=True).logits
        return logits[:, -1].float()


class _Row:
    """One request in a batch."""

    def __init__(self, request: TokenRequest, device: torch.device) -> None:
        self.request = request
        self.sampler = Sampler(request, device)
        self.generated = 0
        self.done = False

    def take(self, token: int) -> TokenEvent:
        self.generated += 1
        reason = finish_reason(self.request, self.generated, token)
        self.done = reason is not None
        return TokenEvent(self.request.id, (token,), reason)


def _draw(rows: list[_Row], logits: torch.Tensor) -> list[int]:
    """The next token of every row. All rows that are greedy are taken in one operation."""
    greedy: list[int] = logits.argmax(dim=-1).tolist()
    return [
        token if row.sampler.is_plain else row.sampler.draw(logits[i])
        for i, (row, token) in enumerate(zip(rows, greedy, strict=True))
    ]
