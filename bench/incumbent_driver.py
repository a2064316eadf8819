"""Run the installed Heretic without a person at the keyboard; called by `bench/incumbent.py` in Heretic's venv.

    python bench/incumbent_driver.py JOB

JOB is a JSON file: {"settings", "threads", "out"}. Heretic's own command is called, with the settings in a
`config.toml`, which it reads from the working directory; its menus are answered here. For each trial that its last menu
offers (its Pareto front), Heretic itself restores and merges the model, and the weights that then differ from the base
model's are saved under `out/trials/NNN`. `out/measured.json` gets what Heretic measured, `out/phases.jsonl` what it
cost.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

STUDY = "heretic"
PACKAGES = ("heretic-llm", "torch", "transformers", "peft", "optuna", "accelerate", "numpy")


class Clock:
    """Wall and processor time between marks, and the peak of memory so far: one line a mark, kept when the run is cut.

    Every call of this driver is a session of its own.
    """

    def __init__(self, path: Path, threads: int) -> None:
        self._path, self._threads = path, threads
        self._session = 1 + max((line["session"] for line in self.lines()), default=0)
        self._began = (time.perf_counter(), time.process_time())

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._path.read_text().splitlines()] if self._path.is_file() else []

    def mark(self, phase: str) -> None:
        """The end of a phase."""
        now = (time.perf_counter(), time.process_time())
        wall, cpu = (end - begin for begin, end in zip(self._began, now, strict=True))
        line = {"session": self._session, "threads": self._threads, "phase": phase}
        cost = {"seconds": wall, "cpu_seconds": cpu, "peak_rss": _peak_rss()}
        with self._path.open("a") as file:
            print(json.dumps({**line, **cost}), file=file)
        self._began = now


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    out = Path(job["out"])
    clock = Clock(out / "phases.jsonl", job["threads"])
    import torch
    from heretic import main as heretic

    torch.set_num_threads(job["threads"])
    clock.mark("import")
    work = out / "heretic"
    work.mkdir(parents=True, exist_ok=True)
    os.chdir(work)
    _configure(work, job["settings"])
    session = Session(heretic, work / "checkpoints", out, clock)
    session.continue_study(job["settings"]["n_trials"])
    heretic.run()
    if not session.finished:
        sys.exit("Heretic stopped before it offered any trial; see heretic.log")
    clock.mark("export")
    session.write()


def _configure(work: Path, settings: dict[str, Any]) -> None:
    import tomli_w

    (work / "config.toml").write_text(tomli_w.dumps(settings))
    sys.argv = ["heretic"]  # its settings look at the command line as well


class Session:
    """One call of Heretic's command: its menus answered, its phases timed."""

    def __init__(self, heretic: Any, checkpoints: Path, out: Path, clock: Clock) -> None:
        self._checkpoints, self._out, self._clock = checkpoints, out, clock
        self.finished = False
        self._front: dict[int, Any] = {}
        self._chosen: int | None = None
        self._seed_shift = 0
        self._model: Any = None
        model, evaluator, sampler = heretic.Model, heretic.Evaluator, heretic.TPESampler

        def timed_model(*given: Any) -> Any:
            clock.mark("start")
            self._model = model(*given)
            clock.mark("load")
            return self._model

        def timed_evaluator(*given: Any) -> Any:
            clock.mark("batch size and response prefix")
            made = evaluator(*given)
            clock.mark("evaluation of the base model")
            return made

        def timed_sampler(*, seed: int | None, **options: Any) -> Any:
            clock.mark("directions")
            return sampler(seed=seed if seed is None else seed + self._seed_shift, **options)

        heretic.Model, heretic.Evaluator, heretic.TPESampler = timed_model, timed_evaluator, timed_sampler
        heretic.prompt_select = self._answer

    def _answer(self, question: str, choices: list[Any]) -> Any:
        values = [getattr(choice, "value", choice) for choice in choices]
        offered = {value.user_attrs["index"]: value for value in values if hasattr(value, "user_attrs")}
        if offered:
            if not self.finished:
                self._clock.mark("trials")
                self.finished, self._front = True, offered
            left = [index for index in offered if not self._weights(index).is_file()]
            self._chosen = left[0] if left else None
            return offered[left[0]] if left else ""
        if self._chosen is not None:
            self._export(self._chosen)
            self._chosen = None
            return ""
        if "continue" in values and self._model is None:
            return "continue"
        raise RuntimeError(f"a question without an answer: {question}")

    def _weights(self, index: int) -> Path:
        return self._out / "trials" / f"{index:03d}" / "weights.safetensors"

    def _export(self, index: int) -> None:
        """Save the weights that Heretic's merge of the trial's adapters changes, in the model's own dtype."""
        import torch
        from safetensors.torch import save_file

        base = {
            name.removeprefix("base_model.model."): module.base_layer.weight.detach().clone()
            for name, module in self._model.model.named_modules()
            if hasattr(module, "lora_A") and hasattr(module, "base_layer")
        }
        merged = self._model.get_merged_model()
        found = {f"{name}.weight": merged.get_submodule(name).weight.detach() for name in base}
        changed = {
            name: weight.cpu().contiguous()
            for name, weight in found.items()
            if not torch.equal(weight, base[name.removesuffix(".weight")])
        }
        place = self._weights(index)
        place.parent.mkdir(parents=True, exist_ok=True)
        unfinished = place.with_suffix(".part")
        save_file(changed, unfinished, metadata={"trial": str(index)})
        unfinished.replace(place)

    def continue_study(self, trials: int) -> None:
        """Ask for `trials` whole trials in all; those that were cut off do not count.

        Heretic goes on with the settings in its checkpoint, so their number is set there. A study that goes on would
        also draw its first random trials a second time from the same seed: the sampler's seed is shifted.
        """
        study = _study(self._checkpoints)
        if study is None:
            return
        cut = sum(trial.state.name != "COMPLETE" for trial in study.trials)
        self._seed_shift = len(study.trials)
        settings = {**json.loads(study.user_attrs["settings"]), "n_trials": max(trials + cut, len(study.trials))}
        study.set_user_attr("settings", json.dumps(settings))

    def write(self) -> None:
        """Everything but prompts and responses."""
        study = _study(self._checkpoints)
        effective = json.loads(study.user_attrs["settings"])
        kept = (
            *("batch_size", "max_response_length", "n_startup_trials", "seed", "row_normalization", "dtypes"),
            "refusal_markers",
        )
        content = {
            "front": [
                {**_row(trial), "weights": str(self._weights(index).relative_to(self._out))}
                for index, trial in self._front.items()
            ],
            "trials": [_row(trial) for trial in study.trials if trial.state.name == "COMPLETE"],
            "settings": {key: effective[key] for key in kept},
            "response_prefix_characters": len(effective["response_prefix"] or ""),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            "phases": self._clock.lines(),
        }
        (self._out / "measured.json").write_text(json.dumps(content, indent=1))


def _row(trial: Any) -> dict[str, Any]:
    """One trial as Heretic measured it; the score is what its sampler minimised."""
    keys = ("index", "refusals", "n_bad_prompts", "base_refusals", "kl_divergence", "direction_index", "parameters")
    seconds = (trial.datetime_complete - trial.datetime_start).total_seconds()
    return {**{key: trial.user_attrs[key] for key in keys}, "score": list(trial.values), "seconds": seconds}


def _study(checkpoints: Path) -> Any:
    """Heretic's own checkpoint, an Optuna study; None before the first run."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    files = list(checkpoints.glob("*.jsonl"))
    if not files:
        return None
    backend = JournalFileBackend(str(files[0]), lock_obj=JournalFileOpenLock(str(files[0])))
    storage = JournalStorage(backend)
    if not storage.get_all_studies():
        return None
    return optuna.load_study(study_name=STUDY, storage=storage)


def _peak_rss() -> int:
    """Bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main()
