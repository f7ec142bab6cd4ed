"""Which choice is best for a model on this machine, and whether the difference is real.

spec.py        what is measured, and all that can be chosen
candidates.py  models, engines and formats as rows of the report, exported where needed
rounds.py      round after round over all of them      measure.py     one measurement, in a process of its own
quality.py     how far each is from its source         statistics.py  intervals and verdicts
report.py      what was measured, raw; to JSON and back
summary.py     what a report comes to, and which choice to take      baseline.py  beside an earlier report
tables.py      these as tables for a terminal, Markdown, CSV, HTML   plot.py      as pictures
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from typing_extensions import Unpack

from hfpipe.types import LoadOptions, Reporter, Silent

if TYPE_CHECKING:
    from hfpipe.bench.candidates import Candidate
    from hfpipe.bench.report import Report
    from hfpipe.bench.spec import Spec


class BenchOptions(TypedDict, total=False):
    """What `run` takes beside the models: what is measured, how models are loaded, and who is told of it."""

    backends: Sequence[str]
    weight_formats: Sequence[str]
    prompt_tokens: int | None
    new_tokens: int
    batches: Sequence[int]
    repeats: int
    prompts: str | Path | None
    quality: bool
    text: str | Path | None
    reference: str | None
    loading: LoadOptions
    reporter: Reporter
    verbose: bool
    after_round: Callable[[Report], None]


def run(models: str | Sequence[str], **options: Unpack[BenchOptions]) -> Report:
    """Measure models on engines and in formats: speed, memory, size and quality.

    Each is measured in processes of its own, in turn with the others. What is not exported yet is exported into the
    cache.

    Args:
        models: A model or several: folders, Hub ids, `pypi:PACKAGE`, `smollm2`, or GGUF files.
        **options: `backends` and `weight_formats` (default: torch and OpenVINO where they fit; the model's own
            precision, int8 and int4); `prompt_tokens` (512), `new_tokens` (128), `batches` (1, 8) and `repeats` (5), or
            a file of `prompts`; `quality` (True), a file of `text` to measure it on, and the `reference` that OpenVINO
            folders come from; `loading`, options of all engines; a `reporter` for progress; `after_round`, which is
            called with the unfinished report before the first round and after each.

    Returns:
        The report: each configuration with its raw samples, its quality, or the error that it failed with.

    Raises:
        HFPipeError: Nothing can be measured; UsageError where an option cannot be honoured.

    Example:
        >>> import hfpipe
        >>> report = hfpipe.bench(folder, backends=["echo"], prompt_tokens=8, new_tokens=4, repeats=1, quality=False)
        >>> [row.name for row in report.configurations]
        ['echo']
    """
    from hfpipe.bench.report import Report, host
    from hfpipe.bench.spec import Spec, Workload, read_prompts, read_text
    from hfpipe.errors import UsageError

    prompts, text, tokens = options.get("prompts"), options.get("text"), options.get("prompt_tokens")
    if prompts is not None and tokens is not None:
        raise UsageError("prompt_tokens (--prompt-tokens) cannot be combined with prompts (--prompts).")
    if prompts is None and tokens is None:
        tokens = 512
    spec = Spec(
        models=(models,) if isinstance(models, str) else tuple(models),
        workload=Workload(tokens, options.get("new_tokens", 128), tuple(options.get("batches", (1, 8)))),
        backends=tuple(options.get("backends", ())),
        weight_formats=tuple(options.get("weight_formats", ())),
        loading=options.get("loading", LoadOptions()),
        repeats=options.get("repeats", 5),
        prompts=None if prompts is None else read_prompts(Path(prompts)),
        quality=options.get("quality", True),
        texts=None if text is None else read_text(Path(text)),
        reference=options.get("reference"),
    )
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    report = Report(_arguments(spec), host(), created, interrupted=True)
    after_round: Callable[[Report], None] = options.get("after_round") or (lambda _: None)
    after_round(report)
    reporter, verbose = options.get("reporter", Silent()), options.get("verbose", False)
    _measure(spec, report, reporter, lambda: after_round(report), verbose)
    report.interrupted = False
    return report


def _arguments(spec: Spec) -> dict[str, Any]:
    """All that was asked for, as values of JSON."""
    asked = asdict(spec)
    arguments: dict[str, Any] = json.loads(json.dumps({**asked.pop("workload"), **asked}))
    return arguments


def _measure(spec: Spec, report: Report, reporter: Reporter, after_round: Callable[[], None], verbose: bool) -> None:
    """Fill the report. What is wrong with one candidate is in its row."""
    from hfpipe.bench.candidates import Candidate, candidates
    from hfpipe.bench.quality import References, measure_quality
    from hfpipe.bench.rounds import Rounds, TokenizedPrompts

    tokenized, warn = TokenizedPrompts(spec), report.warnings.append
    with References(spec.loading, reporter, verbose=verbose) as references:
        given: list[Candidate] = []
        for one in candidates(spec, references if spec.quality else None, reporter, check=tokenized, warn=warn):
            report.configurations.append(one.row if isinstance(one, Candidate) else one)
            given += [one] if isinstance(one, Candidate) else []
        reporter.stage(None)
        Rounds(spec, reporter, tokenized, after_round, verbose).measure(given)
        if spec.quality:
            measure_quality(given, references, reporter, warn, texts=spec.texts, verbose=verbose)
