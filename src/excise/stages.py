"""The stages of a run that are more than one call: each reads and leaves its artefact in the run directory."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from excise.bake import bake, baked_leak, verify
from excise.bake.source import Source
from excise.bake.staging import check_room
from excise.behaviors import Behavior, Splits
from excise.config import RunConfig
from excise.directions import Directions
from excise.edit import Edit
from excise.edit.digest import digest
from excise.errors import BehaviorNotShownError, ExciseError, InputError
from excise.evaluation import behavior_rate
from excise.find import find_directions, fit_where_shown, where_shown
from excise.model import EditableModel, Survey
from excise.model.checkpoint import Checkpoint
from excise.model.weights import is_quantised
from excise.progress import Progress, tell
from excise.runs import RunDirectory, Stage
from excise.search import SearchResult
from excise.search.cost import forecast as cost

GroundTruth = Callable[[EditableModel, Progress], Mapping[str, float]]
SHOWN = 0.2
"""Below this rate on the tune split the model hardly shows the behavior: there is nothing to remove."""
SATURATED = 0.95
"""From this rate on the model shows it nearly always: there is nothing to strengthen."""


@dataclass(frozen=True)
class Job:
    """What every stage needs to know, and how long each took."""

    config: RunConfig
    behavior: Behavior
    splits: Splits
    model: EditableModel
    directory: RunDirectory
    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def stage(self, name: str, **inputs: Any) -> Stage:
        """The stage of this name, keyed by the prompts, the behavior, the model and what else it depends on."""
        everything = {
            "prompts": self.splits.digest(),
            "behavior": self.behavior.model_dump(mode="json"),
            "model": [self.model.identity.config_hash, self.model.identity.checkpoint_hash, str(self.model.dtype)],
            "seed": self.config.seed,
            **inputs,
        }
        return self.directory.stage(name, everything)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Record how long the block takes under `name`."""
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


def prove(job: Job) -> tuple[Survey, float]:
    """The survey and its leak. Raises `SurveyError` for a model that is not proven, unless `allow_partial`."""
    proof = job.model.prove(seed=job.config.seed)
    if not job.config.allow_partial:
        proof.required()
    elif not proof.holds:
        job.warnings.append(proof.doubt)
    return proof.survey, proof.leak


def check_room_to_bake(job: Job) -> None:
    """Raise `DiskFullError` now rather than after the search, where the edited model will not fit on the disk."""
    out = job.directory.path / "model"
    if job.config.bake and job.model.path is not None and not out.exists():
        check_room(out, 2 * Checkpoint.open(job.model.path).size)  # the model and, for a while, a copy for the probe


def check_format(job: Job) -> None:
    """Raise `CheckpointError` now rather than after the search, where a checkpoint that is stored quantised cannot be
    edited."""
    stored_packed = job.config.quantize is None and is_quantised(job.model.hf_model)
    if job.config.bake and job.model.path is not None and stored_packed:
        source = Source.open(job.model, trust_remote_code=job.config.trust_remote_code)
        source.plan(Edit.project(job.model.survey, torch.ones(job.model.hidden)))


def check_shown(job: Job) -> float:
    """The base model's rate on the tune split.

    Unless `force`, raises `BehaviorNotShownError` where it is under a fifth, or `InputError` where it is 95 % or more
    and the behavior is to be strengthened.
    """
    stage = job.stage("base")
    if not stage.done:
        result = behavior_rate(
            job.model,
            job.splits.tune.target,
            job.behavior,
            batch_size=job.config.batch_size,
            stop_early=True,
            progress=job.progress,
        )
        stage.save({"rate": result.rate.value})
    rate = float(stage.load()["rate"])
    fault = nothing_to_do(rate, f"{job.model.name} shows '{job.behavior.name}'", strength=int(job.config.strength))
    if fault is not None:
        if not job.config.force:
            raise fault
        job.warnings.append(fault.message)
    return rate


def nothing_to_do(rate: float, shows: str, *, strength: int) -> ExciseError | None:
    """Why a model with this rate is not worth a search; None where it is."""
    told = f"{shows} on {rate:.0%} of the tune prompts"
    goes_on = "--force goes on all the same"
    if strength < 0:
        hint = f"give --target prompts on which it is not shown; {goes_on}"
        return InputError(f"{told} already: nothing to strengthen", hint=hint) if rate >= SATURATED else None
    if rate >= SHOWN:
        return None
    return BehaviorNotShownError(f"{told}: too few to remove", hint=f"check --target and --marker; {goes_on}")


