"""A transformers folder -> an OpenVINO one, by optimum-cli's own command. Runs in a child process (see process.py)."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from errno import ENOSPC
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

import nncf
import openvino as ov
import openvino_tokenizers
import rich.progress
from optimum.commands.export.openvino import OVExportCommand, parse_args_openvino
from optimum.exporters.openvino import __main__ as exporter
from optimum.exporters.openvino import convert
from optimum.exporters.tasks import TasksManager
from transformers import AutoConfig
from transformers import __version__ as transformers_version
from transformers.utils.versions import require_version_core

from hfpipe.errors import UnsupportedModel, UsageError
from hfpipe.machine import peak_memory
from hfpipe.store import writing
from hfpipe.types import Reporter

OPENVINO = "openvino_model.xml"
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
_STAGES = {
    "main_export": "Reading the weights and converting",
    "maybe_convert_tokenizers": "Converting the tokenizer",
    "_main_quantize": "Quantizing",
}


def main(arguments: dict[str, Any], reporter: Reporter) -> int:
    """Run optimum-cli's `export openvino` with `arguments["command"]`, unless `arguments["check_only"]`.

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
    _report_to(reporter)
    if arguments.get("in_8_bits"):
        _leave_in_8_bits(arguments["in_8_bits"], reporter)
    command = OVExportCommand(None, options, from_defaults_factory=True, parser=argparse.ArgumentParser())
    try:
        with writing(Path(arguments["disk"]), variable=arguments["variable"]), _full_disks_told():
            command.run()
    except nncf.InvalidGroupSizeError as error:
        raise UsageError(_first_line(error), hint="--group-size auto chooses one that fits.") from error
    except (ValueError, KeyError, NotImplementedError) as error:
        raise _cannot(arguments["reference"], _first_line(error)) from error
    copy_tokenizer(Path(options.model), Path(options.output))
    return peak_memory()


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
def _full_disks_told() -> Iterator[None]:
    """Raise an OSError for a full disk, which OpenVINO and the libraries in Rust tell by errors of their own, and
    optimum-cli not at all where it is the tokenizer that could not be written."""
    untold: list[Exception] = []
    for module, name in ((openvino_tokenizers, "convert_tokenizer"), (convert, "export_tokenizer")):
        setattr(module, name, _noted(getattr(module, name), untold))
    try:
        yield
    except Exception as error:
        _raise_if_full(error)
        raise
    for one in untold:
        _raise_if_full(one)


def _noted(function: Callable[..., Any], errors: list[Exception]) -> Callable[..., Any]:
    @wraps(function)
    def noted(*arguments: Any, **keywords: Any) -> Any:
        try:
            return function(*arguments, **keywords)
        except Exception as error:
            errors.append(error)
            raise

    return noted


def _raise_if_full(error: Exception) -> None:
    if "iostream error" in str(error) or "No space left" in str(error):
        raise OSError(ENOSPC, "No space left on device") from error


def _cannot(reference: str, reason: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"optimum-intel cannot export {reference} for OpenVINO: {reason}", hint="--backend torch may run it."
    )


def _first_line(error: Exception) -> str:
    return str(error.args[0] if error.args else error).strip().partition("\n")[0].partition(" Please ")[0]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"optimum-cli: {message}.", hint="optimum-cli export openvino --help shows what there is.")


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
    tables = TasksManager._LIBRARY_TO_SUPPORTED_MODEL_TYPES["transformers"]
    if "openvino" not in tables.get(kind, {}):
        raise _cannot(reference, f"the architecture {kind} is not among those that it knows.")
    tasks = TasksManager.get_supported_tasks_for_model_type(kind, "openvino", library_name="transformers")
    if options.task not in tasks:
        raise _cannot(reference, f"it does not export {kind} for {options.task} (but for {', '.join(tasks)}).")
    _check_versions(tasks[options.task](config), kind, reference)


def _check_versions(export_config: Any, kind: str, reference: str) -> None:
    for name, relation in (("MIN_TRANSFORMERS_VERSION", ">="), ("MAX_TRANSFORMERS_VERSION", "<=")):
        if bound := getattr(export_config, name, None):
            try:
                require_version_core(f"transformers{relation}{bound}")
            except ImportError as error:
                wanted = f"transformers {relation} {bound}"
                raise _cannot(reference, f"for {kind} it needs {wanted}; {transformers_version} is here.") from error


def _report_to(reporter: Reporter) -> None:
    """Have the exporter name its stages, and its bars go to the reporter."""
    for name, text in _STAGES.items():
        setattr(exporter, name, _staged(getattr(exporter, name), text, reporter))

    def report(bars: rich.progress.Progress) -> str:
        for task in bars.tasks:
            if task.total:
                reporter.progress(task.description, int(100 * task.completed / task.total), 100, "steps")
        return ""

    # The bars of nncf are Rich's: what is called ten times a second to draw them.
    rich.progress.Progress.get_renderable = report  # type: ignore[assignment]


def _leave_in_8_bits(patterns: Sequence[str], reporter: Reporter) -> None:
    """Have optimum-cli quantize the rest, and then these: it has no option that names layers."""
    quantize = exporter._main_quantize

    def in_two_steps(*, quantization_config: Any, output: Path, **more: Any) -> None:
        quantization_config.ignored_scope = {"patterns": list(patterns)}
        quantize(quantization_config=quantization_config, output=output, **more)
        reporter.stage("Quantizing the rest to 8 bits")
        model = ov.Core().read_model(output / OPENVINO)
        rest = output / "8-bits"
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
        ov.save_model(model, rest / OPENVINO, compress_to_fp16=False)
        del model
        for path in rest.iterdir():
            path.replace(output / path.name)
        rest.rmdir()

    exporter._main_quantize = in_two_steps


def _staged(function: Callable[..., Any], text: str, reporter: Reporter) -> Callable[..., Any]:
    @wraps(function)
    def staged(*arguments: Any, **keywords: Any) -> Any:
        reporter.stage(text)
        return function(*arguments, **keywords)

    return staged
