"""The whole job on the bench model, a 135 M instruct model with a learned refusal; held-out prompts of other sources.

    python bench/real_model.py [--out DIR] [--budget quick|standard|thorough]

Needs the folder `shared/` beside the checkout (the adapter of the model, and its prompts); stops without it.
Prints one JSON object: the run's own figures, and the rate and KL on prompts that the run never saw. No prompt and no
response is printed or kept outside the run directory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "bench"
SYSTEM = "You are a helpful assistant."


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--out", type=Path, default=ROOT / "runs" / "bench")
    arguments.add_argument("--budget", default="standard")
    options = arguments.parse_args()
    if not SHARED.is_dir():
        sys.exit(f"bench skipped: {SHARED} is not here (the bench model's adapter and prompts)")
    model = ROOT / "runs" / "bench-model"
    if not (model / "config.json").is_file():
        subprocess.run([sys.executable, str(SHARED / "build_model.py"), str(model)], check=True)
    target, baseline = (_joined(side) for side in ("target", "baseline"))
    began = time.perf_counter()
    command = [
        *("excise", "run", str(model), "--target", str(target), "--baseline", str(baseline)),
        *("--system", SYSTEM, "--budget", options.budget, "--out", str(options.out), "--json"),
    ]
    run = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if run.returncode not in (0, 3):
        sys.exit(run.returncode)
    seconds = time.perf_counter() - began
    result = json.loads(run.stdout)
    held_out = _held_out(model, options.out / "edit.safetensors")
    wanted = ("coverage", "leak", "leak_baked", "splits", "before", "after", "stages")
    print(json.dumps({**{key: result[key] for key in wanted}, "seconds": seconds, "held_out": held_out}, indent=1))


def _joined(side: str) -> Path:
    """One plain-text file from the fit and tune prompts, which the run cuts into its own splits."""
    path = ROOT / "runs" / f"bench-{side}.txt"
    path.parent.mkdir(exist_ok=True)
    lines = [line for split in ("fit", "tune") for line in (SHARED / "prompts" / f"{side}_{split}.txt").open()]
    path.write_text("".join(line.rstrip("\n") + "\n" for line in lines))
    return path


def _held_out(model: Path, edit: Path) -> dict[str, object]:
    """The report prompts of the bench, of another source than the run's."""
    import excise
    from excise.behaviors import SplitSizes

    prompts = SHARED / "prompts"
    behavior = excise.Behavior.load("refusal").with_options(
        target={split: prompts / f"target_{name}.txt" for split, name in _SPLITS.items()},
        baseline={split: prompts / f"baseline_{name}.txt" for split, name in _SPLITS.items()},
        system=SYSTEM,
    )
    splits = behavior.splits(SplitSizes(report=150))
    loaded = excise.load(model)
    scores = {}
    for name, change in (("base", None), ("edited", excise.Edit.load(edit))):
        scores[name] = excise.evaluate(loaded, behavior, edit=change, split="report", splits=splits).to_json()
    return scores


_SPLITS = {"fit": "fit", "tune": "tune", "select": "tune", "report": "report"}

if __name__ == "__main__":
    main()
