"""The torch engine: static batches of left-padded rows, each with its own sampling, that leave when they are done."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from transformers import DynamicCache
from typing_extensions import Self

from hfpipe.backends.base import (
    Backend,
    Intake,
    as_backend_error,
    closed,
    failure,
    finish_reason,
    refusal,
    vocabulary_size,
)
from hfpipe.backends.kv_cache import bytes_per_token, token_budget
from hfpipe.backends.torch.loading import (
    check_cache,
    device_name,
    forward_parameters,
    free_memory,
    hardware,
    input_device,
    load_model,
    parse_device,
)
from hfpipe.backends.torch.sampling import Sampler
from hfpipe.errors import HFPipeError, OutOfMemory
from hfpipe.types import BackendInfo, LoadOptions, ModelSource, Reporter, TokenEvent, TokenRequest

# Measured on a CPU over prompts with answers of 8 to 120 tokens: 1.7 times as fast as 8, and 1.2 times as fast as 16.
DEFAULT_BATCH_SIZE = 32

# Batches' worth of requests among which those of similar length are looked for.
_LOOK_AHEAD = 8


class TorchBackend(Backend):
    """Runs a transformers causal language model: `batch_size` rows at once, one alone with `exact`.

    Batches are made of similar requests among `look_ahead`, so that little is padding, and of no more than fit into a
    share of the memory that was available when the stream began. Where memory runs out all the same, `batch_size`
    becomes what is left of it.
    """

    name = "torch"

    def __init__(self, model: Any, *, batch_size: int | None = None, exact: bool = False) -> None:
        check_cache(model)
        self.model = model
        self.batch_size = 1 if exact else batch_size or DEFAULT_BATCH_SIZE
        self.look_ahead = 1 if self.batch_size == 1 else self.batch_size * _LOOK_AHEAD
        self.steps = 0
        self.info = BackendInfo(
            self.name,
            device_name(model),
            str(model.dtype).removeprefix("torch."),
            {
                "window": str(self.batch_size),
                "attention": str(model.config._attn_implementation),
                **hardware(model),
            },
        )
        config = model.config.to_dict()
        self._vocabulary = vocabulary_size(config)
        self._bytes_per_token = bytes_per_token(config, model.dtype.itemsize)
        self._active: dict[str, _Row] = {}
        parameters = forward_parameters(model)
        self._takes_positions = "position_ids" in parameters
        self._takes_logits_to_keep = "logits_to_keep" in parameters

    @classmethod
    def load(cls, source: ModelSource, options: LoadOptions, reporter: Reporter) -> Self:
        model = load_model(source, options, reporter)
        return cls(model, batch_size=options.batch_size, exact=options.exact)

    @classmethod
    def check_device(cls, device: str) -> None:
        parse_device(device)

    def stream(self, requests: Iterable[TokenRequest | None]) -> Iterator[TokenEvent]:
        device = input_device(self._open_model())
        budget = token_budget(free_memory(device), self._bytes_per_token)
        intake = Intake(requests)
        waiting: list[_Row] = []
        rows: list[_Row] = []
        try:
            while waiting or not intake.ended:
                while len(waiting) < self.look_ahead and (request := intake.take()):
                    if refused := refusal(request, self._vocabulary):
                        yield refused
                    else:
                        waiting.append(self._enter(request))
                left = [row for row in waiting if row.cancelled]
                self._leave(left)
                yield from [row.end() for row in left]
                waiting = [row for row in waiting if not row.done]
                rows = _similar(waiting, self.batch_size, budget)
                waiting = [row for row in waiting if row not in rows]
                for row in rows:
                    row.sampler = Sampler(row.request.sampling, device)
                if rows:
                    yield from self._batch(rows, self.batch_size)
                self._leave(rows)
        finally:
            self._leave([*rows, *waiting])

    def cancel(self, request_id: str) -> None:
        if row := self._active.get(request_id):
            row.cancelled = True

    def close(self) -> None:
        self.model = None

    def _enter(self, request: TokenRequest) -> _Row:
        row = self._active[request.id] = _Row(request)
        return row

    def _leave(self, rows: list[_Row]) -> None:
        for row in rows:
            if self._active.get(row.request.id) is row:
                del self._active[row.request.id]

    def _open_model(self) -> Any:
        if self.model is None:
            raise closed(self.name)
        return self.model

    def _batch(self, rows: list[_Row], whole: int) -> Iterator[TokenEvent]:
        """Where several rows fail together, each goes on alone from where it was: the one to blame fails by itself.
        Where memory runs out, they go on in halves; a row that does not fit alone was to blame, and batches are of
        `whole` rows again."""
        failed: HFPipeError | None = None
        try:
            yield from self._decode(rows)
        except Exception as error:
            # Its frames would keep the cache and the logits alive.
            traceback.clear_frames(error.__traceback__)
            failed = as_backend_error(error)
        left = [row for row in rows if not row.done]
        if failed and len(left) == 1:
            if isinstance(failed, OutOfMemory):
                self.batch_size = whole
            left[0].done = True
            yield failure(left[0].request.id, failed)
            return
        size = 1
        if isinstance(failed, OutOfMemory):
            size = (len(left) + 1) // 2
            self.batch_size = min(self.batch_size, size)
        for start in range(0, len(left), size):
            yield from self._batch(left[start : start + size], whole)

    def _decode(self, rows: list[_Row]) -> Iterator[TokenEvent]:
        """Prefill, then a token for every row a step. Rows that are done leave the cache."""
        ids, mask = _left_padded([row.token_ids for row in rows], input_device(self._open_model()))
        cache = DynamicCache(config=self._open_model().config)
        while True:
            logits = self._forward(ids, mask, cache)
            self.steps += len(rows)
            yield from _taken(rows, logits)
            yield from [row.end() for row in rows if row.cancelled and not row.done]
            stay = [i for i, row in enumerate(rows) if not row.done]
            if not stay:
                return
            if len(stay) < len(rows):
                keep = torch.tensor(stay, device=mask.device)
                # Layers of linear attention have no batch_select_indices.
                cache.reorder_cache(keep)
                mask = mask[keep]
                rows = [rows[i] for i in stay]
            ids = torch.tensor([[row.token_ids[-1]] for row in rows], device=mask.device)
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)

    @torch.inference_mode()
    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """float [batch, vocabulary]: the logits of the token after the last of `ids`."""
        arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache}
        if self._takes_positions:
            arguments["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if self._takes_logits_to_keep:
            arguments["logits_to_keep"] = 1
        logits: torch.Tensor = self._open_model()(**arguments, use_cache=True, return_dict=True).logits
        return logits[:, -1].float()


def _similar(waiting: list[_Row], size: int, budget: float) -> list[_Row]:
    """The row that has waited longest, so that none waits for ever, and those most like it: at most `size`, and of them
    as many as come to no more than `budget` tokens."""
    if len(waiting) <= size and _tokens(waiting) <= budget:
        return waiting
    oldest = waiting[0]
    rows = sorted(waiting, key=lambda row: _waste(row.request, oldest.request))[:size]
    while len(rows) > 1 and _tokens(rows) > budget:
        rows.pop()
    return rows


def _tokens(rows: list[_Row]) -> int:
    """What a batch of these may come to, padding included."""
    widest = max((len(row.request.token_ids) for row in rows), default=0)
    return len(rows) * (widest + max((row.request.max_tokens for row in rows), default=0))


def _waste(one: TokenRequest, other: TokenRequest) -> int:
    """The places in a batch of both that one leaves empty: before its prompt, and after its answer."""
    return abs(len(one.token_ids) - len(other.token_ids)) + abs(one.max_tokens - other.max_tokens)


def _left_padded(prompts: list[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """ids and mask, int64 [batch, time]. The padding is masked out, so that any id will do for it."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


class _Row:
    """One request. `token_ids` are the prompt's and those generated; the sampler comes with its batch."""

    sampler: Sampler

    def __init__(self, request: TokenRequest) -> None:
        self.request = request
        self.token_ids = list(request.token_ids)
        self.cancelled = False
        self.done = False

    def take(self, token: int) -> TokenEvent:
        self.token_ids.append(token)
        generated = len(self.token_ids) - len(self.request.token_ids)
        reason = finish_reason(self.request, generated, token)
        self.done = reason is not None
        return TokenEvent(self.request.id, (token,), reason)

    def end(self) -> TokenEvent:
        self.done = True
        return TokenEvent(self.request.id, finish_reason="stop")


def _taken(rows: list[_Row], logits: torch.Tensor) -> Iterator[TokenEvent]:
    """The next token of every row. Those of greedy rows are found in one operation."""
    greedy: list[int] = logits.argmax(dim=-1).tolist()
    for i, row in enumerate(rows):
        if row.sampler.is_plain:
            yield row.take(greedy[i])
        else:
            yield row.take(row.sampler.draw(row.token_ids, logits[i]))
