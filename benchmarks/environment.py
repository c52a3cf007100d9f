"""Environment: what the figures depend on beside the code."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Environment:
    """The machine and its software.

    Attributes:
        cpus: that this process may use.
        cpu: the model, in words.
        threads: torch's, in this process and in the server.
        torch: its version.
        python: its version.
        load: running processes beside this one at the start (one-minute average).
    """

    cpus: int
    cpu: str
    threads: int
    torch: str
    python: str
    load: float

    def __str__(self) -> str:
        return (
            f"{self.cpus} CPUs ({self.cpu}), torch {self.torch} with {self.threads} "
            f"thread{'' if self.threads == 1 else 's'}, Python {self.python}, load average {self.load:.1f} at the start"
        )


def prepare() -> Environment:
    """Give torch the threads that the server gives it by default, and describe what is there."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cpus - 1))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return Environment(cpus, _cpu(), torch.get_num_threads(), torch.__version__, platform.python_version(), load)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
