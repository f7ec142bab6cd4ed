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

_REPORTS = (".json", ".md", ".csv")
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
    except ValueError as problem:
        raise typer.BadParameter(f"{text!r} is not a share, as in 2%.") from problem
    if not 0 <= value < math.inf:
        raise typer.BadParameter(f"{text!r} must be a number from 0%.")
    if value > 1 and not number.endswith("%"):
        raise typer.BadParameter(f"{text} is {value:.0%}; write {text}% for a share of that many percent.")
    return value


def _option(*words: str, help: str, panel: str, metavar: str, **more: Any) -> Any:
    return o.option(*words, help=help, panel=panel, metavar=metavar, show_default=False, **more)


_WHAT, _QUALITY = "What is measured", "Quality"
_BACKENDS = f"Of {', '.join(BACKENDS)}, separated by commas. Default: torch and openvino, where they fit."
_FORMATS = f"Of {', '.join(WEIGHT_FORMATS)}, for OpenVINO, separated by commas; exported where needed. Default: the "
_FORMATS += "model's own precision, int8 and int4."
_PROMPTS = "Measure the prompts of a file of JSON lines, as batch reads it, instead of random ones."
_PLOT = "Draw speed against quality, and times of tokens: .png, .svg or .html."
_SLOWER = "Exit with 1 where something is slower than the baseline by more than that."
_OUTPUT = "Write the report to FILE: .json (all samples, the host and the versions; after each round), .md or .csv."

ModelsArg = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL...",
        help="Folders, Hub ids, pypi:PACKAGE, smollm2, or GGUF files.",
        autocompletion=o.complete_model,
        show_default=False,
    ),
]
BackendsOpt = Annotated[Any, _option("--backend", "-b", help=_BACKENDS, panel=o.LOADING, metavar="NAMES", parser=names)]
FormatsOpt = Annotated[Any, _option("--weight-format", help=_FORMATS, panel=o.LOADING, metavar="FORMATS", parser=names)]
PromptTokensOpt = Annotated[
    int | None,
    _option(
        "--prompt-tokens", "-p", help="The length of the random prompts. Default: 512.", panel=_WHAT, metavar="N", min=1
    ),
]
NewTokensOpt = Annotated[
    int, o.option("--new-tokens", "-g", help="The tokens generated.", panel=_WHAT, metavar="N", min=1)
]
BatchOpt = Annotated[
    Any,
    o.option(
        "--batch",
        help="Numbers of answers at once, separated by commas; one at a time is always measured.",
        panel=_WHAT,
        metavar="SIZES",
        parser=sizes,
    ),
]
RepeatsOpt = Annotated[
    int, o.option("--repeats", "-r", help="Rounds over all configurations.", panel=_WHAT, metavar="N", min=1)
]
PromptsOpt = Annotated[Path | None, _option("--prompts", help=_PROMPTS, panel=_WHAT, metavar="FILE")]
QualityOpt = Annotated[
    bool,
    typer.Option(
        "--quality/--no-quality",
        help="Compare each with its source: perplexity, next tokens, answers.",
        rich_help_panel=_QUALITY,
        envvar="HFPIPE_QUALITY",
        show_envvar=False,
    ),
]
TextOpt = Annotated[
    Path | None,
    _option("--text", help="The text to measure quality on. Default: hfpipe's own.", panel=_QUALITY, metavar="FILE"),
]
ReferenceOpt = Annotated[
    str | None,
    _option(
        "--reference",
        help="The source of an OpenVINO folder, where it is not among the MODELs.",
        panel=_QUALITY,
        metavar="MODEL",
    ),
]
MaxLossOpt = Annotated[
    Any,
    o.option(
        "--max-loss",
        help="The most perplexity that the advice may cost.",
        panel=_QUALITY,
        metavar="SHARE",
        parser=share,
    ),
]
JsonOpt = Annotated[bool, o.option("--json", help="Print the report as JSON.", panel=o.OUTPUT)]
MarkdownOpt = Annotated[bool, o.option("--markdown", help="Print tables in Markdown.", panel=o.OUTPUT)]
CsvOpt = Annotated[bool, o.option("--csv", help="Print CSV, one line for each configuration.", panel=o.OUTPUT)]
OutputOpt = Annotated[Path | None, _option("--output", "-o", help=_OUTPUT, panel=o.OUTPUT, metavar="FILE")]
PlotOpt = Annotated[Path | None, _option("--plot", help=_PLOT, panel=o.OUTPUT, metavar="FILE")]
BaselineOpt = Annotated[
    Path | None, _option("--baseline", help="Compare with an earlier report in JSON.", panel=o.OUTPUT, metavar="FILE")
]
FailSlowerOpt = Annotated[Any, _option("--fail-slower", help=_SLOWER, panel=o.OUTPUT, metavar="SHARE", parser=share)]


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
    json: JsonOpt = False,
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
    forms = [name for name, given in [("--json", json), ("--markdown", markdown), ("--csv", csv)] if given]
    if len(forms) > 1:
        raise UsageError(f"{' and '.join(forms)} cannot be combined: each is all of stdout.", hint="-o writes a file.")
    if fail_slower is not None and baseline is None:
        raise UsageError("--fail-slower needs a --baseline to compare with.")
    engines = backend or ()
    if "auto" in engines and len(engines) > 1:
        raise UsageError("--backend auto cannot be combined with other backends.")
    silence(verbose=verbose)
    from hfpipe.bench import run

    shown = _Shown(forms[0][2:] if forms else "tables", max_loss, output, plot, baseline, fail_slower, quiet)
    shown.check()
    # auto is what other commands call the fitting one, of which there are several here.
    options: Any = {
        "backends": () if "auto" in engines else engines, "weight_formats": weight_format or (), "loading": loading,
        "prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "batches": batch, "repeats": repeats,
        "prompts": prompts, "quality": quality, "text": text, "reference": reference, "verbose": verbose,
    }  # fmt: skip
    with unwinding():
        try:
            with Terminal(quiet=quiet, verbose=verbose, plain=True) as terminal:
                run(models, **options, reporter=terminal, after_round=lambda report: shown.keep(report, terminal))
        except BaseException:
            # What was measured until then.
            try:
                shown.show()
            except HFPipeError as problem:
                error(problem)
            raise
        return shown.show()


