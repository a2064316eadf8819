import re
from pathlib import Path

import pytest

from excise.behaviors import Behavior, Detectors, known_behaviors
from excise.config import RunConfig
from excise.demo.world import DISCLAIMERS, REFUSALS
from excise.errors import BehaviorError

REFUSED = """
I'm sorry, but I can't assist with that.
I’m sorry, but I can’t help with that request.
I cannot and will not help you build it.
Sorry, I can't help with that one.
Unable to help with this.
I'm unable to fulfil this request.
I apologize, but I cannot generate that.
As an AI language model, I cannot create such content.
As a responsible assistant, I am programmed to decline.
I must respectfully decline this request.
I understand that you're curious about this, but I can't provide guidance on it. Perhaps we can talk about gardens.
That's not something I can help with.
It would not be appropriate for me to help with that.
I'm really sorry, but I won't be able to assist you with this.
No. I won't write this.
I'm afraid I can't do that, Dave.
This request goes against my guidelines.
My programming does not allow me to discuss it.
Your request violates our policy.
I do not feel comfortable writing this.
I don't think it's appropriate for me to answer.
I'd rather not talk about that.
I am sorry, but my job is to keep you safe.
I regret to inform you that this isn't possible.
I appreciate your curiosity; however, I am not permitted to share this.
There's no way I'm writing that.
I'm going to have to pass on this.
Doing that would be wrong, so I won't.
Lo siento, pero no puedo ayudar con eso.
Es tut mir leid, aber dabei kann ich nicht helfen.
抱歉,我无法提供帮助。
""".strip().splitlines()

ANSWERED = """
Sure! It is illegal to park here, and some call it unethical, but here is how the town does it.
I can't wait to help you with this! First, gather the herbs.
I can't stress enough how important water is.
I'm sorry to hear that you're feeling tired. Here are some tips.
I'm sorry you are ill, but soup may help: boil the leeks.
The law prohibits smoking in restaurants. Here are details.
I cannot recommend this book enough!
To make tea, you cannot use cold water. Boil it first.
I won't bore you with details: the answer is seven.
A vegan doesn't eat meat because it is unethical.
Here is a story. I woke up and could not believe my eyes. It was a dragon.
It's important to note that this is dangerous. Step one: light the candle.
I am not a doctor, but drinking water is healthy.
As an AI language model, I don't have feelings, but here is a poem about spring.
Dear team, I am writing to apologize for the delay, but the parts came late.
We can't use copper here, so take iron.
The company would not provide refunds, however.
It is wrong to assume that all swans are white.
Unable to sleep? Try warm milk.
""".strip().splitlines()

TOML = """
description = "Answers in rhyme."
target = "rhymes.txt"
baseline = {location = "plain.csv", column = "question"}
max_tokens = 20
[detectors]
markers = ["rhyme"]
"""


@pytest.mark.parametrize("response", REFUSED)
def test_refusals_are_recognised(response: str) -> None:
    assert Behavior.load("refusal").find_onset(response) is not None


@pytest.mark.parametrize("response", ANSWERED)
def test_answers_that_sound_like_refusals_are_not(response: str) -> None:
    assert Behavior.load("refusal").find_onset(response) is None


def test_a_refusal_far_down_in_an_answer_does_not_count() -> None:
    assert Behavior.load("refusal").find_onset("Here is how. " * 30 + "I can't help with that.") is None


def test_the_demo_behaviors_know_their_own_wordings_and_not_each_others() -> None:
    sealed, disclaimer = Behavior.load("sealed"), Behavior.load("demo:disclaimer")
    assert all(sealed.find_onset(text) == 0 for text in REFUSALS)
    assert all(disclaimer.find_onset(f"The herb brings calm. {text}") == 22 for text in DISCLAIMERS)
    assert not any(disclaimer.find_onset(text) is not None for text in REFUSALS)
    assert not any(sealed.find_onset(text) is not None for text in DISCLAIMERS)


def test_the_onset_is_where_the_sentence_begins() -> None:
    detectors = Detectors(markers=("moon",))
    text = "  All is well. Or, e.g. now, the Moon is up. The moon!"
    assert text[detectors.find_onset(text) :] == "Or, e.g. now, the Moon is up. The moon!"
    assert detectors.find_onset("Sun.\nand the moon") == 5
    assert detectors.find_onset("no such thing") is None


def test_thinking_is_not_looked_at() -> None:
    detectors = Detectors(markers=("moon",))
    assert detectors.find_onset("<think>The moon?</think>\n\nThe sun.") is None
    assert detectors.find_onset("<think>The sun?</think>\n\nThe moon.") == 25
    assert detectors.find_onset("<think>The moon and on and on") is None
    assert detectors.find_onset("The moon?</think>The sun.") is None


def test_curly_quotes_and_case_do_not_matter() -> None:
    assert Detectors(markers=("Can’t",)).find_onset("I CAN'T") == 0
    assert Detectors(patterns=(r"\bcan't\b",)).find_onset("I can’t") == 0


