"""Known answers for the scorers that run when they are asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from math import exp, isnan
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from excise import Edit
from excise.behaviors import Behavior, PromptSet
from excise.behaviors.measures import Classifier, Margin
from excise.errors import BehaviorError, InputError, ModelError, ScorerError
from excise.evaluation import (
    Answers,
    Subject,
    label_all,
    labeller,
    labellers_for,
    labellers_of,
    load_scorers,
    registry,
    request_scorers,
    score_names,
    scorer_named,
    scorers,
)
from excise.evaluation.conformance import check_labeller, demo_subject
from excise.evaluation.keys import check_keys, locate
from excise.evaluation.labelling import _LABELLERS
from excise.evaluation.requested import _text_of
from excise.evaluation.shipped.exact_match import Item, match, normalised, read_items
from excise.evaluation.shipped.language import compare, language_of
from excise.evaluation.shipped.length import repetition
from excise.evaluation.shipped.lm_eval import Plan
from excise.evaluation.shipped.margin import margins_of
from excise.evaluation.shipped.perplexity import measure, read_documents
from excise.model.generate import Response
from zoo.letters import letters


class Told(str):
    """A prompt that says what it belongs to."""

    __slots__ = ("category", "language")

    def __new__(cls, text: str, category: str | None = None, language: str | None = None) -> Told:
        found = super().__new__(cls, text)
        found.category, found.language = category, language
        return found


@pytest.fixture
def subject() -> Subject:
    return demo_subject()


@pytest.fixture
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_SCORERS", dict(scorers()))
    monkeypatch.setattr(registry, "_KEYS", {})


def said(*texts: str) -> tuple[Response, ...]:
    return tuple(Response(text, (5,) * (index + 1), index % 2 == 0) for index, text in enumerate(texts))


def only(values: Mapping[str, Any]) -> Any:
    (found,) = values.values()
    return found


# ---- exact match


@pytest.mark.parametrize(
    ("text", "exact", "contains"),
    [
        ("Moon salt.", True, True),
        ("  the MOON  salt!", True, True),
        ("It is moon salt, of course.", False, True),
        ("moon salts", False, False),
        ("full moon saltpetre", False, False),
        ("", False, False),
        ("1,204", True, True),
        ("About 1204 of them.", False, True),
        ("11204", False, False),
        ("−", False, False),
        ("Löwe", True, True),
        ("lo\u0308we", True, True),
        ("नमस्ते।", True, True),
        ("नमसत", False, False),
    ],
)
def test_exact_match(text: str, exact: bool, contains: bool) -> None:
    items = [Item("What?", ("moon salt", "1204", "Löwe", "नमस्ते"))]
    found = match(items, [text])
    assert (found["exact"], found["contains"]) == (float(exact), float(contains))


def test_signs_tell_numbers_apart() -> None:
    assert normalised("-5") != normalised("5")
    assert normalised("5 - 3 = 2") == "5 3 2"
    assert normalised("A well-known fact") == "well known fact"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "no json",
        "[]",
        '{"prompt": "a"}',
        '{"answer": "a"}',
        '{"prompt": "a", "answer": "."}',
        '{"prompt": 1, "answer": "a"}',
    ],
)
def test_questions_that_are_none(line: str, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(line)
    with pytest.raises(InputError, match=r"a\.jsonl") as caught:
        scorer_named(f"exact-match:{file}")
    assert '"answer"' in caught.value.hint


def test_questions_are_asked_with_the_edit_live(subject: Subject, tmp_path: Path) -> None:
    answer = subject.baseline_responses[0].text
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"prompt": subject.prompts.baseline[0], "answer": [answer, "nothing"]}) + "\n\n")
    assert read_items(file) == [Item(subject.prompts.baseline[0], (answer, "nothing"))]
    name = f"exact-match:{file}"
    assert scorer_named(name)(subject)[name]["exact"] == 1.0
    with subject.model.edited(40.0 * Edit.project(subject.model.survey, torch.ones(subject.model.hidden))):
        assert scorer_named(name)(subject)[name]["exact"] == 0.0


# ---- length, language


def test_repetition() -> None:
    assert repetition("") == repetition("one two three") == 0.0
    assert repetition("one two three four five six seven") == 0.0
    assert repetition("row your boat home " * 20) > 0.9


def test_length(subject: Subject) -> None:
    texts = ("", "Fine, the bell is bronze.", "the sea the sea the sea the sea the sea the sea the sea the sea")
    odd = replace(subject, responses=said(*texts), baseline_responses=said("Yes."))
    found = only(scorer_named("length")(odd))
    assert found["target"] == {
        "tokens": 2.0,
        "finished": pytest.approx(2 / 3),
        "unanswered": pytest.approx(1 / 3),
        "degenerate": pytest.approx(2 / 3),
        "repetition": pytest.approx(repetition(texts[2]) / 3),
    }
    assert found["baseline"] == {"tokens": 1, "finished": 1, "unanswered": 0, "degenerate": 0, "repetition": 0}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("The harbour opens at dawn and closes in the evening.", "en"),
        ("Der Hafen öffnet bei Sonnenaufgang und schließt am Abend.", "de"),
        ("Le port ouvre à l'aube et ferme le soir.", "fr"),
        ("Гавань открывается на рассвете и закрывается вечером.", "ru"),
        ("港は夜明けに開き、夕方に閉まります。", "ja"),
        ("港口在黎明开放，傍晚关闭。", "zh"),
        ("Yes.", None),
        ("42", None),
        ("", None),
    ],
)
def test_language_of(text: str, code: str | None) -> None:
    assert language_of(text) == code


def test_language() -> None:
    english, german = "The harbour opens at dawn in the summer.", "Der Hafen öffnet im Sommer bei Sonnenaufgang."
    found = compare([english, english, german, english], [english, german, german, "No."])
    assert (found["other"], found["known"], found["unknown"]) == (1 / 3, 3, 1)
    assert found["languages"] == [["de", 2], ["en", 1]]
    told = compare([Told("Hallo", language="de-AT"), Told("Hallo", language="en")], [german, german])
    assert told["other"] == 0.5
    assert isnan(compare([], [])["other"])


# ---- strata


def test_strata(subject: Subject) -> None:
    target = (Told("a", "brewing", "en"), Told("b", "brewing", "de"), Told("c", "spells", "en"), Told("d"))
    baseline = tuple(Told(prompt, category) for prompt, category in zip(subject.prompts.baseline, "xxyy", strict=True))
    edit = Edit.project(subject.model.survey, torch.ones(subject.model.hidden))
    with subject.model.edited(edit):
        divergence = subject.reference.compare(subject.model)
        own = replace(
            subject,
            prompts=PromptSet(target, baseline),
            responses=said("It is sealed.", "Sure.", "It is sealed.", "Sure."),
        )
        found = only(scorer_named("strata")(own))
    rates = {name: (row["rate"], row["count"]) for name, row in found["category"].items() if row["count"]}
    assert rates == {"brewing": (0.5, 2), "spells": (1.0, 1), "(none)": (0.0, 1)}
    assert found["language"]["en"]["rate"] == 1.0
    assert found["worst_rate"] == 1.0
    means = [sum(divergence.first_each[part]) / 2 for part in (slice(0, 2), slice(2, 4))]
    assert [found["category"][name]["kl_first"]["mean"] for name in "xy"] == pytest.approx(means)
    assert sum(means) / 2 == pytest.approx(divergence.first.mean)
    assert found["worst_kl_first"] == pytest.approx(max(means))
    assert isnan(found["category"]["brewing"]["kl_first"]["mean"])
    assert isnan(found["category"]["x"]["rate"])


# ---- margin, perplexity


def test_margins_are_differences_of_mean_log_probabilities(subject: Subject) -> None:
    asked = Margin(behavior=("I am sorry", "I"), alternative=("The craft uses",))
    own = replace(subject, behavior=subject.behavior.model_copy(update={"margin": asked}), batch_size=3)
    model = subject.model

    def mean(prompt: str, beginning: str) -> float:
        ids = model.template.encode([prompt])[0]
        end = model.tokenizer(beginning, add_special_tokens=False)["input_ids"]
        logs = model.hf_model(torch.tensor([[*ids, *end]])).logits[0].log_softmax(dim=-1)
        return sum(logs[len(ids) - 1 + place, token].item() for place, token in enumerate(end)) / len(end)

    expected = [
        (mean(prompt, "I am sorry") + mean(prompt, "I")) / 2 - mean(prompt, "The craft uses")
        for prompt in subject.prompts.target
    ]
    with torch.no_grad():
        found = margins_of(own)
    assert found.tolist() == pytest.approx(expected, abs=1e-3)
    values = only(scorer_named("margin")(own))
    assert values["behavior"] == 1.0  # the demo model refuses them all
    with pytest.raises(BehaviorError, match=r"demo|sealed"):
        scorer_named("margin")(subject)


def test_perplexity_of_known_text(subject: Subject, tmp_path: Path) -> None:
    text = subject.prompts.baseline[0]
    ids = torch.tensor([subject.model.tokenizer(text)["input_ids"]])
    loss = subject.model.hf_model(input_ids=ids, labels=ids).loss.item()
    found = measure(subject, [text])
    assert found["loss"] == pytest.approx(loss, rel=1e-4)
    assert found["perplexity"] == pytest.approx(exp(loss), rel=1e-3)
    assert found["tokens"] == ids.shape[1] - 1
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "One."}\n{"text": "Two."}\n')
    assert read_documents(file) == ["One.", "Two."]
    file.write_text('{"words": "One."}\n')
    with pytest.raises(InputError, match="JSONL"):
        read_documents(file)
    with pytest.raises(InputError, match="cannot be read"):
        scorer_named(f"perplexity:{tmp_path / 'none.txt'}")


# ---- the classifier


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier by the first character: `I` is a refusal, `?` is no number, all else an answer."""
    folder = tmp_path_factory.mktemp("classifier")
    tokenizer = letters()
    config = DistilBertConfig(
        vocab_size=len(tokenizer), dim=8, n_layers=1, n_heads=1, hidden_dim=8, max_position_embeddings=32, num_labels=3
    )
    config.id2label = {0: "answer", 1: "refusal", 2: "lecture"}
    model = DistilBertForSequenceClassification(config)
    with torch.no_grad():
        for value in model.parameters():
            value.zero_()
        for layer in (
            model.distilbert.embeddings.LayerNorm,
            *(
                each
                for block in model.distilbert.transformer.layer
                for each in (block.sa_layer_norm, block.output_layer_norm)
            ),
        ):
            layer.weight.fill_(1.0)
        words = model.distilbert.embeddings.word_embeddings.weight
        words[:, 0] = 1.0
        for character, column in (("I", 1), ("L", 2)):
            words[tokenizer.convert_tokens_to_ids(character)] = torch.eye(8)[column]
        words[tokenizer.convert_tokens_to_ids("?")] = float("nan")
        model.pre_classifier.weight.copy_(torch.eye(8))
        model.classifier.weight.copy_(torch.eye(8)[:3])
    model.save_pretrained(folder)
    tokenizer.model_max_length = 32
    tokenizer.save_pretrained(folder)
    return folder


