"""The made-up behavior that a tiny taught model shows (`zoo.taught`); modules with another one define their own."""

import pytest

from excise.behaviors import Behavior, Splits
from excise.directions import Directions
from zoo.taught import SIZES, found, refusing


@pytest.fixture(scope="module")
def behavior(tmp_path_factory: pytest.TempPathFactory) -> Behavior:
    return refusing(tmp_path_factory.mktemp("prompts"))


@pytest.fixture(scope="module")
def splits(behavior: Behavior) -> Splits:
    return behavior.splits(SIZES)


@pytest.fixture(scope="module")
def directions(behavior: Behavior, splits: Splits) -> Directions:
    return found(behavior, splits)
