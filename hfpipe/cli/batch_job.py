"""The work of `hfpipe batch`: from the command line's words to the last result."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from io import FileIO
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfpipe.batch import manifest
from hfpipe.batch.journal import Journal
from hfpipe.batch.lines import Arriving, Line, open_input, read_lines
from hfpipe.batch.runner import RECORDS_FAILED, Tally, by_type, results
from hfpipe.cli.batch_asked import Asked
from hfpipe.cli.batch_progress import Progress
from hfpipe.cli.main import say_when_interrupted, unwinding
from hfpipe.cli.startup import find, load_found
from hfpipe.cli.terminal import Answer, Terminal, tell
from hfpipe.errors import UsageError
from hfpipe.store import identity
from hfpipe.text.tokenizer import load_tokenizer
from hfpipe.types import GenerationOptions, LoadOptions

if TYPE_CHECKING:
    from hfpipe.generator import Found


class Job:
    """One run of a batch, into a file with its journal or to stdout."""

    def __init__(
        self,
        asked: Asked,
        loading: LoadOptions,
        output: Path | None,
        *,
        restart: bool = False,
        retry_errors: bool = False,
        max_errors: int | None = None,
    ) -> None:
        self._asked = asked
        self._loading = loading
        self._output = output
        self._restart = restart
        self._retry = retry_errors
        self._max_errors = max_errors
        self._form = asked.form()
        self._tally = Tally()
        self._journal: Journal | None = None
        self._stood = 0

    def run(self, *, quiet: bool, verbose: bool) -> int:
        """Do it, and give the exit code."""
        begun = time.perf_counter()
        say_when_interrupted(self._interrupted)
        with ExitStack() as stack:
            self._run(stack, stack.enter_context(Terminal(quiet=quiet, verbose=verbose, plain=True)))
        if not quiet:
            tell(self._summary(time.perf_counter() - begun))
        return RECORDS_FAILED if self._errors() else 0

    def _run(self, stack: ExitStack, talk: Terminal) -> None:
        # As it is: a buffer of its own would wait for more than has come.
        stream = FileIO(0, closefd=False) if self._asked.input is None else self._open(stack)
        if self._retry and not self._asked.is_file:
            raise UsageError(f"--retry-errors reads its input twice, and {self._asked.input} is not a file.")
        found = find(self._asked.model, self._loading, talk)
        todo = self._begin(stack, read_lines(stream, self._asked.name), found, talk)
        if self._retry:
            todo = self._failed(read_lines(self._open(stack), self._asked.name))
        first = next(todo, None)
        if first is None:
            return
        waiting: Iterable[Line | None] = chain([first], todo)
        if not self._asked.is_file:
            # The engine is not to wait for the next record with the answers to the last ones.
            waiting = Arriving(chain([first], todo), lambda: self._tally.records)
        # Each request carries its options whole.
        llm = load_found(found, self._loading, GenerationOptions(), talk)
        counted = self._asked.input if self._asked.is_file and not self._retry else None
        progress = Progress(talk, self._tally, counted, self._stood)
        with unwinding():
            self._write(
                stack,
                results(
                    waiting,
                    lambda requests: (completion for _, completion in llm.stream_batch(requests)),
                    self._asked.prompts(llm),
                    self._form,
                    self._tally,
                    max_errors=self._max_errors,
                    on_progress=progress.show,
                ),
            )

    def _open(self, stack: ExitStack) -> Any:
        assert self._asked.input is not None
        return stack.enter_context(open_input(self._asked.input, self._output))

    def _begin(self, stack: ExitStack, lines: Iterator[Line], found: Found, talk: Terminal) -> Iterator[Line]:
        """The lines that are still to be answered. Raises HFPipeError where what stands is of another run."""
        if self._output is None:
            return lines
        journal = Journal(self._output, self._settings(found), self._form, restart=self._restart)
        stack.enter_context(journal)
        todo = journal.resume(lines)
        self._journal, self._stood = journal, journal.count
        if journal.set_aside:
            talk.note(f"The results that stood are in {journal.set_aside}.")
        return todo

    def _failed(self, lines: Iterator[Line]) -> Iterator[Line]:
        """Of the lines of the input, those whose results are errors."""
        assert self._journal
        failed = set(self._journal.failed)
        return (line for position, line in enumerate(lines) if position in failed)

    def _write(self, stack: ExitStack, lines: Iterator[bytes]) -> None:
        if self._journal is None:
            answer = stack.enter_context(Answer())
            for line in lines:
                answer.write(line.decode())
        elif self._retry:
            self._journal.replace_errors(zip(tuple(self._journal.failed), lines, strict=True))
        else:
            for line in lines:
                self._journal.append(line)

    def _settings(self, found: Found) -> dict[str, Any]:
        """What the results depend on."""
        source, asked = found.source, self._asked
        tokenizer = load_tokenizer(source.folder, trust_remote_code=self._loading.trust_remote_code)
        used = manifest.used(
            source,
            identity(source.folder),
            found.choice.name,
            asked.prompt_template(tokenizer, source.reference),
            asked.generation,
            self._loading,
        )
        return {**used, "variables": dict(asked.variables), "system": asked.system, "format": asked.format}

    def _errors(self) -> Counter[str]:
        """The failed records by the word of their error, those that failed in an earlier run too."""
        if self._journal is None or self._retry:
            return self._tally.errors
        return self._journal.errors + self._tally.errors

    def _summary(self, seconds: float) -> str:
        rate = self._tally.completion_tokens / seconds
        done = f"{_counted(self._tally.records, 'record')} in {seconds:.1f} s, {rate:,.1f} generated tokens a second"
        parts = [self._nothing() or done]
        if self._stood and self._tally.records and not self._retry:
            parts.append(f"{self._stood:,} stood already")
        if errors := self._errors():
            parts.append(f"{errors.total():,} failed ({by_type(errors)})")
        return "; ".join(parts) + "."

    def _nothing(self) -> str | None:
        """That there was nothing to do, where it was so."""
        if self._tally.records or not (self._stood or self._retry):
            return None
        standing = f"{_counted(self._stood, 'result')} in {self._output}"
        return f"There is nothing to do: {standing}, " + (
            "none of them failed" if self._retry else "one for each record"
        )

    def _interrupted(self) -> str:
        if self._output is None:
            return "Interrupted."
        if self._journal is None:
            return "Interrupted. The same command again goes on."
        written = _counted(self._journal.count, "result")
        again = "without --restart" if self._restart else "again"
        return f"Interrupted with {written} in {self._output}. The same command {again} goes on."


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + "s" * (number != 1)
