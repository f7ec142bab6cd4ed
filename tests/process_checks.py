"""What the exporter says to many commands, in one process. Runs in a child process (see hfpipe/process.py)."""

from typing import Any

from hfpipe.backends.openvino import conversion as openvino
from hfpipe.errors import HFPipeError
from hfpipe.types import Reporter


def main(arguments: dict[str, Any], reporter: Reporter) -> list[list[str] | None]:
    """For each of `arguments["commands"]` the class, message and hint of its error, null where there is none."""
    return [_check(command, reporter) for command in arguments["commands"]]


def _check(command: list[str], reporter: Reporter) -> list[str] | None:
    try:
        openvino.main({"reference": "the model", "command": command, "check_only": True}, reporter)
    except HFPipeError as error:
        return [type(error).__name__, error.message, error.hint or ""]
    return None
