"""Any configuration against a reference: its engine's logits, in a child process (see conversion/child.py)."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from hfpipe.quality.reference import read_reference
from hfpipe.sources.folder import inspect_folder
from hfpipe.types import LoadOptions, Reporter


def main(arguments: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Compare the model in `arguments["folder"]`, loaded with `arguments["loading"]`, the fields of LoadOptions, with
    the reference in `arguments["reference_folder"]`. `reference` is what the user calls the model. Gives
    Quality.as_dict().
    """
    options = LoadOptions(**arguments["loading"])
    source = inspect_folder(Path(arguments["folder"]), arguments["reference"], allow_pickle=options.allow_pickle)
    leaf = import_module(f"hfpipe.quality.score_{options.backend}")
    reference = read_reference(Path(arguments["reference_folder"]))
    quality: dict[str, Any] = leaf.compare(source, options, reference, reporter).as_dict()
    return quality
