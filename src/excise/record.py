"""`result.json`: everything a run found, as plain values; the report and the model card are made from it alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from excise.bake.plan import TensorEdit, blocks
from excise.directions import Directions
from excise.edit import Change, Edit, LowRank, Mask, Projection, SiteEdit, operators
from excise.model import Survey
from excise.model.weights import is_plain
from excise.search import SearchResult
from excise.search.cost.free import peak_memory
from excise.stages import Job

_KINDS = {Projection: "projection", LowRank: "low-rank", Mask: "mask"}
_BLOCK = 1 << 24  # numbers of a weight that are compared at once


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
        "left_out": [item.to_json() for item in job.splits.left_out],
        **scores,
        "front": front,
        "versions": manifest["versions"],
        "created": manifest["created"],
        "seed": job.config.seed,
        "budget": job.config.budget,
        "search_options": job.config.options("search"),
        "quantize": job.config.quantize,
        "goals": {name: getattr(job.config, name) for name in ("max_rate", "max_kl", "max_keep_fall")},
        "base_model": None if Path(job.config.model).exists() else job.config.model,
        "prompts": job.splits.digest(),
        "survey": describe_survey(survey),
        "directions": directions.to_json(),
        "edit": describe_edit(found.best, job.model.hf_model),
        "search": describe_search(found),
        "verify": dict(baked) or None,
        "skipped": skipped(job, survey, found.best, baked),
        "warnings": [
            *job.model.template.warnings,
            *job.warnings,
            *([] if scores["seal"]["unseen"] else [scores["seal"]["note"]]),
            *_packed(job),
            *found.notes,
            *([] if found.satisfied else [found.reason]),
        ],
        "stages": dict(job.seconds),
    }
    return {**result, "demo": dict(truth)} if truth else result


def _packed(job: Job) -> list[str]:
    """That the model which was measured is not quite the one that is written."""
    if job.config.quantize is None:
        return []
    return [
        f"all scores are of the model packed in {job.config.quantize}; the edited model has the checkpoint's own "
        "precision: `excise eval` with --edit and without --quantize measures it there"
    ]


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


def describe_edit(edit: Edit, model: nn.Module) -> dict[str, Any]:
    """The chosen edit: what it does to each writer of the model it was made for."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    sites = [describe_site(site, parameters.get(site.writer.parameter)) for site in edit.sites]
    norms = sorted({change.norm for site in edit.sites for change in site.changes if isinstance(change, Projection)})
    return {"file": "edit.safetensors", "sites": sites, "norm": "/".join(norms)}


def describe_site(site: SiteEdit, weight: Tensor | None) -> dict[str, Any]:
    """What an edit does to one writer, comparable between kinds of changes.

    kind      "projection", "low-rank", "mask", or "mixed"
    rank      of all its changes together, at most; of one expert in a bank; None of a mask
    strength  of its projections; None without any
    change    ‖ΔW‖ / ‖W‖ (Frobenius norms); None where the weight cannot be read: packed (quantised) or offloaded
    """
    kinds = {_KINDS[type(change)] for change in site.changes}
    ranks = [_rank(change) for change in site.changes]
    strengths = [change.strength for change in site.changes if isinstance(change, Projection)]
    return {
        "parameter": site.writer.parameter,
        "layer": site.writer.layer,
        "role": site.writer.role,
        "kind": kinds.pop() if len(kinds) == 1 else "mixed",
        "rank": None if None in ranks else sum(filter(None, ranks)),
        "strength": sum(strengths) if strengths else None,
        "change": None if weight is None else relative_change(weight.detach(), site),
    }


def _rank(change: Change) -> int | None:
    if isinstance(change, Projection):
        return len(change.directions)
    return change.left.shape[-1] if isinstance(change, LowRank) else None


def relative_change(weight: Tensor, site: SiteEdit) -> float | None:
    """‖ΔW‖ / ‖W‖ of one writer, in fp32, a block at a time; None where `weight` does not hold its numbers, or is zero.

    Numbers of one byte are not the weight's own: they have scales elsewhere.
    """
    if not is_plain(weight):
        return None
    whole = TensorEdit(site.writer.parameter, site.writer.parameter, site.writer.axis, site.changes)
    changed, size = 0.0, 0.0
    for block in blocks(tuple(weight.shape), whole.axis, _BLOCK):
        part = weight[block].float()
        delta = operators.delta(part, whole.within(block).changes, axis=whole.axis)
        changed += float(torch.linalg.vector_norm(delta, dtype=torch.float64)) ** 2
        size += float(torch.linalg.vector_norm(part, dtype=torch.float64)) ** 2
    return (changed / size) ** 0.5 if size else None


def describe_search(found: SearchResult) -> dict[str, Any]:
    """How many trials there were, where they landed, and why one was taken."""
    return {
        "method": found.method,
        "strength": found.strength,
        "trials": found.trials,
        "screened": found.screened,
        "reason": found.reason,
        "satisfied": found.satisfied,
        "points": found.points,
        **found.axes.to_json(),
        **({"base_scores": dict(found.base_scores)} if found.base_scores else {}),
    }


def skipped(job: Job, survey: Survey, edit: Edit, baked: Mapping[str, Any]) -> list[str]:
    """What was left out, in words."""
    words = [f"layer {item.layer}: {item.reason} ({', '.join(item.parameters)})" for item in survey.unresolved]
    embeddings = [
        writer.parameter
        for writer in survey.writers
        if writer.role == "embedding" and edit.site(writer.parameter) is None
    ]
    if embeddings:
        words.append(f"embeddings are not edited ({', '.join(embeddings)}): the direction enters the stream there")
    words += [f"not carried into the edited model: {name}" for name in baked.get("bake", {}).get("skipped", ())]
    if not job.config.bake:
        words.append("the edited model was not written (--no-bake)")
    return words
