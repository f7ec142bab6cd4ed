"""Exports of several models, all in this one process: its imports take longer than the exports.

Runs in a child process (see hfpipe/process.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any

from hfpipe import models
from hfpipe.backends.openvino import optimum_cli
from hfpipe.types import LoadOptions, Reporter, Silent


def main(arguments: dict[str, Any], reporter: Reporter) -> list[str]:
    """Export the models in `arguments["folders"]` for OpenVINO, in fp32, into the cache. Gives their folders."""
    optimum_cli.run_child = in_this_process
    # By another name, so that they are not what --backend auto finds of the models.
    sources = [replace(models.resolve(folder), reference="tests") for folder in arguments["folders"]]
    return [str(optimum_cli.own_export(model, LoadOptions(), reporter)) for model in sources]


def in_this_process(module: str, arguments: Mapping[str, Any], *, reporter: Reporter | None = None, **_: object) -> Any:
    """run_child, but for the child."""
    result = import_module(module).main(json.loads(json.dumps(arguments)), reporter or Silent())
    return json.loads(json.dumps(result))
