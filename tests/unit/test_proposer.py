"""The space and who proposes in it: in range, deterministic, a pure function of the history."""

import random
from collections.abc import Sequence

import pytest
import torch

from excise.directions import Directions, Separability
from excise.edit import Edit, Projection
from excise.model import EditableModel
from excise.search import Measured, Parameters, Space, TreeProposer, Trial
from excise.search.job import to_confirm
from excise.search.proposer import front_of, leaders, warm_starts
from excise.search.sweep import MOST_SOURCES, sources, sweep
from zoo.tiny import build

LAYERS, HIDDEN = 4, 64


def planted(best: tuple[int, int] = (0, 2)) -> Directions:
    """Random directions; the first position separates better than the second."""
    means = torch.randn(2, 2, LAYERS, HIDDEN, generator=torch.Generator().manual_seed(3))
    auc = torch.tensor([[0.9], [0.7]]).expand(2, LAYERS)
    flat = torch.ones(2, LAYERS)
    return Directions.of_means(
        means[0].double(),
        means[1].double(),
        positions=("-1", "+1"),
        method="mean-difference",
        separability=Separability(auc=auc.clone(), effect=flat, silhouette=flat, norm_ratio=flat),
        best=best,
    )


@pytest.fixture(scope="module")
def space() -> Space:
    return Space(EditableModel(build("llama")).survey, planted())


def history(space: Space, count: int, *, seed: int = 0) -> list[Trial]:
    """Trials with made-up figures."""
    generator, trials = random.Random(7), []
    proposer = TreeProposer(space, seed=seed, trials=60)
    for index in range(count):
        parameters = proposer.propose(trials)
        rate = round(generator.random(), 2)
        measured = Measured(rate=rate, kl_first=0.0, kl_sequence=(1 - rate) * generator.random())
        trials.append(Trial(index, parameters, measured, 0.1))
    return trials


def test_the_plain_edit_is_one_direction_out_of_every_writer_at_full_strength(space: Space) -> None:
    edit = space.edit(space.plain())
    writers = [writer for writer in space.survey.writers if writer.role != "embedding"]
    assert [site.writer for site in edit.sites] == writers
    for site in edit.sites:
        (change,) = site.changes
        assert isinstance(change, Projection)
        assert change.strength == 1.0
        torch.testing.assert_close(change.directions[0], planted().at_layer(0))


def test_schedules_reach_the_roles_they_name(space: Space) -> None:
    values = space.plain(**{"attention.strength": 0.0, "mlp.start": 0.5, "mlp.strength": 0.75})
    edit = space.edit(values)
    assert {(site.writer.role, site.writer.layer) for site in edit.sites} == {("mlp", 2), ("mlp", 3)}
    assert {change.strength for site in edit.sites for change in site.changes} == {0.75}


def test_each_layers_own_direction(space: Space) -> None:
    for site in space.edit(space.plain(reach="per-layer")).sites:
        (change,) = site.changes
        torch.testing.assert_close(change.directions[0], planted().vectors[0, site.writer.layer])


def test_a_fixed_norm_is_kept() -> None:
    fixed = Space(EditableModel(build("llama")).survey, planted(), norm="column")
    assert fixed.choices("norm") == ("column",)
    for values in warm_starts(fixed, [fixed.plain()]):
        assert values["norm"] == "column"


def test_every_proposal_is_in_its_range_and_on_its_grid(space: Space) -> None:
    for trial in history(space, 34):
        assert trial.parameters.keys() == space.distributions.keys()
        for name, value in trial.parameters.items():
            distribution = space.distributions[name]
            assert distribution._contains(distribution.to_internal_repr(value)), (name, value)
        space.edit(trial.parameters)


def test_proposals_are_a_pure_function_of_the_history(space: Space) -> None:
    past = history(space, 30)
    for length in (0, 3, 14, 21, 22, 30):
        first = TreeProposer(space, seed=0, trials=60).propose(past[:length])
        again = TreeProposer(space, seed=0, trials=60).propose(past[:length])
        assert first == again
    other = TreeProposer(space, seed=1, trials=60).propose(past)
    assert other != TreeProposer(space, seed=0, trials=60).propose(past)


