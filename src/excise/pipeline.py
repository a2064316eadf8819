"""The whole job, top to bottom: load, prove, find, search, report, bake, verify.

Every stage leaves its artefact in the run directory, keyed by a hash of what it depends on: a run that was stopped at
any moment goes on from there, and reads the report split once.
"""

from __future__ import annotations

import time
from typing import Any

from excise import stages
from excise.behaviors import Behavior, SplitSizes
from excise.config import RunConfig
from excise.evaluation import asking, load_scorers
from excise.model import load
from excise.progress import Progress, silent
from excise.record import assemble
from excise.report import write_report
from excise.runs import RunDirectory, write_json
from excise.search import Axes, method_for, search
from excise.stages import GroundTruth, Job
from excise.validation import validate


def run(
    model: str | RunConfig,
    *,
    progress: Progress = silent,
    ground_truth: GroundTruth | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Remove one behavior from a model: the edit, the baked model, the report, and `result.json` as a dictionary.

    With `strength=-1` the behavior is strengthened instead.

    model         a directory or Hub id, with `settings` the other fields of `RunConfig`; or a whole `RunConfig`
    ground_truth  further scores of the model as it stands, measured before and after (the demo's right answers)

    Raises an `ExciseError` for anything the user can act on; bad input is refused before anything is written.
    """
    config = model if isinstance(model, RunConfig) else RunConfig.resolve(given={"model": model, **settings})
    method_for(config.method, strength=int(config.strength), max_rate=config.max_rate)  # what cannot be is refused now
    load_scorers(config.scorer_module)
    Axes(config.rate_by, config.damage_by).check()
    behavior = Behavior.from_config(config)
    splits = behavior.splits(SplitSizes(*config.splits), seed=config.seed, offline=config.offline)

    with (
        asking(config.score) as labellers,
        RunDirectory.open(config.directory, config=config.identity()) as directory,
    ):
        began = time.perf_counter()
        loaded = load(config.model, **config.loading())
        job = Job(config, behavior, splits, loaded, directory, progress, warnings=list(splits.warnings))
        job.seconds["load"] = time.perf_counter() - began

        stages.check_room_to_bake(job)
        with job.timed("prove"):
            survey, leak = stages.prove(job)
            stages.check_format(job)
        with job.timed("forecast"):
            stages.forecast(job)
        with job.timed("base"):
            stages.check_shown(job)
        with job.timed("find"):
            job = stages.fit_on_shown(job)
            directions = stages.find(job)
        with job.timed("search"):
            found = search(
                loaded,
                behavior,
                method=config.method,
                strength=int(config.strength),
                splits=job.splits,
                directions=directions,
                seed=config.seed,
                budget=config.budget,
                trials=config.trials,
                norm=config.norm,
                directory=job.stage("search", norm=config.norm).path("study.db").parent,
                max_kl=config.max_kl,
                max_rate=config.max_rate,
                preserve=config.dial,
                rate_by=config.rate_by,
                damage_by=config.damage_by,
                seconds=config.seconds,
                progress=progress,
            )
            front = stages.save_edits(job, found)
        with job.timed("report"):
            scores = validate(job, found.best, labellers=labellers)
            truth = stages.measure_truth(job, found.best, ground_truth) if ground_truth else {}
        baked: dict[str, Any] = {}
        if config.bake:
            with job.timed("bake"):
                baked = stages.bake_and_verify(job, found.best)

        result = assemble(
            job,
            survey=survey,
            leak=leak,
            directions=directions,
            found=found,
            front=front,
            scores=scores,
            truth=truth,
            baked=baked,
        )
        write_json(directory.path / "result.json", result)
        write_report(result, directory.path)
        return result
