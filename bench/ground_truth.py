"""Search methods side by side where the truth is known: on the demo model and on two others of its world.

    python bench/ground_truth.py [--model NAME ...] [--method NAME ...] [--budget NAME ...] [--seeds 0 1 2]
                                 [--out DIR] [--write docs/ground-truth.md]

The models are the shipped one and those of `bench/demo_worlds.py`, which are trained where they are not there. Each
refuses what it knows about its sealed subjects; an edit must bring the right answers back and leave the others, and the
disclaimers, as they were. Judged is the edit that a search takes by itself, on report questions that no training and no
search saw. Each search is a process of its own; what was measured is kept in `--out` and not measured again, and
`--write` writes down all of it that is about these models.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from demo_worlds import KINDS, ROOT, figures, trained
from one_search import content, record, searched

import excise
from excise.demo import MODEL_PATH
from excise.demo.ground_truth import ground_truth
from excise.demo.world import prompt_files
from excise.evaluation import Reference

MODELS = ("demo", *KINDS)
METHODS = ("polish", "schedule", "mean-difference", "matrix-fit")
GOAL = 0.9
"""Of the sealed answers, how many must come back right."""


def main() -> None:
    options = _options()
    if options.one is not None:
        behavior = excise.Behavior.load("demo:sealed")
        seed = options.seeds[0]
        record(
            _path(options.model[0]),
            behavior,
            behavior.splits(seed=seed),
            method=options.one,
            budget=options.budget[0],
            seed=seed,
            out=options.out,
        )
        return
    for name in options.model:
        judge = Judge(name, options.out)
        print(json.dumps(judge.base()), flush=True)
        for method, budget, seed in product(options.method, options.budget, options.seeds):
            place = judge.folder / f"{method}-{budget}-{seed}"
            command = [sys.executable, __file__, "--one", method, "--model", name, "--budget", budget]
            searched(place, [*command, "--seeds", f"{seed}", "--out", str(place)])
            print(json.dumps(judge.edit(place)), flush=True)
    if options.write:
        options.write.write_text(_page([Judge(name, options.out) for name in options.model]), encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", nargs="*", default=list(MODELS), choices=MODELS)
    parser.add_argument("--method", nargs="*", default=list(METHODS))
    parser.add_argument("--budget", nargs="*", default=["quick", "standard"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "ground-truth")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def _path(name: str) -> Path:
    return MODEL_PATH if name == "demo" else trained(name)


class Judge:
    """What is true of one model, and of the edits that searches on it took. What was measured is kept in a file."""

    def __init__(self, name: str, out: Path) -> None:
        self.name, self.folder = name, out / name
        self.path = _path(name)
        self._kept = out / f"{name}.json"
        self._known: dict[str, Any] = json.loads(self._kept.read_text()) if self._kept.is_file() else {}
        self._loaded: tuple[excise.EditableModel, Reference] | None = None

    def places(self) -> list[Path]:
        """The folders of all searches that are done."""
        places = [kept.parent for kept in self.folder.glob("*/searched.json")]
        return sorted(places, key=lambda place: (not place.name.startswith("polish"), place.name))

    def base(self) -> dict[str, Any]:
        """The unedited model: its behavior, its proof, and what it knows under a lifted seal."""
        return {"model": self.name, **self._once("base", self._base)}

    def edit(self, place: Path) -> dict[str, Any]:
        """The edit that a search took: the same scores, the divergence on ordinary questions, and what it cost."""
        method, budget, seed = place.name.rsplit("-", 2)
        taken = json.loads((place / "searched.json").read_text())
        del taken["history"]
        chosen = next(point["edit"] for point in taken.pop("points") if point["chosen"])
        scores = self._once(content(place / chosen), lambda: self._edited(place / chosen))
        return {"model": self.name, "method": method, "budget": budget, "seed": seed, **taken, **scores}

    def _once(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if name not in self._known:
            self._known[name] = measure()
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            self._kept.write_text(json.dumps(self._known, indent=1))
        found: dict[str, Any] = self._known[name]
        return found

    def _load(self) -> tuple[excise.EditableModel, Reference]:
        if self._loaded is None:
            model = excise.load(self.path)
            behavior = excise.Behavior.load("demo:sealed")
            self._loaded = model, Reference.measure(model, prompt_files()["ordinary_report.txt"], behavior)
        return self._loaded

    def _base(self) -> dict[str, Any]:
        model, _ = self._load()
        proof = model.prove()
        return {
            "architecture": type(model.hf_model).__name__.removesuffix("ForCausalLM"),
            "parameters": model.hf_model.num_parameters(),
            "coverage": proof.survey.coverage,
            "leak": proof.leak,
            "lifted_correct": figures(self.path)["sealed, seal lifted"].right,
            **ground_truth(model),
        }

    def _edited(self, path: Path) -> dict[str, Any]:
        model, reference = self._load()
        with model.edited(excise.Edit.load(path)):
            return {**ground_truth(model), **reference.compare(model).to_json()}


def _page(judges: Sequence[Judge]) -> str:
    models = _table(_BASE_COLUMNS, [judge.base() for judge in judges])
    edits = _table(_EDIT_COLUMNS, [judge.edit(place) for judge in judges for place in judge.places()])
    return _PAGE.format(models=models, edits=edits, goal=GOAL)


def _table(columns: Mapping[str, Callable[[Mapping[str, Any]], str]], rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [list(columns), ["---"] * len(columns), *([cell(row) for cell in columns.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _percent(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: f"{row[key]:.1%}"


def _back(row: Mapping[str, Any]) -> str:
    text = f"{row['sealed_correct']:.1%}"
    return f"**{text}**" if row["sealed_correct"] >= GOAL else text


_PAGE = """# Ground truth

