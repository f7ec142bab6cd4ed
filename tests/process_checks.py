"""What the exporter says to many commands, in one process. Runs in a child process (see hfpipe/process.py)."""

import inspect
from typing import Any

import rich.progress
from optimum.commands.export.openvino import prepare_wc_config
from optimum.exporters.openvino import main_export
from optimum.exporters.openvino.convert import export_tokenizer

from hfpipe.backends.openvino import conversion as openvino
from hfpipe.errors import HFPipeError
from hfpipe.types import Reporter

# What hfpipe uses of other packages beside what they document, and with which arguments.
PARTS = {
    "optimum.commands.export.openvino.prepare_wc_config": (prepare_wc_config, ["args", "default_configs"]),
    "optimum.exporters.openvino.convert.export_tokenizer": (export_tokenizer, ["tokenizer", "output", "task"]),
    "optimum.exporters.openvino.main_export": (main_export, ["ov_config", "stateful", "convert_tokenizer", "variant"]),
    "rich.progress.Progress.get_renderable": (rich.progress.Progress.get_renderable, ["self"]),
}


def main(arguments: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """`said`: for each of `arguments["commands"]` the class, message and hint of its error, null where there is none.
    `lacking`: by name the arguments that a part of another package has not."""
    lacking = {
        name: [one for one in wanted if one not in inspect.signature(part).parameters]
        for name, (part, wanted) in PARTS.items()
    }
    return {"said": [_check(command, reporter) for command in arguments["commands"]], "lacking": lacking}


def _check(command: list[str], reporter: Reporter) -> list[str] | None:
    try:
        openvino.main({"reference": "the model", "command": command, "check_only": True}, reporter)
    except HFPipeError as error:
        return [type(error).__name__, error.message, error.hint or ""]
    return None
