"""`hfpipe bench`: which choice is best on this machine, and whether the difference is real."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hfpipe.cli import options as o
from hfpipe.cli import options_bench as b
from hfpipe.cli.main import unwinding
from hfpipe.cli.startup import silence
from hfpipe.cli.terminal import Terminal, error
from hfpipe.errors import HFPipeError, UsageError

if TYPE_CHECKING:
    from hfpipe.bench.benchmark import Benchmark
    from hfpipe.cli.bench_output import Wanted

_PROMPT_TOKENS = 512


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
    task: o.TaskOpt = None,
    revision: o.RevisionOpt = None,
    trust_remote_code: o.TrustOpt = False,
    allow_pickle: o.PickleOpt = False,
    exact: o.ExactOpt = False,
    prompt_tokens: b.PromptTokensOpt = None,
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
    loading = o.load_options({**locals(), "backend": "auto"}, batch_size=None)
    names, formats = b.listed("--backend", backend, str), b.listed("--weight-format", weight_format, str)
    sizes = b.listed("--batch", batch, b.size)
    most = b.share("--max-loss", max_loss)
    limit = None if fail_slower is None else b.share("--fail-slower", fail_slower)
    _exclude({"--markdown": markdown, "--csv": csv})
    _exclude({"--prompt-tokens": prompt_tokens, "--prompts": prompts})
    _exclude({"--no-quality": not quality, "--text": text, "--reference": reference})
    if limit is not None and baseline is None:
        raise UsageError("--fail-slower needs a --baseline to compare with.")
    for name, number in (("--prompt-tokens", prompt_tokens), ("--new-tokens", new_tokens)):
        if number is not None and number < 1:
            raise UsageError(f"{name} must be at least 1, not {number}.")
    silence(verbose=verbose)
    from hfpipe.bench.benchmark import Benchmark
    from hfpipe.bench.choices import Choices
    from hfpipe.bench.metrics import Workload
    from hfpipe.bench.prompts import read_records
    from hfpipe.cli.bench_output import Wanted, read_text

    form = "markdown" if markdown else "csv" if csv else "tables"
    tokens = None if prompts else prompt_tokens or _PROMPT_TOKENS
    workload = Workload(tokens, new_tokens, sizes)
    # auto is what other commands call the fitting one, of which there are several here.
    if "auto" in names and len(names) > 1:
        raise UsageError("auto stands for all engines that fit, and alone.")
    engines = () if "auto" in names else names
    work = Benchmark(
        Choices(models, engines, formats, loading, reference, (tokens or 0) + new_tokens),
        workload,
        repeats,
        read_records(prompts) if prompts else None,
        quality,
        read_text(text) if text else None,
        verbose,
    )
    wanted = Wanted(work.report, most, json, form, plot, baseline, limit, quiet)
    return _run(work, wanted, quiet=quiet, verbose=verbose)


def _exclude(given: dict[str, Any]) -> None:
    """Raise UsageError where the first of these options is given, and another."""
    first, *others = given
    for name in others:
        if given[first] and given[name]:
            raise UsageError(f"{first} and {name} exclude each other.")


def _run(work: Benchmark, wanted: Wanted, *, quiet: bool, verbose: bool) -> int:
    """Measure, and say what came out; after Ctrl-C what was measured until then."""
    with unwinding():
        try:
            with Terminal(quiet=quiet, verbose=verbose, plain=True) as talk:
                work.after_each_round = lambda: wanted.save(talk)
                work.run(talk)
        except BaseException:
            try:
                wanted.show()
            except HFPipeError as problem:
                error(problem)
            raise
        return wanted.show()
