"""A transformers folder -> an OpenVINO one, with the functions that optimum-cli calls. Runs in a child process.

Tried with optimum-intel 2.2, nncf 3.4 and Rich 15. None of their private parts are used, but modules that may move do:
pyproject.toml has the upper bounds.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from errno import ENOSPC
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import nncf
import openvino as ov
import rich.progress
from optimum.commands.export.openvino import parse_args_openvino, prepare_wc_config
from optimum.exporters.openvino import main_export
from optimum.exporters.openvino.convert import export_tokenizer
from optimum.exporters.tasks import TasksManager
from optimum.intel import OVConfig, OVModelForCausalLM
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast
from transformers import __version__ as transformers_version
from transformers.utils.versions import require_version_core

from hfpipe.errors import UnsupportedModel, UsageError
from hfpipe.machine import peak_memory
from hfpipe.store import writing
from hfpipe.types import Reporter

OPENVINO = "openvino_model.xml"
_FLOATS = ("fp32", "fp16")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "chat_template.*",
    "additional_chat_templates/*.jinja",
)


def main(arguments: dict[str, Any], reporter: Reporter) -> int:
    """Export as `optimum-cli export openvino` with `arguments["command"]`, unless `arguments["check_only"]`.

    `arguments["reference"]` is what the user calls the model; `arguments["calibration"]` are texts, in place of the
    dataset that optimum-cli would download; what 4-bit quantization is to leave in 8 bits is a list of patterns of
    names in `arguments["in_8_bits"]`; for a disk that takes nothing, `arguments["disk"]` is the folder to name, and
    `arguments["variable"]` what to change. Gives this process's peak memory in bytes. Raises UnsupportedModel before a
    weight is read.
    """
    options = _parse(arguments["command"])
    _check_exportable(options, arguments["reference"])
    if arguments.get("check_only"):
        return peak_memory()
    if arguments.get("calibration") and options.dataset is None:
        options.dataset, options.num_samples = arguments["calibration"], len(arguments["calibration"])
    _show_bars(reporter)
    try:
        with writing(Path(arguments["disk"]), variable=arguments["variable"]), _full_disks_as_os_errors():
            _export(options, arguments.get("in_8_bits") or (), reporter)
            copy_tokenizer(Path(options.model), Path(options.output))
            if not options.disable_convert_tokenizer:
                reporter.stage("Converting the tokenizer")
                _convert_tokenizer(options)
    except nncf.InvalidGroupSizeError as error:
        raise UsageError(_first_line(error), hint="Use --group-size auto, which fits each layer.") from error
    except (ValueError, KeyError, NotImplementedError) as error:
        raise _cannot(arguments["reference"], _first_line(error)) from error
    return peak_memory()


def _export(options: argparse.Namespace, in_8_bits: Sequence[str], reporter: Reporter) -> None:
    """What optimum-cli's command does, and one thing more that it has no option for: `in_8_bits`."""
    output, floats_only = Path(options.output), options.weight_format in _FLOATS
    quantization = None if floats_only else prepare_wc_config(options, {"ratio": 1.0})
    config = OVConfig(dtype=options.weight_format) if floats_only else OVConfig(quantization_config=quantization)
    with TemporaryDirectory() as temporary:
        floats = output if floats_only else Path(temporary) / output.name
        reporter.stage("Reading the weights and converting")
        main_export(
            model_name_or_path=options.model,
            output=floats,
            task=options.task,
            framework=options.framework,
            cache_dir=options.cache_dir,
            trust_remote_code=options.trust_remote_code,
            pad_token_id=options.pad_token_id,
            ov_config=config,
            stateful=not options.disable_stateful,
            convert_tokenizer=False,
            library_name=options.library,
            variant=options.variant,
            model_kwargs=options.model_kwargs,
        )
        if not floats_only:
            reporter.stage("Quantizing")
            _quantize(options, config.quantization_config, floats, in_8_bits, reporter)
            for path in floats.iterdir():
                if not (output / path.name).exists():
                    shutil.move(path, output / path.name)


def _quantize(
    options: argparse.Namespace, config: Any, floats: Path, in_8_bits: Sequence[str], reporter: Reporter
) -> None:
    config.tokenizer = options.model
    if in_8_bits:
        config.ignored_scope = {"patterns": list(in_8_bits)}
    model = OVModelForCausalLM.from_pretrained(
        floats, compile=False, trust_remote_code=options.trust_remote_code, quantization_config=config
    )
    model.save_pretrained(options.output)
    del model
    if in_8_bits:
        reporter.stage("Quantizing the rest to 8 bits")
        rest = ov.Core().read_model(Path(options.output) / OPENVINO)
        rest = nncf.compress_weights(rest, mode=nncf.CompressWeightsMode.INT8_ASYM)
        # Not over the file that its weights are read from.
        ov.save_model(rest, floats / OPENVINO, compress_to_fp16=False)
        del rest
        for path in (floats / OPENVINO, (floats / OPENVINO).with_suffix(".bin")):
            shutil.move(path, Path(options.output) / path.name)