def forecast(job: Job) -> None:
    """Say about how much memory and time the run needs, and keep that to be compared with what it took."""
    stage = job.stage("forecast")
    if stage.done:
        return
    value = None
    with suppress(*cost.UNFORESEEN):
        found = cost.forecast(
            job.model,
            job.behavior,
            job.splits,
            method=job.config.method,
            budget=job.config.budget,
            trials=job.config.trials,
            seconds=job.config.seconds,
            report_tokens=job.config.report_tokens,
            bake=job.config.bake,
            spent=job.seconds,
        )
        tell(job.progress, cost.sentence(found, cuda=job.model.device.type == "cuda"))
        value = found.to_json()
    stage.save(value)


def fit_on_shown(job: Job) -> Job:
    """With `shown_only` the job whose fit split holds those target prompts alone where the model shows the behavior.

    Raises `PromptError` where too few are left.
    """
    if not job.config.shown_only:
        return job
    stage = job.stage("shown")
    if not stage.done:
        shown = fit_where_shown(
            job.model, job.behavior, job.splits, batch_size=job.config.batch_size, progress=job.progress
        )
        stage.save({"shown": list(shown), "of": len(job.splits.fit.target)})
    splits = where_shown(job.behavior, job.splits, stage.load()["shown"])
    job.warnings.extend(told for told in splits.warnings if told not in job.splits.warnings)
    return replace(job, splits=splits)


def find(job: Job) -> Directions:
    """Directions on the fit split."""
    stage = job.stage("find")
    path = stage.path("directions.safetensors")
    if not stage.done:
        found = find_directions(
            job.model,
            job.behavior,
            splits=job.splits,
            seed=job.config.seed,
            batch_size=job.config.batch_size,
            progress=job.progress,
        )
        found.save(path)
        stage.save({"method": found.method})
    return Directions.load(path)


def save_edits(job: Job, found: SearchResult) -> list[dict[str, Any]]:
    """Write the whole front under `edits/` and the chosen point as `edit.safetensors`."""
    front = []
    for index, point in enumerate(found.front):
        name = f"edits/{index:03d}.safetensors"
        point.edit.save(job.directory.path / name)
        chosen = point.edit is found.best
        front.append({**point.to_json(), "edit": name, "chosen": chosen, "parameters": dict(point.parameters)})
    found.best.save(job.directory.path / "edit.safetensors")
    return front


def measure_truth(job: Job, edit: Edit, ground_truth: GroundTruth) -> dict[str, list[float]]:
    """Each score of `ground_truth` as [before, after]."""
    stage = job.stage("truth", edit=digest(edit))
    if not stage.done:
        before = ground_truth(job.model, job.progress)
        with job.model.edited(edit):
            after = ground_truth(job.model, job.progress)
        stage.save({name: [before[name], after[name]] for name in before})
    value: dict[str, list[float]] = stage.load()
    return value


def bake_and_verify(job: Job, edit: Edit) -> dict[str, Any]:
    """The edited checkpoint in `model/`, and every check of it."""
    source, out = job.model.path, job.directory.path / "model"
    remote = job.config.trust_remote_code
    if source is None:
        raise InputError(f"{job.model.name} has no checkpoint to bake into", hint="load it from disk, or --no-bake")
    stage = job.stage("bake", edit=digest(edit))
    if not (stage.done and out.exists()):
        if out.exists():  # of another edit, found before the settings or the weights changed
            shutil.rmtree(out)
        stage.save(bake(source, edit, out, trust_remote_code=remote, progress=job.progress).to_json())
    report = verify(out, base=source, edit=edit, trust_remote_code=remote, progress=job.progress)
    return {**report.to_json(), "bake": stage.load(), "probe": probe_baking(job)}


def probe_baking(job: Job) -> float | None:
    """The leak after baking the probe itself: the proof that coverage survives being written and read back."""
    stage = job.stage("probe")
    if not stage.done:
        remote = job.config.trust_remote_code
        scratch = stage.path("copy").parent
        leak = baked_leak(
            job.model, scratch=scratch, seed=job.config.seed, trust_remote_code=remote, progress=job.progress
        )
        stage.save({"leak": leak})
    found: float | None = stage.load()["leak"]
    return found
