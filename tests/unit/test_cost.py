"""The cost of a run: formulas against tensors that are really kept, arithmetic that is consistent, and what is said."""

import io
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from excise import stages
from excise.activations import port_statistics
from excise.behaviors import Behavior, Splits
from excise.cli.progress import ProgressLine
from excise.config import RunConfig
from excise.model import EditableModel
from excise.model.ports import ports_of
from excise.progress import silent, tell
from excise.runs import RunDirectory
from excise.search.cost import forecast as forecast_module
from excise.search.cost import free, memory
from excise.search.cost.fit import micro_that_fits
from excise.search.cost.forecast import Forecast, forecast, moments, sentence
from excise.search.cost.sizes import PortSize, Sizes, sizes_of
from excise.search.cost.speed import Speed
from excise.search.cost.work import Estimate, Side, Workload
from excise.search.factors import Factors
from excise.search.gradients import frozen, recomputed
from excise.search.lessons import Lessons, learn
from excise.search.losses import divergences
from excise.search.units import unit_factors
from zoo.taught import SIZES, found, refusing, taught
from zoo.tiny import build, random_tokens

LARGE = Sizes(
    parameters=7_000_000_000,
    weight_bytes=14_000_000_000,
    hidden=4096,
    layers=32,
    vocabulary=128_000,
    itemsize=2,
    keys=2048,
    matrices=0,
    ports=tuple(PortSize(width, True, mlp=width > 4096) for width in (4096, 14336) * 32),
)
SPEED = Speed(start=0.01, token=1e-3, logit=1e-4, step=0.02, gradient=3.0, live=1.1, making=0.01, solve=1e-11, add=1e-9)
WORK = Workload(
    splits={"fit": (128, 128), "tune": (50, 50), "select": (50, 50), "report": (100, 100)},
    target=Side(30.0, 60, 40.0, 64),
    baseline=Side(25.0, 50, 50.0, 64),
    focus=0,
    positions=3,
    needed=1,
    method="polish",
    budget="quick",
    trials=None,
    seconds=None,
    bake=True,
    loading=2.0,
    proving=1.0,
    batch=lambda tokens, positions: 32,
)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> tuple[EditableModel, Behavior, Splits]:
    behavior = refusing(tmp_path_factory.mktemp("prompts"))
    return taught(), behavior, behavior.splits(SIZES)


@pytest.fixture(scope="module")
def lessons(room: tuple[EditableModel, Behavior, Splits]) -> Lessons:
    model, behavior, splits = room
    return learn(model, behavior, splits.fit)


@pytest.fixture(scope="module")
def factors(room: tuple[EditableModel, Behavior, Splits], lessons: Lessons) -> Factors:
    model, behavior, splits = room
    ports = ports_of(model.hf_model, model.survey).found
    statistics = port_statistics.collect(model, ports, baseline=lessons.baseline, target=lessons.target)
    made = unit_factors(model, ports, statistics, found(behavior, splits).per_layer(), kind="conditional", weight=0.3)
    for factor in made.factors:
        factor.left.requires_grad_(True)
        factor.right.requires_grad_(True)
    return made


def kept(model: EditableModel, factors: Factors, lessons: Lessons, rows: int, *, recompute: bool) -> int:
    """Bytes of what autograd keeps of a pass, weights and factors aside, each piece of memory once."""
    known = {each.untyped_storage().data_ptr() for each in (*model.hf_model.parameters(), *model.hf_model.buffers())}
    sizes: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # so that no address is used twice
        return tensor

    with frozen(model.hf_model), recomputed(model.layers) if recompute else nullcontext(), factors.live():
        known |= {each.untyped_storage().data_ptr() for factor in factors.factors for each in factor.rows()}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            divergences(model, lessons.reference, list(range(rows)))
    return sum(sizes.values())


@pytest.mark.parametrize("rows", [2, 4])
def test_what_gradients_keep_is_what_the_formula_says(
    room: tuple[EditableModel, Behavior, Splits], factors: Factors, lessons: Lessons, rows: int
) -> None:
    model, sizes = room[0], sizes_of(room[0])
    tokens = max(len(each.prompt) + len(each.response) for each in lessons.baseline[:rows]) - 1
    positions = max(len(each.response) for each in lessons.baseline[:rows])
    logits = rows * positions * sizes.vocabulary * 2 * 4  # the edited log-probabilities and the base's probabilities
    real = kept(model, factors, lessons, rows, recompute=False)
    assert real == pytest.approx(rows * tokens * memory.kept_per_token(sizes, tokens=tokens) + logits, rel=0.3)
    peak = memory.step_bytes(sizes, rows=rows, tokens=tokens, positions=positions)
    assert real < peak < 2.5 * real
    less = kept(model, factors, lessons, rows, recompute=True)
    inputs = rows * tokens * sizes.hidden * sizes.itemsize * sizes.layers
    assert less == pytest.approx(inputs + logits, rel=0.3)
    # what is kept, and the layer that is under way
    assert less < memory.step_bytes(sizes, rows=rows, tokens=tokens, positions=positions, recompute=True)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3_moe", "gpt_oss", "gemma3_text"])