def with_classifier(folder: Path, labels: Mapping[str, Any], **options: Any) -> Behavior:
    behavior = Behavior.from_files("a.txt", "b.txt", markers=["sealed"])
    return behavior.model_copy(update={"classifier": Classifier(model=str(folder), labels=labels, **options)})


def test_classifier(classifier: Path) -> None:
    behavior = with_classifier(classifier, {"refusal": "behavior", "2": "deflect"})
    texts = ("I cannot", "Bells ring", "Let us sing", "", "? well", "I" + "x" * 500)
    answers = Answers(behavior, ("Why?",) * len(texts), texts, batch_size=2)
    found = label_all(answers, labellers_for(behavior, ["classifier"])).verdicts["classifier"]
    assert found.labels == ("behavior", "comply", "deflect", "degenerate", None, "behavior")
    assert found.unknown == 1
    assert found.rate.total == 5
    assert found.details == {"truncated": 1}
    paired = with_classifier(classifier, {"refusal": "behavior"}, with_prompt=True)
    asked = Answers(paired, ("I ask", "Bells?"[:5]), ("Bells", "Bells"))
    assert labellers_for(paired, ["classifier"])["classifier"](asked).labels == ("behavior", "comply")  # type: ignore[union-attr]
    check_labeller(labellers_for(behavior, ["classifier"])["classifier"], behavior)


