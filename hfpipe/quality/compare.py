"""How much a model has changed: its logits against another's log-probabilities, token by token, over windows of text.

What the other, the reference, said is on disk: two models are never in memory together.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hfpipe.errors import BackendError, HFPipeError, UnsupportedModel
from hfpipe.store import writing
from hfpipe.types import Reporter

if TYPE_CHECKING:
    from hfpipe.text.tokenizer import Tokenizer

LENGTH = 512
CONTEXT = 128
# Numbers that are worked on at once: little memory, which a processor's cache can hold.
_CHUNK = 2**18
# A probability of 0 in every format, and its logarithm is a number in float16.
_LOWEST = -1e4
_MOST_NATS = 700.0
# float16 moves a log-probability x by an e of up to |x| / 2048. A reader normalises each row again in float32: then the
# mean of e is 0, and KL to an equal model is of second order, mean e**2 / 2, some 1e-6 nats. To another model q it also
# changes by the mean of e * log(p / q), in which the signs of e cancel.
_STORED = np.dtype("<f2")
_ROWS, _DESCRIPTION = "log_probabilities.f16", "reference.json"


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens of a text of one kind. Those from `scored_from` on, at least 1, are scored; the rest is context. Of an
    encoder-decoder model they are its decoder's, which answers a `prompt`."""

    kind: str
    token_ids: tuple[int, ...]
    scored_from: int
    prompt: tuple[int, ...] = ()

    @property
    def inputs(self) -> tuple[int, ...]:
        """What a model is given: all but the last token, of which nothing more is asked."""
        return self.token_ids[:-1]

    @property
    def targets(self) -> tuple[int, ...]:
        """The scored tokens. The last len(targets) logits that a model gives for the inputs are theirs."""
        return self.token_ids[self.scored_from :]


