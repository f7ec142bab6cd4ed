"""`hfpipe bench`: which choice is best on this machine, and whether the difference is real."""

from __future__ import annotations

import json as jsons
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hfpipe.backends import BACKENDS
from hfpipe.cli import options as o
from hfpipe.cli.main import unwinding
from hfpipe.cli.startup import load_pipe, silence
from hfpipe.cli.terminal import OutputClosed, Terminal, data, error, tell
from hfpipe.errors import HFPipeError, UsageError
from hfpipe.export import WEIGHT_FORMATS
from hfpipe.types import GenerationOptions, LoadOptions

if TYPE_CHECKING:
    from hfpipe.bench.report import Report

_FORMS = {".json": "json", ".md": "markdown", ".csv": "csv"}
_WIDEST, _NO_TERMINAL = 160, 80


def names(text: str) -> tuple[str, ...]:
    """The values of an option that takes several with commas between, each once."""
    return tuple(dict.fromkeys(word.strip() for word in text.split(",")))


def sizes(text: str) -> tuple[int, ...]:
    """Numbers with commas between."""
    try:
        return tuple(map(int, names(text)))
    except ValueError:
        raise typer.BadParameter(f"{text!r} must be numbers from 1, as in 1,8,32.") from None


_what = partial(o.option, panel="What is measured")
_quality = partial(o.option, panel="Quality")
_output = partial(o.option, panel=o.OUTPUT)
_BACKENDS = f"Of {', '.join(BACKENDS)}, separated by commas. Default: torch and openvino, where they fit."
_FORMATS = f"Of {', '.join(WEIGHT_FORMATS)}, for OpenVINO, separated by commas; exported where needed. Default: the "
_FORMATS += "model's own precision, int8 and int4."
_MODELS = "Folders, Hub ids, pypi:PACKAGE, smollm2, or GGUF files."
_BATCH = "Numbers of answers at once, separated by commas; one at a time is always measured."
_DEPTH = "Lengths of prompts after which decoding is measured, too, separated by commas, as in 512,4096."
_PROMPTS = "Measure the prompts of a file of JSON lines, as batch reads it, instead of random ones."
_TUNE = "Measure first which settings OpenVINO is fastest with on this machine, and keep them."
_COMPARE = "Compare each with its source: perplexity, next tokens, answers."
_TEXT = "The text to measure quality on. Default: hfpipe's own."
_REFERENCE = "The source of an OpenVINO folder, where it is not among the MODELs."
_TASKS = "Count how many items of a file of tasks each gets right; builtin is hfpipe's own file."
_LOSS = "The most perplexity that the advice may cost."
_OUTPUT = "Write the report to FILE: .json (all samples, the host and the versions; after each round), .md or .csv."
_PLOT = "Draw speed against quality, and times of tokens: .png, .svg or .html."
_SLOWER = "Exit with 1 where something is slower than the baseline by more than that."


