"""`excise doctor`: what this machine offers, and what is missing."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from excise.cli.options import command
from excise.cli.progress import size
from excise.cli.session import Outcome, Session
from excise.cli.tables import plain_table

_EXTRAS = ("gguf", "peft", "lm_eval", "gradio", "ray", "bitsandbytes", "compressed_tensors")


@command("doctor", uses_models=False)
def doctor(session: Session) -> Outcome:
    """Show versions, devices, memory, disk and optional packages of this machine: what a bug report needs."""
    from excise import demo
    from excise.runs import versions

    session.progress("look around", 0, 1)
    data: dict[str, Any] = {
        "versions": {"python": platform.python_version(), **versions()},
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "memory": _memory(),
        "disk_free": shutil.disk_usage(Path.cwd()).free,
        "devices": _devices(),
        "extras": {name: importlib.util.find_spec(name) is not None for name in _EXTRAS},
        "demo_model": (demo.MODEL_PATH / "config.json").is_file(),
    }
    session.progress("look around", 1, 1)
    table = plain_table("", "")
    for name, found in data["versions"].items():
        table.add_row(name, found)
    table.add_row("system", f"{data['system']}, {data['cores']} cores")
    table.add_row("memory", size(data["memory"]) if data["memory"] else "unknown")
    table.add_row("free disk here", size(data["disk_free"]))
    for device in data["devices"]:
        table.add_row("device", f"{device['name']}, {size(device['memory'])}")
    if not data["devices"]:
        table.add_row("device", "no accelerator: models run on the CPU")
    table.add_row("optional", ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in data["extras"].items()))
    table.add_row("demo model", "there" if data["demo_model"] else "missing: install excise again")
    return Outcome(data=data, shown=(table,))


def _memory() -> int | None:
    """Bytes of main memory, where the system tells."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _devices() -> list[dict[str, Any]]:
    import torch

    if not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [{"name": properties.name, "memory": properties.total_memory} for properties in found]
