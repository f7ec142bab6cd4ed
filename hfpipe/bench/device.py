"""Whether an engine has a device, asked in a process of its own (see process.py) before hours of exports."""

from __future__ import annotations

from typing import Any

from hfpipe import backends
from hfpipe.types import Reporter


def main(arguments: dict[str, Any], reporter: Reporter) -> None:
    """Raise the HFPipeError of `arguments["backend"]` where it cannot have the `device`."""
    backends.engine(arguments["backend"]).check_device(arguments["device"])
