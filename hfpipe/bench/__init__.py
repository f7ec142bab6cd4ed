"""Which choice is best for a model on this machine, and whether the difference is real.

`run` has candidates measured in rounds, into a report; comparison, advice, tables and plot say what it comes to.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from hfpipe.types import LoadOptions, Reporter, Silent

if TYPE_CHECKING:
    from hfpipe.bench.report import Report


def run(
    models: str | Sequence[str],
    *,
    backends: Sequence[str] = (),
    weight_formats: Sequence[str] = (),
    prompt_tokens: int | None = None,
    new_tokens: int = 128,
    batches: Sequence[int] = (1, 8),
    depths: Sequence[int] = (),
    repeats: int = 5,
    prompts: str | Path | None = None,
    quality: bool = True,
    text: str | Path | None = None,
    reference: str | None = None,
    tasks: str | Path | None = None,
    loading: LoadOptions | None = None,
    reporter: Reporter | None = None,
    tune: bool = False,
    verbose: bool = False,
    after_round: Callable[[Report], None] = lambda report: None,
) -> Report:
    """Measure models on engines and in formats: speed, memory, size and quality.

    Each is measured in processes of its own, in turn with the others. What is not exported yet is exported into the
    cache.

    Args:
        models: A model or several: folders, Hub ids, `pypi:PACKAGE`, `smollm2`, or GGUF files.
        backends: Engines. Default: torch and OpenVINO where they fit.
        weight_formats: For OpenVINO. Default: the model's own precision, int8 and int4.
        prompt_tokens: The length of the random prompts, 512 by default.
        new_tokens: The tokens generated.
        batches: Numbers of answers at once; one at a time is always measured.
        depths: Lengths of prompts after which decoding is measured, too.
        repeats: Rounds over all configurations.
        prompts: A file of prompts, as `hfpipe batch` reads it, instead of random ones.
        quality: Whether each is compared with its source.
        text: A file of the text to measure quality on. Default: hfpipe's own.
        reference: The source of OpenVINO folders, where it is not among the models.
        tasks: A file of tasks, of which the right answers are counted; "builtin" is hfpipe's own.
        loading: Options of all engines.
        reporter: Is told of progress.
        tune: Measure first which settings each OpenVINO model runs fastest with on this machine, and keep them.
        verbose: Have each line that a measuring process writes told, too.
        after_round: Is called with the unfinished report before the first round and after each.

    Returns:
        The report: each configuration with its raw samples, its quality, its tasks, or the error that it failed with.

    Raises:
        HFPipeError: Nothing can be measured; UsageError where an option cannot be honoured.

    Example:
        >>> import hfpipe
        >>> report = hfpipe.bench(folder, backends=["echo"], prompt_tokens=8, new_tokens=4, repeats=1, quality=False)
        >>> [row.name for row in report.configurations]
        ['echo']
    """
    from hfpipe.bench.candidates import candidates
    from hfpipe.bench.quality import measure_quality, references
    from hfpipe.bench.report import Report, host
    from hfpipe.bench.rounds import Rounds, tune_each
    from hfpipe.bench.spec import Spec, Workload, read_prompts, read_tasks, read_text
    from hfpipe.bench.tasks import measure_tasks
    from hfpipe.endpoint import find
    from hfpipe.errors import UsageError

    if prompts is not None and prompt_tokens is not None:
        raise UsageError("prompt_tokens (--prompt-tokens) cannot be combined with prompts (--prompts).")
    if prompts is None and prompt_tokens is None:
        prompt_tokens = 512
    spec = Spec(
        models=(models,) if isinstance(models, str) else tuple(models),
        workload=Workload(prompt_tokens, new_tokens, tuple(batches), tuple(depths)),
        backends=tuple(backends),
        weight_formats=tuple(weight_formats),
        loading=loading or LoadOptions(),
        repeats=repeats,
        prompts=None if prompts is None else read_prompts(Path(prompts)),
        quality=quality,
        texts=None if text is None else read_text(Path(text)),
        reference=reference,
        tasks=() if tasks is None else read_tasks(Path(tasks)),
    )
    asked = {**asdict(spec), "tasks": tasks and {"file": str(tasks), "items": len(spec.tasks)}}
    arguments = json.loads(json.dumps({**asked.pop("workload"), **asked}))
    if spec.loading.endpoint:
        # Without what may be secret in it.
        arguments["loading"]["endpoint"] = find(spec.models[0], spec.loading).url
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    report = Report(arguments, host(), created, [], interrupted=True)
    after_round(report)
    reporter = reporter or Silent()
    with references(spec.loading, reporter, verbose=verbose) as score:
        given = candidates(spec, report, score if quality else None, reporter)
        if tune:
            tune_each(given, reporter, report.warnings.append, verbose=verbose)
        Rounds(spec, reporter, lambda: after_round(report), verbose).measure(given)
        if quality:
            measure_quality(given, score, reporter, report.warnings.append, texts=spec.texts, verbose=verbose)
        if spec.tasks:
            measure_tasks(given, spec.tasks, reporter, report.warnings.append, verbose=verbose)
    report.interrupted = False
    return report
