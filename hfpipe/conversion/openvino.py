"""A transformers folder -> an OpenVINO folder in the same precision. Runs in a child process (see child.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optimum.exporters.openvino import main_export
from optimum.intel.openvino import OVConfig

from hfpipe.cache import writing
from hfpipe.errors import UnsupportedModel
from hfpipe.types import Reporter


def main(arguments: dict[str, Any], reporter: Reporter) -> None:
    """Export `arguments["source"]` into the empty folder `arguments["folder"]` with weights of `arguments["dtype"]`.

    `arguments["reference"]` is what the user calls the model. The tokenizer is read from tokenizer.json, so that
    none is converted.
    """
    source, folder = Path(arguments["source"]), Path(arguments["folder"])
    try:
        with writing(folder):
            main_export(
                str(source),
                folder,
                task="text-generation-with-past",
                ov_config=OVConfig(dtype=arguments["dtype"]),
                trust_remote_code=arguments["trust_remote_code"],
                library_name="transformers",
                local_files_only=True,
                convert_tokenizer=False,
            )
    except (ValueError, KeyError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0].partition(" Please ")[0]
        raise UnsupportedModel(
            f"optimum-intel cannot export {arguments['reference']} for OpenVINO: {reason}",
            hint="--backend torch may run it.",
        ) from error
