import pytest

import excise

PUBLIC = {
    "Behavior",
    "Directions",
    "Edit",
    "EditableModel",
    "ExciseError",
    "RunConfig",
    "Survey",
    "Writer",
    "__version__",
    "bake",
    "evaluate",
    "find_directions",
    "load",
    "run",
    "search",
    "verify",
}


def test_the_public_names_are_these() -> None:
    assert set(excise.__all__) == PUBLIC
    assert set(dir(excise)) >= PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(excise, name)
    assert name == "__version__" or value.__doc__


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = excise.nothing