def test_the_formula_holds_for_other_architectures(kind: str) -> None:
    model = EditableModel(build(kind))
    sizes = sizes_of(model)
    ids = random_tokens(rows=4)
    known = {each.untyped_storage().data_ptr() for each in model.hf_model.parameters()}
    found: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            alive.append(tensor)
        return tensor

    from excise.search.cost.speed import _factors

    with frozen(model.hf_model), _factors(model).live(), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model.hf_model(input_ids=ids, logits_to_keep=1)
    formula = ids.numel() * memory.kept_per_token(sizes, tokens=ids.shape[1])
    assert 0.6 < formula / sum(found.values()) < 1.5


def test_sizes_are_the_models(room: tuple[EditableModel, Behavior, Splits]) -> None:
    model = room[0]
    sizes = sizes_of(model)
    config = model.hf_model.config
    assert (sizes.hidden, sizes.layers, sizes.vocabulary) == (
        config.hidden_size,
        config.num_hidden_layers,
        config.vocab_size,
    )
    assert [port.width for port in sizes.ports if port.mlp] == [config.intermediate_size] * sizes.layers
    assert sizes.weight_bytes == 4 * sizes.parameters


@given(
    rows=some.integers(1, 12),
    tokens=some.integers(1, 500),
    positions=some.integers(1, 64),
    recompute=some.booleans(),
)
def test_more_of_anything_takes_no_less_memory(rows: int, tokens: int, positions: int, recompute: bool) -> None:
    def needed(rows: int, tokens: int, positions: int) -> int:
        return memory.step_bytes(LARGE, rows=rows, tokens=tokens, positions=positions, recompute=recompute)

    here = needed(rows, tokens, positions)
    assert here < min(needed(rows + 1, tokens, positions), needed(rows, tokens + 1, positions))
    assert here < needed(rows, tokens, positions + 1)
    assert memory.step_bytes(LARGE, rows=rows, tokens=tokens, positions=positions, recompute=True) <= here


@given(free=some.floats(1e6, 1e12), tokens=some.integers(10, 2000))
def test_the_largest_micro_batch_that_fits_is_taken(free: float, tokens: int) -> None:
    chosen = memory.choose_micro(LARGE, rows=12, tokens=tokens, positions=24, free=free)

    def needed(rows: int, *, recompute: bool) -> int:
        return memory.step_bytes(LARGE, rows=rows, tokens=tokens, positions=24, recompute=recompute)

    assert chosen.rows in (12, 6, 4, 3, 2, 1)
    assert needed(chosen.rows, recompute=chosen.recompute) <= free or chosen == memory.Micro(1, True)
    if chosen.recompute:
        assert needed(memory.SMALL, recompute=False) > free
    larger = [rows for rows in (2, 3, 4, 6, 12) if rows > chosen.rows]
    assert all(needed(rows, recompute=chosen.recompute) > free for rows in larger)


