"""Fits of single matrices: the closed form is the minimum, goals are met, and what is left alone is stated."""

import pytest
import torch

from excise.activations.products import Products, capture_products
from excise.behaviors import Behavior, Splits
from excise.edit import LowRank
from excise.errors import ModelError
from excise.find import find_directions
from excise.model import EditableModel
from excise.model.ports import Ports
from excise.search import Study, Task, search
from excise.search.methods.matrix_fit import fit_matrix, fitted_writers, grid, nearest_baseline
from excise.search.reduced_rank import reduced_rank_ridge
from zoo.letters import CHATML, letters
from zoo.taught import found, taught
from zoo.tiny import build


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loss(change: torch.Tensor, inputs: torch.Tensor, wanted: torch.Tensor, ridge: float) -> torch.Tensor:
    return (inputs @ change.T - wanted).square().sum() + ridge * change.square().sum()


def matrix(change: LowRank) -> torch.Tensor:
    return change.left.double() @ change.right.double()


@pytest.mark.parametrize("shape", [(30, 12, 9), (10, 40, 9)])
def test_without_a_limit_of_rank_it_is_ridge_regression(shape: tuple[int, int, int]) -> None:
    rows, width, hidden = shape
    inputs, wanted = random(rows, width).double(), random(rows, hidden, seed=1).double()
    exact = torch.linalg.solve(inputs.T @ inputs + 0.5 * torch.eye(width), inputs.T @ wanted).T
    torch.testing.assert_close(matrix(reduced_rank_ridge(inputs, wanted, ridge=0.5, rank=9)), exact, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rank", [1, 2])
def test_no_change_of_that_rank_is_better(rank: int) -> None:
    inputs, wanted = random(40, 12).double(), random(40, 9, seed=1).double()
    best = reduced_rank_ridge(inputs, wanted, ridge=0.5, rank=rank)
    assert best.left.shape == (9, rank)
    reached = float(loss(matrix(best), inputs, wanted, 0.5))
    for seed in range(3):
        left = random(9, rank, seed=seed).double().requires_grad_()
        right = random(rank, 12, seed=seed + 9).double().requires_grad_()
        optimiser = torch.optim.LBFGS([left, right], max_iter=400, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimiser.zero_grad()  # noqa: B023 - used at once
            value = loss(left @ right, inputs, wanted, 0.5)  # noqa: B023
            value.backward()
            return value

        optimiser.step(closure)
        found = float(closure().detach())
        assert reached <= found + 1e-6
    assert found == pytest.approx(reached, rel=1e-3)


def test_each_target_output_goes_to_its_nearest_baseline_outputs_at_its_place() -> None:
    baseline = Products(random(20, 3), torch.cat([random(10, 4) + 5, random(10, 4) - 5]), torch.arange(20) // 10)
    target = Products(random(3, 3), torch.zeros(3, 4), torch.tensor([0, 1, 7]))
    found = nearest_baseline(target, baseline)
    assert found[0].mean() > 3
    assert found[1].mean() < -3
    assert torch.equal(found[2], target.outputs[2])


def test_a_fit_moves_target_outputs_to_baseline_outputs_more_than_those_themselves() -> None:
    weight, shift = random(6, 30), random(30, seed=2)
    inputs = random(200, 30, seed=3), random(200, 30, seed=4) + 2 * shift
    baseline, target = (Products(each, each @ weight.T, torch.zeros(200, dtype=torch.long)) for each in inputs)
    wanted = nearest_baseline(target, baseline) - target.outputs

    def moved(pull: float) -> tuple[float, float]:
        change = fit_matrix(target, baseline, pull=pull, device=torch.device("cpu"))
        of_target, of_baseline = (each.inputs @ matrix(change).float().T for each in (target, baseline))
        return float((of_target - wanted).norm() / wanted.norm()), float(of_baseline.norm() / of_target.norm())

    missing, spilled = moved(1.0)
    assert missing < 0.6
    assert spilled < 0.5
    assert moved(10.0)[0] < missing
    assert moved(0.1)[1] < spilled


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_products_are_what_a_module_was_given_and_gave(kind: str) -> None:
    model = EditableModel(build(kind), letters(template=CHATML))
    writers = [writer for writer in model.survey.writers if writer.role != "embedding"]
    prompts, responses = [[5, 6, 7, 8], [9, 10]], [[11], [12, 13]]
    seen = capture_products(
        model, [str(writer.module) for writer in writers], prompts, responses, before=3, batch_size=2
    )
    parameters = dict(model.hf_model.named_parameters())
    for writer in writers:
        products = seen[str(writer.module)]
        assert products.places.tolist() == [-3, -2, -1, 0, -2, -1, 0, 1]
        weight = parameters[writer.parameter].detach().movedim(writer.axis, 0)
        expected = products.inputs @ weight.T
        if writer.bias is not None:
            expected = expected + parameters[writer.bias].detach()
        torch.testing.assert_close(products.outputs, expected, atol=1e-4, rtol=1e-4)
    one = capture_products(model, [str(writers[0].module)], prompts, responses, before=3, batch_size=1)
    torch.testing.assert_close(one[str(writers[0].module)].inputs, seen[str(writers[0].module)].inputs)


def test_the_grid_is_tried_in_order_and_edits_are_of_low_rank(behavior: Behavior, splits: Splits) -> None:
    directions = found(behavior, splits)
    result = search(taught(), behavior, splits=splits, directions=directions, method="matrix-fit", trials=7)
    assert [dict(trial.parameters) for trial in result.history] == grid()[:7]
    assert result.notes == ()
    whole = search(taught(), behavior, splits=splits, directions=directions, method="matrix-fit", trials=99)
    assert whole.trials == len(grid())
    for site in result.best.sites:
        (change,) = site.changes
        assert isinstance(change, LowRank)


def test_writers_that_are_no_plain_product_are_stated(behavior: Behavior, splits: Splits) -> None:
    model = EditableModel(build("mixtral"), letters(template=CHATML))
    directions = find_directions(model, behavior, splits=splits)
    result = search(model, behavior, splits=splits, directions=directions, method="matrix-fit", trials=1)
    assert "leaves 4 writers alone" in result.notes[0]
    assert {site.writer.role for site in result.best.sites} == {"attention"}


def test_a_model_without_any_plain_product_is_refused(
    behavior: Behavior, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("excise.search.methods.matrix_fit.ports_of", lambda *_: Ports((), ()))
    task = Task(taught(), behavior, splits, found(behavior, splits), Study(None, key="k"))
    with pytest.raises(ModelError, match="no writer"):
        fitted_writers(task)
