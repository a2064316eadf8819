"""The polish on a tiny taught model: right gradients, one step however it is split or stopped, nothing left behind."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from excise.activations import port_statistics
from excise.activations.port_statistics import Exchange, PortStatistics
from excise.behaviors import Behavior, Splits
from excise.directions import Directions
from excise.edit import LowRank, Projection
from excise.errors import ModelError
from excise.model import EditableModel
from excise.model.ports import Port, ports_of, read_directions
from excise.model.weights import is_product
from excise.search import polish as polish_module
from excise.search import search
from excise.search.closed_form import conditional
from excise.search.factors import Factors
from excise.search.gradients import frozen
from excise.search.lessons import Lessons, answers, learn, openings
from excise.search.losses import answer_loss, behavior_loss, divergences
from excise.search.polish import Phase, Polish, Recipe
from excise.search.units import unit_factors
from zoo.taught import SIZES, found, refusing, taught
from zoo.tiny import build, random_tokens

RECIPE = Recipe((Phase(0.3, 3), Phase(1.0, 2)), rows=6)


@dataclass(frozen=True)
class Classroom:
    """Everything a polish needs."""

    model: EditableModel
    behavior: Behavior
    splits: Splits
    directions: Directions
    lessons: Lessons
    ports: tuple[Port, ...]
    statistics: dict[str, PortStatistics]
    answers: list[Exchange]

    def factors(self) -> Factors:
        return unit_factors(
            self.model, self.ports, self.statistics, self.directions.per_layer(), kind="conditional", weight=0.3
        )

    def polish(self, **changes: object) -> Polish:
        return Polish(self.model, self.factors(), self.lessons, self.answers, RECIPE, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Classroom]:
    model, behavior = taught(), refusing(tmp_path_factory.mktemp("prompts"))
    before = {name: value.clone() for name, value in model.hf_model.state_dict().items()}
    splits = behavior.splits(SIZES)
    directions = found(behavior, splits)
    lessons = learn(model, behavior, splits.fit)
    ports = ports_of(model.hf_model, model.survey).found
    strong = _strong(model, directions)
    begun = openings(model, lessons, strong)
    statistics = port_statistics.collect(model, ports, baseline=lessons.baseline, target=[*lessons.target, *begun])
    form = unit_factors(model, ports, statistics, directions.per_layer(), kind="conditional", weight=3.0).edit()
    learned = answers(model, behavior, lessons, [form, strong])
    yield Classroom(model, behavior, splits, directions, lessons, ports, statistics, learned)
    after = model.hf_model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(parameter.requires_grad for parameter in model.hf_model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.hf_model.modules())


def _strong(model: EditableModel, directions: Directions):  # type: ignore[no-untyped-def]
    from excise.edit import Edit

    return Edit.project(model.survey, directions.per_layer(), 1.0)


def test_lessons_come_from_the_fit_split_and_show_the_behavior(room: Classroom) -> None:
    assert set(room.lessons.names) <= set(room.splits.fit.target)
    assert len(room.lessons.names) == len(room.splits.fit.target)
    assert room.lessons.focus == 0
    assert len(room.lessons.baseline) == len(room.splits.fit.baseline)
    assert room.answers


def test_the_closed_form_is_the_least_squares_optimum(room: Classroom) -> None:
    """Against a generic solver on the weighted rows themselves."""
    generator = torch.Generator().manual_seed(0)
    baseline, keys = torch.randn(200, 10, generator=generator), torch.randn(50, 10, generator=generator) + 0.5
    weight, read, usual = 0.7, torch.randn(1, 10, generator=generator), torch.randn(10, generator=generator)
    from excise.activations.second_moments import Ridge, SecondMomentAccumulator

    moments = []
    for rows in (baseline, keys):
        accumulator = SecondMomentAccumulator(10)
        accumulator.update(rows)
        moments.append(accumulator.result())
    ridge = Ridge(moments[0], ridge=0.01)
    statistics = PortStatistics(moments[0], moments[1], keys.mean(dim=0), usual)
    found_factor = conditional(statistics, ridge, read, weight=weight)
    rows = torch.cat([baseline / 200**0.5, ridge.rho**0.5 * torch.eye(10), (weight / 50) ** 0.5 * keys])
    goal = torch.cat([torch.zeros(210), (weight / 50) ** 0.5 * (keys @ read[0] - usual @ read[0])])
    expected = torch.linalg.lstsq(rows, goal[:, None]).solution[:, 0]
    torch.testing.assert_close(found_factor[0], expected, rtol=1e-3, atol=1e-4)


def test_statistics_survive_the_disk_and_are_refused_under_another_key(room: Classroom, tmp_path: Path) -> None:
    path = tmp_path / "statistics.safetensors"
    port_statistics.save(room.statistics, path, key="one")
    assert port_statistics.load(path, key="other") is None
    again = port_statistics.load(path, key="one")
    assert again is not None
    assert again.keys() == room.statistics.keys()
    for name, each in room.statistics.items():
        assert each.baseline.matrix is not None
        assert torch.equal(again[name].baseline.matrix, each.baseline.matrix)
        assert torch.equal(again[name].key_mean, each.key_mean)


def test_statistics_are_of_the_tokens_that_they_name(room: Classroom) -> None:
    """Row by row, without padding."""
    port = room.ports[1]
    name, module = port.writer.parameter, room.model.hf_model.get_submodule(port.module)
    every, near = [], []
    for row in room.lessons.baseline:
        seen: list[torch.Tensor] = []
        handle = module.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0][0].detach()))
        with torch.no_grad():
            room.model.hf_model(input_ids=torch.tensor([[*row.prompt, *row.response]]))
        handle.remove()
        every.append(seen[0])
        decided = len(row.prompt) + row.focus
        near.append(seen[0][decided - 3 : decided + 8])
    tokens = torch.cat(every)
    moment = room.statistics[name].baseline
    assert moment.count == len(tokens)
    torch.testing.assert_close(moment.matrix, tokens.T @ tokens / len(tokens), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(room.statistics[name].baseline_mean, torch.cat(near).mean(dim=0), rtol=1e-3, atol=1e-4)


def test_what_is_live_while_training_is_the_edit_that_comes_out(room: Classroom) -> None:
    factors = room.factors()
    ids = random_tokens()
    with torch.no_grad():
        with factors.live():
            training = room.model.hf_model(input_ids=ids).logits
        with room.model.edited(factors.edit()):
            edited = room.model.hf_model(input_ids=ids).logits
        base = room.model.hf_model(input_ids=ids).logits
    torch.testing.assert_close(training, edited, rtol=1e-4, atol=1e-4)
    assert (base - edited).abs().max() > 1e-2


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["answer", "behavior", "divergence"])
def test_gradients_are_finite_differences(room: Classroom, side: str, kind: str) -> None:
    factors = room.factors()
    values = [getattr(factor, side) for factor in factors.factors]
    losses = {
        "answer": lambda: answer_loss(room.model, room.answers[:4], window=24).sum(),
        "behavior": lambda: behavior_loss(room.model, room.lessons.target[:3]).sum(),
        "divergence": lambda: sum(each.sum() for each in divergences(room.model, room.lessons.reference, [0, 1, 2])),
    }

    def loss() -> torch.Tensor:
        with factors.live():
            return losses[kind]()  # type: ignore[no-any-return, no-untyped-call]

    for value in values:
        value.requires_grad_(True)
    gradients = torch.autograd.grad(loss(), values)
    generator = torch.Generator().manual_seed(0)
    steps = [torch.randn(value.shape, generator=generator) * float(value.detach().norm()) * 2e-3 for value in values]
    ends = []
    with torch.no_grad():
        for sign in (1, -2):
            for value, step in zip(values, steps, strict=True):
                value.add_(sign * step)
            ends.append(float(loss()))
    expected = ends[0] - ends[1]
    slope = 2 * sum(float((gradient * step).sum()) for gradient, step in zip(gradients, steps, strict=True))
    assert slope == pytest.approx(expected, rel=0.05, abs=2e-4)


def test_a_step_is_the_same_in_micro_batches_and_with_recomputed_activations(room: Classroom) -> None:
    whole = [each.edit for each in room.polish().run()]
    for changes in ({"micro": 2}, {"recompute": True}):
        parts = [each.edit for each in room.polish(**changes).run()]
        for one, other in zip(whole, parts, strict=True):
            for mine, theirs in zip(one.sites, other.sites, strict=True):
                change, same = mine.changes[0], theirs.changes[0]
                assert isinstance(change, LowRank)
                assert isinstance(same, LowRank)
                torch.testing.assert_close(change.right, same.right, rtol=2e-2, atol=1e-3)


def test_a_polish_that_was_stopped_ends_as_if_it_had_not_been(room: Classroom, tmp_path: Path) -> None:
    whole = list(room.polish().run())
    path = tmp_path / "polish.pt"
    stopped = room.polish(checkpoint=path, progress=_stop_after(4))
    with pytest.raises(KeyboardInterrupt):
        list(stopped.run())
    again = list(room.polish(checkpoint=path).run())
    assert [each.step for each in again] == [3, 5]
    for one, other in zip(whole, again, strict=True):
        assert one.behavior == other.behavior
        for mine, theirs in zip(one.edit.sites, other.edit.sites, strict=True):
            assert torch.equal(mine.changes[0].right, theirs.changes[0].right)  # type: ignore[union-attr]


@pytest.mark.parametrize(("most", "left"), [(4, (3, False)), (2, (2, False)), (1, (1, True))])
def test_a_step_that_does_not_fit_is_done_again_with_less(
    room: Classroom, monkeypatch: pytest.MonkeyPatch, most: int, left: tuple[int, bool]
) -> None:
    """Gradients from before memory ran out, in the middle of a step, must not count twice."""
    whole = [each.edit for each in room.polish().run()]
    real, refused = polish_module.divergences, []

    def short_of_memory(model: object, reference: object, indices: list[int]) -> object:
        if len(indices) > most:
            refused.append(len(indices))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return real(model, reference, indices)  # type: ignore[arg-type]

    monkeypatch.setattr(polish_module, "divergences", short_of_memory)
    polish = room.polish()
    parts = [each.edit for each in polish.run()]
    assert (polish.micro, polish.recompute) == left
    assert len(refused) == {4: 1, 2: 2, 1: 4}[most]  # 6; 6, 3; 6, 3, 2 and 2 recomputed; never again after that
    for one, other in zip(whole, parts, strict=True):
        for mine, theirs in zip(one.sites, other.sites, strict=True):
            torch.testing.assert_close(mine.changes[0].right, theirs.changes[0].right, rtol=2e-2, atol=1e-3)  # type: ignore[union-attr]


def test_where_not_one_row_fits_an_error_says_what_to_do(room: Classroom, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object, **__: object) -> object:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte")

    monkeypatch.setattr(polish_module, "behavior_loss", no_memory)
    with pytest.raises(ModelError, match="not even one row"):
        list(room.polish().run())


def test_any_other_error_of_a_step_is_not_tried_again(room: Classroom, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object, **__: object) -> object:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(polish_module, "behavior_loss", wrong)
    polish = room.polish()
    with pytest.raises(RuntimeError, match="shapes"):
        list(polish.run())
    assert polish.micro == 12


def test_the_head_reads_its_input_in_one_piece(room: Classroom) -> None:
    """Else PyTorch copies the weight of a head without gradients for every row."""
    seen: list[bool] = []
    head = room.model.hf_model.get_output_embeddings()
    with frozen(room.model.hf_model):
        last = head.register_forward_pre_hook(lambda _, args: seen.append(args[0].is_contiguous()))
        room.model.hf_model(input_ids=random_tokens(), logits_to_keep=2)
    last.remove()
    assert seen == [True]


def test_what_fits_is_remembered_with_the_polish(room: Classroom, tmp_path: Path) -> None:
    path = tmp_path / "polish.pt"
    with pytest.raises(KeyboardInterrupt):
        list(room.polish(checkpoint=path, micro=2, recompute=True, progress=_stop_after(2)).run())
    again = room.polish(checkpoint=path)
    assert (again.micro, again.recompute) == (2, True)


def _stop_after(steps: int):  # type: ignore[no-untyped-def]
    def progress(label: str, done: int, total: int, unit: str) -> None:
        if label == "polishing" and done == steps:
            raise KeyboardInterrupt

    return progress


def test_a_writer_changes_no_more_than_the_cap(room: Classroom, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("excise.search.polish.LARGEST_CHANGE", 0.01)
    *_, last = room.polish().run()
    for site in last.edit.sites:
        (change,) = site.changes
        assert isinstance(change, LowRank)
        weight = room.model.hf_model.get_parameter(site.writer.parameter)
        assert (change.left @ change.right).norm() <= 0.0101 * weight.norm()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("llama", {"attention": "input", "mlp": "input"}),
        ("gpt2", {"attention": "input", "mlp": "input"}),
        ("qwen3_moe", {"attention": "input", "expert": "output"}),
        ("gpt_oss", {"attention": "input", "expert": "projection"}),
    ],
)
def test_every_writer_has_the_port_that_its_kind_allows(kind: str, expected: dict[str, str]) -> None:
    model = EditableModel(build(kind))
    ports = ports_of(model.hf_model, model.survey)
    assert {port.writer.role: port.reads for port in ports.found} == expected
    assert not ports.left_out
    assert len(ports.found) == sum(writer.role != "embedding" for writer in model.survey.writers)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_what_a_direction_reads_is_had_from_the_weight_or_through_the_module(kind: str) -> None:
    model = EditableModel(build(kind))
    port = next(port for port in ports_of(model.hf_model, model.survey).found if port.reads == "input")
    module = model.hf_model.get_submodule(port.module)
    assert is_product(module)
    directions = torch.randn(2, model.hidden)
    read = read_directions(model.hf_model, port, directions)
    inputs = torch.randn(5, read.shape[-1])
    bias = module(torch.zeros(1, read.shape[-1]))
    torch.testing.assert_close((module(inputs) - bias) @ directions.T, inputs @ read.T, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss", "gemma3_text", "gpt2"])
def test_factors_of_other_architectures_are_the_edit_that_comes_out(kind: str) -> None:
    """Experts, biases, post-norms and transposed weights, with statistics of random tokens."""
    model = EditableModel(build(kind))
    ports = ports_of(model.hf_model, model.survey).found
    rows = [Exchange(tuple(ids[:12].tolist()), tuple(ids[12:].tolist())) for ids in random_tokens(rows=6)]
    statistics = port_statistics.collect(model, ports, baseline=rows[:3], target=rows[3:])
    from excise.directions import Everywhere

    factors = unit_factors(
        model, ports, statistics, Everywhere(torch.randn(model.hidden)), kind="conditional", weight=3.0
    )
    edit, ids = factors.edit(), random_tokens()
    with torch.no_grad():
        with factors.live():
            training = model.hf_model(input_ids=ids).logits
        with model.edited(edit):
            edited = model.hf_model(input_ids=ids).logits
        base = model.hf_model(input_ids=ids).logits
    assert (base - edited).abs().max() > 1e-3
    torch.testing.assert_close(training, edited, rtol=1e-3, atol=1e-3)
    kinds = {site.writer.role: type(site.changes[0]) for site in edit.sites}
    assert kinds["attention"] is LowRank
    assert kinds.get("expert", LowRank) is (Projection if kind == "gpt_oss" else LowRank)


def test_searches_share_statistics_where_a_folder_is_named(
    room: Classroom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def searched(name: str, seed: int) -> float:
        found = search(
            room.model,
            room.behavior,
            splits=room.splits,
            directions=room.directions,
            budget="quick",
            trials=1,
            seed=seed,
            directory=tmp_path / name,
        )
        return found.history[0].measured.kl_sequence

    monkeypatch.setenv("EXCISE_CACHE", str(tmp_path / "shared"))
    first = searched("one", 0)
    assert [each.name.partition("-")[0] for each in (tmp_path / "shared").iterdir()] == ["statistics"]
    assert not list((tmp_path / "one").glob("statistics-*"))
    monkeypatch.delattr(port_statistics, "collect")
    assert searched("two", 1) == first


def test_the_search_removes_the_behavior_and_resumes(room: Classroom, tmp_path: Path) -> None:
    def searched():  # type: ignore[no-untyped-def]
        return search(
            room.model,
            room.behavior,
            splits=room.splits,
            directions=room.directions,
            method="polish",
            budget="quick",
            directory=tmp_path,
        )

    first, again = searched(), searched()
    assert first.front[0].rate <= 0.1
    assert [trial.measured for trial in first.history] == [trial.measured for trial in again.history]
    assert [trial.seconds for trial in first.history] == [trial.seconds for trial in again.history]
    base = [room.model.chat(prompt) for prompt in room.splits.report.baseline]
    with room.model.edited(first.best):
        assert "no way" not in {room.model.chat(prompt) for prompt in room.splits.report.target}
        assert [room.model.chat(prompt) for prompt in room.splits.report.baseline] == base
