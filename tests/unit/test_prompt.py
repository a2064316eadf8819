"""A prompt is a string that remembers what came before it."""

import copy
import json
import pickle
from collections.abc import Callable

import pytest

from excise.behaviors import Prompt, PromptSet, Splits, Turn
from excise.behaviors.prompt import normalised
from excise.model.template import ChatTemplate
from zoo.letters import CHATML, letters

CHAT = Prompt(
    "And now?",
    turns=[("user", "Hello"), ("assistant", "Hi")],
    system="Be kind.",
    category="talk",
    language="en",
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[model]"
)


def test_it_is_the_string_of_the_last_turn() -> None:
    assert isinstance(CHAT, str)
    assert str(CHAT) == "And now?"
    assert type(str(CHAT)) is str
    assert f"{CHAT}|{CHAT.upper()}" == "And now?|AND NOW?"
    assert Prompt("a") == "a"
    assert Prompt("a") == "a"
    assert {"a": 1}[Prompt("a", category="x")] == 1
    assert json.dumps([CHAT]) == '["And now?"]'


def test_history_and_system_prompt_make_another_prompt() -> None:
    plain = Prompt("And now?")
    assert plain != CHAT
    assert CHAT != "And now?"
    assert len({CHAT, plain, "And now?", Prompt("And now?", system="x")}) == 3
    assert len({normalised(prompt) for prompt in (CHAT, plain, CHAT.changed(system="x"))}) == 3
    assert normalised(Prompt(" and  NOW?")) == normalised("And now?")
    assert normalised(CHAT) == normalised(CHAT.changed("AND now?"))


def through_json(prompt: Prompt) -> Prompt:
    return Prompt.from_json(json.loads(json.dumps(prompt.to_json())))


@pytest.mark.parametrize("again", [lambda prompt: pickle.loads(pickle.dumps(prompt)), copy.deepcopy, through_json])
def test_it_survives_pickle_copies_and_json(again: Callable[[Prompt], Prompt]) -> None:
    twin = again(CHAT)
    assert twin == CHAT
    assert (twin.turns, twin.system, twin.category, twin.language) == (CHAT.turns, "Be kind.", "talk", "en")
    assert all(isinstance(turn, Turn) for turn in twin.turns)
    assert Prompt.from_json("a") == "a"
    assert Prompt("a").to_json() == {"prompt": "a"}


def test_the_template_renders_the_whole_conversation() -> None:
    tokenizer = letters(template=CHATML)
    template = ChatTemplate(tokenizer)
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "And now?"},
    ]
    expected = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert template.render(CHAT) == template.render(CHAT, system="Be loud.") == expected
    assert template.encode([CHAT, "Hello"], system="Be kind.")[1] == template.encode(["Hello"], system="Be kind.")[0]
    assert template.render(Prompt("Hello"), system="Be kind.") == template.render("Hello", system="Be kind.")


def test_without_a_system_role_the_first_turn_takes_the_system_prompt() -> None:
    assert ChatTemplate(letters(template=NO_SYSTEM)).render(CHAT) == (
        "[user]Be kind.\n\nHello[assistant]Hi[user]And now?[model]"
    )


def test_without_a_template_the_conversation_is_written_out() -> None:
    text = ChatTemplate(letters(template=None)).render(CHAT)
    assert text == "Be kind.\n\nUser: Hello\nAssistant: Hi\nUser: And now?\nAssistant:"


def test_a_digest_knows_what_comes_before_a_prompt() -> None:
    def splits(first: str) -> Splits:
        sets = [PromptSet((f"t{index}",), (f"b{index}",)) for index in range(3)]
        return Splits(PromptSet((first,), ("b",)), *sets)

    plain = splits("And now?").digest()["fit"]
    assert splits(Prompt("And now?", category="x")).digest()["fit"] == plain
    assert len({plain, splits(CHAT).digest()["fit"], splits(CHAT.changed(system="x")).digest()["fit"]}) == 3
