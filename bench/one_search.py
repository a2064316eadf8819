"""One search in a process of its own, so that its time and its peak memory are its own; imported by other benches.

searched(place, [sys.executable, __file__, "--one", …])   # starts that process, unless the place has been filled
record(model, behavior, splits, method=…, …, out=place)   # what that process does: fills the place
"""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from excise.behaviors import Behavior, Splits


def searched(place: Path, command: Sequence[str]) -> dict[str, Any]:
    """What `record` kept in `place`, by a process that is started where nothing is there yet."""
    kept = place / "searched.json"
    if not kept.is_file():
        subprocess.run(command, check=True)
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


def record(path: Path, behavior: Behavior, splits: Splits, *, method: str, budget: str, seed: int, out: Path) -> None:
    """Search on the model of a path; keep the front as edit files, and what it took from loading the model on."""
    import excise
    from excise.search import search

    began, worked = time.perf_counter(), time.process_time()
    found = search(
        excise.load(path),
        behavior,
        splits=splits,
        method=method,
        budget=budget,
        seed=seed,
        directory=out / "study",
    )
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - worked
    points = []
    for index, point in enumerate(found.front):
        point.edit.save(out / f"{index:03d}.safetensors")
        points.append(
            {
                "edit": f"{index:03d}.safetensors",
                "chosen": point.edit is found.best,
                "parameters": dict(point.parameters),
                "reserve": point.reserve,
                **{split: measured(getattr(point, split)) for split in ("tune", "select")},
            }
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    history = [
        {"seconds": trial.seconds, "parameters": dict(trial.parameters), **measured(trial.measured)}
        for trial in found.history
    ]
    took = {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": peak, "trials": found.trials}
    said = {"reason": found.reason, "notes": found.notes}
    (out / "searched.json").write_text(json.dumps({**took, "points": points, "history": history, **said}, indent=1))


def content(edit: Path) -> str:
    """What names the scores of an edit file: where it lies, and a hash of it, as a search may be done again there."""
    return f"{edit.parent.name}/{edit.name}@{hashlib.sha256(edit.read_bytes()).hexdigest()[:12]}"


def measured(found: Any) -> dict[str, float]:
    """The rate and both divergences of a `Measured`."""
    return {"rate": found.rate, "kl_first": found.kl_first, "kl_sequence": found.kl_sequence}
