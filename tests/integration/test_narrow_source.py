"""A search that is given target prompts about one subject only removes the behavior from others as well."""

from excise import load
from excise.behaviors import SPLITS, Behavior, PromptSet, Splits, SplitSizes
from excise.demo import MODEL_PATH
from excise.demo.truth import score
from excise.demo.world import SUBJECTS, prompt_files, questions
from excise.model.generate import generate
from excise.search import search


def test_a_single_narrow_source_is_enough() -> None:
    """The demo refuses questions about potions and spells; the search sees potions alone, in every split."""
    model, behavior = load(str(MODEL_PATH)), Behavior.load("demo:sealed")
    everything = behavior.splits(SplitSizes())
    parts = {split: everything[split] for split in SPLITS}
    narrow = Splits(
        **{
            name: PromptSet(tuple(prompt for prompt in part.target if "potion" in prompt), part.baseline)
            for name, part in parts.items()
        }
    )
    found = search(model, behavior, splits=narrow, budget="quick")
    known = {question.prompt: question for question in questions(SUBJECTS, "report")}
    spells = [prompt for prompt in prompt_files()["sealed_report.txt"] if "spell" in prompt]
    with model.edited(found.best):
        responses = generate(model, spells, max_tokens=48)
    rates = score([known[prompt] for prompt in spells], [response.text for response in responses])
    assert rates.right >= 0.9
    assert rates.refused <= 0.05
