"""The public tool that the benches compare with, in a venv of its own; it is called there, never copied from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERETIC = "heretic-llm==1.4.0"


def venv(place: Path, *, module: str, installs: Sequence[Sequence[str]]) -> Path:
    """The Python of the venv at `place`, in which `module` can be imported; made anew if it cannot.

    installs  arguments of `pip install`, one call after the other
    """
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    check = [str(python), "-c", f"import {module}"]
    if python.exists() and subprocess.run(check, check=False, capture_output=True).returncode == 0:
        return python
    install = [str(python), "-m", "pip", "install", "--quiet"]
    steps = ([sys.executable, "-m", "venv", "--clear", str(place)], *([*install, *step] for step in installs), check)
    for step in steps:
        done = subprocess.run(step, check=False, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            reason = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
            sys.exit(f"bench skipped: {HERETIC} cannot be installed ({reason})")
    return python


def releases(python: Path, names: Sequence[str]) -> dict[str, str]:
    """The releases of some packages, as that venv reports them."""
    code = f"import json, importlib.metadata as m; print(json.dumps({{name: m.version(name) for name in {names}}}))"
    return json.loads(subprocess.run([str(python), "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout)