def windows(tokenizer: Tokenizer, texts: Mapping[str, str], context_length: int | None = None) -> list[Window]:
    """Cut each text's ids into windows of at most `LENGTH` tokens, or what the model takes, of which each repeats the
    last tokens of the one before: perplexity with a stride, https://huggingface.co/docs/transformers/perplexity.

    What the tokenizer puts before a text, such as BOS, stands before each window, counts in its length, and is never
    scored. Each token of a text is scored once, but for a first one that has nothing before it. Raises HFPipeError
    where there is nothing to score.
    """
    length = min(LENGTH, context_length or LENGTH)
    prefix = start_tokens(tokenizer)
    first = 0 if prefix else 1
    room, context = length - len(prefix), max(min(CONTEXT, length // 4), first)
    found = []
    for kind, text in texts.items():
        ids = tokenizer.encode(text, False)
        begin, scored = 0, first
        while scored < len(ids) and context < room:
            end = min(begin + room, len(ids))
            found.append(Window(kind, (*prefix, *ids[begin:end]), len(prefix) + scored - begin))
            begin, scored = end - context, end
    if not found:
        raise HFPipeError(
            f"There is nothing to measure a model on: no text has two tokens, or {length} tokens at once are too few.",
            hint="Use longer texts, or a model with a longer context.",
        )
    return found


def start_tokens(tokenizer: Tokenizer) -> tuple[int, ...]:
    """What the tokenizer puts before a text, such as BOS."""
    bare, whole = tokenizer.encode("a", False), tokenizer.encode("a", True)
    starts = [start for start in range(len(whole)) if whole[start : start + len(bare)] == bare]
    return whole[: starts[0]] if starts else ()


def reported(windows: Sequence[Window], task: str, reporter: Reporter) -> Iterator[Window]:
    """The windows, with progress in scored tokens."""
    done, total = 0, sum(len(window.targets) for window in windows)
    for window in windows:
        reporter.progress(task, done, total, "steps")
        yield window
        done += len(window.targets)
    reporter.progress(task, done, total, "steps")


@dataclass(frozen=True, slots=True)
class Reference:
    """The reference in `folder`: its windows, the width of its rows, and the dtype that the model ran in."""

    folder: Path
    windows: tuple[Window, ...]
    vocabulary: int
    dtype: str

    @property
    def tokens(self) -> int:
        """The scored tokens."""
        return sum(len(window.targets) for window in self.windows)

    def scored(self) -> Iterator[tuple[Window, NDArray[np.float16]]]:
        """Each window with its log-probabilities, float16 [scored tokens, vocabulary], read from disk as needed.

        They are rounded: take log_softmax of them.
        """
        rows = np.memmap(self.folder / _ROWS, _STORED, "r", shape=(self.tokens, self.vocabulary))
        start = 0
        for window in self.windows:
            end = start + len(window.targets)
            yield window, rows[start:end]
            start = end


def write_reference(
    folder: Path, windows: Sequence[Window], logits: Iterable[NDArray[Any]], *, dtype: str
) -> Reference:
    """Write the reference into an existing folder: for each window the logits, floats [scored tokens, vocabulary].

    Raises HFPipeError where the disk is full.
    """
    vocabulary = 0
    # Written as a file: a full disk would kill a process that writes into mapped memory.
    with writing(folder), (folder / _ROWS).open("wb") as file:
        for one in logits:
            vocabulary = one.shape[1]
            for rows in row_chunks(*one.shape):
                file.write(log_softmax(one[rows]).astype(_STORED).data)
        file.flush()
        description = {"windows": [asdict(window) for window in windows], "vocabulary": vocabulary, "dtype": dtype}
        (folder / _DESCRIPTION).write_text(json.dumps(description), encoding="utf-8")
    return Reference(folder, tuple(windows), vocabulary, dtype)


def read_reference(folder: Path) -> Reference:
    """The reference that `write_reference` left in `folder`."""
    description = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
    ids = ("token_ids", "prompt")
    windows = [Window(**one | {name: tuple(one[name]) for name in ids}) for one in description["windows"]]
    return Reference(folder, tuple(windows), description["vocabulary"], description["dtype"])


def change_text(value: float) -> str:
    """A share with its sign: +0.9%, +234%, 0.0% for what rounds to that; with a bound, past which none is better."""
    if value >= 1000:
        return "over +100,000%"
    text = f"{value:+,.0%}" if abs(value) >= 0.9995 else f"{value:+.1%}"
    return "0.0%" if text in ("+0.0%", "-0.0%") else text


@dataclass(frozen=True, slots=True)
class Change:
    """A candidate model against a reference, over the same tokens.

    `perplexity_change` is the ratio of the two perplexities less 1. `perplexity_change_error` is its standard error,
    None for a single token. With d_i = log p_reference(token i) - log p_candidate(token i), paired token by token, the
    ratio is exp(mean d), and by the delta method its standard error is exp(mean d) * std(d) / sqrt(n); tokens count as
    independent of each other. `same_top` is the share of tokens before which both hold the same next token for the
    most likely one; several equal ones of the reference all count. `mean_kl` is the mean over the tokens of
    KL(reference || candidate) = sum_v p_reference(v) * (log p_reference(v) - log p_candidate(v)), in nats.
    """

    tokens: int
    perplexity: float
    reference_perplexity: float
    perplexity_change: float
    perplexity_change_error: float | None
    same_top: float
    mean_kl: float


@dataclass(frozen=True, slots=True)
class Quality(Change):
    """The change over all texts, and in `kinds` over those of each kind.

    `vocabulary` is how many token ids were compared. Where one of the models has more, which are padding, both
    distributions are those over the ids that both have.
    """

    vocabulary: int
    kinds: Mapping[str, Change] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Values of JSON, all of them finite."""
        return asdict(self)


def compare(reference: Reference, logits: Iterable[NDArray[Any]]) -> Quality:
    """The reference against a candidate's logits: for each of its windows floats [scored tokens, vocabulary].

    Raises UnsupportedModel for tokens that one of the models does not have, BackendError for logits that are no
    numbers.
    """
    scores: dict[str, list[NDArray[np.float64]]] = {}
    width = 0
    for (window, theirs), ours in zip(reference.scored(), logits, strict=True):
        width = min(theirs.shape[1], ours.shape[1])
        if max(window.token_ids) >= width:
            raise UnsupportedModel(
                f"The two models cannot be compared: the text has the token {max(window.token_ids)}, "
                f"and one of them has {width} tokens."
            )
        targets = np.array(window.targets)
        for rows in row_chunks(len(targets), width):
            part = _scores(theirs[rows, :width], ours[rows, :width], targets[rows])
            scores.setdefault(window.kind, []).append(part)
    kinds = {kind: np.concatenate(parts, axis=1) for kind, parts in scores.items()}
    whole = _change(np.concatenate(list(kinds.values()), axis=1))
    return Quality(**asdict(whole), vocabulary=width, kinds={kind: _change(one) for kind, one in kinds.items()})


def common_prefix(one: Sequence[object], other: Sequence[object]) -> int:
    """The length of what two sequences begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def row_chunks(rows: int, width: int) -> Iterator[slice]:
    """Slices of `rows` rows that are small enough to be worked on at once, however large a vocabulary is."""
    step = max(1, _CHUNK // width)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float32]:
    """Log-probabilities, float32 [n, vocabulary], of logits of any float type; none is below -10,000.

    Raises BackendError where a row has none, since it holds NaN or infinity.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        result = logits.astype(np.float32)
        result -= result.max(axis=1, keepdims=True)
        total = np.exp(result).sum(axis=1, keepdims=True)
    if not np.isfinite(total).all():
        raise BackendError(
            "The model computes NaN or infinity instead of logits.", hint="Another weight format or dtype may not."
        )
    result -= np.log(total)
    np.maximum(result, np.float32(_LOWEST), out=result)
    return result


def _scores(reference: NDArray[Any], logits: NDArray[Any], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """float64 [4, n]: both models' log-probabilities of the targets, whether the tops are equal, and the KL."""
    theirs, ours = log_softmax(reference), log_softmax(logits)
    rows = np.arange(len(targets))
    same = theirs[rows, ours.argmax(axis=1)] == theirs.max(axis=1)
    kl = (np.exp(theirs) * (theirs - ours)).sum(axis=1)
    return np.stack([theirs[rows, targets], ours[rows, targets], same, kl], dtype=np.float64)


def _change(scores: NDArray[np.float64]) -> Change:
    reference, candidate, same, kl = scores
    difference = reference - candidate
    # JSON knows no infinity.
    ratio, ours, theirs = (math.exp(min(nats.mean(), _MOST_NATS)) for nats in (difference, -candidate, -reference))
    error = ratio * float(difference.std(ddof=1)) / math.sqrt(difference.size) if difference.size > 1 else None
    # Rounding can leave the divergence a hair below 0.
    divergence = max(0.0, float(kl.mean()))
    return Change(difference.size, ours, theirs, ratio - 1, error, float(same.mean()), divergence)
