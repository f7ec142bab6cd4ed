"""The use case: from a model and an input to the last result, for Python, the command line and others."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import Unpack

from hfpipe import backends
from hfpipe.batch import manifest
from hfpipe.batch.formats import FORMATS, recognized
from hfpipe.batch.journal import Journal, check_place
from hfpipe.batch.lines import Line, Lines, arriving, open_input
from hfpipe.batch.order import Summary, results
from hfpipe.batch.records import Record
from hfpipe.errors import UnsupportedOption, UsageError, nearest
from hfpipe.generator import Found, TextGenerator, find_model, load_in_thread
from hfpipe.text.templates import parse_template, prompt_template
from hfpipe.types import (
    OF_GENERATION,
    OF_LOADING,
    GenerationFields,
    GenerationOptions,
    LoadFields,
    LoadOptions,
    ModelSource,
    Reporter,
    Silent,
    TextRequest,
    keyword_options,
)

if TYPE_CHECKING:
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


def run(
    model: str | Path | TextGenerator | Any,
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
    if count := options.get("verify_parity"):
        job.verify_parity(count)
    job.summary.seconds = time.perf_counter() - begun
    return job.summary


class _Job:
    """One run of a batch. `model` is a reference or loaded, an `input` of None is stdin, and an `output` of None has
    `write` in its place."""

    def __init__(self, model: Any, input: str | Path, output: Any, reporter: Reporter, options: Options) -> None:
        given = keyword_options(options, Options.__annotations__)
        self.options = given = {name: value for name, value in given.items() if value is not None}
        self.reporter = reporter
        self.generator: TextGenerator | None = (
            model if isinstance(model, TextGenerator) else getattr(model, "generator", None)
        )
        self.model: Any = model if self.generator else str(model)
        self.input = None if str(input) == "-" else Path(input)
        self.name = "stdin" if self.input is None else str(input)
        # Not a pipe: what is read of one is gone, and its end may be far.
        self.is_file = self.input is not None and self.input.is_file()
        self.output = None if callable(output) else Path(output)
        self.write: Callable[[bytes], object] = output
        self.summary = Summary(self.output)
        self._check_options()
        self.template = parse_template(given["template"]) if "template" in given else None
        self.loading = LoadOptions(**{name: given[name] for name in OF_LOADING & given.keys()})
        # Those of an HFPipe are its own.
        own = {name: getattr(self.model, name) for name in OF_GENERATION if hasattr(self.model, name)}
        self.generation = GenerationOptions(**own | {name: given[name] for name in OF_GENERATION & given.keys()})

    def _check_options(self) -> None:
        given = self.options
        if self.generator and (loading := sorted(OF_LOADING & given.keys())):
            raise UsageError(f"{loading[0]} is an option of loading, and this model is loaded already.")
        if (form := given.get("format", "text")) not in FORMATS:
            hint = nearest(str(form), FORMATS) or f"Known formats are {', '.join(FORMATS)}."
            raise UsageError(f"Unknown format {form!r}.", hint=hint)
        if given.get("restart") and given.get("retry_errors"):
            raise UsageError("--retry-errors cannot be combined with --restart.", hint="Choose one of them.")
        for name, least in (("max_errors", 0), ("verify_parity", 1)):
            if given.get(name, least) < least:
                raise UsageError(f"--{name.replace('_', '-')} must be at least {least}, not {given[name]}.")
        for name in ("restart", "retry_errors", "verify_parity"):
            needs = f"--{name.replace('_', '-')} needs an"
            if given.get(name) and not self.output:
                raise UsageError(f"{needs} output file (--output).")
            if given.get(name) and name != "restart" and not self.is_file:
                raise UsageError(f"{needs} input file that can be read twice: {self.name} is not one.")
        if "verify_parity" in given and (given.get("endpoint") or given.get("backend") == "endpoint"):
            message = "The endpoint backend cannot honour --verify-parity."
            raise UnsupportedOption(message, hint="No server can be made to compute exactly: leave it out.")
        if self.generator and "verify_parity" in given:
            raise UsageError("verify_parity loads the model again: it needs its name, not a loaded model.")

    def run(self, stack: ExitStack) -> None:
        if self.output:
            check_place(self.output)
        lines = self._lines(stack)
        todo = iter(lines)
        first = next(todo, None)
        form = self.options.get("format") or recognized(first, self.name)
        todo = chain([first] if first else [], todo)
        restart, found = self.options.get("restart", False), None
        if not self.generator:
            saved = manifest.settings_of(self.output) if self.output and not restart else {}
            if (settings := saved.get("engine_settings")) is not None:
                # Whatever was measured since then.
                self.loading = replace(self.loading, tuned=settings)
            found = find_model(self.model, self.loading, self.reporter, resumed=saved.get("backend"))
        settings = self._prepare(found, form)
        retry, journal = self.options.get("retry_errors"), None
        if self.output:
            journal = stack.enter_context(Journal(self.output, settings, self.form, restart=restart))
            todo = journal.resume(todo)
            self.summary.existing = journal.count
        if journal and retry:
            # What comes after the results is for a run without retry_errors.
            self.summary.unanswered = next(todo, None) is not None
            failed = set(journal.failed)
            todo = (line for position, line in enumerate(self._lines(stack)) if position in failed)
        if first := next(todo, None):
            llm = self._llm(found)
            if journal:
                journal.check(manifest.of_engine(llm.generator.info))
            waited: Iterable[Line | None] = chain([first], todo)
            if not self.is_file:
                # The engine is not to wait for the next record with the answers to the last ones.
                waited = arriving(chain([first], todo), lambda: self.summary.answered)
            progress = self._progress(lines, journal)
            most = self.options.get("max_errors")
            made = results(waited, self.form, self.ask, llm.stream_batch, self.summary, most, progress)
            if journal and retry:
                journal.replace_errors(line for _, line in made)
            else:
                for digest, line in made:
                    if journal:
                        journal.append(digest, line)
                    else:
                        self.write(line)
            if not self.generator:
                llm.generator.close()
        if journal:
            # A retry has counted those of the whole output anew.
            self.summary.errors = dict(journal.errors + Counter({} if retry else self.summary.errors))
            self.summary.set_aside = journal.set_aside

    def _lines(self, stack: ExitStack) -> Lines:
        stream = stack.enter_context(open_input(self.input, self.output))
        return Lines(stream, self.name, self.input.stat().st_size if self.input and self.is_file else None)

    def _prepare(self, found: Found | None, form: str) -> dict[str, Any]:
        """The template and the format; what the results depend on, as far as it is known before the weights are
        loaded."""
        if self.generator:
            source, backend, tokenizer = self.generator.source, self.generator.info.name, self.generator.tokenizer
        else:
            assert found
            source, backend, tokenizer = found.source, found.choice.name, None
            if isinstance(source, ModelSource):
                tokenizer = found.encoder.tokenizer
        given: dict[str, Any] = {name: self.options.get(name) for name in ("system", "variables", "chat_template_name")}
        template = prompt_template(tokenizer, source.reference, self.template, plain=source.plain_template, **given)
        if form == "openai" and self.template and template.template.kind not in ("chat", "raw"):
            raise UsageError(
                f"The template {template.template.name} does not apply to OpenAI requests.",
                hint="Messages use the model's chat template, and /v1/completions are raw text: leave --template out.",
            )
        self.ask: Callable[[Record], TextRequest] = partial(Record.request, template=template, options=self.generation)
        self.form = FORMATS[form](frozenset(template.template.variables), source.reference)
        if not self.output:
            return {}
        return {**manifest.used(source, backend, template, self.generation, self.loading), "format": form}

    def _llm(self, found: Found | None) -> HFPipe:
        """The loaded model, wrapped. A thread reads the weights while LangChain is imported, which takes as long."""
        if found:
            backends.engine(found.choice.name)
            loaded = load_in_thread(found, self.reporter)
        from hfpipe.langchain import HFPipe

        if found:
            return HFPipe(generator=loaded())
        llm: HFPipe = HFPipe(generator=self.model) if isinstance(self.model, TextGenerator) else self.model
        return llm

    def _progress(self, lines: Lines, journal: Journal | None) -> Callable[[], None]:
        """What tells the reporter how far the batch is, ten times a second at most."""
        summary, begun = self.summary, time.perf_counter()
        retried = len(journal.failed) if journal and self.options.get("retry_errors") else None
        shown = begun

        def show() -> None:
            nonlocal shown
            now = time.perf_counter()
            if now - shown >= _SHOW_EVERY_S:
                shown = now
                failed = f", {summary.failed:,} failed" if summary.errors else ""
                guess = ", total estimated" if lines.estimated and not retried else ""
                text = f"{summary.completion_tokens / (now - begun):,.0f} tokens/s{failed}{guess}"
                done = summary.answered + (0 if retried else summary.existing)
                self.reporter.progress("records", done, retried or lines.expected, "records", text)

        return show

    def verify_parity(self, count: int) -> None:
        """Compare some answers of the output with those of an exact run of their prompts alone."""
        # It needs numpy, which a batch does without.
        from hfpipe.batch.parity import answered, compare

        assert self.output
        with ExitStack() as stack, self.output.open("rb") as written:
            chosen = answered(self._lines(stack), written, self.form, count)
        loading = replace(self.loading, exact=True, batch_size=1, prompt_lookup=None)
        found = find_model(self.model, loading, self.reporter, resumed=manifest.settings_of(self.output).get("backend"))
        llm = self._llm(found)
        self.reporter.stage(f"Answering {len(chosen)} records alone and exactly")
        self.summary.parity = compare(chosen, self.ask, llm)
        self.reporter.stage(None)
