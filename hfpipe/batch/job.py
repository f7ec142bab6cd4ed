"""The use case: from a model and an input to the last result, for Python, the command line and others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, replace
from io import FileIO
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from typing_extensions import Unpack

from hfpipe.backends import Choice
from hfpipe.batch import manifest
from hfpipe.batch.formats import FORMATS, Format, HFPipeFormat, TextFormat, recognized
from hfpipe.batch.journal import Journal, check_place
from hfpipe.batch.lines import Arriving, Line, Lines, open_input
from hfpipe.batch.openai_format import OpenAIFormat
from hfpipe.batch.order import RECORDS_FAILED, Tally, results
from hfpipe.batch.prompts import Prompts
from hfpipe.errors import UsageError, nearest
from hfpipe.generator import Found, Generator, find_model, load_generator
from hfpipe.sampling import resolve_sampling
from hfpipe.store import identity
from hfpipe.text.templates import PromptTemplate, Template, parse_template, prompt_template
from hfpipe.text.tokenizer import Tokenizer, load_tokenizer
from hfpipe.types import (
    Completion,
    GenerationFields,
    GenerationOptions,
    LoadFields,
    LoadOptions,
    Reporter,
    Silent,
    TextRequest,
)

if TYPE_CHECKING:
    from hfpipe.batch.parity import Parity

_USUAL_VARIABLES = ("prompt", "question")
_SHOW_EVERY_S = 0.1


class Options(LoadFields, GenerationFields, total=False):
    """The options of `hfpipe.batch`: of loading, of generation, of the prompt, and of the batch itself."""

    template: str | None
    variables: Mapping[str, str]
    system: str | None
    chat_template_name: str | None
    format: str | None
    restart: bool
    retry_errors: bool
    max_errors: int | None
    verify_parity: int | None


_OF_LOADING = frozenset(field.name for field in fields(LoadOptions))
_OF_GENERATION = frozenset(field.name for field in fields(GenerationOptions))


@dataclass(frozen=True, slots=True)
class Summary:
    """What a batch has done.

    `output` is the file of results, None where they went elsewhere; of its results, `existing` are of earlier runs, and
    `errors` counts the failed by type. `answered` counts the records of this run, failed ones included, and the tokens
    are theirs. `unanswered` tells that the input has records without a result. `set_aside` is the new name of an
    earlier output, `parity` what `verify_parity` found.
    """

    output: Path | None
    answered: int
    existing: int
    errors: Mapping[str, int]
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    unanswered: bool = False
    set_aside: Path | None = None
    parity: Parity | None = None

    @property
    def failed(self) -> int:
        return sum(self.errors.values())

    @property
    def exit_code(self) -> int:
        """0, or 3 where a record failed or has no result."""
        return RECORDS_FAILED if self.errors or self.unanswered else 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        paths = {name: value and str(value) for name, value in (("output", self.output), ("set_aside", self.set_aside))}
        return {**asdict(self), **paths, "failed": self.failed}


def run(
    model: str | Path | Generator | Any,
    input: str | Path,
    output: str | Path | Callable[[bytes], object],
    *,
    reporter: Reporter | None = None,
    **options: Unpack[Options],
) -> Summary:
    """Answer a file of prompts, so that no crash loses a result or writes one twice.

    The output is at every moment a prefix of the finished one, in the order of the input; the same call again resumes.

    Args:
        model: What `hfpipe.load` takes, or a loaded model: an HFPipe, a ChatHFPipe or a Generator.
        input: A file of JSON lines, or of plain text (.txt) with one prompt a line, also gzipped; "-" is stdin.
        output: The file of results, or a function that is called with each line.
        reporter: Where progress and notes go.
        options: Those of `hfpipe.load`, and `template`, `variables`, `system`, `format`, `restart`, `retry_errors`,
            `max_errors`, `verify_parity`, which mean what they mean on the command line.

    Returns:
        What was done. A record that failed is a result with an error, and counted there.

    Raises:
        HFPipeError: Where the input, the output or the model cannot be used, the output was started with different
            settings, or more than `max_errors` records failed.

    Example:
        >>> _ = Path("q.jsonl").write_text('{"prompt": "What is EEG?"}\\n')
        >>> summary = hfpipe.batch(model, "q.jsonl", "a.jsonl", backend="echo", template="raw")
        >>> summary.answered, summary.failed
        (1, 0)
        >>> hfpipe.batch(model, "q.jsonl", "a.jsonl", backend="echo", template="raw").answered
        0
    """
    begun = time.perf_counter()
    job = _Job(_task(model, input, output, options), reporter or Silent())
    with ExitStack() as stack:
        job.run(stack)
    parity = job.check_parity() if job.task.verify_parity else None
    return job.summary(time.perf_counter() - begun, parity)


@dataclass(frozen=True)
class _Task:
    """The arguments of a batch, checked. `model` is a reference or loaded, an `input` of None is stdin, an `output` of
    None has a `write`, and a `template` of None is the model's own."""

    model: str | Generator
    input: Path | None
    output: Path | None
    write: Callable[[bytes], object] | None
    loading: LoadOptions
    generation: GenerationOptions
    template: Template | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    system: str | None = None
    chat_template_name: str | None = None
    format: str | None = None
    restart: bool = False
    retry_errors: bool = False
    max_errors: int | None = None
    verify_parity: int | None = None

    def __post_init__(self) -> None:
        if self.format not in (None, *FORMATS):
            hint = nearest(str(self.format), FORMATS) or f"Known formats are {', '.join(FORMATS)}."
            raise UsageError(f"Unknown format {self.format!r}.", hint=hint)
        if self.restart and self.retry_errors:
            raise UsageError("--retry-errors cannot be combined with --restart.", hint="Choose one of them.")
        for name, least in (("max_errors", 0), ("verify_parity", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"--{name.replace('_', '-')} must be at least {least}, not {value}.")
        for name in ("retry_errors", "verify_parity"):
            if getattr(self, name) and not (self.output and self.is_file):
                said = f"--{name.replace('_', '-')} needs an output file, and an input file that can be read twice"
                raise UsageError(f"{said}: {self.name} is not one." if self.output else f"{said}.")
        if self.verify_parity and isinstance(self.model, Generator):
            raise UsageError("verify_parity loads the model again: it needs its name, not a loaded model.")

    @property
    def name(self) -> str:
        """What the input is called."""
        return "stdin" if self.input is None else str(self.input)

    @property
    def is_file(self) -> bool:
        """Not a pipe: what is read of one is gone, and its end may be far."""
        return self.input is not None and self.input.is_file()

    def lines(self, stack: ExitStack) -> Lines:
        if self.input is None:
            # As it is: a buffer of its own would wait for more than has come.
            return Lines(cast(BinaryIO, FileIO(0, closefd=False)), self.name)
        stream = stack.enter_context(open_input(self.input, self.output))
        return Lines(stream, self.name, self.input.stat().st_size if self.is_file else None)

    def form(self, first: Line | None) -> tuple[str, Format]:
        """The format of the input and its name."""
        name = self.format or recognized(first, self.name)
        if name == "text":
            return name, TextFormat()
        if name == "hfpipe":
            return name, HFPipeFormat(frozenset(self.template.variables if self.template else _USUAL_VARIABLES))
        if self.template and self.template.kind not in ("chat", "raw"):
            raise UsageError(
                f"The template {self.template.name} does not apply to OpenAI requests.",
                hint="Messages use the model's chat template, and /v1/completions are raw text: leave --template out.",
            )
        return name, OpenAIFormat(self.model.source.reference if isinstance(self.model, Generator) else self.model)

    def prompt_template(self, tokenizer: Tokenizer, model: str) -> PromptTemplate:
        return prompt_template(tokenizer, model, self.template, self.system, self.variables, self.chat_template_name)

    def prompts(self, generator: Generator) -> Prompts:
        return Prompts(self.prompt_template(generator.tokenizer, generator.source.reference), self.generation)


def _task(model: Any, input: str | Path, output: Any, options: Mapping[str, Any]) -> _Task:
    known = Options.__annotations__
    for name in options.keys() - known.keys():
        raise UsageError(f"Unknown option {name}.", hint=nearest(name, known) or f"Known are {', '.join(known)}.")
    loaded = model if isinstance(model, Generator) else getattr(model, "generator", None)
    loading = {name: value for name, value in options.items() if name in _OF_LOADING}
    if loaded and loading:
        raise UsageError(f"{min(loading)} is an option of loading, and this model is loaded already.")
    if isinstance(loading.get("device"), int):
        loading["device"] = str(loading["device"])
    # Those of an HFPipe are its own.
    generation = {name: getattr(model, name) for name in _OF_GENERATION if loaded and hasattr(model, name)}
    generation |= {name: value for name, value in options.items() if name in _OF_GENERATION and value is not None}
    if isinstance(generation.get("stop"), str):
        generation["stop"] = (generation["stop"],)
    rest = {name: value for name, value in options.items() if name not in _OF_LOADING | _OF_GENERATION}
    if (template := rest.pop("template", None)) is not None:
        rest["template"] = template if isinstance(template, Template) else parse_template(template)
    return _Task(
        loaded or str(model),
        None if str(input) == "-" else Path(input),
        None if callable(output) else Path(output),
        output if callable(output) else None,
        LoadOptions(**loading),
        GenerationOptions(**generation),
        **rest,
    )


class _Job:
    """One run of a batch."""

    def __init__(self, task: _Task, reporter: Reporter) -> None:
        self.task = task
        self.tally = Tally()
        self.journal: Journal | None = None
        self.existing = 0
        self.unanswered = False
        self._reporter = reporter

    def run(self, stack: ExitStack) -> None:
        task = self.task
        if task.output:
            check_place(task.output)
        lines = task.lines(stack)
        first = next(lines, None)
        format_name, form = task.form(first)
        self._form = form
        todo: Iterator[Line] = chain([first] if first else [], lines)
        found = self._find()
        if task.output:
            settings = self._settings(found, format_name)
            self.journal = stack.enter_context(Journal(task.output, settings, form, restart=task.restart))
            todo = self.journal.resume(todo)
            self.existing = self.journal.count
        if task.retry_errors:
            # What comes after the results is for a run without retry_errors.
            self.unanswered = next(todo, None) is not None
            todo = self._failed(task.lines(stack))
        if (first := next(todo, None)) is None:
            return
        generator = task.model if isinstance(task.model, Generator) else None
        generator = generator or load_generator(found, task.loading, self._reporter)
        if self.journal:
            self.journal.check(manifest.of_engine(generator.backend.info))
        arriving: Iterable[Line | None] = chain([first], todo)
        if not task.is_file:
            # The engine is not to wait for the next record with the answers to the last ones.
            arriving = Arriving(chain([first], todo), lambda: self.tally.records)
        self._write(
            results(
                arriving,
                generator.generate,
                task.prompts(generator),
                form,
                self.tally,
                max_errors=task.max_errors,
                on_progress=self._progress(lines),
            )
        )
        if generator is not task.model:
            generator.close()

    def summary(self, seconds: float, parity: Parity | None) -> Summary:
        tally, journal, errors = self.tally, self.journal, self.tally.errors
        if journal:
            # A retry counts those of the whole output anew.
            errors = journal.errors if self.task.retry_errors else journal.errors + errors
        return Summary(
            self.task.output,
            tally.records,
            self.existing,
            dict(errors.most_common()),
            tally.prompt_tokens,
            tally.completion_tokens,
            seconds,
            self.unanswered,
            journal.set_aside if journal else None,
            parity,
        )

    def _find(self) -> Found:
        model = self.task.model
        if isinstance(model, Generator):
            return Found(model.source, Choice(model.backend.name, model.why), time.perf_counter())
        return find_model(model, self.task.loading, self._reporter)

    def _settings(self, found: Found, format_name: str) -> dict[str, Any]:
        """What the results depend on, as far as it is known before the model is loaded."""
        task, model = self.task, self.task.model
        if isinstance(model, Generator):
            tokenizer = model.tokenizer
        else:
            tokenizer = load_tokenizer(found.source.folder, trust_remote_code=task.loading.trust_remote_code)
        source = found.source
        template = task.prompt_template(tokenizer, source.reference)
        used = manifest.used(
            source, identity(source.folder), found.choice.name, template, task.generation, task.loading
        )
        return {**used, "variables": dict(task.variables), "system": task.system, "format": format_name}

    def _failed(self, lines: Iterator[Line]) -> Iterator[Line]:
        """Of the lines of the input, those whose results are errors."""
        assert self.journal
        failed = set(self.journal.failed)
        return (line for position, line in enumerate(lines) if position in failed)

    def _write(self, lines: Iterator[bytes]) -> None:
        write = self.task.write or (self.journal and self.journal.append)
        if self.journal and self.task.retry_errors:
            self.journal.replace_errors(zip(tuple(self.journal.failed), lines, strict=True))
        elif write:
            for line in lines:
                write(line)

    def _progress(self, lines: Lines) -> Callable[[], None]:
        """What tells the reporter how far the batch is, ten times a second at most."""
        begun = shown = time.perf_counter()
        retried = len(self.journal.failed) if self.journal and self.task.retry_errors else None

        def show() -> None:
            nonlocal shown
            now = time.perf_counter()
            if now - shown < _SHOW_EVERY_S:
                return
            shown = now
            failed = f", {self.tally.failed:,} failed" if self.tally.failed else ""
            text = f"{self.tally.completion_tokens / (now - begun):,.0f} tokens/s{failed}"
            done = self.tally.records + (0 if retried else self.existing)
            self._reporter.progress("records", done, retried or lines.expected, "records", text)

        return show

    def check_parity(self) -> Parity:
        """Compare some answers of the output with those of an exact run of their prompts alone."""
        # It needs numpy, which a batch does without.
        from hfpipe.batch.parity import answered, compare

        task = self.task
        assert task.input
        assert task.output
        assert task.verify_parity
        with open_input(task.input) as lines, task.output.open("rb") as written:
            chosen = answered(Lines(lines, task.name), written, self._form, task.verify_parity)
        alone = replace(task, loading=replace(task.loading, exact=True, batch_size=1))
        found = find_model(str(task.model), alone.loading, self._reporter)
        generator = load_generator(found, alone.loading, self._reporter)
        self._reporter.stage(f"Answering {len(chosen)} records alone and exactly")

        def is_drawn(options: GenerationOptions) -> bool:
            return resolve_sampling(options, generator.source.generation_config).temperature > 0

        def answer(request: TextRequest) -> Completion:
            (completion,) = generator.generate([request])
            return completion

        parity = compare(
            chosen, alone.prompts(generator), answer, is_drawn, lambda text: generator.tokenizer.encode(text, False)
        )
        self._reporter.stage(None)
        return parity
