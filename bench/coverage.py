"""Which writers of the residual stream the public tool Heretic would edit, on the zoo of tiny random models.

    python bench/coverage.py [KIND ...] [--table FILE]

Without names, every architecture in scope of `tests/zoo`. Heretic (`heretic-llm`, AGPL) is installed from the package
index into a venv of its own, `runs/bench-heretic`, with our releases of torch and Transformers, and is only called
there (`bench/coverage_driver.py`); stops with a clear word if it cannot be installed. Prints one JSON object, then a
Markdown table. Embeddings are left out: Heretic does not edit them by design.

The yardstick is Excise's survey (its matrices, not lone vectors), and only where its probe proves that nothing is
missing. A writer counts as found if
a matrix of any module that Heretic lists shares its storage; whether the edit is then exact is not asked.

    all, part, none      how many of the writers Heretic's lookup finds
    error                Heretic stops: a layer without a module it knows, or a module that cannot carry its adapters
    refused by Excise    not compared: something reaches the stream that Excise cannot edit, or the probe finds a leak
    survey failed        not compared: Excise's survey stopped on a fault, with no refusal of its own
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from peer import HERETIC, releases, venv

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / "runs" / "bench-heretic"
# Installed alone, beside what its modules import: it also asks for `transformers[kernels]`, and pip found no release of
# `kernels` that suits our Transformers. scipy is what Transformers needs to load one of the models.
NEEDS = (
    *("accelerate~=1.13", "bitsandbytes~=0.49", "datasets~=4.7", "huggingface-hub~=1.7", "immutabledict~=4.3"),
    *("langdetect~=1.0", "numpy~=2.2", "optuna~=4.7", "peft~=0.19", "psutil~=7.2", "py-cpuinfo~=9.0"),
    *("pydantic-settings~=2.13", "questionary~=2.1", "rich~=14.3", "scipy", "tomli-w~=1.2", "tqdm~=4.67"),
)
_ABOUT = """\
Written by `make coverage`. Embeddings and lone vectors are left out; a bank of experts counts as one writer. *all*,
*part*: of the writers that Excise proves, how many are in a module that the tool's lookup lists. *error*: the lookup
stops, so the tool does not edit the model. Whether an edit of what is found is exact is not asked: biases and the gains
of post-norm models are not taken into account."""
COMPARED = ("all", "part", "none", "error")
COVERAGES = (*COMPARED, "refused by Excise", "survey failed", "not built", "not loaded")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("kinds", nargs="*", metavar="KIND")
    arguments.add_argument("--table", type=Path, help="write the table to this Markdown file instead of printing it")
    options = arguments.parse_args()
    python = _heretic()
    sys.path.insert(0, str(ROOT / "tests"))
    from zoo.scope import IN_SCOPE

    with TemporaryDirectory() as directory:
        surveyed = {kind: _surveyed(kind, Path(directory) / kind) for kind in options.kinds or IN_SCOPE}
        answers = _answers(python, Path(directory), surveyed)
    rows = {kind: _row(ours, answers.get(kind)) for kind, ours in surveyed.items()}
    beside = releases(python, ("transformers", "torch", "peft"))  # what ran beside Heretic
    print(json.dumps({"heretic": HERETIC, **beside, "totals": _totals(rows), "kinds": rows}, indent=1))
    if options.table is None:
        print(f"\n{_table(rows)}")
    else:
        ran = ", ".join(f"{name} {number}" for name, number in beside.items())
        options.table.write_text(f"# Writers found by {HERETIC} ({ran})\n\n{_ABOUT}\n\n{_table(rows)}\n")


def _heretic() -> Path:
    """The Python of a venv that can import Heretic; made if it is not there."""
    # Torch is pinned in the same command: without that, pip takes the newest build, with gigabytes of CUDA.
    ours = [f"{package}=={version(package).partition('+')[0]}" for package in ("torch", "transformers")]
    return venv(VENV, module="heretic.model", installs=([*ours, *NEEDS], ["--no-deps", HERETIC]))


def _surveyed(kind: str, place: Path) -> dict[str, Any]:
    """Excise's writers of the tiny model, which is saved at `place`; or why there are none."""
    import excise
    from zoo.build import build

    try:
        built = build(kind)
        built.save_pretrained(place)
    except Exception as error:  # noqa: BLE001 - one architecture must not stop the others
        return {"not_built": _words(error)}
    row: dict[str, Any] = {"class": type(built).__name__, "writers": []}
    model = excise.EditableModel(built, allow_partial=True)
    try:
        writers = [writer for writer in model.survey.writers if writer.role != "embedding"]
        writers = [writer for writer in writers if built.get_parameter(writer.parameter).ndim > 1]  # no lone vectors
        row["writers"] = [{"parameter": writer.parameter, "role": writer.role} for writer in writers]
        leak = model.leak()
    except excise.errors.ModelError as error:
        return {**row, "refused": error.message}
    except Exception as error:  # noqa: BLE001
        return {**row, "survey_failed": _words(error)}
    if model.survey.unresolved:
        return {**row, "refused": model.survey.unresolved[0].reason}
    if leak > model.leak_tolerance:
        return {**row, "refused": f"leak {leak:.1e}"}
    return row


