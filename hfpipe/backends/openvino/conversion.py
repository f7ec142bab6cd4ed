"""A transformers folder -> an OpenVINO one, with the functions that optimum-cli calls. Runs in a child process.

Tried with optimum-intel 2.2, nncf 3.4 and Rich 15. None of their private parts are used, but modules that may move do:
pyproject.toml has the upper bounds.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import nncf
import rich.progress
from optimum.commands.export.openvino import parse_args_openvino, prepare_wc_config
from optimum.exporters.openvino import main_export
from optimum.exporters.openvino.convert import export_tokenizer
from optimum.exporters.tasks import TasksManager
from optimum.intel import OVConfig, OVModelForCausalLM, OVModelForSeq2SeqLM
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast
from transformers import __version__ as transformers_version
from transformers.utils.versions import require_version_core

from hfpipe.backends.openvino.fusion import fuse_projections
from hfpipe.backends.openvino.numbers import replace_numbers
from hfpipe.errors import UnsupportedModel, UsageError
from hfpipe.machine import peak_memory
from hfpipe.types import Reporter

_TOKENIZER = (
    "tokenizer*.json",
    "*_tokens*.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.spm",
    "*.tiktoken",
    "tekken.json",
)
_TEMPLATES = ("chat_template.*", "additional_chat_templates/*.jinja")
# Options of optimum-cli that main_export takes under the same name.
_PASSED_ON = ("task", "framework", "cache_dir", "trust_remote_code", "pad_token_id", "variant", "model_kwargs")


def main(arguments: dict[str, Any], reporter: Reporter) -> int:
    """Export as `optimum-cli export openvino` with `arguments["command"]`, unless `arguments["check_only"]`.

    `arguments["reference"]` is what the user calls the model; `arguments["calibration"]` are texts, in place of the
    dataset that optimum-cli would download; what 4-bit quantization is to leave in 8 bits is a list of patterns of
    names in `arguments["in_8_bits"]`; `arguments["numbers"]` is a file of numbers that replace nncf's, or null. Gives
    this process's peak memory in bytes. Raises UnsupportedModel before a weight is read.
    """
    # The folder first: at the end it would be the value of an option that has none.
    *words, folder = arguments["command"]
    parser = _Parser(prog="optimum-cli export openvino", add_help=False, allow_abbrev=False)
    parse_args_openvino(parser)
    options = parser.parse_args([folder, *words])
    try:
        _check_exportable(options)
        if not arguments["check_only"]:
            if arguments["calibration"] and options.dataset is None:
                options.dataset, options.num_samples = arguments["calibration"], len(arguments["calibration"])
            _show_bars(reporter)
            _export(options, arguments["in_8_bits"], arguments["numbers"], reporter)
    except nncf.InvalidGroupSizeError as error:
        hint = "Use --group-size auto, which fits each layer."
        if options.weight_format == "mxfp4":
            hint = "Groups of mxfp4 are of 32: use --weight-format int4 or nf4."
        raise UsageError(_first_line(error), hint=hint) from error
    except (ValueError, KeyError, NotImplementedError) as error:
        code = "--trust-remote-code runs the Python code that comes with it."
        raise UnsupportedModel(
            f"optimum-intel cannot export {arguments['reference']} for OpenVINO: {_first_line(error)}",
            hint=code if "trust_remote_code" in str(error) else "--backend torch may run it.",
        ) from error
    return peak_memory()


def _first_line(error: Exception) -> str:
    return str(error.args[0] if error.args else error).strip().partition("\n")[0].partition(" Please ")[0]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"optimum-cli: {message}.", hint="`optimum-cli export openvino --help` lists its options.")


def _check_exportable(options: argparse.Namespace) -> None:
    """Raise ValueError where the exporter's own tables do not have the model for the installed versions."""
    trust = options.trust_remote_code
    config = AutoConfig.from_pretrained(options.model, trust_remote_code=trust, local_files_only=True)
    kind = config.model_type
    try:
        tasks = TasksManager.get_supported_tasks_for_model_type(kind, "openvino", library_name="transformers")
    except (KeyError, ValueError) as error:
        raise ValueError(f"the architecture {kind} is unknown to it.") from error
    if options.task not in tasks:
        raise ValueError(f"it does not export {kind} for {options.task} (but for {', '.join(tasks)}).")
    export_config = tasks[options.task](config)
    for name, relation in (("MIN_TRANSFORMERS_VERSION", ">="), ("MAX_TRANSFORMERS_VERSION", "<=")):
        if bound := getattr(export_config, name, None):
            try:
                require_version_core(f"transformers{relation}{bound}")
            except ImportError as error:
                wanted = f"transformers {relation} {bound} (installed: {transformers_version})"
                raise ValueError(f"for {kind} it needs {wanted}.") from error