def bench(
    *,
    models: Annotated[list[str], o.argument("MODEL...", _MODELS, autocompletion=o.complete_model)],
    backend: Annotated[Any, o.option("--backend -b NAMES", _BACKENDS, panel=o.LOADING, parser=names)] = None,
    weight_format: Annotated[Any, o.option("--weight-format FORMATS", _FORMATS, panel=o.LOADING, parser=names)] = None,
    loading: LoadOptions,
    prompt_tokens: Annotated[
        int | None, _what("--prompt-tokens -p N", "The length of the random prompts. Default: 512.", min=1)
    ] = None,
    new_tokens: Annotated[int, _what("--new-tokens -g N", "The tokens generated.", min=1)] = 128,
    batch: Annotated[Any, _what("--batch SIZES", _BATCH, parser=sizes)] = "1,8",
    depth: Annotated[Any, _what("--depth SIZES", _DEPTH, parser=sizes)] = None,
    repeats: Annotated[int, _what("--repeats -r N", "Rounds over all configurations.", min=1)] = 5,
    prompts: Annotated[Path | None, _what("--prompts FILE", _PROMPTS)] = None,
    tune: Annotated[bool, _what("--tune", _TUNE)] = False,
    quality: Annotated[bool, _quality("--quality/--no-quality", _COMPARE, envvar="HFPIPE_QUALITY")] = True,
    text: Annotated[Path | None, _quality("--text FILE", _TEXT)] = None,
    reference: Annotated[str | None, _quality("--reference MODEL", _REFERENCE)] = None,
    tasks: Annotated[Path | None, _quality("--tasks FILE", _TASKS)] = None,
    max_loss: Annotated[Any, _quality("--max-loss SHARE", _LOSS, parser=o.share)] = "2%",
    json: o.JsonOpt = False,
    markdown: Annotated[bool, _output("--markdown", "Print tables in Markdown.")] = False,
    csv: Annotated[bool, _output("--csv", "Print CSV, one line for each configuration.")] = False,
    output: Annotated[Path | None, _output("--output -o FILE", _OUTPUT)] = None,
    plot: Annotated[Path | None, _output("--plot FILE", _PLOT)] = None,
    baseline: Annotated[Path | None, _output("--baseline FILE", "Compare with an earlier report in JSON.")] = None,
    fail_slower: Annotated[Any, _output("--fail-slower SHARE", _SLOWER, parser=o.share)] = None,
    quiet: o.QuietOpt = False,
    verbose: o.VerboseOpt = False,
) -> int:
    """Measure models on engines and in formats: speed, memory, size and quality.

    Each is measured in processes of its own, in turn with the others, and compared with the first.
    """
    forms = [name for name, given in [("json", json), ("markdown", markdown), ("csv", csv)] if given]
    if len(forms) > 1:
        both = " and ".join(f"--{form}" for form in forms)
        raise UsageError(f"{both} cannot be combined: each is all of stdout.", hint="-o writes a file.")
    if fail_slower is not None and baseline is None:
        raise UsageError("--fail-slower needs a --baseline to compare with.")
    if backend and "auto" in backend and len(backend) > 1:
        raise UsageError("--backend auto cannot be combined with other backends.")
    silence(verbose=verbose)
    from hfpipe.bench import run

    shown = _Shown(forms[0] if forms else "text", max_loss, output, plot, baseline, fail_slower, quiet)
    with unwinding():
        try:
            with Terminal(quiet=quiet, verbose=verbose, plain=True) as terminal:
                run(
                    models,
                    # auto is what other commands call the fitting one, of which there are several here.
                    backends=() if backend == ("auto",) else backend or (),
                    weight_formats=weight_format or (),
                    prompt_tokens=prompt_tokens,
                    new_tokens=new_tokens,
                    batches=batch,
                    depths=depth or (),
                    repeats=repeats,
                    prompts=prompts,
                    quality=quality,
                    text=text,
                    reference=reference,
                    tasks=tasks,
                    loading=loading,
                    reporter=terminal,
                    tune=tune,
                    verbose=verbose,
                    after_round=lambda report: shown.keep(report, terminal),
                )
        except BaseException:
            # What was measured until then.
            if problem := _problem(shown.show):
                error(problem)
            raise
        return shown.show()


