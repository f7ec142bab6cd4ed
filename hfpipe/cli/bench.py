"""`hfpipe bench`: which choice is best on this machine, and whether the difference is real."""

from __future__ import annotations

import json as jsons
import math
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
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
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise typer.BadParameter(f"{text!r} has an empty value between its commas.")
    return tuple(dict.fromkeys(words))


def sizes(text: str) -> tuple[int, ...]:
    """Numbers of answers at once."""
    words = names(text)
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise typer.BadParameter(f"{text!r} must be numbers from 1, as in 1,8,32.")
    return tuple(map(int, words))


def share(text: str) -> float:
    """2% or 0.02 as 0.02."""
    number = text.strip()
    try:
        value = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise typer.BadParameter(f"{text!r} is not a share, as in 2%.")
    if value > 1 and not number.endswith("%"):
        raise typer.BadParameter(f"{text} is {value:.0%}; write {text}% for a share of that many percent.")
    return value


_what = partial(o.option, panel="What is measured")
_quality = partial(o.option, panel="Quality")
_output = partial(o.option, panel=o.OUTPUT)
_BACKENDS = f"Of {', '.join(BACKENDS)}, separated by commas. Default: torch and openvino, where they fit."
_FORMATS = f"Of {', '.join(WEIGHT_FORMATS)}, for OpenVINO, separated by commas; exported where needed. Default: the "
_FORMATS += "model's own precision, int8 and int4."
_MODELS = "Folders, Hub ids, pypi:PACKAGE, smollm2, or GGUF files."
_BATCH = "Numbers of answers at once, separated by commas; one at a time is always measured."
_PROMPTS = "Measure the prompts of a file of JSON lines, as batch reads it, instead of random ones."
_COMPARE = "Compare each with its source: perplexity, next tokens, answers."
_TEXT = "The text to measure quality on. Default: hfpipe's own."
_REFERENCE = "The source of an OpenVINO folder, where it is not among the MODELs."
_LOSS = "The most perplexity that the advice may cost."
_OUTPUT = "Write the report to FILE: .json (all samples, the host and the versions; after each round), .md or .csv."
_PLOT = "Draw speed against quality, and times of tokens: .png, .svg or .html."
_SLOWER = "Exit with 1 where something is slower than the baseline by more than that."

ModelsArg = Annotated[list[str], o.argument("MODEL...", _MODELS, autocompletion=o.complete_model)]
BackendsOpt = Annotated[Any, o.option("--backend -b NAMES", _BACKENDS, panel=o.LOADING, parser=names)]
FormatsOpt = Annotated[Any, o.option("--weight-format FORMATS", _FORMATS, panel=o.LOADING, parser=names)]
PromptTokensOpt = Annotated[
    int | None, _what("--prompt-tokens -p N", "The length of the random prompts. Default: 512.", min=1)
]
NewTokensOpt = Annotated[int, _what("--new-tokens -g N", "The tokens generated.", min=1)]
BatchOpt = Annotated[Any, _what("--batch SIZES", _BATCH, parser=sizes)]
RepeatsOpt = Annotated[int, _what("--repeats -r N", "Rounds over all configurations.", min=1)]
PromptsOpt = Annotated[Path | None, _what("--prompts FILE", _PROMPTS)]
QualityOpt = Annotated[bool, _quality("--quality/--no-quality", _COMPARE, envvar="HFPIPE_QUALITY")]
TextOpt = Annotated[Path | None, _quality("--text FILE", _TEXT)]
ReferenceOpt = Annotated[str | None, _quality("--reference MODEL", _REFERENCE)]
MaxLossOpt = Annotated[Any, _quality("--max-loss SHARE", _LOSS, parser=share)]
MarkdownOpt = Annotated[bool, _output("--markdown", "Print tables in Markdown.")]
CsvOpt = Annotated[bool, _output("--csv", "Print CSV, one line for each configuration.")]
OutputOpt = Annotated[Path | None, _output("--output -o FILE", _OUTPUT)]
PlotOpt = Annotated[Path | None, _output("--plot FILE", _PLOT)]
BaselineOpt = Annotated[Path | None, _output("--baseline FILE", "Compare with an earlier report in JSON.")]
FailSlowerOpt = Annotated[Any, _output("--fail-slower SHARE", _SLOWER, parser=share)]