def _answers(python: Path, directory: Path, surveyed: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Heretic's answer for every model that was saved."""
    jobs, results = directory / "jobs.json", directory / "results.jsonl"
    saved = {kind: ours["class"] for kind, ours in surveyed.items() if "class" in ours}
    jobs.write_text(
        json.dumps([{"kind": kind, "class": name, "path": str(directory / kind)} for kind, name in saved.items()])
    )
    command = [str(python), str(ROOT / "bench" / "coverage_driver.py"), str(jobs), str(results)]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, check=False, env=offline, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(f"bench stopped: the driver failed\n{done.stderr[-2000:]}")
    return {answer.pop("kind"): answer for answer in map(json.loads, results.open())}


def _row(ours: dict[str, Any], answer: dict[str, Any] | None) -> dict[str, Any]:
    if answer is None:
        return {"coverage": "not built", "why": ours["not_built"]}
    if "not_loaded" in answer:
        return {"coverage": "not loaded", "why": answer["not_loaded"]}
    listed = set(answer["parameters"])
    role = {writer["parameter"]: writer["role"] for writer in ours["writers"]}
    missed = sorted(set(role) - listed)
    row = {
        "writers": len(role),
        "found": len(role) - len(missed),
        "missed_roles": dict(sorted(Counter(role[name] for name in missed).items())),
        "missed": missed,
        "listed": len(listed),
        "no_writers": sorted(listed - set(role)),
        "failed_layers": answer.get("failed", []),
        "class": ours["class"],
        "loads_as": answer["loads_as"],
    }
    for key, coverage in (("refused", "refused by Excise"), ("survey_failed", "survey failed")):
        if key in ours:
            heretic = answer["error"] or f"lists {len(listed)} matrices"
            return {"coverage": coverage, "why": f"{ours[key]}; Heretic: {heretic}", **row}
    if answer["error"]:
        return {"coverage": "error", "why": answer["error"], **row}
    if answer["loads_as"] != ours["class"]:
        row["why"] = "Heretic chooses a class that does not load it; looked up in " + ours["class"]
    return {"coverage": "none" if row["found"] == 0 else "part" if missed else "all", **row}


def _totals(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Writers are summed over the compared kinds; where Heretic stops, it edits none of them."""
    compared = [row for row in rows.values() if row["coverage"] in COMPARED]
    return {
        "kinds": {name: sum(row["coverage"] == name for row in rows.values()) for name in COVERAGES},
        "compared": len(compared),
        "writers": sum(row["writers"] for row in compared),
        "found": sum(row["found"] for row in compared if row["coverage"] != "error"),
    }


def _table(rows: dict[str, dict[str, Any]]) -> str:
    lines = ["| architecture | writers | found by Heretic | coverage | missed, or why |", "|---|---:|---:|---|---|"]
    for kind, row in sorted(rows.items(), key=lambda item: (COVERAGES.index(item[1]["coverage"]), item[0])):
        missed = [f"{count} {name}" for name, count in row["missed_roles"].items()] if row["coverage"] == "part" else []
        why = "; ".join(filter(None, (", ".join(missed), row.get("why")))).replace("|", "\\|")
        counts = (row["writers"], row["found"]) if row["coverage"] in COMPARED else ("", "")
        lines.append(f"| {kind} | {counts[0]} | {counts[1]} | {row['coverage']} | {why} |")
    totals = _totals(rows)
    counts = ", ".join(f"{count} {name}" for name, count in totals["kinds"].items() if count)
    lines.append(f"| **{totals['compared']} compared** | {totals['writers']} | {totals['found']} | {counts} | |")
    return "\n".join(lines)


def _words(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]


if __name__ == "__main__":
    main()
