"""How fast a loaded model is here and now: a few passes and a few tokens, about a second in all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from excise.edit import Edit
from excise.model import EditableModel
from excise.model.forward import last_logits, pad_id, pad_left, padding_is_exact
from excise.model.generate import Response, generate_from_tokens
from excise.model.ports import ports_of
from excise.model.precision import is_out_of_memory
from excise.model.weights import compute_device
from excise.search.factors import Factor, Factors
from excise.search.gradients import frozen

SECONDS = 1.2
"""What the timing may take, as far as single passes allow."""

_MOST_ROWS = 8
_POSITIONS = 16
_FEWEST_TOKENS = 4
_ORDER = 512
_LEAST, _OFTENEST = 0.12, 20  # seconds that short work is repeated for, so that it has its share of a busy machine


@dataclass(frozen=True)
class Speed:
    """Seconds.

    start     of a pass, however little it reads
    token     more for each token that it reads
    logit     more for each token whose logits are compared with others, in fp32
    step      of generating one more token for a batch, beside what its rows cost as tokens read
    live      how many times as long a pass takes while an edit is live
    gradient  and with gradients for one
    making    of making an edit
    solve     of solving n linear equations, for each n³; a small part of it is a product
    add       of adding to a sum in fp64, for each number
    """

    start: float
    token: float
    logit: float
    step: float
    gradient: float
    live: float
    making: float
    solve: float
    add: float


@dataclass(frozen=True)
class Sampled:
    """Responses to some prompts, cut short where the time was over.

    most  how many tokens each could have had
    """

    responses: Sequence[Response]
    most: int

    def lengths(self, longest: int) -> list[int]:
        """Tokens of each response; one that was cut short is taken to be as long as any may be."""
        cut = [not each.finished and len(each.tokens) >= self.most for each in self.responses]
        return [
            longest if is_cut else min(len(each.tokens), longest)
            for each, is_cut in zip(self.responses, cut, strict=True)
        ]


def measure(
    model: EditableModel,
    target: Sequence[Sequence[int]],
    baseline: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    stop: Callable[[str], bool] | None = None,
) -> tuple[Speed, Sampled, Sampled]:
    """Time a model without any edit live, on some rendered prompts of both sides; and what it answers to them.

    stop  whether the rest of a response to a target prompt is never generated
    """
    equal = not padding_is_exact(model)  # found now, rather than while a clock runs
    least = _seconds(model, lambda: _pass(model, [baseline[0][:1]], 1))
    one = _seconds(model, lambda: _pass(model, baseline[:1], 1))
    rows = max(1, min(_MOST_ROWS, len(baseline), len(target), int(SECONDS / 8 / max(one, 1e-9))))
    some = [baseline[0]] * rows if equal else list(baseline[:rows])
    tokens = rows * max(len(row) for row in some)
    positions = min(_POSITIONS, *(len(row) for row in some))
    read = one if rows == 1 else _seconds(model, lambda: _pass(model, some, 1))
    compared = _seconds(model, lambda: _compare(_pass(model, some, positions)))
    token = max(read - least, 0.2 * read) / max(tokens - 1, 1)
    start = max(least - token, 0.0)
    logit = max(compared - read, 0.0) / (rows * positions)
    making, live = _edited(model, lambda: _pass(model, some, 1))
    few = some[: max(1, rows // 2)]
    usual = start + len(few) * (max(len(row) for row in few) * token + positions * logit)
    most = max(_FEWEST_TOKENS, min(max_tokens, int(SECONDS / 4 / max(least, 1e-9))))
    generate_from_tokens(model, [baseline[0]], max_tokens=2)  # finds out whether rows can leave a batch
    answers, step = _generated(model, list(baseline[:rows]), most, None, start, token)
    shown, other = _generated(model, list(target[:rows]), most, stop, start, token)
    solve, add = _algebra()
    speed = Speed(
        start=start,
        token=token,
        logit=logit,
        step=(step + other) / 2,
        gradient=_gradient_seconds(model, few, positions, otherwise=3 * usual) / usual,
        live=max(live / read, 1.0),
        making=making,
        solve=solve,
        add=add,
    )
    return speed, Sampled(shown, most), Sampled(answers, most)


def _seconds(model: EditableModel, work: Callable[[], object]) -> float:
    """Of some work, on average over as many times as it takes to be sure, beside the first one where that is short."""
    total, count, first = 0.0, 0, 0.0
    while total < _LEAST and count <= _OFTENEST:
        _wait(model)
        began = time.perf_counter()
        work()
        _wait(model)
        taken = time.perf_counter() - began
        if not count:
            first = taken
        total, count = total + taken, count + 1
    return total if count == 1 else (total - first) / (count - 1)


def _edited(model: EditableModel, work: Callable[[], object]) -> tuple[float, float]:
    """Of making an edit of every writer, and of work while it is live."""
    began = time.perf_counter()
    edit = Edit.project(model.survey, torch.ones(model.hidden))
    making = time.perf_counter() - began
    with model.edited(edit, force=True):
        return making, _seconds(model, work)


def _wait(model: EditableModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def _pass(model: EditableModel, rows: Sequence[Sequence[int]], positions: int) -> Tensor:
    return last_logits(model, pad_left(rows, pad_id(model), model.device), positions)


def _compare(logits: Tensor) -> float:
    """About what a divergence does with logits."""
    base, edited = (each.float().log_softmax(dim=-1) for each in (logits, logits.flip(0)))
    return float((base.exp() * torch.where(base > -torch.inf, base - edited, 0.0)).sum())


def _generated(
    model: EditableModel,
    rows: list[Sequence[int]],
    most: int,
    stop: Callable[[str], bool] | None,
    start: float,
    token: float,
) -> tuple[list[Response], float]:
    """Responses, and the overhead of one step of generating them."""
    _wait(model)
    began = time.perf_counter()
    responses = generate_from_tokens(model, rows, max_tokens=most, batch_size=len(rows), stop=stop)
    _wait(model)
    taken = time.perf_counter() - began
    steps = max(max(len(each.tokens) for each in responses) - 1, 1)
    reading = start + token * len(rows) * max(len(row) for row in rows)
    writing = token * sum(len(each.tokens) for each in responses)
    return responses, max((taken - reading - writing) / steps, start)


def _gradient_seconds(
    model: EditableModel, rows: Sequence[Sequence[int]], positions: int, *, otherwise: float
) -> float:
    """Of a pass with gradients for a factor at every writer, as a polish makes them."""
    factors = _factors(model)

    def descend() -> None:
        batch = pad_left(rows, pad_id(model), model.device)
        with factors.live():
            logits = last_logits(model, batch, positions, gradients=True).float().log_softmax(dim=-1)
            (logits.exp().detach() * logits).sum().backward()

    try:
        with frozen(model.hf_model):
            return _seconds(model, descend)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    return otherwise


def _factors(model: EditableModel) -> Factors:
    """Of an edit that changes nothing; each is a projection, which costs what any other factor does."""
    found = []
    for port in ports_of(model.hf_model, model.survey).found:
        device = compute_device(model.hf_model.get_submodule(port.module))
        left = torch.ones(1, model.hidden, device=device, requires_grad=True)
        right = torch.zeros(1, 1, device=device, requires_grad=True)
        found.append(Factor(replace(port, reads="projection"), left, right, None, 1.0))
    return Factors(model, found)


def _algebra() -> tuple[float, float]:
    """Of solving, for each n³, and of adding, for each number; on the CPU, where statistics are."""
    matrix = torch.eye(_ORDER, dtype=torch.float64) + 1e-3
    addend = torch.ones(2 * _ORDER, 2 * _ORDER)
    total = addend.double()
    times = []
    for work in (lambda: torch.linalg.solve(matrix, matrix[:, :1]), lambda: total.add_(addend.double())):
        work()
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return times[0] / _ORDER**3, times[1] / total.numel()