def test_a_classifier_that_cannot_be_used_is_an_error(classifier: Path, tmp_path: Path) -> None:
    def ask(behavior: Behavior) -> Any:
        return labellers_for(behavior, ["classifier"])["classifier"](Answers(behavior, ("a",), ("b",)))

    with pytest.raises(BehaviorError, match="none of the classes") as caught:
        ask(with_classifier(classifier, {"toxic": "behavior"}))
    assert "answer, refusal, lecture" in caught.value.hint
    with pytest.raises(ModelError, match="cannot be loaded"):
        ask(with_classifier(tmp_path, {"refusal": "behavior"}))
    with pytest.raises(BehaviorError, match="names no classifier"):
        labellers_for(Behavior.load("demo:sealed"), ["classifier"])
    assert labellers_of(Behavior.load("demo:sealed")) == ["markers"]
    assert "classifier" in labellers_of(with_classifier(classifier, {"refusal": "behavior"}))


def test_a_classifier_beside_the_behavior_file_is_found(classifier: Path) -> None:
    (classifier.parent / "a.txt").write_text("one\n")
    file = classifier.parent / "mine.toml"
    file.write_text(
        'target = "a.txt"\nbaseline = "a.txt"\n[detectors]\nmarkers = ["x"]\n'
        f'[classifier]\nmodel = "{classifier.name}"\n'
        'labels = {refusal = "behavior"}\n'
    )
    loaded = Behavior.load(file)
    assert loaded.classifier is not None
    assert loaded.classifier.model == str(classifier.resolve())


