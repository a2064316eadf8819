"""What memory a process has and has had; by the operating system's and CUDA's own count."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import torch

_UNKNOWN = 4 << 30  # taken to be free where the system does not say
_MEMORY = Path("/proc/meminfo")
_PAGES = Path("/proc/self/statm")
_CONTAINER = Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> int:
    """Bytes that may still be taken on a device; of main memory, what the machine and the container both allow."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(_machine(), _container())


def taken_memory(device: torch.device) -> int:
    """Bytes that this process has now where a model computes: on all GPUs, or of main memory."""
    if device.type == "cuda":
        return sum(torch.cuda.memory_allocated(index) for index in range(torch.cuda.device_count()))
    return resident()


def resident() -> int:
    """Bytes of main memory that this process has now, or has had at most where that is all the system tells."""
    with suppress(OSError, ValueError, IndexError):
        return int(_PAGES.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_resident()


def peak_resident() -> int:
    """The most bytes of main memory that this process has had; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most if sys.platform == "darwin" else most * 1024)


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has had where a model computes: on all GPUs, or of main memory."""
    if device.type == "cuda":
        return sum(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))
    return peak_resident()


def _machine() -> int:
    with suppress(OSError, ValueError, IndexError):
        for line in _MEMORY.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return _UNKNOWN


def _container() -> int:
    """What a container (cgroup v2) leaves free; what it caches of files can be had as well."""
    with suppress(OSError, ValueError, IndexError):
        limit = int((_CONTAINER / "memory.max").read_text())
        used = int((_CONTAINER / "memory.current").read_text())
        statistics = dict(line.split() for line in (_CONTAINER / "memory.stat").read_text().splitlines())
        return max(limit - used + int(statistics.get("inactive_file", 0)), 0)
    return sys.maxsize
