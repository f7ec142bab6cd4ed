"""Windows of text, and what a reference model said of each scored token, on disk: two models are never in memory
together."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hfpipe.errors import HFPipeError
from hfpipe.quality.compare import log_softmax, row_chunks
from hfpipe.store import writing

if TYPE_CHECKING:
    from hfpipe.text.tokenizer import Tokenizer

LENGTH = 512
CONTEXT = 128


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens of a text of one kind. Those from `scored_from` on, at least 1, are scored; the rest is context."""

    kind: str
    token_ids: tuple[int, ...]
    scored_from: int

    @property
    def inputs(self) -> tuple[int, ...]:
        """What a model is given: all but the last token, of which nothing more is asked."""
        return self.token_ids[:-1]

    @property
    def targets(self) -> tuple[int, ...]:
        """The scored tokens. The last len(targets) logits that a model gives for the inputs are theirs."""
        return self.token_ids[self.scored_from :]


def model_windows(tokenizer: Tokenizer, texts: Mapping[str, str], context_length: int | None = None) -> list[Window]:
    """The windows of `texts` for a model with this tokenizer that takes `context_length` tokens, None for no limit."""
    length, context = LENGTH, CONTEXT
    if context_length is not None and context_length < length:
        length, context = context_length, min(context, context_length // 4)
    return windows(
        texts, lambda text: tokenizer.encode(text, False), prefix=prefix_of(tokenizer), length=length, context=context
    )


def prefix_of(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that the tokenizer puts before a text, such as BOS; what it puts after one is no part of this."""
    bare, whole = tokenizer.encode("a", False), tokenizer.encode("a", True)
    starts = [start for start in range(len(whole)) if whole[start : start + len(bare)] == bare]
    return whole[: starts[0]] if starts else ()


def windows(
    texts: Mapping[str, str],
    encode: Callable[[str], Sequence[int]],
    *,
    prefix: Sequence[int] = (),
    length: int = LENGTH,
    context: int = CONTEXT,
) -> list[Window]:
    """Cut each text's ids into windows of at most `length` tokens, of which each repeats the last `context` tokens of
    the one before: perplexity with a stride, https://huggingface.co/docs/transformers/perplexity.

    `prefix` stands before each window, counts in its length, and is never scored. Each token of a text is scored
    once, but for a first one that has no prefix before it. Raises HFPipeError where there is nothing to score.
    """
    first = 0 if prefix else 1
    room, context = length - len(prefix), max(context, first)
    found = []
    for kind, text in texts.items():
        ids = encode(text)
        for begin, scored, end in _spans(len(ids), room, context, first):
            found.append(Window(kind, (*prefix, *ids[begin:end]), len(prefix) + scored - begin))
    if not found:
        raise HFPipeError(
            f"There is nothing to measure a model on: no text has two tokens, or {length} tokens at once are too few.",
            hint="Use longer texts, or a model with a longer context.",
        )
    return found


def _spans(count: int, room: int, context: int, first: int) -> Iterator[tuple[int, int, int]]:
    """Where a window begins in `count` tokens, where the tokens that it scores begin, and where both end."""
    begin, scored = 0, first
    while scored < count and context < room:
        end = min(begin + room, count)
        yield begin, scored, end
        begin, scored = end - context, end


# float16 moves a log-probability x by an e of up to |x| / 2048. A reader normalises each row again in float32: then the
# mean of e is 0, and KL to an equal model is of second order, mean e**2 / 2, some 1e-6 nats. To another model q it also
# changes by the mean of e * log(p / q), in which the signs of e cancel.
_STORED = np.dtype("<f2")
_ROWS, _DESCRIPTION = "log_probabilities.f16", "reference.json"


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
        return scored_tokens(self.windows)

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


def scored_tokens(windows: Iterable[Window]) -> int:
    return sum(len(window.targets) for window in windows)


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
    windows = [Window(**window | {"token_ids": tuple(window["token_ids"])}) for window in description["windows"]]
    return Reference(folder, tuple(windows), description["vocabulary"], description["dtype"])