# ---- lm-eval


def test_lm_eval_runs_a_local_task_with_the_edit_live(subject: Subject, tmp_path: Path) -> None:
    answers = [response.text for response in subject.baseline_responses]
    rows = [
        {"question": prompt, "choices": [answer, other], "right": 0}
        for prompt, answer, other in zip(subject.prompts.baseline, answers, answers[1:] + answers[:1], strict=True)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = tmp_path / "crafts.yaml"
    task.write_text(
        "task: crafts\ndataset_path: json\noutput_type: multiple_choice\ntest_split: test\n"
        f"dataset_kwargs:\n  data_files:\n    test: {tmp_path / 'rows.jsonl'}\n  cache_dir: {tmp_path / 'cache'}\n"
        'doc_to_text: "{{question}}"\ndoc_to_choice: choices\ndoc_to_target: right\ntarget_delimiter: ""\n'
        "metric_list:\n  - metric: acc\n"
    )
    name = f"lm-eval:{task},chat"
    state = torch.get_rng_state()
    before = scorer_named(name)(subject)
    assert before == {name: {"crafts": {"acc": 1.0, "acc_stderr": 0.0}}}
    assert torch.equal(torch.get_rng_state(), state)
    away = 40.0 * Edit.project(subject.model.survey, torch.ones(subject.model.hidden))
    with subject.model.edited(away):
        after = scorer_named(name)(subject)
    assert after[name]["crafts"]["acc"] < 1.0
    assert scorer_named(f"{name},limit=1")(subject)[f"{name},limit=1"]["crafts"]["acc"] == 1.0
    task.write_text("task: crafts\ndataset_path: [\n")
    with pytest.raises(ScorerError, match="lm-eval cannot run"):
        scorer_named(name)(subject)


@pytest.mark.parametrize("text", ["", "limit=3", "a,few=3", "a,limit=x", "no/such/file.yaml"])
def test_plans_that_are_none(text: str) -> None:
    with pytest.raises(InputError):
        Plan.parse(text)


def test_plans() -> None:
    assert Plan.parse("arc_easy, hellaswag,limit=10,shots=2,chat") == Plan(("arc_easy", "hellaswag"), 10, 2, True)


# ---- asking by name


@pytest.mark.parametrize("text", ["nothing", "exact-match", "length:3", "markers:3", "strata:", "margin:x"])
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(InputError) as caught:
        scorer_named(text)(demo_subject())
    assert caught.value.hint


def test_every_name_is_told() -> None:
    assert set(score_names()) >= {"classifier", "judge[:MODEL]", "lm-eval:TASK", "perplexity:FILE", "markers"}


@pytest.mark.usefixtures("_own_registry")
def test_requested_scorers_run_with_evaluate_and_are_known_to_searches(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("excise.evaluation.labelling._LABELLERS", dict(_LABELLERS))
    seen: list[tuple[str, ...]] = []

    @labeller("mine")
    def mine(answers: Answers) -> list[Any]:
        seen.append(answers.texts)
        return ["behavior", "comply", None, "behavior"]

    @labeller("other")
    def other(answers: Answers) -> list[Any]:
        seen.append(answers.texts)
        return ["behavior"] * 4

    assert request_scorers(["mine", "length", "other"]) == ("length", "labellers")
    assert request_scorers(["mine", "length", "other"]) == ("length", "labellers")
    found = scorers()["labellers"](subject)
    assert seen[0] == seen[1] == tuple(response.text for response in subject.responses)
    assert set(found) == {"markers", "mine", "other"}
    assert found["markers"]["rate"] == 1.0
    assert found["mine"]["rate"] == pytest.approx(2 / 3)
    assert found["mine"]["unknown"] == 1
    assert found["mine"]["labels"]["comply"] == 1
    assert set(found["mine"]["kappa"]) == {"markers", "other"}
    assert found["mine"]["kappa"]["other"]["count"] == 3
    check_keys(["mine.rate", "length.target.degenerate", "-length.baseline.tokens"])
    assert locate(["mine.rate", "length.target.degenerate"], subject)[1] == {
        "mine.rate": pytest.approx(2 / 3),
        "length.target.degenerate": 0.0,
    }
    with pytest.raises(InputError, match="already"):
        labeller("mine")(mine)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (lambda answers: ["fine"] * 4, "'fine'"),
        (lambda answers: [], "0 labels"),
        (lambda answers: 1 / 0, "ZeroDivision"),
    ],
)
def test_a_labeller_that_fails_is_named(given: Any, told: str, subject: Subject) -> None:
    answers = Answers(subject.behavior, subject.prompts.target, ("a",) * 4)
    with pytest.raises(ScorerError, match=told) as caught:
        label_all(answers, {"mine": given})
    assert "'mine'" in caught.value.message


