"""The last stage of a run that measures: the report split, read once, with controls, comparisons and the seal."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from excise.behaviors import Behavior, Prompt, PromptSet
from excise.behaviors.splits import SIDES, Side
from excise.edit import Edit, random_control
from excise.edit.digest import digest
from excise.evaluation import Rate, Reference, Scores, behavior_rate_many, evaluate
from excise.evaluation.comparison import compare
from excise.evaluation.keeping import compare_kept
from excise.evaluation.lengths import DRAWN_PROMPTS, DRAWS, report_tokens
from excise.evaluation.paired import bootstrap_mean
from excise.evaluation.reference import Divergence
from excise.model.generate import Response
from excise.runs import key, writing
from excise.seal import read_report
from excise.stages import Job


def validate(job: Job, edit: Edit, *, labellers: Sequence[str] = ()) -> dict[str, Any]:
    """Before, after, their comparison, and controls on the report split, which is read here and nowhere else.

    Every read is logged (`seal`). Labels and divergence of every prompt are kept in the stage's `responses.jsonl`.

    labellers  that label responses too, by name; registered scorers are asked before and after, not of controls
    """
    tokens = report_tokens(job.behavior, job.config.report_tokens)
    both = job.config.thinking == "both"
    settings = {"tokens": tokens, **({"thinking": "both"} if both else {})}
    settings |= {"score": sorted(job.config.score)} if job.config.score else {}
    stage = job.stage("report", edit=digest(edit), **settings)
    identity = job.model.identity
    reads = read_report(
        job.directory.path,
        digest=job.splits.digest()["report"],
        model=key([identity.config_hash, identity.checkpoint_hash]),
        edit=digest(edit),
        command="excise run",
        settings=settings,
    )
    if not stage.done:
        behaviors = {"off": job.behavior}
        if both and _thinks(job):
            behaviors["on"] = job.behavior.with_options(thinking=True)
        found: dict[str, Any] = {}
        for name, behavior in behaviors.items():
            measured = _measured(job, behavior, edit, tokens=tokens, labellers=labellers, controls=name == "off")
            path = stage.path("responses.jsonl" if name == "off" else "responses-thinking.jsonl")
            save_responses(path, job.splits.report, {"before": measured.before, "after": measured.after})
            if name == "off":
                found |= measured.to_json(seed=job.config.seed)
            else:
                found["thinking"] = measured.to_json(seed=job.config.seed)
        stage.save(found)
    if both and not _thinks(job):
        job.warnings.append("thinking cannot be switched on: the model's chat template is the same with and without")
    return {**stage.load(), "seal": reads.to_json()}


@dataclass(frozen=True)
class _Measured:
    """The edit and the base model on the report split.

    controls   JSON values, empty where there are none
    most_fall  by how much the rate on prompts to keep may fall
    """

    before: Scores
    after: Scores
    controls: Mapping[str, Any]
    most_fall: float

    def to_json(self, *, seed: int) -> dict[str, Any]:
        compared = compare(self.before.labels, self.after.labels, seed=seed)
        kept = compare_kept(self.before.keep_labels, self.after.keep_labels, most_fall=self.most_fall, seed=seed)
        kl = self.after.divergence
        return {
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "comparison": {
                "labellers": {name: each.to_json() for name, each in compared.items()},
                **({"keep": kept} if kept else {}),
                "kl_first_interval": list(bootstrap_mean(kl.first_each, seed=seed)),
                "kl_sequence_interval": list(bootstrap_mean(kl.sequence_each, seed=seed)),
            },
            **({"controls": dict(self.controls)} if self.controls else {}),
        }


def _measured(
    job: Job, behavior: Behavior, edit: Edit, *, tokens: int, labellers: Sequence[str], controls: bool
) -> _Measured:
    reference = Reference.measure(
        job.model, job.splits.report.baseline, behavior, batch_size=job.config.batch_size, progress=job.progress
    )

    def measured(change: Edit | None, *, whole: bool = True) -> Scores:
        return evaluate(
            job.model,
            behavior,
            edit=change,
            split="report",
            splits=job.splits,
            reference=reference,
            target_tokens=tokens if whole else None,
            batch_size=job.config.batch_size,
            baseline=whole,
            labellers=labellers if whole else (),
            further=whole,
            progress=job.progress,
        )

    before, after = measured(None), measured(edit)
    if not controls:
        return _Measured(before, after, {}, job.config.max_keep_fall)
    no_op = measured(Edit.empty(job.model.survey), whole=False)
    random = measured(random_control(edit, job.model.survey, seed=job.config.seed), whole=False)
    drawn = {**random.to_json(), **_draws(job, behavior, edit, reference, random)}
    return _Measured(before, after, {"no_op": no_op.to_json(), "random_direction": drawn}, job.config.max_keep_fall)


def _draws(job: Job, behavior: Behavior, edit: Edit, reference: Reference, first: Scores) -> dict[str, Any]:
    """What every random direction does, and how far they are apart.

    The further ones share batches where they can, and are tried on the first prompts of each side alone.
    """
    seeds = [job.config.seed + draw for draw in range(DRAWS)]
    edits = [random_control(edit, job.model.survey, seed=seed) for seed in seeds[1:]]
    some = job.splits.report.target[:DRAWN_PROMPTS]
    shorter = reference.first(DRAWN_PROMPTS)
    rates = behavior_rate_many(
        job.model, some, behavior, edits, batch_size=job.config.batch_size, progress=job.progress
    )
    divergences = shorter.compare_many(job.model, edits, progress=job.progress)
    whole = _draw(seeds[0], first.rate, first.divergence, len(reference.prompts))
    others = [
        _draw(seed, result.rate, divergence, len(shorter.prompts))
        for seed, result, divergence in zip(seeds[1:], rates, divergences, strict=True)
    ]
    draws = [whole, *others]
    spread = {
        name: [min(values), max(values)] for name in ("rate", "kl_first") if (values := [each[name] for each in draws])
    }
    return {"draws": draws, "spread": spread}


def _draw(seed: int, rate: Rate, divergence: Divergence, baselines: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "prompts": [rate.total, baselines],
        "rate": rate.value,
        "rate_interval": list(rate.interval),
        "kl_first": divergence.first.mean,
        "kl_sequence": divergence.sequence.mean,
    }


def _thinks(job: Job) -> bool:
    """Whether a prompt looks different with thinking switched on."""
    prompt = job.splits.report.target[0]
    with_, without = (job.model.template.render(prompt, thinking=thinking) for thinking in (True, False))
    return with_ != without


def save_responses(path: Path, prompts: PromptSet, scores: Mapping[str, Scores]) -> None:
    """One JSON line per prompt: the prompt, and for each column of scores the response and all that is known of it.

    Lines of target prompts have labels, onset and whether the thinking ended; those of prompts to keep the same but the
    onset; those of baseline prompts the divergence.
    """
    with writing(path) as scratch, scratch.open("w", encoding="utf-8") as file:
        for side in SIDES:
            asked: Sequence[str] = getattr(prompts, side)
            for index, prompt in enumerate(asked):
                row: dict[str, Any] = {"side": side, **Prompt.of(prompt).to_json()}
                details: dict[str, Any] = {}
                for name, each in scores.items():
                    responses = _responses(each, side)
                    row[name] = responses[index].text if responses else None
                    details[name] = _DETAILS[side](each, index)
                file.write(json.dumps({**row, "measured": details}, ensure_ascii=False) + "\n")


def _responses(scores: Scores, side: Side) -> Sequence[Response]:
    return {"target": scores.responses, "baseline": scores.baseline_responses, "keep": scores.keep_responses}[side]


def _target_details(scores: Scores, index: int) -> dict[str, Any]:
    return {
        "labels": {name: labels[index] for name, labels in scores.labels.items()},
        "onset": None if scores.positions is None else scores.positions.onsets[index],
        "tokens": len(scores.responses[index].tokens),
        "finished": scores.responses[index].finished,
        "unfinished_thinking": scores.unfinished[index],
    }


def _baseline_details(scores: Scores, index: int) -> dict[str, Any]:
    label = scores.baseline_labels[index] if scores.baseline_labels else None
    return {
        "labels": {} if label is None else {"markers": label},
        "kl_first": scores.divergence.first_each[index],
        "kl_sequence": scores.divergence.sequence_each[index],
    }


def _keep_details(scores: Scores, index: int) -> dict[str, Any]:
    if not scores.keep_responses:
        return {}
    return {
        "labels": {name: labels[index] for name, labels in scores.keep_labels.items()},
        "tokens": len(scores.keep_responses[index].tokens),
        "finished": scores.keep_responses[index].finished,
        "unfinished_thinking": scores.keep_unfinished[index],
    }


_DETAILS: Mapping[Side, Callable[[Scores, int], dict[str, Any]]] = {
    "target": _target_details,
    "baseline": _baseline_details,
    "keep": _keep_details,
}
