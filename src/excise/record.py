"""`result.json`: everything a run found, as plain values; the report and the model card are made from it alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from excise.directions import Directions
from excise.edit import Edit, Projection
from excise.model import Survey
from excise.search import SearchResult
from excise.search.cost.free import peak_memory
from excise.stages import Job


def assemble(
    job: Job,
    *,
    survey: Survey,
    leak: float,
    directions: Directions,
    found: SearchResult,
    front: list[dict[str, Any]],
    scores: Mapping[str, Any],
    truth: Mapping[str, Any],
    baked: Mapping[str, Any],
) -> dict[str, Any]:
    """The result of a run. No prompt and no response is in it."""
    manifest = job.directory.manifest
    result = {
        "model": job.model.name,
        "behavior": job.behavior.name,
        "out": str(job.directory.path),
        "seconds": sum(job.seconds.values()),
        "peak_bytes": peak_memory(job.model.device),
        "forecast": job.stage("forecast").load(),
        "coverage": survey.coverage,
        "leak": leak,
        "leak_tolerance": job.model.leak_tolerance,
        "leak_baked": baked.get("leak") if baked.get("probe") is None else baked["probe"],
        "splits": job.splits.sizes(),
        **scores,
        "front": front,
        "versions": manifest["versions"],
        "created": manifest["created"],
        "seed": job.config.seed,
        "budget": job.config.budget,
        "goals": {"max_rate": job.config.max_rate, "max_kl": job.config.max_kl},
        "base_model": None if Path(job.config.model).exists() else job.config.model,
        "prompts": job.splits.digest(),
        "survey": describe_survey(survey),
        "directions": directions.to_json(),
        "edit": describe_edit(found.best),
        "search": describe_search(found),
        "verify": dict(baked) or None,
        "skipped": skipped(job, survey, baked),
        "warnings": [
            *job.model.template.warnings,
            *job.warnings,
            *found.notes,
            *([] if found.satisfied else [found.reason]),
        ],
        "stages": dict(job.seconds),
    }
    return {**result, "demo": dict(truth)} if truth else result


def describe_survey(survey: Survey) -> dict[str, Any]:
    """Every writer, and what could not be resolved."""
    return {
        "layers": survey.layers,
        "hidden": survey.hidden,
        "writers": [writer.to_json() for writer in survey.writers],
        "unresolved": [
            {"layer": item.layer, "parameters": list(item.parameters), "reason": item.reason}
            for item in survey.unresolved
        ],
    }


def describe_edit(edit: Edit) -> dict[str, Any]:
    """The chosen edit: its sites with their strengths."""
    sites = [
        {
            "parameter": site.writer.parameter,
            "layer": site.writer.layer,
            "role": site.writer.role,
            "strength": sum(change.strength for change in site.changes if isinstance(change, Projection)),
        }
        for site in edit.sites
    ]
    norms = sorted({change.norm for site in edit.sites for change in site.changes if isinstance(change, Projection)})
    return {"file": "edit.safetensors", "sites": sites, "norm": "/".join(norms)}


def describe_search(found: SearchResult) -> dict[str, Any]:
    """How many trials there were, where they landed, and why one was taken."""
    return {
        "method": found.method,
        "trials": found.trials,
        "screened": found.screened,
        "reason": found.reason,
        "satisfied": found.satisfied,
        "points": found.points,
    }


def skipped(job: Job, survey: Survey, baked: Mapping[str, Any]) -> list[str]:
    """What was left out, in words."""
    words = [f"layer {item.layer}: {item.reason} ({', '.join(item.parameters)})" for item in survey.unresolved]
    embeddings = [writer.parameter for writer in survey.writers if writer.role == "embedding"]
    if embeddings:
        words.append(f"embeddings are not edited ({', '.join(embeddings)}): the direction enters the stream there")
    words += [f"not carried into the edited model: {name}" for name in baked.get("bake", {}).get("skipped", ())]
    if not job.config.bake:
        words.append("the edited model was not written (--no-bake)")
    return words
