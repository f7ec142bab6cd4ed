"""How many answers of a batch match those of an exact run of the prompt alone, and where the others diverge."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from hfpipe.batch.formats import Format
from hfpipe.batch.lines import Line
from hfpipe.batch.prompts import Prompts
from hfpipe.batch.records import Record
from hfpipe.quality.compare import common_prefix
from hfpipe.types import Completion, GenerationOptions, TextRequest


@dataclass(frozen=True, slots=True)
class Answered:
    """A record, and the text of its answer in the output."""

    record: Record
    text: str


@dataclass(frozen=True, slots=True)
class Difference:
    """An answer that diverges after `after` tokens, of the `of` that the exact one has.

    `found` and `exact` are how the two texts continue from there. A failure to answer exactly is an `exact` of None.
    """

    id: str
    after: int
    of: int
    found: str
    exact: str | None


@dataclass(frozen=True, slots=True)
class Parity:
    """How many answers are `equal`, the others, and how many were sampled without a seed, so that they cannot be
    compared."""

    equal: int
    different: Sequence[Difference]
    unseeded: int


def answered(lines: Iterable[Line], results: Iterable[bytes], form: Format, count: int) -> list[Answered]:
    """`count` of the answers in `results`, or all where there are fewer, in their order; the same ones each time.

    Each answer has the same chance: algorithm R of J. S. Vitter, Random Sampling with a Reservoir (1985).
    """
    chance = random.Random(count)
    kept: dict[int, Answered] = {}
    for seen, (position, answer) in enumerate(_answers(lines, results, form)):
        if len(kept) >= count:
            place = chance.randint(0, seen)
            if place >= count:
                continue
            del kept[list(kept)[place]]
        kept[position] = answer
    return [kept[position] for position in sorted(kept)]


def _answers(lines: Iterable[Line], results: Iterable[bytes], form: Format) -> Iterator[tuple[int, Answered]]:
    for position, (line, result) in enumerate(zip(lines, results, strict=False)):
        text = form.read_text(result)
        if text is not None:
            yield position, Answered(form.read_record(line), text)


def compare(
    given: Iterable[Answered],
    prompts: Prompts,
    answer: Callable[[TextRequest], Completion],
    is_drawn: Callable[[GenerationOptions], bool],
    encode: Callable[[str], Sequence[int]],
) -> Parity:
    """Answer each again with `answer`, one after the other. `is_drawn` tells whether options mean sampling."""
    equal, unseeded, different = 0, 0, []
    for one in given:
        request = prompts.request(one.record.id, one.record)
        if is_drawn(request.options) and request.options.seed is None:
            unseeded += 1
            continue
        completion = answer(request)
        if completion.error is None and completion.text == one.text:
            equal += 1
        else:
            different.append(_difference(one, completion, encode))
    return Parity(equal, different, unseeded)


def _difference(one: Answered, exact: Completion, encode: Callable[[str], Sequence[int]]) -> Difference:
    if exact.error is not None:
        return Difference(one.record.id, 0, 0, one.text, None)
    theirs = encode(exact.text)
    same = common_prefix(one.text, exact.text)
    return Difference(
        one.record.id, common_prefix(encode(one.text), theirs), len(theirs), one.text[same:], exact.text[same:]
    )
