"""What an engine is timed at, as it is: token ids in, token ids out."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hfpipe.backends.base import Backend
from hfpipe.errors import BackendError
from hfpipe.types import TokenRequest

# Of the answers before the measured ones: as much as makes an engine compile and allocate for a shape.
_WARM_UP_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids, and how many tokens are to follow."""

    token_ids: tuple[int, ...]
    new_tokens: int


@dataclass(frozen=True, slots=True)
class Timed:
    """One answer: when its prompt was handed over, and when each of its tokens came, in seconds of perf_counter."""

    prompt: Prompt
    start: float
    tokens: tuple[float, ...]

    @property
    def ttft_s(self) -> float:
        return self.tokens[0] - self.start

    @property
    def decode_s(self) -> float:
        """From the first token to the last."""
        return self.tokens[-1] - self.tokens[0]

    @property
    def itl_ms(self) -> list[float]:
        """Between each token and the next."""
        return [1000 * (later - sooner) for sooner, later in zip(self.tokens, self.tokens[1:], strict=False)]


def random_prompts(seed: str, vocabulary: int, tokens: int, new_tokens: int, count: int = 1) -> list[Prompt]:
    """Prompts of token ids drawn anew, so that no cache of prefixes knows them; the same for the same seed."""
    draw = random.Random(seed)
    return [Prompt(tuple(draw.choices(range(vocabulary), k=tokens)), new_tokens) for _ in range(count)]


def run(backend: Backend, prompts: Sequence[Prompt]) -> list[Timed]:
    """Answer all of them at once, greedily and without an end-of-sequence token. Raises the HFPipeError of one that
    fails, and BackendError where one has no token."""
    moments: list[list[float]] = [[] for _ in prompts]
    requests = [TokenRequest(str(i), one.token_ids, one.new_tokens) for i, one in enumerate(prompts)]
    start = time.perf_counter()
    for event in backend.stream(requests):
        if event.error:
            raise event.error
        moments[int(event.request_id)].extend([time.perf_counter()] * len(event.token_ids))
    if not all(moments):
        raise BackendError(f"The {backend.name} backend gave no token.")
    return [Timed(prompt, start, tuple(times)) for prompt, times in zip(prompts, moments, strict=True)]


def warm_up(backend: Backend, shapes: Sequence[Prompt], vocabulary: int) -> None:
    """Other prompts of the same lengths, all at once, with a few tokens each."""
    run(
        backend,
        [
            random_prompts(f"warm-up {i}", vocabulary, len(one.token_ids), min(one.new_tokens, _WARM_UP_TOKENS))[0]
            for i, one in enumerate(shapes)
        ],
    )


def latency(answers: Sequence[Timed]) -> dict[str, float]:
    """ttft_ms, tpot_ms and the percentiles of itl_ms: of several answers the medians, and all their tokens' times.

    tpot_ms is (end - first token) / (tokens - 1).
    """
    values = {"ttft_ms": statistics.median(1000 * one.ttft_s for one in answers)}
    several = [one for one in answers if len(one.tokens) > 1]
    if several:
        values["tpot_ms"] = statistics.median(1000 * one.decode_s / (len(one.tokens) - 1) for one in several)
        times = [time_ms for one in several for time_ms in one.itl_ms]
        for percent in (50, 95, 99):
            values[f"itl_ms_p{percent}"] = float(np.percentile(times, percent))
    return values


def prefill_tps(answers: Sequence[Timed]) -> float:
    """Prompt tokens a second up to the first token."""
    return sum(len(one.prompt.token_ids) for one in answers) / sum(one.ttft_s for one in answers)


def decode_tps(answers: Sequence[Timed]) -> float | None:
    """Generated tokens a second, the first of each answer excluded; None where there are no others."""
    tokens = sum(len(one.tokens) - 1 for one in answers)
    return tokens / sum(one.decode_s for one in answers) if tokens else None


def throughput_tps(answers: Sequence[Timed]) -> float:
    """Generated tokens a second of all at once, from handing over the prompts to the last token."""
    end = max(one.tokens[-1] for one in answers)
    return sum(len(one.tokens) for one in answers) / (end - min(one.start for one in answers))