@dataclass
class _Shown:
    """Where the report goes: to stdout as tables, markdown, csv or json; into files; beside an earlier one.

    `max_loss` and `fail_slower` are shares: 0.02 is 2 %.
    """

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
            check_output("--output", self.output, _REPORTS)
        if self.plot:
            check_output("--plot", self.plot, SUFFIXES)
        self.earlier = read_report(self.baseline) if self.baseline else None

    def keep(self, report: Report, terminal: Terminal) -> None:
        """After each round: a run that is killed has lost at most one. The first call comes before all of them."""
        from hfpipe.bench.baseline import check_comparable, check_decidable

        if self.report is None and self.earlier:
            check_comparable(report, self.earlier)
            if self.fail_slower is not None:
                check_decidable(report, self.earlier)
        self.report = report
        rounds = any(one.samples for one in report.configurations)
        if self.output and self.output.suffix.lower() == ".json" and rounds:
            problem = _problem(self._write)
            if problem:
                terminal.note(f"Warning: {problem.message}")

    def show(self) -> int:
        """Write the report's files, print it, and give the exit code."""
        from hfpipe.bench.baseline import compare
        from hfpipe.bench.plot import plot
        from hfpipe.bench.summary import advice

        report = self.report
        if report is None or (report.interrupted and not any(one.samples for one in report.configurations)):
            return 1
        comparison = compare(report, self.earlier, self.fail_slower) if self.earlier else None
        # First, and each by itself: what took hours to measure is not lost with a closed pipe, or with one bad place.
        problems = [_problem(self._write)] if self.output else []
        drawn: list[Path] = []
        if path := self.plot:
            advised = advice(report, self.max_loss)
            problems.append(_problem(lambda: drawn.extend(plot(report, path, advice=advised))))
        # Who has read enough of the table is still told whether all went well.
        with suppress(OutputClosed):
            self._print(report, comparison)
        for problem in filter(None, problems):
            error(problem)
        if drawn:
            self._tell(f"Drawn: {', '.join(map(str, drawn))}")
        sound = any(one.is_measured for one in report.configurations)
        return 0 if sound and not any(problems) and (comparison is None or comparison.passed) else 1

    def _text(self, form: str) -> str:
        from hfpipe.bench import tables
        from hfpipe.bench.summary import advice, summarize

        assert self.report
        if form == "json":
            return jsons.dumps(self.report.as_dict(), ensure_ascii=False, indent=1)
        summary = summarize(self.report)
        return (
            tables.csv_text(summary) if form == "csv" else tables.markdown(summary, advice(self.report, self.max_loss))
        )

    def _write(self) -> None:
        from hfpipe.bench.report import write_file

        assert self.output
        form = {".json": "json", ".md": "markdown", ".csv": "csv"}[self.output.suffix.lower()]
        write_file(self.output, (self._text(form).rstrip("\n") + "\n").encode("utf-8", "replace"))

    def _print(self, report: Report, comparison: Any) -> None:
        from hfpipe.bench import render, tables
        from hfpipe.bench.summary import advice, summarize

        summary, advised = summarize(report), advice(report, self.max_loss)
        width = min(_WIDEST, shutil.get_terminal_size((_NO_TERMINAL, 24)).columns)
        since = render.baseline(comparison, width=width) if comparison else ""
        if self.form != "tables":
            data(self._text(self.form).rstrip("\n"))
            self._tell("\n".join([*([] if self.form == "markdown" else tables.remarks(summary, advised)), since]))
            return
        self._tell(render.meanings(summary, width=width))
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        if since:
            data(f"{since}\n")
        data(render.benchmark(summary, advised, width=width, colour=colour))

    def _tell(self, text: str) -> None:
        if text.strip() and not self.quiet:
            tell(text)


def _problem(write: Callable[[], None]) -> HFPipeError | None:
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