def _export(options: argparse.Namespace, in_8_bits: Sequence[str], numbers: str | None, reporter: Reporter) -> None:
    """What optimum-cli's command does, and two things more that it has no options for: `in_8_bits` and `numbers`."""
    output, is_quantized = Path(options.output), options.weight_format not in ("fp32", "fp16")
    config = OVConfig(dtype=options.weight_format)
    if is_quantized:
        quantization = prepare_wc_config(options, {"ratio": 1.0}) | {"tokenizer": options.model}
        quantization |= {"ignored_scope": {"patterns": list(in_8_bits)}} if in_8_bits else {}
        config = OVConfig(quantization_config=quantization)
    with TemporaryDirectory() as temporary:
        floats = Path(temporary) / output.name if is_quantized else output
        reporter.stage("Reading the weights and converting")
        main_export(
            model_name_or_path=options.model,
            output=floats,
            ov_config=config,
            stateful=not options.disable_stateful,
            library_name=options.library,
            **{name: getattr(options, name) for name in _PASSED_ON},
        )
        if is_quantized:
            reporter.stage("Quantizing")
            kind = OVModelForSeq2SeqLM if options.task.startswith("text2text") else OVModelForCausalLM
            model = kind.from_pretrained(
                floats,
                compile=False,
                trust_remote_code=options.trust_remote_code,
                quantization_config=config.quantization_config,
            )
            if in_8_bits:
                reporter.stage("Quantizing the rest to 8 bits")
                model.model = nncf.compress_weights(model.model, mode=nncf.CompressWeightsMode.INT8_ASYM)
            if numbers:
                replace_numbers(model.model, Path(numbers))
            model.save_pretrained(output)
            for path in floats.iterdir():
                if not (output / path.name).exists():
                    shutil.move(path, output / path.name)
    fuse_projections(output)
    copy_tokenizer(Path(options.model), output)
    if not options.disable_convert_tokenizer:
        reporter.stage("Converting the tokenizer")
        # The class that a configuration names may build another one than tokenizer.json.
        tokens = PreTrainedTokenizerFast if (output / "tokenizer.json").is_file() else AutoTokenizer
        tokenizer = tokens.from_pretrained(output, trust_remote_code=options.trust_remote_code)
        export_tokenizer(tokenizer, output, task=options.task)


def copy_tokenizer(source: Path, export: Path) -> None:
    """Give an export the tokenizer files of its source, byte for byte: transformers may have saved another tokenizer,
    built anew from the class that the configuration names."""
    for pattern in (*_TOKENIZER, *_TEMPLATES):
        # Where the source has no tokenizer.json, the one that was made of its files spares each start seconds.
        for saved in export.glob(pattern) if (source / "tokenizer.json").is_file() else ():
            saved.unlink()
        for original in source.glob(pattern):
            copy = export / original.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(original, copy)


def _show_bars(reporter: Reporter) -> None:
    """Have the bars of nncf, which are Rich's, go to the reporter."""

    def report(bars: rich.progress.Progress) -> str:
        for task in bars.tasks:
            if task.total:
                reporter.progress(task.description, int(100 * task.completed / task.total), 100, "steps")
        return ""

    # It is called ten times a second to draw them.
    rich.progress.Progress.get_renderable = report  # type: ignore[assignment]
