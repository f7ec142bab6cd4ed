"""One measurement of a model that a server runs, in a process of its own: texts in, texts out, over the network (see
process.py). What it takes, and what a token is, the server says."""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import median
from typing import Any

from hfpipe.bench.measure import Watch
from hfpipe.errors import BackendError
from hfpipe.generator import TextGenerator, open_generator
from hfpipe.text.templates import Conversation
from hfpipe.types import Completion, GenerationOptions, LoadOptions, Reporter, TextRequest

# Most tokenizers have one token for each.
_WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state")
# A prompt, as messages or as raw text, and how many tokens may follow.
Prompt = tuple[Any, int]


def drawn(seed: str, shapes: Sequence[tuple[int, int]]) -> list[Prompt]:
    """Conversations of so many random words, the same for the same seed."""
    draw = random.Random(seed)
    texts = [(" ".join(draw.choices(_WORDS, k=words)), new_tokens) for words, new_tokens in shapes]
    return [([{"role": "user", "content": text}], new_tokens) for text, new_tokens in texts]


def main(arguments: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """As hfpipe.bench.measure.main; "folder" is the server's name of the model, and the prompts are not tokenized."""
    single = arguments["batch"] == 1
    with open_generator(arguments["folder"], LoadOptions(**arguments["loading"]), reporter) as generator:
        run(generator, arguments["warm_up"], together=not single)
        watch = Watch()
        answers = run(generator, arguments["prompts"], together=not single)
        short = run(generator, arguments["short"], together=False)
        noise = watch.stop()
        info = generator.info
    values = _latency(answers, short or answers) if single else {"batch_tps": _throughput(answers)}
    engine = {"device": info.device, "dtype": info.dtype, "detail": dict(info.detail)}
    return {"sample": {"values": values, **noise}, "engine": engine}


def run(generator: TextGenerator, prompts: Sequence[Prompt], *, together: bool) -> list[Completion]:
    """Greedy answers, which may be shorter than asked for: no server generates past its end of text. Raises the error
    of one that fails, and BackendError where the server does not count tokens."""
    requests = [
        TextRequest(
            str(number),
            prompt if isinstance(prompt, str) else Conversation(prompt, {}),
            GenerationOptions(max_tokens=new_tokens, temperature=0),
        )
        for number, (prompt, new_tokens) in enumerate(prompts)
    ]
    answers: list[Completion] = []
    for some in [requests] if together else [[one] for one in requests]:
        answers += generator.generate(some)
    for answer in answers:
        if answer.error:
            raise answer.error
        if not (answer.usage and answer.usage.completion_tokens):
            raise BackendError("The server does not count tokens.", hint="No speed can be measured without its usage.")
    return answers


def _latency(answers: Sequence[Completion], decoded: Sequence[Completion]) -> dict[str, float]:
    """As hfpipe.bench.measure.latency, but for the times between tokens: an event may hold several."""
    waits = [one.timing.ttft_s for one in answers if one.timing]
    values = {"ttft_ms": 1000 * median(waits)}
    values["prefill_tps"] = sum(one.usage.prompt_tokens for one in answers if one.usage) / sum(waits)
    if rates := _rates(answers):
        values["tpot_ms"] = 1000 / median(rates)
    if rates := _rates(decoded):
        values["decode_tps"] = median(rates)
    return values


def _rates(answers: Sequence[Completion]) -> list[float]:
    """Tokens a second after the first."""
    rates = [one.timing.decode_tps(one.usage) for one in answers if one.timing and one.usage]
    return [rate for rate in rates if rate is not None]


def _throughput(answers: Sequence[Completion]) -> float:
    """Generated tokens a second of all at once, from handing over the prompts to the last token."""
    times = [one.timing for one in answers if one.timing]
    tokens = sum(one.usage.completion_tokens for one in answers if one.usage)
    return tokens / (max(one.end for one in times) - min(one.start for one in times))
