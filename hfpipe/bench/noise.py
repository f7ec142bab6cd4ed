"""Whether a machine is quiet: what other processes took of its processors, and how fast these ran."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import psutil

# From this share on that other processes use, a warning is due.
BUSY = 0.05


@dataclass(frozen=True, slots=True)
class Noise:
    """`others_cpu` is the share of all processors, 0 to 1, that other processes used, and that a hypervisor gave to
    others; `frequency_mhz` the processors' frequency, None where it cannot be read."""

    others_cpu: float
    frequency_mhz: float | None

    def as_dict(self) -> dict[str, float | None]:
        """What a Sample keeps of it."""
        return asdict(self)


class Watch:
    """Looks at the machine from when it is made until `stop`."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()
        self._busy, self._own = _busy_seconds(), _own_seconds()

    def stop(self) -> Noise:
        capacity = (time.perf_counter() - self._begun) * (psutil.cpu_count() or 1)
        others = (_busy_seconds() - self._busy) - (_own_seconds() - self._own)
        return Noise(min(1.0, max(0.0, others / capacity)), _frequency())


def _busy_seconds() -> float:
    """Of all processors since the start of the machine. Time that another guest of the hypervisor took is among it."""
    times: Any = psutil.cpu_times()
    # Those of guests are in user and nice already.
    not_busy = ("idle", "iowait", "guest", "guest_nice")
    return float(sum(seconds for name, seconds in times._asdict().items() if name not in not_busy))


def _own_seconds() -> float:
    """Of this process, and of those of its children that have ended."""
    times = psutil.Process().cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def _frequency() -> float | None:
    try:
        frequency = psutil.cpu_freq()
    except (AttributeError, NotImplementedError, OSError, RuntimeError):
        # Some systems, and most containers, do not tell.
        return None
    return float(frequency.current) if frequency and frequency.current else None
