"""Prompts are rendered as the model's own template has it, and no token is doubled."""

from __future__ import annotations

import pytest

from excise.errors import ModelError
from excise.model.template import ChatTemplate
from zoo.letters import BOS, CHATML, EOS, letters

WITH_BOS = "{{ bos_token }}" + CHATML
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "[{{ m['role'] }}]{{ m['content'] | trim }}{% endfor %}[model]"
)
DROPS_SYSTEM = "{% for m in messages %}{% if m['role'] != 'system' %}[{{ m['content'] }}]{% endif %}{% endfor %}"
PARTS = (
    "{% for m in messages %}[{{ m['role'] }}]{% for part in m['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}[model]"
)
SWITCH = CHATML + ("{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}")
OPENS = CHATML + "{% if add_generation_prompt %}<think>\n{% endif %}{# </think> #}"
STRIPS = "{% set _ = '</think>' %}" + CHATML
CHANNELS = (
    "{% for m in messages %}<|start|>{{ m['role'] }}<|message|>{{ m['content'] }}<|end|>{% endfor %}"
    "{# <|channel|>analysis<|message|> and <|channel|>final<|message|> #}<|start|>assistant"
)
CHANNEL_TOKENS = ("<|start|>", "<|message|>", "<|channel|>", "<|end|>")


def test_text_and_tokens_are_those_of_transformers() -> None:
    tokenizer = letters(template=CHATML)
    template = ChatTemplate(tokenizer)
    turn = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
    expected = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert template.render("Hello", system="Be kind.") == expected
    ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert template.encode(["Hello"], system="Be kind.") == [ids]
    assert template.system_role == "native"
    assert template.warnings == ()


@pytest.mark.parametrize("adds_bos", [False, True])
def test_the_template_s_own_bos_is_never_doubled(adds_bos: bool) -> None:
    tokenizer = letters(template=WITH_BOS, adds_bos=adds_bos)
    assert ChatTemplate(tokenizer).encode(["a"])[0].count(tokenizer.bos_token_id) == 1


def test_a_template_that_doubles_the_bos_itself_is_corrected() -> None:
    tokenizer = letters(template="{{ bos_token }}{{ bos_token }}" + CHATML)
    assert ChatTemplate(tokenizer).encode(["a"])[0].count(tokenizer.bos_token_id) == 1


def test_a_bos_that_the_template_leaves_out_stays_out_with_a_warning() -> None:
    template = ChatTemplate(letters(template=CHATML, adds_bos=True))
    assert 1 not in template.encode(["a"])[0]
    assert "beginning-of-text" in " ".join(template.warnings)


@pytest.mark.parametrize("source", [NO_SYSTEM, DROPS_SYSTEM])
def test_an_unsupported_system_role_is_folded_into_the_user_turn(source: str) -> None:
    template = ChatTemplate(letters(template=source))
    assert template.system_role == "folded"
    assert any("no system role" in warning for warning in template.warnings)
    text = template.render("Hello", system="Be kind.")
    assert text.index("Be kind.") < text.index("Hello")
    assert "Be kind." not in template.render("Hello")


def test_templates_of_multimodal_models_get_parts() -> None:
    template = ChatTemplate(letters(template=PARTS))
    assert template.render("Hello", system="Kind.") == "[system]Kind.[user]Hello[model]"


def test_the_thinking_switch_is_found_by_rendering() -> None:
    template = ChatTemplate(letters(template=SWITCH))
    assert template.switch == "enable_thinking"
    assert template.render("Hello").endswith("<think>\n\n</think>\n\n")
    assert template.render("Hello", thinking=True).endswith("assistant\n")
    assert ChatTemplate(letters(template=CHATML)).switch is None


def test_an_opened_thinking_segment_is_closed() -> None:
    template = ChatTemplate(letters(template=OPENS))
    assert template.switch is None
    assert template.render("Hello").endswith("assistant\n<think>\n\n</think>\n\n")
    assert template.render("Hello", thinking=True).endswith("<think>\n")
    assert template.opens_thinking(thinking=True)
    assert not template.opens_thinking(thinking=False)
    assert template.answer_start("so then</think>\n\nYes", inside=True) == len("so then</think>\n\n")
    assert template.answer_start("so then", inside=True) == len("so then")


def test_thinking_without_a_switch_is_warned_about() -> None:
    assert any("no switch" in warning for warning in ChatTemplate(letters(template=STRIPS)).warnings)


def test_channels_are_closed_by_choosing_the_final_one() -> None:
    template = ChatTemplate(letters(template=CHANNELS, special=CHANNEL_TOKENS))
    assert template.render("Hello").endswith("<|start|>assistant<|channel|>final<|message|>")
    assert template.render("Hello", thinking=True).endswith("<|start|>assistant")
    assert template.warnings == ()
    raw = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Yes<|end|>"
    text = template.decode(template.tokenizer(raw, add_special_tokens=False)["input_ids"])
    assert text[template.answer_start(text) :] == "Yes"


def test_special_tokens_are_left_out_of_decoded_text() -> None:
    template = ChatTemplate(letters(template=SWITCH, special=("<|im_start|>", "<|im_end|>", "<think>", "</think>")))
    raw = "<think>hm</think>Yes<|im_end|>"
    assert template.decode(template.tokenizer(raw, add_special_tokens=False)["input_ids"]) == "<think>hm</think>Yes"


def test_the_end_of_a_turn_is_read_from_the_template() -> None:
    tokenizer = letters(template=CHATML)
    assert ChatTemplate(tokenizer).turn_end == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ChatTemplate(letters(template=NO_SYSTEM)).turn_end is None


@pytest.mark.parametrize("adds_bos", [False, True])
def test_without_a_template_there_is_a_plain_one_with_a_warning(adds_bos: bool) -> None:
    template = ChatTemplate(letters(adds_bos=adds_bos))
    assert template.plain
    assert "no chat template" in template.warnings[0]
    start = BOS if adds_bos else ""
    assert template.render("Hello", system="Kind.") == f"{start}Kind.\n\nUser: Hello\nAssistant:"
    assert template.encode(["a"])[0].count(1) == adds_bos
    assert 2 not in template.encode(["a"])[0], EOS


def test_a_template_that_cannot_be_rendered_is_an_error() -> None:
    with pytest.raises(ModelError, match="template"):
        ChatTemplate(letters(template="{% for m in messages %}{{ m['content'] }}"))