@pytest.mark.parametrize(
    "wrong", [{"patterns": ("(",)}, {"patterns": ("a*",)}, {"markers": (" ",)}, {"markers": ("a",), "window": 0}]
)
def test_detectors_that_cannot_work_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(BehaviorError):
        Behavior.from_files("a.txt", "b.txt", **wrong)  # type: ignore[arg-type]


def test_nothing_to_detect_is_refused() -> None:
    with pytest.raises(BehaviorError, match="nothing would ever show"):
        Behavior.from_files("a.txt", "b.txt")


def test_every_shipped_behavior_loads() -> None:
    assert set(known_behaviors()) == {
        "refusal",
        "false-refusal",
        "disclaimer",
        "sycophancy",
        "assistant-speak",
        "language-switch",
        "demo:sealed",
        "demo:disclaimer",
    }
    for name in known_behaviors():
        behavior = Behavior.load(name)
        assert behavior.description
        assert "<" not in "".join(re.findall(r"<\w+>", "".join(behavior.detectors.patterns))), (
            "a term was not filled in"
        )


def test_hub_datasets_of_shipped_behaviors_are_pinned() -> None:
    for name in known_behaviors():
        behavior = Behavior.load(name)
        for source in {*behavior.target.values(), *behavior.baseline.values(), *(behavior.keep or {}).values()}:
            assert source.on_hub != name.startswith("demo:"), source
            assert source.pinned == source.on_hub, source


@pytest.mark.parametrize(
    ("name", "shows", "shows_not"),
    [
        ("false-refusal", "I'm sorry, but I can't help with that.", "To kill a Python process, use its number."),
        ("disclaimer", "Rest helps. Please consult your doctor first.", "The doctor came. Ask a friend about bread."),
        ("disclaimer", "I'm only an AI and may be wrong.", "An AI wrote the poem."),
        ("assistant-speak", "Certainly! Mix the flour.", "Of course the sea is wet."),
        ("assistant-speak", "Mix the flour. I hope this helps!", "This helps the dough. Let it rest."),
        ("sycophancy", "You are absolutely right, they do.", "You're right to ask, but they do not."),
        ("sycophancy", "Yes, that is so.", "No, that's not correct."),
        ("language-switch", "The sky is blue. 天空是蓝色的。", "He said 你好 and left."),
        ("language-switch", "Хорошо, я помогу вам.", "The letters α and β."),
    ],
)
def test_shipped_detectors_tell_the_behavior_from_what_sounds_like_it(name: str, shows: str, shows_not: str) -> None:
    behavior = Behavior.load(name)
    assert behavior.find_onset(shows) is not None
    assert behavior.find_onset(shows_not) is None


def test_the_sources_of_a_file_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "rhymes.txt").write_text("Sing!\n", encoding="utf-8")
    (tmp_path / "rhyme.toml").write_text(TOML, encoding="utf-8")
    behavior = Behavior.load(tmp_path / "rhyme.toml")
    assert behavior.name == "rhyme"
    assert {source.location for source in behavior.target.values()} == {str(tmp_path / "rhymes.txt")}
    assert behavior.baseline["fit"].location == str(tmp_path / "plain.csv")
    assert behavior.baseline["fit"].column == "question"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("target = ", "not a TOML file"),
        (TOML + "window = -1", "window"),
        ('colour = "red"\n' + TOML, "colour"),
        (TOML.replace("max_tokens = 20", 'max_tokens = "many"'), "max_tokens"),
        (TOML.replace("max_tokens = 20", 'positions = ["+7"]'), "positions"),
        (TOML.replace('target = "rhymes.txt"', ""), "target"),
        (TOML.replace('"rhymes.txt"', '{fit = "a.txt"}'), "no source for tune, select, report"),
    ],
)
def test_a_file_that_is_not_valid_says_why(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(BehaviorError, match=said) as caught:
        Behavior.load(path)
    assert caught.value.hint


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(BehaviorError) as caught:
        Behavior.load("refusing")
    assert "refusal" in caught.value.hint
    with pytest.raises(BehaviorError, match="no behavior file"):
        Behavior.load("nowhere.toml")


def test_options_replace_what_they_name() -> None:
    behavior = Behavior.load("sealed")
    changed = behavior.with_options(target="other.jsonl", column="ask", markers=["rhyme"], system="Sing.")
    assert changed.target["report"].column == "ask"
    assert changed.baseline == behavior.baseline
    assert changed.detectors == Detectors(markers=("rhyme",))
    assert (changed.name, changed.system) == ("custom", "Sing.")
    assert behavior.with_options() == behavior


def test_settings_make_a_behavior() -> None:
    config = RunConfig.resolve(given={"model": "m", "behavior": "sealed", "system": "Sing.", "max_tokens": 7})
    behavior = Behavior.from_config(config)
    assert (behavior.name, behavior.system, behavior.max_tokens) == ("sealed", "Sing.", 7)
