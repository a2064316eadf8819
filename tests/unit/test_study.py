"""Studies: what was interrupted ends as if it had not been, and a planted best edit is found."""

import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from excise.directions import Directions, Separability
from excise.edit import Edit, Projection, SiteEdit
from excise.errors import EditError
from excise.model import EditableModel
from excise.search import Limits, Measured, Space, Study, TreeProposer, Trial, run_study
from excise.search.proposer import front_of
from excise.search.study import KL_CEILING, ONSET_LIMIT, limits_after
from zoo.tiny import build

LAYERS, HIDDEN = 4, 64
PLANTED_LAYER = 1


def make_space() -> Space:
    means = torch.randn(2, 2, LAYERS, HIDDEN, generator=torch.Generator().manual_seed(3))
    flat = torch.ones(2, LAYERS)
    found = Directions.of_means(
        means[0].double(),
        means[1].double(),
        positions=("-1", "+1"),
        method="mean-difference",
        separability=Separability(auc=flat, effect=flat, silhouette=flat, norm_ratio=flat),
        best=(0, PLANTED_LAYER),
    )
    return Space(EditableModel(build("llama")).survey, found, norm="none")


@pytest.fixture(scope="module")
def space() -> Space:
    return make_space()


class Planted:
    """A made-up model: the behavior sits in the feed-forward writers along the direction of one layer, and every other
    change does nothing but damage."""

    def __init__(self, space: Space) -> None:
        self.vector = space.directions["mean-difference"].vectors[0, PLANTED_LAYER]
        self.calls = 0

    def __call__(self, edit: Edit, limits: Limits) -> Measured:
        self.calls += 1
        left, damage = 1.0, 0.0
        for site in edit.sites:
            (change,) = site.changes
            assert isinstance(change, Projection)
            aligned = float(change.directions[0] @ self.vector) ** 2
            if site.writer.role == "mlp":
                left *= 1 - min(change.strength, 1.0) * aligned * 0.9
                damage += 0.01 * change.strength**2 + 0.1 * (1 - aligned)
            else:
                damage += 0.1 * change.strength**2
        if damage > limits.kl:
            return Measured(left, damage, damage, 50, left, True, "too much")
        return Measured(rate=round(left * 50) / 50, kl_first=damage, kl_sequence=damage, prompts=50, estimate=left)


class PlantedBatches(Planted):
    """The same, several at a time."""

    def __init__(self, space: Space, at_once: int) -> None:
        super().__init__(space)
        self.at_once = at_once
        self.sizes: list[int] = []

    def many(self, edits: Sequence[Edit], limits: Limits) -> list[Measured]:
        self.sizes.append(len(edits))
        return [self(edit, limits) for edit in edits]


def run(
    space: Space,
    directory: Path | None,
    *,
    trials: int = 26,
    upto: int | None = None,
    objective: Planted | None = None,
    seed: int = 0,
) -> Study:
    study = Study(directory, key="k")
    proposer = TreeProposer(space, seed=seed, trials=trials)
    run_study(
        study,
        proposer,
        objective or Planted(space),
        edit=space.edit,
        distributions=space.distributions,
        trials=upto or trials,
    )
    return study


def _strength(site: SiteEdit) -> float:
    return sum(change.strength for change in site.changes if isinstance(change, Projection))


def summary(study: Study) -> list[tuple[object, ...]]:
    return [(trial.index, dict(trial.parameters), trial.measured) for trial in study.trials]


def test_the_planted_edit_is_found(space: Space) -> None:
    trials = run(space, None, trials=60).trials
    best = min((trial for trial in trials if trial.measured.rate <= 0.02), key=lambda trial: trial.measured.kl_sequence)
    assert best.measured.kl_sequence < 0.35 * trials[0].measured.kl_sequence
    edit = space.edit(best.parameters)
    strength = {role: sum(_strength(site) for site in edit.sites if site.writer.role == role) for role in space.roles}
    assert strength["attention"] < 0.4 * strength["mlp"]
    assert best.parameters["position"] == "-1"


def test_resuming_equals_running_through(space: Space, tmp_path: Path) -> None:
    whole = run(space, None)
    for stop in (4, 15):
        run(space, tmp_path / str(stop), upto=stop)
        resumed = run(space, tmp_path / str(stop))
        assert summary(resumed) == summary(whole)


def test_resuming_a_study_in_batches_equals_running_through(space: Space, tmp_path: Path) -> None:
    whole = PlantedBatches(space, 8)
    expected = summary(run(space, None, objective=whole))
    assert whole.sizes == [8, 8, 8, 2]
    for stop in (3, 8, 21):  # within a batch and at the end of one
        run(space, tmp_path / str(stop), upto=stop, objective=PlantedBatches(space, 8))
        # on a machine that would choose another batch, or none
        for other in (PlantedBatches(space, 4), Planted(space)):
            resumed = run(space, tmp_path / str(stop), upto=min(stop + 9, 26), objective=other)
        assert summary(resumed) == expected[: stop + 9]
        assert summary(run(space, tmp_path / str(stop), objective=PlantedBatches(space, 8))) == expected