def test_a_polish_of_a_tiny_model_is_not_divided(
    room: tuple[EditableModel, Behavior, Splits], lessons: Lessons, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert micro_that_fits(room[0], lessons, rows=12) == memory.Micro(12, False)
    monkeypatch.setattr("excise.search.cost.fit.free_memory", lambda device: 0)
    assert micro_that_fits(room[0], lessons, rows=12) == memory.Micro(1, True)


def test_wide_inputs_are_sketched() -> None:
    narrow, wide = (replace(LARGE, ports=(PortSize(width, True, mlp=True),)) for width in (2048, 2049))
    assert memory.statistics_bytes(narrow) == 2 * 2048**2 * 4
    assert memory.statistics_bytes(wide) == 2 * 512 * 2049 * 4
    assert memory.collecting_bytes(wide) == 3 * memory.statistics_bytes(wide)


def seconds(work: Workload, speed: Speed = SPEED) -> dict[str, float]:
    return Estimate(LARGE, work, speed).stages()


def test_more_work_takes_longer() -> None:
    assert list(seconds(WORK)) == ["base", "find", "search", "report", "bake"]
    budgets = [sum(seconds(replace(WORK, budget=budget)).values()) for budget in ("quick", "standard", "thorough")]
    trials = [seconds(replace(WORK, trials=trials))["search"] for trials in (2, 4, 8, 16)]
    fewer = {name: (left // 2, right // 2) for name, (left, right) in WORK.splits.items()}
    for series in (budgets, trials):
        assert all(before < after for before, after in pairwise(series))
    assert sum(seconds(replace(WORK, splits=fewer)).values()) < sum(seconds(WORK).values())
    assert (
        seconds(replace(WORK, method="schedule", trials=10))["search"]
        < seconds(replace(WORK, method="schedule", trials=20))["search"]
    )
    for name in ("start", "token", "logit", "step", "gradient", "live", "making", "solve", "add"):
        slower = replace(SPEED, **{name: 2 * getattr(SPEED, name)})
        assert seconds(WORK, slower)["search"] > seconds(WORK)["search"]


def test_a_search_that_is_given_a_time_takes_that() -> None:
    assert seconds(replace(WORK, seconds=77.0))["search"] == 77.0
    assert "bake" not in seconds(replace(WORK, bake=False))


def test_longer_rows_need_more_at_every_moment() -> None:
    here = moments(LARGE, WORK, free=1e15)
    longer = moments(LARGE, replace(WORK, baseline=Side(60.0, 200, 50.0, 64)), free=1e15)
    assert {"find", "trial", "confirmation", "report", "bake", "statistics", "polish"} == set(here)
    assert all(longer[name].device >= each.device for name, each in here.items())
    assert "polish" not in moments(LARGE, replace(WORK, method="schedule"), free=1e15)


def test_a_forecast_leaves_no_trace_and_holds_what_there_is(room: tuple[EditableModel, Behavior, Splits]) -> None:
    model, behavior, splits = room
    made = forecast(model, behavior, splits, budget="quick", spent={"load": 0.5, "prove": 0.25})
    assert made.bytes >= free.resident()
    assert made.bytes == made.host_bytes
    assert made.seconds == pytest.approx(sum(made.stages.values()))
    assert made.stages["load"] == 0.5
    assert all(parameter.requires_grad for parameter in model.hf_model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.hf_model.modules())
    assert model.chat("zig a1") == "no way"
    search = forecast(model, behavior, splits, budget="quick", stages=("find", "search"))
    assert set(search.stages) == {"find", "search"}
    assert "bake" not in search.moments


def test_what_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    made = Forecast(bytes=3_100_000_000, host_bytes=900_000_000, seconds=430.0, stages={}, moments={})
    assert sentence(made, cuda=False) == "needs about 3.1 GB of memory and 7 minutes on this device"
    assert sentence(made, cuda=True) == (
        "needs about 3.1 GB of GPU memory, 900 MB of main memory and 7 minutes on this device"
    )
    stream = io.StringIO()
    with ProgressLine(stream) as progress:
        tell(progress, "needs about nothing")
    assert stream.getvalue() == "needs about nothing\n"
    tell(silent, "nobody hears this")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_keeps_its_forecast_and_goes_on_without_one(
    room: tuple[EditableModel, Behavior, Splits], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    def unforeseen(*_: object, **__: object) -> Forecast:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model, behavior, splits = room
    heard: list[str] = []

    class Listener:
        def __call__(self, label: str, done: int, total: int, unit: str = "") -> None: ...

        def tell(self, sentence: str) -> None:
            heard.append(sentence)

    if fails:
        monkeypatch.setattr(forecast_module, "forecast", unforeseen)
    config = RunConfig.resolve(given={"model": "tiny", "budget": "quick", "bake": False})
    with RunDirectory.open(tmp_path / "run", config={}) as directory:
        job = stages.Job(config, behavior, splits, model, directory, Listener())
        for _ in range(2):  # said once
            stages.forecast(job)
        kept = job.stage("forecast").load()
    assert (kept is None) == fails
    assert len(heard) == (0 if fails else 1)


def test_memory_of_a_gpu_holds_what_pytorch_keeps_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def says(value: object):  # type: ignore[no-untyped-def]
        return lambda *_: value

    for name, value in {
        "mem_get_info": (5000, 9000),
        "memory_reserved": 3000,
        "memory_allocated": 1000,
        "max_memory_allocated": 2500,
        "device_count": 2,
    }.items():
        monkeypatch.setattr(torch.cuda, name, says(value))
    device = torch.device("cuda", 0)
    assert free.free_memory(device) == 5000 + 2000
    assert free.taken_memory(device) == 2000
    assert free.peak_memory(device) == 5000
    assert free.peak_memory(torch.device("cpu")) == free.peak_resident()


def test_memory_that_a_container_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free, "_CONTAINER", tmp_path)
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 50000\n")
    assert free.free_memory(torch.device("cpu")) == 350_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free.free_memory(torch.device("cpu")) > 350_000
    assert 0 < free.taken_memory(torch.device("cpu")) <= free.peak_resident() * 1.01
