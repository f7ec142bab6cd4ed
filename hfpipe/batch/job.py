"""The use case: from a model and an input to the last result, for Python, the command line and others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import Unpack

from hfpipe import backends
from hfpipe.batch import manifest
from hfpipe.batch.formats import FORMATS, recognized
from hfpipe.batch.journal import Journal, check_place
from hfpipe.batch.lines import Line, Lines, arriving, open_input
from hfpipe.batch.order import RECORDS_FAILED, Tally, results
from hfpipe.batch.records import Record
from hfpipe.errors import UsageError, nearest
from hfpipe.generator import Found, Generator, find_model, load_generator
from hfpipe.text.templates import parse_template, prompt_template
from hfpipe.text.tokenizer import load_tokenizer
from hfpipe.types import GenerationFields, GenerationOptions, LoadFields, LoadOptions, Reporter, Silent, TextRequest

if TYPE_CHECKING:
    from hfpipe.batch.parity import Parity
    from hfpipe.langchain import HFPipe

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
    job = _Job(model, input, output, reporter or Silent(), options)
    with ExitStack() as stack:
        job.run(stack)
    parity = job.check_parity() if options.get("verify_parity") else None
    return job.summary(time.perf_counter() - begun, parity)


class _Job:
    """One run of a batch. `model` is a reference or loaded, an `input` of None is stdin, and an `output` of None has
    `write` in its place."""

    def __init__(self, model: Any, input: str | Path, output: Any, reporter: Reporter, options: Options) -> None:
        known = Options.__annotations__
        for name in options.keys() - known.keys():
            raise UsageError(f"Unknown option {name}.", hint=nearest(name, known) or f"Known are {', '.join(known)}.")
        self.options = options
        self.reporter = reporter
        self.generator: Generator | None = model if isinstance(model, Generator) else getattr(model, "generator", None)
        self.model: Any = model if self.generator else str(model)
        self.input = None if str(input) == "-" else Path(input)
        self.name = "stdin" if self.input is None else str(input)
        # Not a pipe: what is read of one is gone, and its end may be far.
        self.is_file = self.input is not None and self.input.is_file()
        self.output = None if callable(output) else Path(output)
        self.write: Callable[[bytes], object] = output
        self.loading, self.generation = self._loading(), self._generation()
        template = options.get("template")
        self.template = None if template is None else parse_template(template)
        self.tally = Tally()
        self.journal: Journal | None = None
        self.existing, self.unanswered = 0, False
        self._check_options()

    def _loading(self) -> LoadOptions:
        given: dict[str, Any] = {name: value for name, value in self.options.items() if name in _OF_LOADING}
        if self.generator and given:
            raise UsageError(f"{min(given)} is an option of loading, and this model is loaded already.")
        if isinstance(given.get("device"), int):
            given["device"] = str(given["device"])
        return LoadOptions(**given)

    def _generation(self) -> GenerationOptions:
        """Those of an HFPipe are its own."""
        given = {name: getattr(self.model, name) for name in _OF_GENERATION if hasattr(self.model, name)}
        given |= {name: value for name, value in self.options.items() if name in _OF_GENERATION and value is not None}
        if isinstance(given.get("stop"), str):
            given["stop"] = (given["stop"],)
        return GenerationOptions(**given)

    def _check_options(self) -> None:
        form = self.options.get("format")
        if form is not None and form not in FORMATS:
            hint = nearest(str(form), FORMATS) or f"Known formats are {', '.join(FORMATS)}."
            raise UsageError(f"Unknown format {form!r}.", hint=hint)
        retry, verify = self.options.get("retry_errors"), self.options.get("verify_parity")
        if retry and self.options.get("restart"):
            raise UsageError("--retry-errors cannot be combined with --restart.", hint="Choose one of them.")
        for name, value, least in (
            ("--max-errors", self.options.get("max_errors"), 0),
            ("--verify-parity", verify, 1),
        ):
            if value is not None and value < least:
                raise UsageError(f"{name} must be at least {least}, not {value}.")
        for name, wanted in (("--retry-errors", retry), ("--verify-parity", verify)):
            if wanted and not (self.output and self.is_file):
                said = f"{name} needs an output file, and an input file that can be read twice"
                raise UsageError(f"{said}: {self.name} is not one." if self.output else f"{said}.")
        if verify and self.generator:
            raise UsageError("verify_parity loads the model again: it needs its name, not a loaded model.")

    def run(self, stack: ExitStack) -> None:
        if self.output:
            check_place(self.output)
        lines = self._lines(stack)
        todo = iter(lines)
        first = next(todo, None)
        form = self.options.get("format") or recognized(first, self.name)
        todo = chain([first] if first else [], todo)
        found = None if self.generator else find_model(self.model, self.loading, self.reporter)
        settings = self._prepare(found, form)
        retry = self.options.get("retry_errors")
        if self.output:
            restart = self.options.get("restart", False)
            self.journal = stack.enter_context(Journal(self.output, settings, self.form, restart=restart))
            todo = self.journal.resume(todo)
            self.existing = self.journal.count
            if retry:
                # What comes after the results is for a run without retry_errors.
                self.unanswered = next(todo, None) is not None
                failed = set(self.journal.failed)
                todo = (line for position, line in enumerate(self._lines(stack)) if position in failed)
        if (first := next(todo, None)) is None:
            return
        llm = self._llm(found, self.loading)
        if self.journal:
            self.journal.check(manifest.of_engine(llm.generator.backend.info))
        waited: Iterable[Line | None] = chain([first], todo)
        if not self.is_file:
            # The engine is not to wait for the next record with the answers to the last ones.
            waited = arriving(chain([first], todo), lambda: self.tally.records)
        progress, most = self._progress(lines), self.options.get("max_errors")
        made = results(waited, self.form, self.ask, llm.stream_batch, self.tally, most, progress)
        if self.journal and retry:
            self.journal.replace_errors(made)
        else:
            write = self.journal.append if self.journal else self.write
            for line in made:
                write(line)
        if not self.generator:
            llm.generator.close()

    def _lines(self, stack: ExitStack) -> Lines:
        stream = stack.enter_context(open_input(self.input, self.output))
        return Lines(stream, self.name, self.input.stat().st_size if self.input and self.is_file else None)

    def _prepare(self, found: Found | None, form: str) -> dict[str, Any]:
        """What is known before the weights are loaded: the template, and all else that the results depend on."""
        if self.generator:
            source, backend, tokenizer = self.generator.source, self.generator.backend.name, self.generator.tokenizer
        else:
            assert found
            source, backend = found.source, found.choice.name
            tokenizer = load_tokenizer(source.folder, trust_remote_code=self.loading.trust_remote_code)
        given: dict[str, Any] = {name: self.options.get(name) for name in ("system", "variables", "chat_template_name")}
        template = prompt_template(tokenizer, source.reference, self.template, **given)
        if form == "openai" and self.template and template.kind not in ("chat", "raw"):
            raise UsageError(
                f"The template {template.name} does not apply to OpenAI requests.",
                hint="Messages use the model's chat template, and /v1/completions are raw text: leave --template out.",
            )
        self.ask: Callable[[Record], TextRequest] = lambda record: record.request(template, self.generation)
        self.form = FORMATS[form](frozenset(template.template.variables), source.reference)
        if not self.output:
            return {}
        return {**manifest.used(source, backend, template, self.generation, self.loading), "format": form}

    def _llm(self, found: Found | None, loading: LoadOptions) -> HFPipe:
        """The loaded model, wrapped. A thread reads the weights while LangChain is imported, which takes as long."""
        if found:
            backends.engine(found.choice.name)
            loaded = ThreadPoolExecutor(1).submit(load_generator, found, loading, self.reporter)
        from hfpipe.langchain import HFPipe

        if found:
            return HFPipe(generator=loaded.result())
        llm: HFPipe = HFPipe(generator=self.model) if isinstance(self.model, Generator) else self.model
        return llm

    def _progress(self, lines: Lines) -> Callable[[], None]:
        """What tells the reporter how far the batch is, ten times a second at most."""
        begun = shown = time.perf_counter()
        retried = len(self.journal.failed) if self.journal and self.options.get("retry_errors") else None

        def show() -> None:
            nonlocal shown
            now = time.perf_counter()
            if now - shown < _SHOW_EVERY_S:
                return
            shown = now
            failed = self.tally.errors.total()
            text = f"{self.tally.completion_tokens / (now - begun):,.0f} tokens/s"
            text += f", {failed:,} failed" if failed else ""
            done = self.tally.records + (0 if retried else self.existing)
            self.reporter.progress("records", done, retried or lines.expected, "records", text)

        return show

    def check_parity(self) -> Parity:
        """Compare some answers of the output with those of an exact run of their prompts alone."""
        # It needs numpy, which a batch does without.
        from hfpipe.batch.parity import answered, compare

        assert self.input
        assert self.output
        count = self.options.get("verify_parity") or 0
        with open_input(self.input) as lines, self.output.open("rb") as written:
            chosen = answered(Lines(lines, self.name), written, self.form, count)
        loading = replace(self.loading, exact=True, batch_size=1)
        llm = self._llm(find_model(self.model, loading, self.reporter), loading)
        self.reporter.stage(f"Answering {len(chosen)} records alone and exactly")
        parity = compare(chosen, self.ask, llm)
        self.reporter.stage(None)
        return parity

    def summary(self, seconds: float, parity: Parity | None) -> Summary:
        tally, journal, errors = self.tally, self.journal, self.tally.errors
        if journal:
            # A retry counts those of the whole output anew.
            errors = journal.errors if self.options.get("retry_errors") else journal.errors + errors
        return Summary(
            self.output,
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
