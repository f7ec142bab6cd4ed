"""What this machine has left."""

from __future__ import annotations

import os
import resource
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import psutil

# A container's limit, its use, and what that is made of.
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)


def available_memory() -> int:
    """Bytes that a new process can have without swapping, within the limit of the container."""
    available: int = psutil.virtual_memory().available
    for limit, used, stat in _CGROUPS:
        # Without a limit there is "max", or no such file.
        with suppress(OSError, ValueError):
            free = int(Path(limit).read_text()) - int(Path(used).read_text())
            available = min(available, free + _cached_files(Path(stat)))
    return max(available, 0)


def _cached_files(stat: Path) -> int:
    """Bytes that count as used by a container and are given up first: files that were read some time ago."""
    entries: dict[str, int] = {}
    # A container may not say.
    with suppress(OSError):
        entries = {name: int(value) for name, value in map(str.split, stat.read_text().splitlines())}
    return entries.get("total_inactive_file", entries.get("inactive_file", 0))


def peak_memory() -> int:
    """The most bytes that this process held at once."""
    # What getrusage says of a young process includes the memory of the one that started it, up to its exec.
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_gpu_memory() -> int | None:
    """The most bytes that torch held on its GPU; None where it is not loaded, or has used none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return int(torch.cuda.max_memory_allocated())


def free_disk(folder: Path) -> int:
    """Bytes that can still be written to `folder`, or to the nearest folder above it that stands."""
    while not os.path.isdir(folder) and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