def test_a_batch_is_a_pure_function_of_what_was_before_it(space: Space) -> None:
    past = history(space, 24)

    def batch(count: int) -> list[Parameters]:
        proposer, pending = TreeProposer(space, seed=0, trials=60), []
        for _ in range(count):
            pending.append(proposer.propose(past, pending))
        return pending

    eight = batch(8)
    assert batch(3) == eight[:3]
    assert len({tuple(sorted(each.items())) for each in eight}) == 8
    assert eight[0] == TreeProposer(space, seed=0, trials=60).propose(past)


def test_warm_starts_come_first_and_leave_room(space: Space) -> None:
    warm = warm_starts(space, [space.plain()])
    assert warm[0] == space.plain()
    assert len({tuple(sorted(each.items())) for each in warm}) == len(warm)
    few = TreeProposer(space, seed=0, trials=6)
    past = history(space, 3)
    assert [few.propose(past[:index]) for index in range(3)] == warm[:3]
    assert few.propose(past) not in warm[:3]


def test_the_last_trials_stay_near_the_best(space: Space) -> None:
    past = history(space, 59)
    best = front_of(past)[0]
    proposal = TreeProposer(space, seed=0, trials=60).propose(past)
    changed = [name for name, value in proposal.items() if value != best.parameters[name]]
    assert 1 <= len(changed) <= 3


def test_screened_trials_never_enter_the_front(space: Space) -> None:
    values = space.plain()
    trials = [
        Trial(0, values, Measured(0.5, 0.1, 0.1), 0.0),
        Trial(1, values, Measured(0.0, 0.0, 0.0, screened=True, reason="x"), 0.0),
    ]
    assert [trial.index for trial in front_of(trials)] == [0]


def test_the_sweep_tries_every_position_and_ranks_what_removes_at_little_damage(space: Space) -> None:
    good = {"position": "+1", "reach": "one", "source": 2.0}

    def measure(edit: Edit) -> Measured:
        wanted = space.edit(space.plain(**good)).sites[0].changes[0]
        assert isinstance(wanted, Projection)
        (change,) = edit.sites[0].changes
        assert isinstance(change, Projection)
        aligned = float(change.directions[0] @ wanted.directions[0]) ** 2
        return Measured(rate=0.9 * (1 - aligned), kl_first=0.1, kl_sequence=0.1, screened=True)

    sizes = []

    def prefill(edits: Sequence[Edit]) -> list[Measured]:
        sizes.append(len(edits))
        return [measure(edit) for edit in edits]

    swept = sweep(space, prefill, base_rate=0.9, at_once=3)
    assert sizes[0] == 3
    assert sum(sizes) == len(swept)
    assert sweep(space, prefill, base_rate=0.9) == swept
    assert {each.parameters["position"] for each in swept} == {"-1", "+1"}
    best = swept[0].parameters
    assert (best["position"], best["reach"], best["source"]) == ("+1", "one", 2.0)
    begin = sources(swept)
    assert begin[0] == best
    assert begin[1]["position"] == "-1"
    assert len(begin) == MOST_SOURCES
    assert {each["position"] for each in sources(swept, inside={"-1"})} == {"+1"}
    assert sources(swept, inside={"+1"}) == begin, "the position that is left removes nothing"
    warm = warm_starts(space, begin)
    assert warm[:2] == [dict(each) for each in begin[:2]]
    assert space.at_positions(["+1"]).choices("position") == ("+1",)


def test_leaders_keep_kinds_of_direction_apart(space: Space) -> None:
    first, second = space.plain(position="-1"), space.plain(position="+1")
    trials = [
        Trial(0, first, Measured(0.00, 0.1, 0.1), 0.0),
        Trial(1, first, Measured(0.02, 0.1, 0.05), 0.0),
        Trial(2, second, Measured(0.02, 0.1, 0.3), 0.0),
        Trial(3, second, Measured(0.5, 0.0, 0.0), 0.0),
    ]
    assert [trial.index for trial in leaders(trials)] == [1, 2]
    assert [trial.index for trial in to_confirm(trials)][:2] == [0, 1]
    assert 2 in [trial.index for trial in to_confirm(trials)]
    assert [trial.index for trial in to_confirm(trials, max_kl=0.05)] == [3]