@dataclass
class _Shown:
    """Where the report goes: to stdout as text, markdown, csv or json; into files; beside an earlier one.

    Raises UsageError before anything is measured.
    """

    form: str
    max_loss: float
    output: Path | None
    plot: Path | None
    baseline: Path | None
    fail_slower: float | None
    quiet: bool
    report: Report | None = None

    def __post_init__(self) -> None:
        from hfpipe.bench.plot import SUFFIXES
        from hfpipe.bench.report import check_output, read_report

        if self.output:
            check_output("--output", self.output, tuple(_FORMS))
        if self.plot:
            check_output("--plot", self.plot, SUFFIXES)
        self.earlier = read_report(self.baseline) if self.baseline else None

    def keep(self, report: Report, terminal: Terminal) -> None:
        """After each round: a run that is killed has lost at most one. The first call comes before all of them."""
        if self.report is None and self.earlier:
            from hfpipe.bench.comparison import check_comparable

            check_comparable(report, self.earlier, decidable=self.fail_slower is not None)
        self.report = report
        saved = self.output and self.output.suffix.lower() == ".json" and report.has_samples
        if saved and (problem := _problem(self._save)):
            terminal.note(f"Warning: {problem.message}")

    def show(self) -> int:
        """Write the report's files, print it, and give the exit code."""
        from hfpipe.bench.advice import advice
        from hfpipe.bench.comparison import compare
        from hfpipe.bench.plot import plot
        from hfpipe.bench.tables import as_text, changes, meanings_text, tables

        report, path = self.report, self.plot
        if report is None or (report.interrupted and not report.has_samples):
            return 1
        self.advice = advice(report, self.max_loss)
        comparison = compare(report, self.earlier, self.fail_slower) if self.earlier else None
        since = [changes(comparison)] if comparison else []
        self.tables, drawn = [*since, *tables(report)], list[Path]()
        # First, and each by itself: what took hours to measure is not lost with a closed pipe, or with one bad place.
        problems = [
            _problem(self._save) if self.output else None,
            _problem(lambda: drawn.extend(plot(report, path, advice=self.advice))) if path else None,
        ]
        width = min(_WIDEST, shutil.get_terminal_size((_NO_TERMINAL, 24)).columns)
        # Who has read enough of the table is still told whether all went well.
        with suppress(OutputClosed):
            if self.form == "text":
                self._tell(meanings_text(report, width=width))
                colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
                data(as_text(report, self.advice, self.tables, width=width, colour=colour))
            else:
                data(self._text(self.form).rstrip("\n"))
                if self.form != "markdown":
                    self._tell(as_text(report, self.advice, since, width=width))
        for problem in filter(None, problems):
            error(problem)
        self._tell(f"Drawn: {', '.join(map(str, drawn))}" if drawn else "")
        sound = any(one.is_measured for one in report.configurations)
        return 0 if sound and not any(problems) and (comparison is None or comparison.passed) else 1

    def _save(self) -> None:
        from hfpipe.bench.report import write_file

        assert self.output
        text = self._text(_FORMS[self.output.suffix.lower()])
        write_file(self.output, (text.rstrip("\n") + "\n").encode("utf-8", "replace"))

    def _text(self, form: str) -> str:
        from hfpipe.bench.tables import as_csv, as_markdown

        assert self.report
        if form == "json":
            return jsons.dumps(asdict(self.report), ensure_ascii=False, indent=1)
        return as_csv(self.report) if form == "csv" else as_markdown(self.report, self.advice, self.tables)

    def _tell(self, text: str) -> None:
        if text.strip() and not self.quiet:
            tell(text)


def _problem(write: Callable[[], object]) -> HFPipeError | None:
    try:
        write()
    except HFPipeError as problem:
        return problem
    return None


def main(arguments: dict[str, Any], reporter: object) -> dict[str, Any]:
    """What a cold start takes, for hfpipe.bench: this process (see process.py) is started as `hfpipe run` is, and
    answers `arguments["question"]` with one token. Gives what a Sample is made of."""
    from hfpipe.bench.measure import Watch

    watch = Watch()
    silence(verbose=False)
    generation = GenerationOptions(max_tokens=1, temperature=0)
    llm = load_pipe(arguments["folder"], LoadOptions(**arguments["loading"]), generation, Terminal(quiet=True))
    from hfpipe.cli.run import report
    from hfpipe.langchain import Recorder

    recorder = Recorder()
    # A server may take conversations only.
    template = "chat" if llm.generator.tokenizer is None else "raw"
    list(llm.stream(arguments["question"], {"callbacks": [recorder]}, template=template))
    return {"values": {"cold_ttft_s": report(llm.generator, recorder.info)["cold_ttft_s"]}, **watch.stop()}
