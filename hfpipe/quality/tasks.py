"""How many items of a file of tasks a model gets right: multiple choice by log-probability, and exact match.

A share has Wilson's score interval, and the difference of two models on the same items Newcombe's for paired data, both
of 95 %: R. G. Newcombe, Improved confidence intervals for the difference between binomial proportions based on paired
data, Statistics in Medicine 17, 1998, pages 2635 to 2650, method 10.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfpipe.errors import ContextLengthError, UsageError, nearest
from hfpipe.process import silence_openvino_telemetry
from hfpipe.quality.compare import Window, common_prefix, log_softmax, start_tokens
from hfpipe.text.tasks import PromptEncoder, for_task
from hfpipe.text.tokenizer import load_tokenizer
from hfpipe.types import LoadOptions, ModelSource, Reporter, kind_of

# hfpipe's own items, and the name that users have for them.
BUILTIN, OWN = "builtin", Path(__file__).with_name("tasks.jsonl")
_FIELDS = ("prompt", "choices", "answer", "answers", "id", "kind")
_FINAL = ".,;:!?。，！？"
# The least tokens of an answer, and the standard errors of 95 %.
_TOKENS, _Z = 16, 1.959963984540054


@dataclass(frozen=True, slots=True)
class Item:
    """One task. With `choices`, texts that may follow the prompt, `right` is the place of the right one, from 0.
    Without, each of `answers` is right."""

    id: str
    kind: str
    prompt: str
    choices: Sequence[str] = ()
    right: int = 0
    answers: Sequence[str] = ()

    @property
    def max_tokens(self) -> int:
        """Enough for each of the answers, whatever the tokenizer."""
        return max([_TOKENS, *(len(one.encode("utf-8", "surrogatepass")) for one in self.answers)])

    def is_right(self, given: int | str) -> bool:
        """Whether `given` is the right choice; or a text whose first line, or a sentence that this begins with, is one
        of the answers, but for white space, case and final punctuation."""
        if isinstance(given, int):
            return given == self.right
        line = given.strip().partition("\n")[0]
        said = {_plain(line[: end.start()]) for end in re.finditer(r"(?<=[.!?])\s|$", line)}
        return not said.isdisjoint(map(_plain, self.answers))


def _plain(text: str) -> str:
    return " ".join(text.split()).rstrip(_FINAL + " ").casefold()


def parse(lines: Iterable[tuple[int, bytes]], name: str) -> tuple[Item, ...]:
    """The items in the numbered lines of the file `name`. Raises UsageError with the number of the first bad one."""
    items: dict[str, Item] = {}
    for number, content in lines:
        try:
            item = _item(number, content)
            if item.id in items:
                raise UsageError(f"another line has the id {item.id}.")
        except UsageError as error:
            raise UsageError(f"Line {number} of {name} is not a task: {error.message}", hint=error.hint) from error
        items[item.id] = item
    if not items:
        raise UsageError(f"{name} has no tasks.")
    return tuple(items.values())


def _item(number: int, content: bytes) -> Item:
    try:
        given = json.loads(content)
    except (ValueError, RecursionError):
        raise UsageError("it is not JSON in UTF-8.") from None
    if not isinstance(given, dict):
        raise UsageError(f"expected an object, not {kind_of(given)}.")
    given = {name: value for name, value in given.items() if value is not None}
    if unknown := sorted(given.keys() - set(_FIELDS)):
        raise UsageError(f"unknown field {unknown[0]}.", hint=nearest(unknown[0], _FIELDS) or None)
    choices, answer, answers = given.get("choices"), given.get("answer"), given.get("answers")
    if type(name := given.get("id", number)) not in (str, int):
        raise UsageError(f"id must be text or a whole number, not {kind_of(name)}.")
    kind = _text("kind", given.get("kind", "exact match" if choices is None else "multiple choice"))
    about = str(name), kind, _text("prompt", given.get("prompt"))
    if choices is None:
        if (answer is None) == (answers is None):
            raise UsageError("expected choices with an answer, or else answer or answers.")
        texts = _texts("answers", answers, 1) if answer is None else (_text("answer", answer),)
        if not all(map(_plain, texts)):
            raise UsageError("an answer has nothing but punctuation.")
        return Item(*about, answers=texts)
    choices = _texts("choices", choices, 2)
    if answers is not None:
        raise UsageError("choices have one answer, and no answers.")
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise UsageError(f"answer must be the place of a choice, from 0 to {len(choices) - 1}.")
    return Item(*about, choices=choices, right=answer)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{name} must be text that is not blank.")
    return value


def _texts(name: str, values: Any, least: int) -> tuple[str, ...]:
    if not isinstance(values, list) or len(values) < least:
        raise UsageError(f"{name} must be a list of at least {least}.")
    return tuple(_text(f"each of {name}", one) for one in values)


# Multiple choice


def choose(source: ModelSource, options: LoadOptions, items: Sequence[Item], reporter: Reporter) -> list[int]:
    """For each item with choices the place of the likeliest, of a model on torch or openvino with all else that
    `options` say: the highest log-probability of its tokens, divided by its bytes, without white space around it.

    This is acc_bytes of lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness); acc_norm there
    counts characters. Raises ContextLengthError for what does not fit. Takes much of this process's memory for good.
    """
    tokenizer = load_tokenizer(source.folder, trust_remote_code=options.trust_remote_code)
    encoder = PromptEncoder(tokenizer, for_task(source, options))
    windows = [window for item in items for window in choice_windows(item, encoder, source)]
    silence_openvino_telemetry()
    leaf = import_module(f"hfpipe.quality.score_{options.backend}")
    logits = leaf.logits(source, options, windows, reporter)
    nats = iter([log_probability(window, rows) for window, rows in zip(windows, logits, strict=True)])
    found = []
    for item in items:
        by_byte = [next(nats) / len(one.strip().encode("utf-8", "surrogatepass")) for one in item.choices]
        found.append(by_byte.index(max(by_byte)))
    return found


def choice_windows(item: Item, encoder: PromptEncoder, source: ModelSource) -> list[Window]:
    """A window for each choice, all scored from the same token on: where the choice begins, or before it, where a
    choice and the end of the prompt are one token. An encoder-decoder model answers with the choice, without a space
    before it."""
    tokenizer, start, prompt = encoder.tokenizer, encoder.decoder_ids, tuple[int, ...]()
    if source.is_encoder_decoder:
        prompt = encoder.encode(item.prompt, True)
        texts = [tokenizer.encode(one.strip(), False) for one in item.choices]
        scored = len(start)
    else:
        start, before = start_tokens(tokenizer), tokenizer.encode(item.prompt, False)
        texts = [tokenizer.encode(item.prompt + one, False) for one in item.choices]
        # A first token that has nothing before it is not scored.
        scored = max(1, len(start) + min(min(common_prefix(before, one), len(one) - 1) for one in texts))
    windows = [Window(item.id, (*start, *one), scored, prompt) for one in texts]
    lengths = [len(window.token_ids) for window in windows]
    if min(lengths) <= scored:
        raise UsageError(f"A choice of task {item.id} has no tokens of its own.", hint="Use a longer prompt.")
    longest = max(*lengths, len(prompt))
    if source.context_length and longest > source.context_length:
        limit = source.context_length
        raise ContextLengthError(f"Task {item.id} has {longest} tokens, and the model's context is {limit}.")
    return windows


def log_probability(window: Window, logits: NDArray[Any]) -> float:
    """Of all the window's targets, in nats, by their logits, floats [scored tokens, vocabulary]."""
    return float(log_softmax(logits)[np.arange(len(window.targets)), list(window.targets)].sum())


