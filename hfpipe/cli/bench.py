"""`hfpipe bench`: which choice is best on this machine, and whether the difference is real."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hfpipe.cli import options as o
from hfpipe.cli import options_bench as b
from hfpipe.cli.interrupt import unwinding
from hfpipe.cli.output import Talk
from hfpipe.cli.quiet import silence
from hfpipe.errors import UsageError

if TYPE_CHECKING:
    from hfpipe.bench.benchmark import Benchmark
    from hfpipe.cli.bench_output import Wanted


def bench(
    models: b.ModelsArg,
    backend: b.BackendsOpt = None,
    weight_format: b.WeightFormatsOpt = None,
    device: o.DeviceOpt = None,
    device_map: o.DeviceMapOpt = None,
    dtype: o.DtypeOpt = None,
    attn: o.AttnOpt = None,
    ov_config: o.OvConfigOpt = None,
    model_kwarg: o.ModelKwargOpt = None,
    revision: o.RevisionOpt = None,
    trust_remote_code: o.TrustOpt = False,
    allow_pickle: o.PickleOpt = False,
    exact: o.ExactOpt = False,
    prompt_tokens: b.PromptTokensOpt = 512,
    new_tokens: b.NewTokensOpt = 128,
    batch: b.BatchOpt = "1,8",
    repeats: b.RepeatsOpt = 5,
    prompts: b.PromptsOpt = None,
    quality: b.QualityOpt = True,
    text: b.TextOpt = None,
    reference: b.ReferenceOpt = None,
    max_loss: b.MaxLossOpt = "2%",
    json: b.JsonFileOpt = None,
    markdown: b.MarkdownOpt = False,
    csv: b.CsvOpt = False,
    plot: b.PlotOpt = None,
    baseline: b.BaselineOpt = None,
    fail_slower: b.FailSlowerOpt = None,
    quiet: o.QuietOpt = False,
    verbose: o.VerboseOpt = False,
) -> int:
    """Measure models on engines and in formats: speed, memory, size and quality.

    Each is measured in processes of its own, in turn with the others, and compared with the first.
    """
    loading = o.load_options({**locals(), "backend": "auto", "task": None}, batch_size=None)
    backends, formats = b.listed("--backend", backend, str), b.listed("--weight-format", weight_format, str)
    sizes = b.listed("--batch", batch, b.size)
    most, limit = (
        b.share("--max-loss", max_loss),
        None if fail_slower is None else b.share("--fail-slower", fail_slower),
    )
    _check(markdown=markdown, csv=csv, baseline=baseline, limit=limit, tokens=(prompt_tokens, new_tokens))
    silence(verbose=verbose)
    from hfpipe.bench.benchmark import Benchmark
    from hfpipe.bench.candidates import Choices
    from hfpipe.bench.metrics import Workload
    from hfpipe.bench.prompts import read_records
    from hfpipe.cli.bench_output import Wanted, read_text

    form = "markdown" if markdown else "csv" if csv else "tables"
    wanted = Wanted(most, json, form, plot, baseline, limit, quiet)
    work = Benchmark(
        Choices(models, backends, formats, loading, reference),
        Workload(None if prompts else prompt_tokens, new_tokens, sizes),
        repeats,
        read_records(prompts) if prompts else None,
        quality,
        read_text(text) if text else None,
        verbose,
    )
    return _run(work, wanted, quiet=quiet, verbose=verbose)


def _check(*, markdown: bool, csv: bool, baseline: Path | None, limit: float | None, tokens: tuple[int, int]) -> None:
    if markdown and csv:
        raise UsageError("--markdown and --csv exclude each other.")
    if limit is not None and baseline is None:
        raise UsageError("--fail-slower needs a --baseline to compare with.")
    for name, number in zip(("--prompt-tokens", "--new-tokens"), tokens, strict=True):
        if number < 1:
            raise UsageError(f"{name} must be at least 1, not {number}.")


def _run(work: Benchmark, wanted: Wanted, *, quiet: bool, verbose: bool) -> int:
    """Measure, and say what came out; after Ctrl-C what was measured until then."""
    with unwinding():
        try:
            with Talk(quiet=quiet, verbose=verbose, plain=True) as talk:
                work.run(talk)
        except KeyboardInterrupt:
            work.report.interrupted = True
            wanted.show(work.report)
            raise
        return wanted.show(work.report)
