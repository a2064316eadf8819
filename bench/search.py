"""Search methods side by side on the bench model: held-out fronts, hypervolume, wall time, peak memory.

    python bench/search.py [--method NAME ...] [--seeds 0 1 2] [--budget quick|standard|thorough] [--recipe NAME ...]
                           [--incumbent DIR ...] [--out DIR] [--write docs/benchmarks.md]

Every method searches on the same prompts (the bench's fit and tune files) and is judged on its report files, which come
from other sources: all edits of its front, by our detectors, with the same KL. `--recipe` runs the polish without one
of its parts. `--incumbent` takes folders that `bench/incumbent.py` filled. Each search is a process of its own, so that
its peak memory is its own; what was measured is kept in `--out` and not measured again, and all of it that has this
budget is judged and written.

Needs the folder `shared/` beside the checkout; stops without it. No prompt and no response is printed or kept outside
`--out`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from front_picture import picture
from one_search import content, measured, record, searched
from real_model import ROOT, SHARED, SYSTEM, _joined
from search_page import hypervolume, page

if TYPE_CHECKING:
    from excise.model import EditableModel

MODEL = ROOT / "runs" / "bench-model"
METHODS = ("polish", "allocation", "schedule", "matrix-fit", "kernel", "arditi", "mean-difference")
DRAWN = ("polish", "incumbent", "closed form alone", "random directions")
RECIPES = ("no tail", "no behavior loss", "right factors alone")


def main() -> None:
    options = _options()
    if not SHARED.is_dir():
        sys.exit(f"bench skipped: {SHARED} is not here (the bench model's adapter and prompts)")
    if not (MODEL / "config.json").is_file():
        subprocess.run([sys.executable, str(SHARED / "build_model.py"), str(MODEL)], check=True)
    if options.one is not None:
        _search(
            options.one, options.recipe[0] if options.recipe else None, options.seeds[0], options.budget, options.out
        )
        return
    for seed in options.seeds:
        for method, recipe in [
            *((each, None) for each in options.method),
            *(("polish", each) for each in options.recipe),
        ]:
            place = options.out / f"{recipe or method}-{options.budget}-{seed}".replace(" ", "-")
            command = [sys.executable, __file__, "--one", method, "--seeds", str(seed), "--budget", options.budget]
            command += ["--out", str(place), *(("--recipe", recipe) if recipe else ())]
            searched(place, command)
    rows = _judged(_done(options.out, options.budget), options.incumbent, options.out / "judged.json")
    print(json.dumps(rows, indent=1))
    if options.write:
        options.write.write_text(page(rows, options.budget), encoding="utf-8")
        series = [
            (row["method"], [(point["rate"], point["kl_first"]["mean"]) for point in row["points"]])
            for row in rows
            if row["method"] in DRAWN
        ]
        options.write.with_suffix(".svg").write_text(picture(series), encoding="utf-8")


def _done(out: Path, budget: str) -> list[tuple[str, int, Path]]:
    """Every search that `out` holds: its method, its seed, its folder; those of the whole polish first."""
    recipes = {recipe.replace(" ", "-"): recipe for recipe in RECIPES}
    order = (*METHODS[:1], *recipes, *METHODS[1:])
    found = []
    for kept in out.glob(f"*-{budget}-*/searched.json"):
        name, _, seed = kept.parent.name.rsplit("-", 2)
        method = f"polish, {recipes[name]}" if name in recipes else name
        found.append((order.index(name), int(seed), method, kept.parent))
    return [(method, seed, place) for _, seed, method, place in sorted(found)]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--method", nargs="*", default=list(METHODS))
    parser.add_argument("--recipe", nargs="*", default=[], choices=RECIPES)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--budget", default="standard")
    parser.add_argument("--incumbent", nargs="*", type=Path, default=[])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench-search")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def _search(method: str, recipe: str | None, seed: int, budget: str, out: Path) -> None:
    import excise
    from excise.behaviors import SplitSizes

    if recipe:
        _leave_out(recipe)
    target, baseline = (_joined(side) for side in ("target", "baseline"))
    behavior = excise.Behavior.load("refusal").with_options(target=target, baseline=baseline, system=SYSTEM)
    splits = behavior.splits(SplitSizes(), seed=seed)
    record(MODEL, behavior, splits, method=method, budget=budget, seed=seed, out=out)


def _leave_out(recipe: str) -> None:
    """The polish without one of its parts."""
    from dataclasses import replace

    from excise.search import losses
    from excise.search.methods import polish

    if recipe == "no behavior loss":
        losses.BEHAVIOR_MARGIN = -1e4
        return
    changes = {"no tail": {"tail": 0.0}, "right factors alone": {"turn": 0.0}}[recipe]
    polish.RECIPES = {name: replace(each, **changes) for name, each in polish.RECIPES.items()}


def _judged(runs: Sequence[tuple[str, int, Path]], incumbents: Sequence[Path], kept: Path) -> list[dict[str, Any]]:
    """Every edit of every front on the report prompts."""
    from swapped import HeldOut

    known: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
    held_out: HeldOut | None = None

    def judge(name: str, edit: Path) -> Mapping[str, Any]:
        nonlocal held_out
        if "kept" not in known.get(name, {}):
            if held_out is None:
                sides = (SHARED / "prompts" / f"{side}_report.txt" for side in ("target", "baseline"))
                held_out = HeldOut(MODEL, *sides, system=SYSTEM, max_tokens=64)
            with _live(held_out.model, edit):
                if name in known:  # judged before `kept` was measured
                    known[name]["kept"] = held_out.kept(known[name])
                else:
                    known[name] = held_out.measure()
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(known))
        return known[name]

    rows = [{"method": "base", "seed": 0, "points": [judge("base", Path("base"))]}]
    for method, seed, place in runs:
        taken = json.loads((place / "searched.json").read_text())
        points = [
            {**judge(content(edit), edit), "chosen": point["chosen"], "own": point}
            for point in taken["points"]
            for edit in (place / point["edit"],)
        ]
        row = {"method": method, "seed": seed, **{key: taken[key] for key in ("cpu_seconds", "peak_bytes", "trials")}}
        chosen = next(point["own"]["edit"] for point in points if point["chosen"])
        if method == "polish":
            row["fit"] = _fit(place, chosen, seed)
        rows.append({**row, "points": points})
        if method == "polish":
            for name, edit in _controls(place, chosen, seed).items():
                single = {**judge(f"{place.name}/{name} {content(edit)}", edit), "chosen": False}
                rows.append({"method": name, "seed": seed, "points": [single]})
    for place in incumbents:
        result = json.loads((place / "result.json").read_text())
        points = [
            {**judge(f"{place.name}/{trial['index']}", place / "trials" / f"{trial['index']:03d}"), "chosen": False}
            for trial in result["front"]
        ]
        peak = max(line["peak_rss"] for line in result["phases"] if line["phase"] != "export")
        rows.append(
            {
                "method": "incumbent",
                "seed": json.loads((place / "job.json").read_text())["settings"]["seed"],
                "cpu_seconds": _incumbent_cpu(result["phases"]),
                "peak_bytes": peak,
                "trials": len(result["trials"]),
                "points": points,
            }
        )
    for row in rows:
        row["hypervolume"] = hypervolume((point["rate"], point["kl_first"]["mean"]) for point in row["points"])
    return rows


def _controls(place: Path, chosen: str, seed: int) -> dict[str, Path]:
    """The closed form that a polish began with, and the edit it ended with but of random directions."""
    import excise
    from excise.edit import Edit, random_control

    found = json.loads((place / "searched.json").read_text())
    source = next(each["parameters"] for each in found["history"] if each["parameters"]["kind"] == "polish")
    begun = next(
        index
        for index, each in enumerate(found["history"])
        if each["parameters"]["kind"] == "closed form"
        and all(each["parameters"][name] == source[name] for name in ("position", "method", "reach", "source"))
    )
    control = place / "random.safetensors"
    if not control.is_file():
        random_control(Edit.load(place / chosen), excise.load(MODEL).survey, seed=seed).save(control)
    return {
        "closed form alone": next((place / "study" / "edits").glob(f"*/{begun:04d}.safetensors")),
        "random directions": control,
    }


def _live(model: EditableModel, edit: Path) -> AbstractContextManager[Any]:
    """An edit file, a folder of weights, or nothing ("base")."""
    from swapped import swapped

    from excise.edit import Edit

    if edit.name == "base":
        return nullcontext()
    return swapped(model.hf_model, edit) if edit.is_dir() else model.edited(Edit.load(edit))


def _fit(place: Path, edit: str, seed: int) -> dict[str, float]:
    """The edit that a search took, on the prompts that it learned from."""
    import excise
    from excise.behaviors import SplitSizes
    from excise.search.objective import BehaviorObjective

    kept = place / "fit.json"
    if not kept.is_file():
        target, baseline = (_joined(side) for side in ("target", "baseline"))
        behavior = excise.Behavior.load("refusal").with_options(target=target, baseline=baseline, system=SYSTEM)
        prompts = behavior.splits(SplitSizes(), seed=seed).fit
        objective = BehaviorObjective.measure_base(excise.load(MODEL), behavior, prompts, screening=False)
        kept.write_text(json.dumps(measured(objective(excise.Edit.load(place / edit)))))
    found: dict[str, float] = json.loads(kept.read_text())
    return found


def _incumbent_cpu(phases: Sequence[Mapping[str, Any]]) -> float:
    """Processor time of a run that was not cut off: what a later session did again is left out, and the export."""
    first = {line["phase"]: line["cpu_seconds"] for line in reversed(phases)}
    trials = sum(line["cpu_seconds"] for line in phases if line["phase"] == "trials")
    return trials + sum(seconds for phase, seconds in first.items() if phase not in ("trials", "export"))


if __name__ == "__main__":
    main()
