"""`hfpipe batch`: a file of prompts in, a file of results out that nothing can spoil."""

from __future__ import annotations

from pathlib import Path

from hfpipe.cli import options as o
from hfpipe.cli import options_batch as b
from hfpipe.cli.startup import silence
from hfpipe.errors import UsageError
from hfpipe.text.templates import parse_template


def batch(
    input: b.InputArg,
    model: o.ModelOpt = None,
    output: b.ResultsOpt = None,
    format: b.FormatOpt = "hfpipe",
    restart: b.RestartOpt = False,
    retry_errors: b.RetryErrorsOpt = False,
    max_errors: b.MaxErrorsOpt = None,
    verify_parity: b.VerifyParityOpt = None,
    backend: o.BackendOpt = "auto",
    device: o.DeviceOpt = None,
    device_map: o.DeviceMapOpt = None,
    batch_size: b.BatchSizeOpt = None,
    dtype: o.DtypeOpt = None,
    attn: o.AttnOpt = None,
    ov_config: o.OvConfigOpt = None,
    model_kwarg: o.ModelKwargOpt = None,
    task: o.TaskOpt = None,
    revision: o.RevisionOpt = None,
    trust_remote_code: o.TrustOpt = False,
    allow_pickle: o.PickleOpt = False,
    exact: o.ExactOpt = False,
    max_tokens: o.MaxTokensOpt = None,
    temperature: o.TemperatureOpt = None,
    top_p: o.TopPOpt = None,
    top_k: o.TopKOpt = None,
    min_p: o.MinPOpt = None,
    repetition_penalty: o.RepetitionPenaltyOpt = None,
    seed: o.SeedOpt = None,
    stop: o.StopOpt = None,
    template: o.TemplateOpt = None,
    var: o.VarOpt = None,
    system: o.SystemOpt = None,
    chat_template_name: o.ChatTemplateNameOpt = None,
    quiet: o.QuietOpt = False,
    verbose: o.VerboseOpt = False,
) -> int:
    """Answer a file of prompts.

    The results are at every moment a beginning of the finished file; the same command again goes on with it.
    """
    given = locals()
    model = model or "smollm2"
    loading = o.load_options(given, batch_size=batch_size)
    generation = o.generation_options(given)
    parsed = None if template is None else parse_template(template)
    variables = o.parse_variables(var)
    if retry_errors and (output is None or input == "-"):
        raise UsageError("--retry-errors needs the file of results, --output, and an input that is a file.")
    if retry_errors and restart:
        raise UsageError("--retry-errors and --restart exclude each other.", hint="After a restart nothing has failed.")
    if max_errors is not None and max_errors < 0:
        raise UsageError(f"--max-errors must be at least 0, not {max_errors}.")
    if verify_parity is not None and verify_parity < 1:
        raise UsageError(f"--verify-parity must be at least 1, not {verify_parity}.")
    if verify_parity and (output is None or input == "-"):
        raise UsageError("--verify-parity needs the file of results, --output, and an input that is a file.")
    silence(verbose=verbose)
    from hfpipe.cli.batch_asked import Asked
    from hfpipe.cli.batch_job import Job

    asked = Asked(
        None if input == "-" else Path(input), model, parsed, variables, system, chat_template_name, format, generation
    )
    job = Job(asked, loading, output, restart=restart, retry_errors=retry_errors, max_errors=max_errors)
    code = job.run(quiet=quiet, verbose=verbose)
    if output and verify_parity:
        from hfpipe.cli.batch_parity import check_parity

        check_parity(asked, loading, output, verify_parity, quiet=quiet, verbose=verbose)
    return code
