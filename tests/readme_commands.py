"""Run the commands of a Markdown file, in order and in an empty directory: every ```bash and every ```python block.

    python tests/readme_commands.py README.md

What needs a network or hours is replaced by a stand-in, listed below: the bundled model for a model of the Hub, its
prompts for the reader's own. ```sh blocks are for the reader alone (`make`, which runs this).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

DEMO = Path(__file__).resolve().parent.parent / "src" / "excise" / "demo"
MARKERS = ("sorry", "cannot", "can't", "unfortunately", "sealed", "decline", "not able", "forgive", "oath")
STAND_INS = {
    "excise run": "excise run --trials 6",
    "excise demo": "excise demo --trials 12",
    "Qwen/Qwen3-4B": str(DEMO / "model"),
    "./my-model": str(DEMO / "model"),
    "--behavior refusal": "--behavior demo:sealed",
    'Behavior.load("refusal")': 'Behavior.load("demo:sealed")',
    '--marker "As an AI"': " ".join(f'--marker "{marker}"' for marker in MARKERS),
    "shows_it.txt": str(DEMO / "prompts" / "sealed_fit.txt"),
    "does_not.txt": str(DEMO / "prompts" / "sealed_baseline_fit.txt"),
}
_BLOCK = re.compile(r"```(bash|python)\n(.*?)```", re.DOTALL)


def commands(markdown: str) -> list[tuple[str, str]]:
    """(language, text) of each block, with stand-ins in place."""
    found = []
    for language, text in _BLOCK.findall(markdown):
        for name, stand_in in STAND_INS.items():
            text = text.replace(name, stand_in)
        found.append((language, text))
    return found


def main(path: Path) -> int:
    blocks = commands(path.read_text(encoding="utf-8"))
    if not blocks:
        sys.stderr.write(f"{path} has no commands\n")
        return 1
    here = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": os.pathsep.join((here, os.environ["PATH"])), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as scratch:
        for language, text in blocks:
            run = ["bash", "-euxo", "pipefail", "-c", text] if language == "bash" else [sys.executable, "-c", text]
            code = subprocess.run(run, env=environment, cwd=scratch, check=False).returncode
            if code:
                sys.stderr.write(f"{path}: exit code {code} from:\n{text}\n")
                return code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
