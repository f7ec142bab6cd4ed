"""The command line of optimum-cli, the child process that runs it, and the exports in a model's own precision that are
made once and kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hfpipe import store
from hfpipe.process import run_child
from hfpipe.types import LoadOptions, ModelSource, Reporter

_KIND = "openvino"
# Another version of one of them may make another export.
EXPORTERS = ("hfpipe", "optimum-intel", "nncf", "openvino", "transformers", "torch")


def own_format(source: ModelSource) -> str:
    """The weight format that keeps the model's own precision."""
    # A model of images and text may name it for its text alone, as the torch backend reads it.
    settings = (source.config, source.config.get("text_config") or {})
    dtype = next((found for one in settings for key in ("dtype", "torch_dtype") if (found := one.get(key))), None)
    # What 16 bits hold of a bfloat16 weight, float16 holds too, but for numbers nearer to 0 than 6e-8.
    return "fp16" if dtype in ("float16", "bfloat16") else "fp32"


def own_export(source: ModelSource, options: LoadOptions, reporter: Reporter) -> Path:
    """The folder of the OpenVINO model: the source's own, or an export of it that is made once and kept."""
    if source.format == "openvino":
        return source.folder
    dtype = _dtype(source, options)

    def export(folder: Path) -> None:
        reporter.note(f"Exporting {source.reference} for OpenVINO ({dtype}), once; the result is kept.")
        # Text goes in as token ids, which tokenizer.json gives.
        more = ["--disable-convert-tokenizer"]
        command = export_command(source, folder, dtype, trust_remote_code=options.trust_remote_code, more=more)
        run_export(source, command, reporter=reporter)

    key = _key(source, options, reporter)
    return store.build_once(_KIND, key, export, model=source.reference, form=dtype, reporter=reporter)


def is_exported(source: ModelSource, options: LoadOptions, reporter: Reporter) -> bool:
    """Whether `own_export` has one of a transformers model in the cache, and need not make it."""
    # The key takes the digest of all weights: first what costs nothing.
    return store.has(_KIND, source.reference) and store.cache_place(_KIND, _key(source, options, reporter)).is_dir()


def _key(source: ModelSource, options: LoadOptions, reporter: Reporter) -> str:
    # 15 ms, which --help has not to spare.
    from importlib.metadata import version

    dtype, versions = _dtype(source, options), {package: version(package) for package in EXPORTERS}
    identity, code = store.identity(source.folder, reporter=reporter), "auto_map" in source.config
    return f"{store.key_of(identity, dtype, code and options.trust_remote_code, versions)}-{dtype}"


def _dtype(source: ModelSource, options: LoadOptions) -> str:
    return "fp32" if options.exact else own_format(source)


def export_command(
    source: ModelSource, folder: Path, weight_format: str, *, trust_remote_code: bool = False, more: Sequence[str] = ()
) -> list[str]:
    """What follows `optimum-cli export openvino`. Of an option that `more` repeats, the last one counts."""
    task = "text2text-generation-with-past" if source.is_encoder_decoder else "text-generation-with-past"
    plain = ["--task", task, "--library", "transformers", "--weight-format", weight_format]
    trust = ["--trust-remote-code"] if trust_remote_code else []
    return ["--model", str(source.folder.absolute()), *plain, *trust, *more, str(folder)]


def run_export(
    source: ModelSource,
    command: Sequence[str],
    *,
    reporter: Reporter,
    calibration: Sequence[str] = (),
    in_8_bits: Sequence[str] = (),
    numbers: Path | None = None,
    check_only: bool = False,
    verbose: bool = False,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run the command in a child process: see `hfpipe.backends.openvino.conversion.main`. Gives its peak memory in
    bytes. Raises HFPipeError, and OSError for a full disk."""
    arguments = {
        "reference": source.reference,
        "command": list(command),
        "calibration": list(calibration),
        "in_8_bits": list(in_8_bits),
        "numbers": str(numbers) if numbers else None,
        "check_only": check_only,
    }
    peak_memory: int = run_child(
        "hfpipe.backends.openvino.conversion",
        arguments,
        what=f"The export of {source.reference}",
        reporter=reporter,
        verbose=verbose,
        environment=environment,
    )
    return peak_memory
