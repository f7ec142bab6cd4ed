"""`--verify-parity`: answers of a batch beside those that their prompts get alone and exactly."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hfpipe.batch.lines import open_input, read_lines
from hfpipe.batch.parity import Parity, answered, compare
from hfpipe.cli.batch_asked import Asked
from hfpipe.cli.startup import find, load_found
from hfpipe.cli.terminal import Terminal, tell
from hfpipe.errors import HFPipeError
from hfpipe.sampling import resolve_sampling
from hfpipe.types import Completion, GenerationOptions, LoadOptions, TextRequest

if TYPE_CHECKING:
    from hfpipe.langchain import HFPipe

_SHOWN = 3
_EXCERPT = 40


def check_parity(asked: Asked, loading: LoadOptions, output: Path, count: int, *, quiet: bool, verbose: bool) -> None:
    """Tell how many of `count` answers in `output` are equal to what their prompts get alone and exactly.

    Raises HFPipeError where not all are, though all were to be (`loading.exact`).
    """
    assert asked.input is not None
    with open_input(asked.input) as lines, output.open("rb") as results:
        chosen = answered(read_lines(lines, asked.name), results, asked.form(), count)
    exactly = replace(loading, exact=True, batch_size=1)
    with Terminal(quiet=quiet, verbose=verbose, plain=True) as talk:
        llm = load_found(find(asked.model, exactly, talk), exactly, GenerationOptions(), talk)
        talk.stage(f"Answering {len(chosen)} records alone and exactly")
        parity = compare(
            chosen,
            asked.prompts(llm),
            lambda request: _alone(llm, request),
            lambda options: resolve_sampling(options, llm.generator.source.generation_config).temperature > 0,
            lambda text: llm.generator.tokenizer.encode(text, False),
        )
        talk.stage(None)
    said = lines_of(parity)
    if loading.exact and parity.parted:
        raise HFPipeError(f"With --exact all answers are to be equal. {said[0]}", details=said[1:])
    if not quiet:
        tell("\n".join(said))


def _alone(llm: HFPipe, request: TextRequest) -> Completion:
    (completion,) = llm.generator.generate([request])
    return completion


def lines_of(parity: Parity) -> list[str]:
    """What came out, for a person: one line, and one for each of the first answers that part."""
    compared = parity.equal + len(parity.parted)
    first = f"{parity.equal} of {compared} answers equal those of their prompts alone and exactly"
    if not compared:
        first = "There are no answers to compare"
    if parity.parted:
        first += f"; the others part after {statistics.median(one.after for one in parity.parted):g} tokens (median)"
    if parity.unseeded:
        first += f"; {parity.unseeded} were drawn without a seed, and cannot be compared"
    lines = [first + "."]
    for one in parity.parted[:_SHOWN]:
        if one.exact is None:
            lines.append(f"{one.id}: no answer alone and exactly")
            continue
        lines.append(
            f"{one.id}: after {one.after} of {one.of} tokens {_excerpt(one.stands)}, exactly {_excerpt(one.exact)}"
        )
    return lines


def _excerpt(text: str) -> str:
    """The beginning of a text, quoted, its line breaks escaped."""
    return repr(text if len(text) <= _EXCERPT else text[: _EXCERPT - 1] + "…") if text else "nothing more"