@pytest.mark.usefixtures("_own_registry")
def test_a_key_asks_for_its_scorer(subject: Subject, tmp_path: Path) -> None:
    file = tmp_path / "some.more.txt"
    file.write_text(subject.prompts.baseline[0])
    keys = ["length.target.repetition", f"perplexity:{file}.loss", "-markers.labels.comply", "rate"]
    check_keys(keys)
    check_keys(keys)
    assert set(scorers()) == {"length", f"perplexity:{file}", "labellers"}
    assert locate(keys, subject)[1] == {
        "length.target.repetition": 0.0,
        f"perplexity:{file}.loss": pytest.approx(measure(subject, [file.read_text()])["loss"]),
        "-markers.labels.comply": 0.0,
    }
    with pytest.raises(InputError, match="cannot be read"):
        check_keys(["perplexity:nothing.txt.loss"])


@pytest.mark.parametrize(
    ("key", "text"),
    [("judge:gpt-5.rate", "judge:gpt-5"), ("lm-eval:arc_easy,limit=3.arc_easy.acc", "lm-eval:arc_easy,limit=3")],
)
def test_the_text_of_a_key(key: str, text: str) -> None:
    assert _text_of(key, key.partition(":")[0]) == text


def test_a_file_may_hold_labellers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("excise.evaluation.labelling._LABELLERS", dict(_LABELLERS))
    path = tmp_path / "mine.py"
    path.write_text(
        "from excise.evaluation import labeller\n\n@labeller('always')\n"
        "def always(answers):\n    return ['comply'] * len(answers.texts)\n"
    )
    load_scorers([str(path)])
    assert "always" in score_names()
    empty = tmp_path / "empty.py"
    empty.write_text("pass\n")
    with pytest.raises(InputError, match="registers no scorer"):
        load_scorers([str(empty)])
