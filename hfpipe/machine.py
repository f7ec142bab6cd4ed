"""Memory, disk and processors that this process may use."""

from __future__ import annotations

import math
import os
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

_PROC = Path("/proc/self")


def available_memory() -> int:
    """Bytes that a new process can have without swapping, within the limits of its cgroups."""
    # Its import takes 0.02 s.
    import psutil

    available: int = psutil.virtual_memory().available
    for group in _cgroups("memory"):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            # Without a limit it says "max", or there is no such file.
            with suppress(OSError, ValueError):
                free = int((group / limit).read_text()) - int((group / used).read_text())
                available = min(available, free + _cached_files(group / "memory.stat"))
    return max(available, 0)


def processors() -> int:
    """How many threads this process can keep busy: its processors, or a smaller CPU quota, rounded up."""
    quotas = (_cpu_quota(group) for group in _cgroups("cpu"))
    return min([affinity(), *(math.ceil(quota) for quota in quotas if quota is not None)])


def affinity() -> int:
    """The number of processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_quota(group: Path) -> float | None:
    """The processors' worth of time that a cgroup may use; None without a limit."""
    quota, period = 0, 0
    with suppress(OSError, ValueError):
        quota, period = int((group / "cpu.cfs_quota_us").read_text()), int((group / "cpu.cfs_period_us").read_text())
    with suppress(OSError, ValueError):
        quota, period = map(int, (group / "cpu.max").read_text().split())
    return quota / period if quota > 0 and period > 0 else None


def _cgroups(controller: str) -> Iterator[Path]:
    """The folders of this process's cgroup and of those around it, of version 1 and 2: each may have a limit."""
    mounts: dict[str, tuple[str, Path]] = {}
    own: dict[str, str] = {}
    # Not on Linux, or hidden.
    with suppress(OSError):
        for line in (_PROC / "mountinfo").read_text().splitlines():
            before, _, after = line.partition(" - ")
            kind, _, options = after.split(" ", 2)
            if kind == "cgroup2" or (kind == "cgroup" and controller in options.split(",")):
                mounts["" if kind == "cgroup2" else controller] = (before.split()[3], Path(before.split()[4]))
        for line in (_PROC / "cgroup").read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            own |= dict.fromkeys(controllers.split(","), name)
    for version, (root, mount) in mounts.items():
        path = PurePosixPath(own.get(version, "/"))
        # A container sees its own part of the tree, sometimes under a path that it does not see.
        visible = path.is_relative_to(root) and ".." not in path.parts
        inside = path.relative_to(root) if visible else PurePosixPath()
        yield from (mount / part for part in (inside, *inside.parents))


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
    """Bytes that can still be written to `folder`, or to the nearest folder above it that exists."""
    while not os.path.isdir(folder) and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
