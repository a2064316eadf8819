"""Forecast against measured: memory and seconds of whole runs of two sizes, each in a process of its own.

    python bench/cost.py [--out DIR] [--target FILE --baseline FILE --model DIR] [--only demo|bench]

The larger model and its prompts are those of `bench/real_model.py`, which makes them (`runs/bench-*`); without them the
demo model alone is measured. Prints a Markdown table and one line of JSON per run; no prompt and no response.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_EXCISE = "from excise.cli.app import main; main()"  # of the same environment and path as this script


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--out", type=Path, default=ROOT / "runs" / "cost")
    arguments.add_argument("--model", type=Path, default=ROOT / "runs" / "bench-model")
    arguments.add_argument("--target", type=Path, default=ROOT / "runs" / "bench-target.txt")
    arguments.add_argument("--baseline", type=Path, default=ROOT / "runs" / "bench-baseline.txt")
    arguments.add_argument("--splits", default="24,12,12,12")
    arguments.add_argument("--only", choices=("demo", "bench"))
    options = arguments.parse_args()
    runs = {"demo": ["demo"]}
    if options.model.is_dir():
        runs["bench"] = [
            *("run", str(options.model), "--target", str(options.target), "--baseline", str(options.baseline)),
            *("--system", "You are a helpful assistant.", "--splits", options.splits),
        ]
    print("| run | memory, forecast | measured | ratio | seconds, forecast | measured | ratio |")
    print("|---|---|---|---|---|---|---|")
    for name, command in runs.items():
        if options.only in (None, name):
            result = _measured(command, options.out / name)
            print(_row(name, result))
            print(json.dumps({key: result[key] for key in ("forecast", "peak_bytes", "seconds", "stages")}))


def _measured(command: list[str], out: Path) -> dict[str, Any]:
    """`result.json` of a run from the beginning."""
    shutil.rmtree(out, ignore_errors=True)
    whole = [sys.executable, "-c", _EXCISE, *command, "--budget", "quick", "--out", str(out), "--json"]
    run = subprocess.run(whole, check=False, stdout=subprocess.PIPE, text=True)
    if run.returncode not in (0, 3):
        sys.exit(run.returncode)
    result: dict[str, Any] = json.loads(run.stdout)
    return result


def _row(name: str, result: dict[str, Any]) -> str:
    forecast = result["forecast"]
    pairs = (
        (forecast["bytes"] / 1e9, result["peak_bytes"] / 1e9, "GB"),
        (forecast["seconds"], result["seconds"], "s"),
    )
    cells = [f"{foreseen:.3g} {unit} | {found:.3g} {unit} | {foreseen / found:.2f}" for foreseen, found, unit in pairs]
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