def test_a_study_begun_one_at_a_time_goes_on_so(space: Space, tmp_path: Path) -> None:
    run(space, tmp_path, upto=15)
    resumed = run(space, tmp_path, objective=PlantedBatches(space, 8))
    assert summary(resumed) == summary(run(space, None))


def test_no_point_comes_twice_in_a_batch(space: Space) -> None:
    for seed in range(3):
        trials = run(space, None, trials=60, objective=PlantedBatches(space, 8), seed=seed).trials
        for start in range(0, 60, 8):
            batch = {tuple(sorted(trial.parameters.items())) for trial in trials[start : start + 8]}
            assert len(batch) == len(trials[start : start + 8])


def test_batches_find_the_planted_edit_too(space: Space) -> None:
    trials = run(space, None, trials=60, objective=PlantedBatches(space, 8)).trials
    best = min((trial for trial in trials if trial.measured.rate <= 0.02), key=lambda trial: trial.measured.kl_sequence)
    assert best.measured.kl_sequence < 0.5 * trials[0].measured.kl_sequence


def test_a_killed_process_costs_the_trial_under_way_alone(space: Space, tmp_path: Path) -> None:
    script = """
        import os, signal, sys
        from pathlib import Path
        sys.path[:0] = [sys.argv[2], sys.argv[3]]
        import test_study
        space = test_study.make_space()
        planted = test_study.Planted(space)
        def objective(edit, limits):
            if planted.calls == 16:
                os.kill(os.getpid(), signal.SIGKILL)
            return planted(edit, limits)
        study = test_study.Study(Path(sys.argv[1]), key="k")
        proposer = test_study.TreeProposer(space, seed=0, trials=26)
        test_study.run_study(study, proposer, objective, edit=space.edit, distributions=space.distributions, trials=26)
    """
    here = Path(__file__).parent
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path), str(here), str(here.parent)], check=False
    )
    assert ended.returncode == -9
    assert len(Study(tmp_path, key="k").trials) == 16
    assert summary(run(space, tmp_path)) == summary(run(space, None))


def test_another_key_is_another_study(space: Space, tmp_path: Path) -> None:
    run(space, tmp_path, upto=2)
    assert Study(tmp_path, key="other").trials == []


def test_nothing_is_written_before_the_first_trial(space: Space, tmp_path: Path) -> None:
    Study(tmp_path / "study", key="k")
    assert not (tmp_path / "study").exists()


def test_notes_are_remembered(space: Space, tmp_path: Path) -> None:
    study = Study(tmp_path, key="k")
    assert study.note("select 3") is None
    study.remember("select 3", {"rate": 0.02})
    assert study.note("select 3") == {"rate": 0.02}
    assert Study(tmp_path, key="k").note("select 3") == {"rate": 0.02}


@pytest.mark.parametrize("on_disk", [True, False])
def test_an_edit_that_is_handed_in_is_kept(space: Space, tmp_path: Path, *, on_disk: bool) -> None:
    folder = tmp_path if on_disk else None
    study = Study(folder, key="k")
    edit = space.edit(space.plain())
    for index, kept in enumerate((edit, None)):
        trial = Trial(index, space.plain(), Measured(0.0, 0.0, 0.0), 0.0)
        study.append(trial, space.distributions, kept)
    assert [site.writer for site in study.edit(0).sites] == [site.writer for site in edit.sites]
    with pytest.raises(EditError):
        study.edit(1)
    if on_disk:
        assert len(Study(tmp_path, key="k").edit(0).sites) == len(edit.sites)
        with pytest.raises(EditError):
            Study(tmp_path, key="other").edit(0)


def test_limits_follow_what_was_measured(space: Space) -> None:
    values = space.plain()

    def trials(*measured: Measured) -> list[Trial]:
        return [Trial(index, values, each, 0.0) for index, each in enumerate(measured)]

    assert limits_after([]) == Limits(kl=float("inf"), onset=float("inf"))
    ordinary = trials(Measured(0.3, 0.2, 0.2, 50, 0.4))
    assert limits_after(ordinary) == Limits(kl=KL_CEILING, onset=ONSET_LIMIT, measured=((0.3, 0.2),))
    clean = trials(Measured(0.0, 0.2, 0.4, 50, 0.0))
    assert limits_after(clean).kl == 0.4
    misled = trials(Measured(0.0, 0.2, 0.4, 50, 0.9))
    assert limits_after(misled).onset == float("inf")


def test_the_front_of_the_planted_study_is_whole(space: Space) -> None:
    front = front_of(run(space, None).trials)
    rates = [trial.measured.rate for trial in front]
    damages = [trial.measured.kl_sequence for trial in front]
    assert rates == sorted(rates)
    assert damages == sorted(damages, reverse=True)
