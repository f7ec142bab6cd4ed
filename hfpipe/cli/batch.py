"""`hfpipe batch`: a file of prompts in, a file of results out that no crash can spoil."""

from __future__ import annotations

import json as jsonlib
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from hfpipe.cli import options as o
from hfpipe.cli.main import INTERRUPTS
from hfpipe.cli.startup import leave_out_unused, silence
from hfpipe.cli.terminal import Answer, Terminal, data, tell
from hfpipe.errors import HFPipeError, UsageError
from hfpipe.types import GenerationOptions, LoadOptions

if TYPE_CHECKING:
    from hfpipe.batch import Summary
    from hfpipe.batch.parity import Parity

DEFAULT_MODEL = "smollm2"
_STDOUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
_SHOWN = 3
_EXCERPT = 40

_output = partial(o.option, panel=o.OUTPUT)
_INPUT = o.argument("INPUT", "JSON lines, or a .txt file with a prompt a line; also gzipped; - is stdin.")
_RESULTS = "Write results to FILE. Run the same command again to resume. Default: stdout."
_FORMAT = "hfpipe, openai (Batch API) or text. Default: recognized by the first line."
_RESTART = _output("--restart", "Start over, and keep the old results under another name.")
_RETRY = _output("--retry-errors", "Answer failed records again, in their places.")
_MOST = _output("--max-errors N", "Stop once more than N have failed.")
_VERIFY = "Afterwards compare N answers with an exact run of the prompt alone."
_AT_ONCE = "Requests in flight at once. Default: the backend's own."


def batch(
    *,
    input: Annotated[str, _INPUT],
    model: o.ModelOpt = None,
    output: Annotated[Path | None, _output("--output -o FILE", _RESULTS)] = None,
    format: Annotated[str | None, _output("--format FORMAT", _FORMAT)] = None,
    json: Annotated[bool, _output("--json", "The summary as one JSON object on stdout.")] = False,
    restart: Annotated[bool, _RESTART] = False,
    retry_errors: Annotated[bool, _RETRY] = False,
    max_errors: Annotated[int | None, _MOST] = None,
    verify_parity: Annotated[int | None, _output("--verify-parity N", _VERIFY)] = None,
    backend: o.BackendOpt = "auto",
    loading: LoadOptions,
    generation: GenerationOptions,
    batch_size: Annotated[int | None, o.option("--batch-size N", _AT_ONCE, panel=o.LOADING)] = None,
    template: o.TemplateOpt = None,
    var: o.VarOpt = None,
    system: o.SystemOpt = None,
    chat_template_name: o.ChatTemplateNameOpt = None,
    quiet: o.QuietOpt = False,
    verbose: o.VerboseOpt = False,
) -> int:
    """Answer a file of prompts.

    The results are at every moment a prefix of the finished file. Run the same command again to resume.
    """
    loading = replace(loading, backend=backend, batch_size=batch_size)
    variables = o.pairs("--var", var or ())
    path = None if output is None or str(output) in _STDOUT else output
    if json and path is None:
        raise UsageError(
            "--json needs a file of results, --output.",
            hint="Without one, the results are JSON lines on stdout already.",
        )
    silence(verbose=verbose)
    if not loading.trust_remote_code:
        leave_out_unused()
    # Nothing has to be put in order: the output is at every moment as good as finished.
    again = "without --restart" if restart else "again"
    INTERRUPTS.farewell = lambda: f"Interrupted. Run the same command {again} to resume." if path else "Interrupted."
    with Terminal(quiet=quiet, verbose=verbose, plain=True) as terminal:
        if model is None and not quiet:
            tell(f"No --model and no HFPIPE_MODEL: using {DEFAULT_MODEL}.")
        with terminal.waiting(f"Loading {model or DEFAULT_MODEL}"):
            from hfpipe.batch import run

            summary = run(
                model or DEFAULT_MODEL,
                input,
                path or _to_stdout(terminal),
                reporter=terminal,
                **{one.name: getattr(loading, one.name) for one in fields(loading)},
                **asdict(generation),
                template=template,
                variables=variables,
                system=system,
                chat_template_name=chat_template_name,
                format=format,
                restart=restart,
                retry_errors=retry_errors,
                max_errors=max_errors,
                verify_parity=verify_parity,
            )
    if json:
        data(jsonlib.dumps(summary.as_dict(), ensure_ascii=False))
    if not quiet:
        tell("\n".join(_described(summary, retry=retry_errors)))
    if summary.parity and summary.parity.different and loading.exact:
        first, *others = parity_lines(summary.parity)
        raise HFPipeError(f"With --exact all answers must be equal. {first}", details=others)
    return summary.exit_code


def _to_stdout(terminal: Terminal) -> Callable[[bytes], None]:
    """Writes results as the answers that they are. On a terminal nothing may move below them."""
    on_terminal = sys.stdout.isatty()
    answer = Answer()

    def write(line: bytes) -> None:
        if on_terminal:
            terminal.hold_still()
        answer.write(line.decode())

    return write


def _described(summary: Summary, *, retry: bool) -> list[str]:
    """One line for a person, one more for earlier results, and those of a comparison."""
    lines = [f"The earlier results are in {summary.set_aside}."] if summary.set_aside else []
    rate = summary.completion_tokens / summary.seconds
    said = f"{_counted(summary.answered, 'record')} in {summary.seconds:.1f} s, {rate:,.1f} generated tokens/s"
    if retry and not summary.answered:
        said = f"Nothing to retry: no record failed in {summary.output}"
    elif summary.existing and not summary.answered:
        said = f"Nothing to do: {summary.output} already has a result for all {_counted(summary.existing, 'record')}"
    elif summary.existing and not retry:
        said += f"; {summary.existing:,} already had a result"
    if summary.errors:
        said += f"; {summary.failed:,} failed ({summary.failed_by_type})"
    if summary.unanswered:
        said += "; some records have no result yet: run the same command without --retry-errors to answer them"
    return [*lines, f"{said}.", *(parity_lines(summary.parity) if summary.parity else [])]


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + "s" * (number != 1)


def parity_lines(parity: Parity) -> list[str]:
    """What came of comparing: one line, and one for each of the first answers that differ."""
    compared = parity.equal + len(parity.different)
    first = f"{parity.equal} of {compared} answers match an exact run of the prompt alone"
    if not compared:
        first = "No answers to compare"
    if parity.different:
        after = statistics.median(one.after for one in parity.different)
        first += f"; the others diverge after {after:g} token{'s' * (after != 1)} (median)"
    if parity.unseeded:
        first += f"; {parity.unseeded} were sampled without a seed and cannot be compared"
    lines = [first + "."]
    for one in parity.different[:_SHOWN]:
        if one.exact is None:
            lines.append(f"{one.id}: the exact run failed")
            continue
        found, exact = _excerpt(one.found), _excerpt(one.exact)
        lines.append(f"{one.id}: after {one.after} of {one.of} tokens {found}, exactly {exact}")
    return lines


def _excerpt(text: str) -> str:
    """The beginning of a text, quoted, its line breaks escaped."""
    return repr(text if len(text) <= _EXCERPT else text[: _EXCERPT - 1] + "…") if text else "nothing more"
