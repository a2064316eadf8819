"""Benchmarks of lm-eval (EleutherAI's harness), built in or from a local YAML file, run by lm-eval itself."""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch

from excise.errors import InputError, MissingExtraError, ScorerError
from excise.evaluation.registry import Scorer, Subject
from excise.evaluation.requested import offered_with

_FORM = "lm-eval:TASK[,TASK…][,limit=N][,shots=N][,chat]; a task is a name, or the path of a YAML file"
_BATCH = 16


@dataclass(frozen=True)
class Plan:
    """What is asked of lm-eval.

    limit  questions per task; None: all
    shots  examples in the prompt; None: as the task says
    chat   through the model's chat template
    """

    tasks: tuple[str, ...]
    limit: int | None = None
    shots: int | None = None
    chat: bool = False

    @classmethod
    def parse(cls, text: str) -> Plan:
        """`TASK,TASK,limit=10,shots=2,chat`. Raises `InputError`."""
        tasks: list[str] = []
        numbers: dict[str, int] = {}
        chat = False
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            name, equals, value = part.partition("=")
            if equals and name in ("limit", "shots") and value.isdigit():
                numbers[name] = int(value)
            elif part == "chat":
                chat = True
            elif not equals:
                tasks.append(part)
            else:
                raise InputError(f"'{part}' is nothing that lm-eval is asked", hint=_FORM)
        if not tasks:
            raise InputError("no task for lm-eval", hint=_FORM)
        missing = [task for task in tasks if Path(task).suffix in (".yaml", ".yml") and not Path(task).is_file()]
        if missing:
            raise InputError(f"there is no file {missing[0]}", hint=_FORM)
        return cls(tuple(tasks), numbers.get("limit"), numbers.get("shots"), chat)


@offered_with("lm-eval", "TASK")
def lm_eval(argument: str) -> Scorer:
    """A scorer for tasks of lm-eval: by task, each of its metrics and their standard errors (`acc`, `acc_stderr`, …).

    A metric with another filter than `none` is `METRIC@FILTER`. The edit is live, since lm-eval is handed the very
    model; its random numbers do not touch the caller's. Raises `InputError` for an argument that cannot be read,
    `MissingExtraError` without lm-eval, `ScorerError` for a task that it does not know or cannot run.
    """
    plan = Plan.parse(argument)

    def score(subject: Subject) -> dict[str, Any]:
        return run(subject, plan)

    return score


def run(subject: Subject, plan: Plan) -> dict[str, Any]:
    """The results by task, JSON values alone."""
    try:
        import lm_eval as harness
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        raise MissingExtraError("lm-eval", extra="lm-eval") from error
    model = subject.model
    with _left_alone(), _quiet():
        try:
            built_in = any(Path(task).suffix not in (".yaml", ".yml") for task in plan.tasks)
            wrapped = HFLM(
                pretrained=model.hf_model,
                tokenizer=copy.deepcopy(model.tokenizer),  # it sets a padding token
                batch_size=subject.batch_size or _BATCH,
            )
            found = harness.simple_evaluate(
                model=wrapped,
                tasks=list(plan.tasks),
                num_fewshot=plan.shots,
                limit=plan.limit,
                apply_chat_template=plan.chat,
                system_instruction=subject.behavior.system if plan.chat else None,
                task_manager=TaskManager(include_defaults=built_in),
                bootstrap_iters=1000,
                log_samples=False,
            )
        except Exception as error:  # tasks are code and data of all kinds
            told = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise ScorerError(
                f"lm-eval cannot run {', '.join(plan.tasks)}: {told}",
                hint=f"`lm-eval ls tasks` lists those it knows; {_FORM}",
            ) from error
    results: Mapping[str, Mapping[str, Any]] = found["results"] if found else {}
    return {task: _metrics(values) for task, values in results.items()}


def _metrics(values: Mapping[str, Any]) -> dict[str, float]:
    metrics = {}
    for key, value in values.items():
        name, _, filtered = key.partition(",")
        if isinstance(value, Real) and filtered:
            metrics[name if filtered == "none" else f"{name}@{filtered}"] = float(value)
    return metrics


@contextmanager
def _left_alone() -> Iterator[None]:
    """lm-eval seeds every generator there is; the caller's go on where they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
