"""The selection of Arditi et al. 2024 ("Refusal in Language Models Is Mediated by a Single Direction", section 2.3 and
appendix C), made from the paper.

Candidates are the differences of means at every token after the instruction and every layer but the last fifth. On
prompts that no direction was fitted on (here: `tune`), each is scored by

    bypass  behavior metric on target prompts, with the direction ablated from the whole stream
    induce  behavior metric on baseline prompts, with the difference added to the stream after its layer
    kl      KL(base‖ablated) of the first response token on baseline prompts

Dropped are candidates with kl > 0.1 and those with induce ≤ 0; of the rest the one with the lowest bypass is taken, and
projected out of every writer, embeddings included, at strength 1 (which is the same as ablating the stream).

The behavior metric is the log-odds that the behavior begins. The paper asks for it after the last prompt token, with a
list of tokens per model; here the tokens and the place are those of the base model's own responses (`Onset`), and on
baseline prompts the place is after as many response tokens as most target prompts need. The paper has no rule for when
every candidate is dropped: then the induce condition is, then the KL condition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from statistics import median
from typing import ClassVar

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from excise.activations import without_end
from excise.directions import Directions, candidate_layers
from excise.edit import Edit
from excise.evaluation import Onset
from excise.find import find_directions
from excise.model.generate import end_tokens
from excise.model.steering import vector_added
from excise.search.methods.registry import Method, register
from excise.search.objective import BehaviorObjective
from excise.search.positions import positions_after_instruction
from excise.search.task import Task
from excise.search.trial import Trial

MOST_KL = 0.1
LEAST_INDUCE = 0.0


@dataclass(frozen=True)
class Candidate:
    """One place and its scores: mean log-odds in nats, and a KL in nats."""

    position: str
    layer: int
    bypass: float
    induce: float
    kl: float


@register
class Arditi(Method):
    """One trial: the direction that the paper's rules select."""

    name: ClassVar[str] = "arditi"
    summary: ClassVar[str] = "the one direction that bypass, induce and KL scores select (Arditi et al. 2024)"

    def run(self, task: Task) -> None:
        """Score every candidate by prefill, and measure the one that is selected."""
        if task.study.trials:
            return
        directions = _directions(task)
        position, layer = _selected(task, directions)
        distributions: dict[str, BaseDistribution] = {
            "position": CategoricalDistribution(directions.positions),
            "layer": FloatDistribution(0.0, directions.layers - 1.0, step=1.0),
        }
        edit = _ablation(task, directions, directions.positions.index(position), layer)
        task.add_trial({"position": position, "layer": float(layer)}, edit, distributions, keep=True)

    def edit(self, task: Task, trial: Trial) -> Edit:
        """The edit that was kept with the trial: its direction is not one of the task's."""
        return task.study.edit(trial.index)


def select_candidate(candidates: Sequence[Candidate]) -> tuple[Candidate, str]:
    """The candidate to take of at least one, and which conditions had to be dropped to have any: empty for none."""
    finite = [each for each in candidates if all(map(isfinite, (each.bypass, each.induce, each.kl)))]
    gentle = [each for each in finite if each.kl <= MOST_KL]
    kept = [each for each in gentle if each.induce > LEAST_INDUCE]
    if kept:
        return min(kept, key=lambda each: each.bypass), ""
    if gentle:
        said = f"no direction with a KL of at most {MOST_KL} induces the behavior: of those the best bypass was taken"
        return min(gentle, key=lambda each: each.bypass), said
    said = f"no direction can be ablated at a KL of at most {MOST_KL}: the smallest KL was taken"
    return min(finite or candidates, key=lambda each: each.kl), said


def _directions(task: Task) -> Directions:
    """Differences of means at the tokens after the instruction."""
    positions = positions_after_instruction(task)
    return find_directions(
        task.model,
        task.behavior.model_copy(update={"positions": positions}),
        splits=task.splits,
        seed=task.seed,
        batch_size=task.batch_size,
        progress=task.progress,
    )


def _selected(task: Task, directions: Directions) -> tuple[str, int]:
    """The selected place; by separability where the base model shows no behavior to bypass."""
    onset = task.tune.onset
    if onset is None or not onset.rows:
        task.state("the base model does not show the behavior on the tune prompts: the direction separates best")
        return directions.positions[directions.best[0]], directions.best[1]
    candidates = _scored(task, directions, onset)
    chosen, said = select_candidate(candidates)
    if said:
        task.state(f"arditi: {said}")
    return chosen.position, chosen.layer


def _scored(task: Task, directions: Directions, onset: Onset) -> list[Candidate]:
    """Every candidate with its scores; those of a position are remembered when it is done."""
    layers = [range(candidate_layers(directions.layers))] * len(directions.positions)
    total, done = sum(map(len, layers)), 0
    first = task.tune.sample(targets=len(task.tune.prompts.target), baselines=len(task.tune.prompts.baseline), tokens=1)
    silent_onset = onset_on_baseline(task.tune, onset)
    found: list[Candidate] = []
    for position, name in enumerate(directions.positions):
        known = task.study.note(f"candidates {name}")
        if known is None:
            known = []
            for layer in layers[position]:
                task.progress("scoring directions", done + layer, total, "directions")
                if float(directions.vectors[position, layer].norm()) > 0.5:
                    known.append([layer, *_scores(task, first, silent_onset, directions, position, layer)])
            task.study.remember(f"candidates {name}", known)
        found += [Candidate(name, int(layer), *scores) for layer, *scores in known]
        done += len(layers[position])
    task.progress("scoring directions", total, total, "directions")
    return found


def _scores(
    task: Task, first: BehaviorObjective, silent_onset: Onset, directions: Directions, position: int, layer: int
) -> tuple[float, float, float]:
    """Bypass, induce and KL of one candidate."""
    assert first.onset is not None
    model = task.model
    with model.edited(_ablation(task, directions, position, layer)):
        bypass = float(first.onset.margin(model).mean())
        kl = first.reference.compare(model).first.mean
    difference = directions.target_mean[position, layer] - directions.baseline_mean[position, layer]
    with vector_added(model.layers[layer], difference):
        induce = float(silent_onset.margin(model).mean())
    return bypass, induce, kl


def onset_on_baseline(objective: BehaviorObjective, onset: Onset) -> Onset:
    """Where the behavior could begin on baseline prompts: after as many response tokens as on most target prompts."""
    model, behavior = objective.model, objective.behavior
    targets = model.template.encode(objective.prompts.target, system=behavior.system, thinking=behavior.thinking)
    before = [len(row) - len(targets[index]) for row, index in zip(onset.rows, onset.prompts, strict=True)]
    place, ends = int(median(before)), end_tokens(model)
    rows = tuple(
        (*prompt, *without_end(response.tokens, ends)[:place])
        for prompt, response in zip(objective.reference.prompts, objective.reference.responses, strict=True)
    )
    return replace(onset, rows=rows, prompts=tuple(range(len(rows))), total=len(rows))


def _ablation(task: Task, directions: Directions, position: int, layer: int) -> Edit:
    vector = directions.vectors[position, layer]
    return Edit.project(task.model.survey, vector, norm=task.norm or "none", embedding=True)


__all__ = ["Arditi", "Candidate", "onset_on_baseline", "select_candidate"]
