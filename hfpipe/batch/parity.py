"""How many answers of a batch match those of an exact run of the prompt alone, and where the others diverge."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hfpipe.batch.formats import Format
from hfpipe.batch.lines import Line
from hfpipe.batch.records import Record
from hfpipe.quality.compare import common_prefix
from hfpipe.sampling import resolve_sampling
from hfpipe.types import TextRequest

if TYPE_CHECKING:
    from hfpipe.langchain import HFPipe


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


def answered(lines: Iterable[Line], results: Iterable[bytes], form: Format, count: int) -> list[tuple[Record, str]]:
    """`count` of the answers in `results`, or all where there are fewer, each a record and its text, in their order;
    the same ones each time.

    Each answer has the same chance: algorithm R of J. S. Vitter, Random Sampling with a Reservoir (1985).
    """
    chance, seen = random.Random(count), 0
    chosen: list[tuple[Line, str]] = []
    for line, written in zip(lines, results, strict=False):
        result = form.read_result(written)
        if result is None or result.error is not None:
            continue
        seen += 1
        if len(chosen) < count:
            chosen.append((line, result.text))
        elif (place := chance.randrange(seen)) < count:
            chosen[place] = line, result.text
    return [(form.read_record(line), text) for line, text in sorted(chosen)]


def compare(given: Iterable[tuple[Record, str]], ask: Callable[[Record], TextRequest], llm: HFPipe) -> Parity:
    """Answer each again with `llm`, one after the other."""
    equal, unseeded, different = 0, 0, []
    for record, found in given:
        request = ask(record)
        sampling = resolve_sampling(request.options, llm.generator.source.generation_config)
        if sampling.temperature > 0 and request.options.seed is None:
            unseeded += 1
            continue
        ((_, completion),) = llm.stream_batch([request])
        exact = completion.text
        if completion.error is not None:
            different.append(Difference(record.id, 0, 0, found, None))
        elif exact == found:
            equal += 1
        else:
            ours, theirs = llm.get_token_ids(found), llm.get_token_ids(exact)
            after, same = common_prefix(ours, theirs), common_prefix(found, exact)
            different.append(Difference(record.id, after, len(theirs), found[same:], exact[same:]))
    return Parity(equal, different, unseeded)
