"""Every matrix fitted on its own, without any direction: after Arbitrary-Rank Ablation (p-e-w/heretic, pull request
211), made from its description.

For each writer a change is fitted that (1) leaves its outputs on baseline inputs as they are and (2) makes its outputs
on target inputs like those on baseline inputs: each goes to the mean of its nearest baseline outputs at the same place
of the conversation. The description's third goal, outputs unlike those the target inputs had, is overcorrection here:
the change is taken at more than its own strength. Inputs are those of the last prompt tokens and of the first tokens of
the base model's own responses, on the `fit` split.

The original minimises an objective of its own by L-BFGS. With squared distances the minimum of a given rank is known
in closed form (`excise.search.reduced_rank`), so that is what is taken: same goals, another distance. Writers that are
no plain matrix product of every token (experts, embeddings) are left alone, and stated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import ClassVar

import torch
from jaxtyping import Float
from optuna.distributions import BaseDistribution, CategoricalDistribution
from torch import Tensor

from excise.activations import without_end
from excise.activations.products import Products, capture_products
from excise.edit import Edit, LowRank, SiteEdit, Writer
from excise.errors import ModelError
from excise.model.generate import end_tokens, generate_from_tokens
from excise.model.ports import ports_of
from excise.search.methods.registry import Method, register
from excise.search.reduced_rank import reduced_rank_ridge
from excise.search.task import Task
from excise.search.trial import Parameters, Trial

RANK = 4
PULLS = (1.0, 0.1, 10.0)
STRENGTHS = (1.0, 0.75, 1.25, 0.5, 1.5)
STARTS = (0.0, 0.3)
"""The grid: weight of target against baseline inputs, overcorrection, first edited layer as a share of the depth."""

NEIGHBOURS = 8
RIDGE = 0.03
PROMPT_TOKENS, RESPONSE_TOKENS = 4, 4
_MEMORY = 1 << 30
_WIDTHS = 6  # input and output of a writer, in hidden sizes, at most about


@register
class MatrixFit(Method):
    """One trial per point of a small grid, as many as the task wants."""

    name: ClassVar[str] = "matrix-fit"
    summary: ClassVar[str] = "a low-rank change fitted to each matrix on its own, after Arbitrary-Rank Ablation"

    def run(self, task: Task) -> None:
        """Fit every matrix once per pull, and try each fit at several strengths."""
        points = grid()[: task.wanted]
        missing = points[len(task.study.trials) :]
        if not missing:
            return
        fits = fit(task, [float(pull) for pull in dict.fromkeys(point["pull"] for point in missing)])
        for point in missing:
            task.progress("search", len(task.study.trials), len(points), "trials")
            edit = _part(fits[float(point["pull"])], point, task.model.survey.layers)
            task.add_trial(point, edit, _DISTRIBUTIONS, keep=True)
        task.progress("search", len(points), len(points), "trials")

    def edit(self, task: Task, trial: Trial) -> Edit:
        """The edit that was kept with the trial."""
        return task.study.edit(trial.index)


def grid() -> list[dict[str, float | str]]:
    """The points that are tried, in their order."""
    return [
        {"pull": pull, "start": start, "strength": strength}
        for pull, start, strength in product(PULLS, STARTS, STRENGTHS)
    ]


_DISTRIBUTIONS: Mapping[str, BaseDistribution] = {
    "pull": CategoricalDistribution(PULLS),
    "start": CategoricalDistribution(STARTS),
    "strength": CategoricalDistribution(STRENGTHS),
}


def fit(task: Task, pulls: Sequence[float]) -> dict[float, Edit]:
    """The fitted changes of all writers that can be fitted, at strength 1, for each pull. Raises `ModelError`."""
    survey = task.model.survey
    sites: dict[float, list[SiteEdit]] = {pull: [] for pull in pulls}
    writers = fitted_writers(task)
    done = 0
    for group, target, baseline in _captured(task, writers):
        for writer in group:
            task.progress("fitting matrices", done, len(writers), "matrices")
            module = str(writer.module)
            for pull in pulls:
                change = fit_matrix(target[module], baseline[module], pull=pull, device=task.model.device)
                sites[pull].append(SiteEdit(writer, (change,)))
            done += 1
    task.progress("fitting matrices", len(writers), len(writers), "matrices")
    return {pull: Edit(tuple(found), survey.identity) for pull, found in sites.items()}


def fitted_writers(task: Task) -> list[Writer]:
    """The writers that are plain products; the others are stated. Raises `ModelError` where there is none."""
    model, survey = task.model.hf_model, task.model.survey
    plain = [port.writer for port in ports_of(model, survey).found if port.reads == "input"]
    others = [w.parameter for w in survey.writers if w.role != "embedding" and w not in plain]
    if others:
        task.state(f"matrix-fit leaves {len(others)} writers alone, which are no plain product: {', '.join(others)}")
    if not plain:
        raise ModelError(
            "no writer of this model is a plain matrix product", hint="use another search method: --method schedule"
        )
    return plain


def fit_matrix(target: Products, baseline: Products, *, pull: float, device: torch.device) -> LowRank:
    """The change of one matrix.

    pull  weight of the goal on target inputs, against 1 for leaving baseline outputs alone
    """
    weights = (1 / len(baseline.inputs)) ** 0.5, (pull / len(target.inputs)) ** 0.5
    wanted = nearest_baseline(target, baseline) - target.outputs
    rows = torch.cat([baseline.inputs * weights[0], target.inputs * weights[1]]).to(device)
    goal = torch.cat([torch.zeros_like(baseline.outputs), wanted * weights[1]]).to(device)
    ridge = RIDGE * float(rows.double().square().sum()) / len(rows)
    return reduced_rank_ridge(rows, goal, ridge=ridge, rank=RANK)


def nearest_baseline(target: Products, baseline: Products) -> Float[Tensor, "token hidden"]:
    """For each target output the mean of the nearest baseline outputs at its place.

    At a place that no baseline token has (responses differ in length), the outputs stay as they are.
    """
    found = target.outputs.clone()
    for place in target.places.unique():
        mine, theirs = target.places == place, baseline.outputs[baseline.places == place]
        if len(theirs):
            nearest = (
                torch.cdist(target.outputs[mine], theirs).topk(min(NEIGHBOURS, len(theirs)), largest=False).indices
            )
            found[mine] = theirs[nearest].mean(dim=1)
    return found


def _captured(
    task: Task, writers: Sequence[Writer]
) -> Iterator[tuple[list[Writer], dict[str, Products], dict[str, Products]]]:
    """Inputs and outputs of target and baseline prompts, for groups of writers that fit in memory together."""
    sides = [_conversations(task, prompts) for prompts in (task.splits.fit.target, task.splits.fit.unchanged)]
    tokens = sum(PROMPT_TOKENS + len(row) for _, responses in sides for row in responses)
    size = max(1, _MEMORY // (tokens * 4 * _WIDTHS * task.model.hidden))
    for start in range(0, len(writers), size):
        group = list(writers[start : start + size])
        names = [str(writer.module) for writer in group]
        target, baseline = (
            capture_products(task.model, names, prompts, responses, before=PROMPT_TOKENS, batch_size=task.batch_size)
            for prompts, responses in sides
        )
        yield group, target, baseline


def _conversations(task: Task, prompts: Sequence[str]) -> tuple[list[list[int]], list[list[int]]]:
    """The rendered prompts, and the first tokens of the base model's responses to them."""
    rows = task.model.template.encode(prompts, system=task.behavior.system, thinking=task.behavior.thinking)
    responses = generate_from_tokens(
        task.model, rows, max_tokens=RESPONSE_TOKENS, batch_size=task.batch_size, progress=task.progress
    )
    ends = end_tokens(task.model)
    return rows, [without_end(response.tokens, ends) for response in responses]


def _part(edit: Edit, point: Parameters, layers: int) -> Edit:
    """A fit at the strength of a point, without the layers before its start."""
    first = float(point["start"]) * (layers - 1)
    sites = tuple(site for site in edit.sites if site.writer.layer >= first)
    return float(point["strength"]) * replace(edit, sites=sites)
