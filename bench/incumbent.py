"""Run the public tool Heretic on a model and prompts, and keep its whole Pareto front: its numbers and its weights.

    python bench/incumbent.py --model DIR --target-fit F --baseline-fit F --target-tune F --baseline-tune F
                              --system TEXT --trials N --seed S --threads N --out DIR [--set KEY=JSON ...]

Heretic (`heretic-llm`, AGPL) is installed from the package index into a venv of its own, `runs/bench-incumbent`, with
all it asks for, and is only called there (`bench/incumbent_driver.py`). Everything but what the options say is its
default; `--set` changes a setting of its own, and the result says so. Fit prompts (one per line) are what it takes its
directions from, tune prompts what its trials are scored on; it uses every line of each file.

The same command goes on with a run that was cut off, from Heretic's own checkpoint, and loses at most the trial under
way; a larger `--trials` adds trials. Writes to `--out`:

    result.json                        the front, every trial, wall and processor time by phase, peak memory, versions,
                                       and the keywords by which it counts refusals
    trials/NNN/weights.safetensors     for each trial of the front, the edited weights by parameter name
                                       (`bench/swapped.py` evaluates them)
    heretic.log, heretic/              Heretic's output, configuration and checkpoint

Prints a short JSON object; no prompt and no response is printed or kept.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peer import HERETIC, venv

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / "runs" / "bench-incumbent"
# Heretic's name for each of our files.
PROMPTS = {
    "target_fit": "bad_prompts",
    "baseline_fit": "good_prompts",
    "target_tune": "bad_evaluation_prompts",
    "baseline_tune": "good_evaluation_prompts",
}


def main() -> None:
    options = _options()
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    job = {"settings": _settings(options), "threads": options.threads, "out": str(out)}
    _same_run(out / "job.json", job)
    python = venv(VENV, module="heretic.main", installs=_installs())
    _drive(python, out)
    measured = json.loads((out / "measured.json").read_text())
    result = {"heretic": HERETIC, "changed_settings": dict(options.set), "seconds": _seconds(measured), **measured}
    (out / "result.json").write_text(json.dumps(result, indent=1))
    shown = ("index", "refusals", "n_bad_prompts", "base_refusals", "kl_divergence")
    front = [{key: trial[key] for key in shown} for trial in result["front"]]
    peak = max(line["peak_rss"] for line in result["phases"] if line["phase"] != "export")
    summary = {"trials": len(result["trials"]), "front": front, "seconds": result["seconds"], "peak_rss": peak}
    print(json.dumps(summary, indent=1))


def _seconds(measured: dict[str, Any]) -> dict[str, float]:
    """Wall time by phase over all sessions, those that were cut off included; of these, only the trials that ended."""
    seconds = {"trials": sum(trial["seconds"] for trial in measured["trials"])}
    for line in measured["phases"]:
        if line["phase"] != "trials":
            seconds[line["phase"]] = seconds.get(line["phase"], 0.0) + line["seconds"]
    return {"total": sum(seconds.values()), "a trial": seconds["trials"] / len(measured["trials"]), **seconds}


def _options() -> argparse.Namespace:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--model", type=Path, required=True)
    for name in PROMPTS:
        arguments.add_argument(f"--{name.replace('_', '-')}", type=Path, required=True)
    arguments.add_argument("--system", required=True)
    arguments.add_argument("--trials", type=int, required=True)
    arguments.add_argument("--seed", type=int, required=True)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--set", type=_setting, action="append", default=[], metavar="KEY=JSON")
    options = arguments.parse_args()
    for path in (options.model / "config.json", *(getattr(options, name) for name in PROMPTS)):
        if not path.is_file():
            sys.exit(f"bench stopped: {path} is not here")
    return options


def _setting(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    return key, json.loads(value)


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "model": str(options.model.resolve()),
        "n_trials": options.trials,
        "seed": options.seed,
        "system_prompt": options.system,
        **{theirs: {"dataset": str(getattr(options, ours).resolve())} for ours, theirs in PROMPTS.items()},
        **dict(options.set),
    }


def _same_run(path: Path, job: dict[str, Any]) -> None:
    """A run goes on with the settings it began with; only the number of trials and of threads may differ."""
    if path.is_file():
        began = json.loads(path.read_text())["settings"]
        if {**began, "n_trials": None} != {**job["settings"], "n_trials": None}:
            sys.exit("bench stopped: --out holds a run with other settings")
    path.write_text(json.dumps(job, indent=1))


def _installs() -> tuple[list[str], ...]:
    """Torch first, of our release: left to itself, pip takes the newest build, with gigabytes of CUDA."""
    torch = f"torch=={version('torch').partition('+')[0]}"
    return [torch], [torch, HERETIC]


def _drive(python: Path, out: Path) -> None:
    own = {name: value for name, value in os.environ.items() if not name.startswith("HERETIC_")}
    threads = str(json.loads((out / "job.json").read_text())["threads"])
    env = {**own, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    command = [str(python), str(ROOT / "bench" / "incumbent_driver.py"), str(out / "job.json")]
    with (out / "heretic.log").open("a") as log:
        done = subprocess.run(command, check=False, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    if done.returncode:
        sys.exit(f"bench stopped: Heretic's run failed with {done.returncode}; see heretic.log in --out")


if __name__ == "__main__":
    main()
