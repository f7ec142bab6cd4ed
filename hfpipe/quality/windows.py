"""Texts -> windows of token ids in which each token is scored once, with tokens of its text before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hfpipe.errors import HFPipeError

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