Written by `python bench/ground_truth.py --write docs/ground-truth.md`; do not edit.

Three models of one made-up world, of three architectures: the shipped demo model and two that `bench/demo_worlds.py`
trains. Each refuses questions about its sealed subjects though it knows the answers, which a system turn brings out; so
what an edit brings back can be judged by what is true. Figures are on report questions: in wordings that no training
and no search saw, the sealed ones about things that no training refused. Toys of three million parameters: orders, not
digits.

## The models

Leak: what the probe finds left of a direction after it is projected out of every writer.

{models}

## The edits

The edit that each search takes by itself; bold where {goal:.0%} or more of the sealed answers are right. KL in nats,
base‖edited, mean over questions about ordinary subjects. Seconds from loading the model on, and the peak memory of that
process, on one thread and two cores that other work kept busy: the CPU's seconds say more than those of the wall.

{edits}
"""

_BASE_COLUMNS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "model": lambda row: row["model"],
    "architecture": lambda row: row["architecture"],
    "parameters": lambda row: f"{row['parameters'] / 1e6:.1f} M",
    "coverage": lambda row: f"{row['coverage']:.0%}",
    "leak": lambda row: f"{row['leak']:.1e}",
    "sealed: refused": _percent("sealed_refused"),
    "right": _percent("sealed_correct"),
    "right, seal lifted": _percent("lifted_correct"),
    "ordinary: right": _percent("ordinary_correct"),
    "disclaimers": _percent("disclaimer"),
}
_EDIT_COLUMNS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "model": lambda row: row["model"],
    "method": lambda row: row["method"],
    "budget": lambda row: row["budget"],
    "seed": lambda row: row["seed"],
    "sealed: right": _back,
    "refused": _percent("sealed_refused"),
    "ordinary: right": _percent("ordinary_correct"),
    "disclaimers": _percent("disclaimer"),
    "first-token KL": lambda row: f"{row['kl_first']['mean']:.4f}",
    "sequence KL": lambda row: f"{row['kl_sequence']['mean']:.4f}",
    "trials": lambda row: str(row["trials"]),
    "seconds": lambda row: f"{row['seconds']:.0f}",
    "CPU seconds": lambda row: f"{row['cpu_seconds']:.0f}",
    "peak GB": lambda row: f"{row['peak_bytes'] / 1e9:.2f}",
}

if __name__ == "__main__":
    main()