def bench(
    *,
    models: ModelsArg,
    backend: BackendsOpt = None,
    weight_format: FormatsOpt = None,
    loading: LoadOptions,
    prompt_tokens: PromptTokensOpt = None,
    new_tokens: NewTokensOpt = 128,
    batch: BatchOpt = "1,8",
    repeats: RepeatsOpt = 5,
    prompts: PromptsOpt = None,
    quality: QualityOpt = True,
    text: TextOpt = None,
    reference: ReferenceOpt = None,
    max_loss: MaxLossOpt = "2%",
    json: o.JsonOpt = False,
    markdown: MarkdownOpt = False,
    csv: CsvOpt = False,
    output: OutputOpt = None,
    plot: PlotOpt = None,
    baseline: BaselineOpt = None,
    fail_slower: FailSlowerOpt = None,
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
    engines = backend or ()
    if "auto" in engines and len(engines) > 1:
        raise UsageError("--backend auto cannot be combined with other backends.")
    silence(verbose=verbose)
    from hfpipe.bench import run

    shown = _Shown(forms[0] if forms else "text", max_loss, output, plot, baseline, fail_slower, quiet)
    shown.check()
    with unwinding():
        try:
            with Terminal(quiet=quiet, verbose=verbose, plain=True) as terminal:
                run(
                    models,
                    # auto is what other commands call the fitting one, of which there are several here.
                    backends=() if "auto" in engines else engines,
                    weight_formats=weight_format or (),
                    prompt_tokens=prompt_tokens,
                    new_tokens=new_tokens,
                    batches=batch,
                    repeats=repeats,
                    prompts=prompts,
                    quality=quality,
                    text=text,
                    reference=reference,
                    loading=loading,
                    reporter=terminal,
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
    """Where the report goes: to stdout as text, markdown, csv or json; into files; beside an earlier one."""

    form: str
    max_loss: float
    output: Path | None
    plot: Path | None
    baseline: Path | None
    fail_slower: float | None
    quiet: bool
    report: Report | None = None

    def check(self) -> None:
        """Raise UsageError before anything is measured."""
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
        measured = any(one.samples for one in report.configurations)
        if self.output and self.output.suffix.lower() == ".json" and measured and (problem := _problem(self.write)):
            terminal.note(f"Warning: {problem.message}")

    def show(self) -> int:
        """Write the report's files, print it, and give the exit code."""
        from hfpipe.bench.advice import advice
        from hfpipe.bench.comparison import compare
        from hfpipe.bench.plot import plot
        from hfpipe.bench.tables import as_text, changes, meanings_text, remarks, render

        report = self.report
        if report is None or (report.interrupted and not any(one.samples for one in report.configurations)):
            return 1
        advised = advice(report, self.max_loss)
        # First, and each by itself: what took hours to measure is not lost with a closed pipe, or with one bad place.
        problems = [_problem(self.write)] if self.output else []
        drawn: list[Path] = []
        if path := self.plot:
            problems.append(_problem(lambda: drawn.extend(plot(report, path, advice=advised))))
        width = min(_WIDEST, shutil.get_terminal_size((_NO_TERMINAL, 24)).columns)
        comparison = compare(report, self.earlier, self.fail_slower) if self.earlier else None
        since = render(changes(comparison), comparison.lines, width=width) if comparison else ""
        # Who has read enough of the table is still told whether all went well.
        with suppress(OutputClosed):
            if self.form == "text":
                self._tell(meanings_text(report, width=width))
                colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
                shown = as_text(report, advised, width=width, colour=colour)
                data(f"{since}\n\n{shown}" if since else shown)
            else:
                data(self._text(self.form).rstrip("\n"))
                self._tell("\n".join([*([] if self.form == "markdown" else remarks(report, advised)), since]))
        for problem in filter(None, problems):
            error(problem)
        self._tell(f"Drawn: {', '.join(map(str, drawn))}" if drawn else "")
        sound = any(one.is_measured for one in report.configurations)
        return 0 if sound and not any(problems) and (comparison is None or comparison.passed) else 1

    def write(self) -> None:
        from hfpipe.bench.report import write_file

        assert self.output
        text = self._text(_FORMS[self.output.suffix.lower()])
        write_file(self.output, (text.rstrip("\n") + "\n").encode("utf-8", "replace"))

    def _text(self, form: str) -> str:
        from hfpipe.bench.advice import advice
        from hfpipe.bench.tables import as_csv, as_markdown

        assert self.report
        if form == "json":
            return jsons.dumps(self.report.as_dict(), ensure_ascii=False, indent=1)
        return as_csv(self.report) if form == "csv" else as_markdown(self.report, advice(self.report, self.max_loss))

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
    list(llm.stream(arguments["question"], {"callbacks": [recorder]}, template="raw"))
    return {"values": {"cold_ttft_s": report(llm.generator, recorder.info)["cold_ttft_s"]}, **watch.stop()}
