"""`excise search`: the edits that trade the behavior against everything else."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from rich.console import RenderableType

from excise.cli.options import command, settings
from excise.cli.session import Outcome, Session
from excise.cli.tables import front_table, line
from excise.config import RunConfig
from excise.progress import tell


@command("search", takes=settings("model", "data", "search", "output", but=("force", "bake", "score", "max_keep_fall")))
def search(session: Session, config: RunConfig) -> Outcome:
    """Search for the edits that remove the behavior (or strengthen it) at the least cost; save them in DIR/edits.

    Called again with the same settings, it goes on where it was stopped.
    """
    from excise.behaviors import Behavior, SplitSizes
    from excise.evaluation import load_scorers
    from excise.find import fit_where_shown, where_shown
    from excise.runs import RunDirectory, write_json
    from excise.search import Axes, method_for
    from excise.search import search as find_edits
    from excise.search.cost import forecast as cost
    from excise.search.cost.free import peak_memory

    method_for(config.method, strength=int(config.strength), max_rate=config.max_rate)  # what cannot be is refused now
    load_scorers(config.scorer_module)
    Axes(config.rate_by, config.damage_by).check()
    behavior = Behavior.from_config(config)
    splits = behavior.splits(SplitSizes(*config.splits), seed=config.seed, offline=config.offline)
    with RunDirectory.open(config.directory, config={**config.identity(), "command": "search"}) as run:
        model = session.load_model(config, allow_partial=config.allow_partial)
        missed = session.prove(model, config)
        forecast = None
        with suppress(*cost.UNFORESEEN):
            forecast = cost.forecast(
                model,
                behavior,
                splits,
                method=config.method,
                budget=config.budget,
                trials=config.trials,
                seconds=config.seconds,
                stages=("find", "search"),
            )
            tell(session.progress, cost.sentence(forecast, cuda=model.device.type == "cuda"))
        if config.shown_only:
            shown_on = fit_where_shown(model, behavior, splits, batch_size=config.batch_size, progress=session.progress)
            splits = where_shown(behavior, splits, shown_on)
        notes = splits.warnings
        found = find_edits(
            model,
            behavior,
            method=config.method,
            strength=int(config.strength),
            splits=splits,
            seed=config.seed,
            budget=config.budget,
            trials=config.trials,
            norm=config.norm,
            directory=run.path / "study",
            max_kl=config.max_kl,
            max_rate=config.max_rate,
            preserve=config.dial,
            rate_by=config.rate_by,
            damage_by=config.damage_by,
            seconds=config.seconds,
            progress=session.progress,
        )
        front: list[dict[str, Any]] = []
        for index, point in enumerate(found.front):
            name = f"edits/{index:03d}.safetensors"
            point.edit.save(run.path / name)
            front.append({**point.to_json(), "edit": name})
        found.best.save(run.path / "edit.safetensors")
        data = {
            "model": config.model,
            "behavior": behavior.name,
            "out": str(run.path),
            "splits": splits.sizes(),
            "front": front,
            "best": "edit.safetensors",
            "trials": found.trials,
            "screened": found.screened,
            "seconds": found.seconds,
            "peak_bytes": peak_memory(model.device),
            "forecast": None if forecast is None else forecast.to_json(),
            "method": found.method,
            "strength": found.strength,
            "reason": found.reason,
            **found.axes.to_json(),
            "notes": [*notes, *found.notes],
        }
        write_json(run.path / "search.json", data)
    shown: tuple[RenderableType, ...] = (
        front_table(front),
        *(line(f"note: {note}") for note in (*notes, *found.notes)),
        line(f"\n{found.trials} trials; the best edit: {run.path / 'edit.safetensors'}"),
    )
    return Outcome(data=data, shown=shown, missed=(*missed, *_missed(front, config)))


def _missed(front: list[dict[str, Any]], config: RunConfig) -> tuple[str, ...]:
    reached = any(
        (config.max_rate is None or point["rate"] <= config.max_rate)
        and (config.max_kl is None or point["kl_first"] <= config.max_kl)
        for point in front
    )
    return () if reached else ("no edit of the front reaches the goals --max-rate and --max-kl",)
