"""CPUs: how many this process may use."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def available(cgroups: Path = CGROUPS) -> int:
    """How many CPUs this process may use: those that it may run on, fewer where its container has a quota of their
    time; 1 at least.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = quota(cgroups)
    return cpus if most is None else max(1, min(cpus, math.ceil(most)))


def quota(cgroups: Path = CGROUPS) -> float | None:
    """CPUs' worth of time that the container has; None where it may take all."""
    with suppress(OSError, ValueError):  # version 2: "200000 100000", or "max 100000"
        most, period = (cgroups / "cpu.max").read_text().split()
        return None if most == "max" else int(most) / int(period)
    with suppress(OSError, ValueError):
        most, period = ((cgroups / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(most) / int(period) if int(most) > 0 else None
    return None