# Scores


@dataclass(frozen=True, slots=True)
class TaskScore:
    """`right` of `items` items, and the interval of that share. `kinds` has [right, items] of each kind. By the id of
    an item, `correct` says whether it is right, and `given` is the answer: the place of a choice, or a text.

    `difference` is how many more are right than with the configuration `against`, None for that itself, with its
    interval, all three in items.
    """

    right: int
    items: int
    low: float
    high: float
    kinds: Mapping[str, tuple[int, int]]
    correct: Mapping[str, bool]
    given: Mapping[str, int | str]
    against: str | None = None
    difference: int | None = None
    difference_low: float | None = None
    difference_high: float | None = None

    @property
    def versus(self) -> str:
        """3 fewer (-7 to +1)"""
        if self.difference is None or self.difference_low is None or self.difference_high is None:
            return ""
        said = f"{abs(self.difference)} {'more' if self.difference > 0 else 'fewer'}" if self.difference else "as many"
        low, high = round(self.difference_low), round(self.difference_high)
        return f"{said} ({low:+d} to {high:+d})".replace("+0", "0")


def score(
    items: Sequence[Item], given: Mapping[str, int | str], against: tuple[str, Mapping[str, bool]] | None = None
) -> TaskScore:
    """The score of the answers `given` to all of the items, by their ids. `against` is the name of another
    configuration, and which of the same items it got right."""
    correct = {item.id: item.is_right(given[item.id]) for item in items}
    kinds: dict[str, tuple[int, int]] = {}
    for item in items:
        right, total = kinds.get(item.kind, (0, 0))
        kinds[item.kind] = right + correct[item.id], total + 1
    right, total = sum(correct.values()), len(items)
    paired: tuple[Any, ...] = ()
    if against:
        name, theirs = against
        pairs = [(correct[item.id], theirs[item.id]) for item in items]
        low, high = paired_interval(*(pairs.count(both) for both in _TABLE))
        paired = name, right - sum(theirs.values()), low * total, high * total
    return TaskScore(right, total, *wilson(right, total), kinds, correct, dict(given), *paired)


_TABLE = [(True, True), (True, False), (False, True), (False, False)]


def wilson(right: int, total: int) -> tuple[float, float]:
    """Wilson's score interval of a share."""
    share, z = right / total, _Z**2 / total
    middle, half = share + z / 2, math.sqrt(z * share * (1 - share) + z**2 / 4)
    return max(0.0, (middle - half) / (1 + z)), min(1.0, (middle + half) / (1 + z))


def paired_interval(both: int, ours: int, theirs: int, neither: int) -> tuple[float, float]:
    """Newcombe's interval of our share less theirs, by how many items both, one, or neither got right."""
    total = both + ours + theirs + neither
    margins = both + ours, both + theirs
    (p, q), ((low_p, high_p), (low_q, high_q)) = (
        (one / total for one in margins),
        (wilson(one, total) for one in margins),
    )
    product = math.prod((one * (total - one)) for one in margins)
    found = both * neither - ours * theirs
    # With a continuity correction where it is positive.
    covariance = max(found - total / 2, 0) if found > 0 else found
    phi = covariance / math.sqrt(product) if product else 0.0

    def distance(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one**2 - 2 * phi * one * other + other**2))

    return p - q - distance(p - low_p, high_q - q), p - q + distance(high_p - p, q - low_q)
