"""The torch engine: batches of left-padded rows."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from typing_extensions import Self

from hfpipe.backends import batching
from hfpipe.backends.base import vocabulary_size
from hfpipe.backends.scheduling import bytes_per_token, token_budget
from hfpipe.backends.torch import attention
from hfpipe.backends.torch.loading import (
    check_cache,
    forward_parameters,
    free_memory,
    input_device,
    load_model,
    parse_device,
)
from hfpipe.errors import UnsupportedOption
from hfpipe.types import BackendInfo, LoadOptions, ModelSource, Reporter, TokenEvent

# Measured on a CPU over prompts with answers of 8 to 120 tokens: 1.7 times as fast as 8, and 1.2 times as fast as 16.
DEFAULT_BATCH_SIZE = 32


class TorchBackend(batching.BatchEngine):
    """Runs a transformers causal language model: `batch_size` rows at once, one alone with `exact`.

    With `lookup`, so many tokens are proposed to each step of a row while it is alone. Rows of a batch would accept
    different numbers of them, so they are given none.
    """

    name = "torch"
    flight = batching.Row

    def __init__(
        self, model: Any, *, batch_size: int | None = None, exact: bool = False, lookup: int | None = None
    ) -> None:
        super().__init__(1 if exact else batch_size or DEFAULT_BATCH_SIZE)
        check_cache(model)
        if lookup and any(type(layer) is not DynamicLayer for layer in DynamicCache(config=model.config).layers):
            raise UnsupportedOption(
                f"--prompt-lookup is not supported for {model.config.model_type} models on torch: what some of their "
                "layers remember cannot be taken back.",
                hint="Leave it out: the answer is the same.",
            )
        self.model, self._lookup = model, lookup
        # One device, or the places that Accelerate chose.
        places = sorted({str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()})
        attends = str(model.config._attn_implementation).removeprefix(attention.PREFIX)
        detail = {"window": str(self.batch_size), "attention": attends}
        if lookup:
            detail["prompt lookup"] = str(lookup) if self.batch_size == 1 else f"{lookup}, for a prompt alone"
        if input_device(model).type == "cuda":
            detail["gpu"] = torch.cuda.get_device_name(input_device(model))
        dtype = str(model.dtype).removeprefix("torch.")
        self.info = BackendInfo(self.name, ", ".join(places) or str(model.device), dtype, detail)
        config = model.config.to_dict()
        self._vocabulary = vocabulary_size(config)
        self._bytes_per_token = bytes_per_token(config, model.dtype.itemsize)
        if self._bytes_per_token:
            # Padding is read by every step, and copied with the cache: it may take as long as reading the weights does.
            weights = sum(parameter.nbytes for parameter in model.parameters())
            self.most_padding = weights / (3 * self._bytes_per_token)
        self._parameters = forward_parameters(model)

    @classmethod
    def load(cls, source: ModelSource, options: LoadOptions, reporter: Reporter) -> Self:
        model = load_model(source, options, reporter)
        kind: Any = cls
        if source.is_encoder_decoder:
            from hfpipe.backends.torch.seq2seq import Seq2SeqBackend as kind
        backend: Self = kind(model, batch_size=options.batch_size, exact=options.exact, lookup=options.prompt_lookup)
        backend.begin_as(source)
        return backend

    @classmethod
    def check_device(cls, device: str) -> None:
        parse_device(device)

    def close(self) -> None:
        super().close()
        self.model = None

    def _budget(self) -> float:
        return token_budget(free_memory(input_device(self.model)), self._bytes_per_token)

    def _begin(self, rows: list[batching.Row]) -> batching.Batch:
        return _Batch(self)

    def _step(
        self, batch: Any, rows: list[batching.Row], ids: list[tuple[int, ...]]
    ) -> Generator[TokenEvent, None, list[batching.Row]]:
        if len(rows) != 1 or not self._lookup:
            return (yield from super()._step(batch, rows, ids))
        [row], draft = rows, tuple[int, ...]()
        if len(ids[0]) == 1:
            room = row.request.max_tokens - len(row.token_ids) - 1
            draft = tuple(batching.proposed(row.whole, min(self._lookup, room)))
        scores = batch.scores([(*ids[0], *draft)], 1 + len(draft))
        yield from row.take_all(self._accepted(draft, scores[0], row))
        if row.cancelled and not row.done:
            yield row.end()
        # A row that is alone has no padding before it.
        batch.crop(len(row.whole) - 1)
        return [] if row.done else rows

    def _accepted(self, draft: tuple[int, ...], scores: torch.Tensor, row: batching.Row) -> Iterator[int]:
        """The next tokens, drawn from floats [1 + len(draft), vocabulary]: as many as are those of the draft, and one.
        Each is drawn when the row has taken those before."""
        for place in range(len(scores)):
            [token] = self._next(scores[place : place + 1], [row])
            yield token
            if row.cancelled or draft[place : place + 1] != (token,):
                return

    def _on_host(self, logits: torch.Tensor) -> NDArray[np.float32]:
        return super()._on_host(logits.cpu().numpy())

    @torch.inference_mode()
    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache, last: int = 1) -> torch.Tensor:
        """float [batch, last, vocabulary]: the logits of the tokens after each of the `last` of `ids`."""
        if self.model is None:
            raise self._closed_error()
        arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache}
        if "position_ids" in self._parameters:
            arguments["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if "logits_to_keep" in self._parameters:
            arguments["logits_to_keep"] = last
        logits: torch.Tensor = self.model(**arguments, use_cache=True, return_dict=True).logits
        return logits[:, -last:].float()


class _Batch(batching.Batch):
    """Rows of one cache."""

    def __init__(self, backend: TorchBackend) -> None:
        self._backend = backend
        self._cache = DynamicCache(config=backend.model.config)
        self._mask = torch.empty(0, device=input_device(backend.model))

    @property
    def open(self) -> bool:  # type: ignore[override]
        # Windows that slide count what they have seen, and states are of no place.
        return all(type(layer) is DynamicLayer and layer.is_initialized for layer in self._cache.layers)

    def logits(self, ids: list[tuple[int, ...]]) -> torch.Tensor:
        return self.scores(ids)[:, -1]

    def scores(self, ids: list[tuple[int, ...]], last: int = 1) -> torch.Tensor:
        """Floats [row, last, vocabulary]: those of the tokens after each of the `last` of `ids`."""
        new, mask = padded(ids, self._mask.device, "left")
        # The mask is of all that the cache holds.
        self._mask = torch.cat([self._mask, mask], dim=1) if self._mask.numel() else mask
        return self._backend._forward(new, self._mask, self._cache, last)

    def crop(self, length: int) -> None:
        """Forget what was given after so many tokens."""
        self._cache.crop(length)
        self._mask = self._mask[:, :length]

    def keep(self, rows: list[int]) -> None:
        kept = torch.tensor(rows, device=self._mask.device)
        # Layers of linear attention have no batch_select_indices.
        self._cache.reorder_cache(kept)
        self._mask = self._mask[kept]
        if self.open:
            self._widen(self._longest())

    def join(self, other: _Batch) -> None:
        width = max(self._longest(), other._longest())
        self._widen(width)
        other._widen(width)
        self._mask = torch.cat([self._mask, other._mask])
        for layer, new in zip(self._cache.layers, other._cache.layers, strict=True):
            layer.keys, layer.values = torch.cat([layer.keys, new.keys]), torch.cat([layer.values, new.values])

    def _longest(self) -> int:
        """The length of the longest row."""
        return int(self._mask.sum(dim=1).max())

    def _widen(self, width: int) -> None:
        """Have so many places, of which the first are padding; where it is fewer, the first are dropped."""
        more = width - self._mask.shape[1]
        self._mask = pad(self._mask, (more, 0))
        for layer in self._cache.layers if more else ():
            layer.keys, layer.values = pad(layer.keys, (0, 0, more, 0)), pad(layer.values, (0, 0, more, 0))


def padded(prompts: list[tuple[int, ...]], device: torch.device, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """ids and mask, int64 [batch, time]. The padding is masked out, so that any id will do for it."""
    width = max(map(len, prompts))
    before = [width - len(one) if side == "left" else 0 for one in prompts]

    def row(one: Sequence[int], before: int) -> list[int]:
        return [0] * before + [*one] + [0] * (width - before - len(one))

    ids = torch.tensor([row(one, some) for one, some in zip(prompts, before, strict=True)], device=device)
    mask = torch.tensor([row([1] * len(one), some) for one, some in zip(prompts, before, strict=True)], device=device)
    return ids, mask
