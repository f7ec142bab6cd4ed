"""What this machine has left."""

from __future__ import annotations

import os
import resource
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import psutil

_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available_memory() -> int:
    """Bytes that a new process can have without swapping, within the limit of the container."""
    available: int = psutil.virtual_memory().available
    for limit, used in _CGROUPS:
        # Without a limit there is "max", or no such file.
        with suppress(OSError, ValueError):
            available = min(available, int(Path(limit).read_text()) - int(Path(used).read_text()))
    return max(available, 0)


def peak_memory_of_children() -> int:
    """The most bytes that one of the ended child processes held at once."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_disk(folder: Path) -> int:
    """Bytes that can still be written to `folder`, or to the nearest folder above it that stands."""
    while not os.path.isdir(folder) and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