def _convert_tokenizer(options: argparse.Namespace) -> None:
    """Write OpenVINO's own tokenizer. It is made of tokenizer.json where there is one: the class that a configuration
    names may build another one."""
    kind = PreTrainedTokenizerFast if (Path(options.output) / "tokenizer.json").is_file() else AutoTokenizer
    tokenizer = kind.from_pretrained(options.output, trust_remote_code=options.trust_remote_code)
    export_tokenizer(tokenizer, Path(options.output), task=options.task)


def copy_tokenizer(source: Path, export: Path) -> None:
    """Give an export the tokenizer files of its source, byte for byte: transformers may have saved another tokenizer,
    built anew from the class that the configuration names."""
    for pattern in _TOKENIZER_FILES:
        # Where the source has no tokenizer.json, the one that was made of its files spares each start seconds.
        for saved in export.glob(pattern) if (source / "tokenizer.json").is_file() else ():
            saved.unlink()
        for original in source.glob(pattern):
            copy = export / original.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(original, copy)


@contextmanager
def _full_disks_as_os_errors() -> Iterator[None]:
    """OpenVINO and the libraries in Rust have errors of their own for a full disk."""
    try:
        yield
    except Exception as error:
        if "iostream error" in str(error) or "No space left" in str(error):
            raise OSError(ENOSPC, "No space left on device") from error
        raise


def _cannot(reference: str, reason: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"optimum-intel cannot export {reference} for OpenVINO: {reason}", hint="--backend torch may run it."
    )


def _first_line(error: Exception) -> str:
    return str(error.args[0] if error.args else error).strip().partition("\n")[0].partition(" Please ")[0]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"optimum-cli: {message}.", hint="optimum-cli export openvino --help lists its options.")


def _parse(command: Sequence[str]) -> argparse.Namespace:
    """optimum-cli's own options."""
    parser = _Parser(prog="optimum-cli export openvino", add_help=False, allow_abbrev=False)
    parse_args_openvino(parser)
    # The folder first: at the end it would be the value of an option that has none.
    *options, folder = command
    return parser.parse_args([folder, *options])


def _check_exportable(options: argparse.Namespace, reference: str) -> None:
    """Raise UnsupportedModel where the exporter's own tables do not have the model for the installed versions."""
    try:
        config = AutoConfig.from_pretrained(
            options.model, trust_remote_code=options.trust_remote_code, local_files_only=True
        )
    except (ValueError, KeyError) as error:
        refusal = _cannot(reference, f"{_first_line(error).partition('. ')[0].removesuffix('.')}.")
        if "trust_remote_code" in str(error):
            refusal.hint = "--trust-remote-code runs the Python code that comes with it."
        raise refusal from error
    kind = config.model_type
    try:
        tasks = TasksManager.get_supported_tasks_for_model_type(kind, "openvino", library_name="transformers")
    except (KeyError, ValueError) as error:
        raise _cannot(reference, f"the architecture {kind} is unknown to it.") from error
    if options.task not in tasks:
        raise _cannot(reference, f"it does not export {kind} for {options.task} (but for {', '.join(tasks)}).")
    _check_versions(tasks[options.task](config), kind, reference)


def _check_versions(export_config: Any, kind: str, reference: str) -> None:
    for name, relation in (("MIN_TRANSFORMERS_VERSION", ">="), ("MAX_TRANSFORMERS_VERSION", "<=")):
        if bound := getattr(export_config, name, None):
            try:
                require_version_core(f"transformers{relation}{bound}")
            except ImportError as error:
                wanted = f"transformers {relation} {bound} (installed: {transformers_version})"
                raise _cannot(reference, f"for {kind} it needs {wanted}.") from error


def _show_bars(reporter: Reporter) -> None:
    """Have the bars of nncf, which are Rich's, go to the reporter."""

    def report(bars: rich.progress.Progress) -> str:
        for task in bars.tasks:
            if task.total:
                reporter.progress(task.description, int(100 * task.completed / task.total), 100, "steps")
        return ""

    # It is called ten times a second to draw them.
    rich.progress.Progress.get_renderable = report  # type: ignore[assignment]
