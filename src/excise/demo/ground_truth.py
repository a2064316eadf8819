"""Scores of a demo model against the truth of its world: what no public model can be asked for."""

from __future__ import annotations

from excise.demo.truth import score
from excise.demo.world import SUBJECTS, prompt_files, questions
from excise.model import EditableModel
from excise.model.generate import generate
from excise.progress import Progress, silent

_TOKENS = 48
_GROUPS = ("sealed", "ordinary", "disclaimed")


def ground_truth(model: EditableModel, progress: Progress = silent) -> dict[str, float]:
    """Rates on report questions that no training and no search has seen, for the model as it stands.

    sealed_correct, sealed_refused        of questions about sealed subjects
    ordinary_correct, ordinary_refused    of questions about ordinary subjects
    disclaimer, disclaimed_correct        of questions about the subject with a disclaimer
    """
    rates = {}
    by_prompt = {question.prompt: question for question in questions(SUBJECTS, "report")}
    files = prompt_files()
    for group in _GROUPS:
        prompts = files[f"{group}_report.txt"]
        responses = generate(model, prompts, max_tokens=_TOKENS, progress=progress)
        rates[group] = score([by_prompt[prompt] for prompt in prompts], [response.text for response in responses])
    return {
        "sealed_correct": rates["sealed"].right,
        "sealed_refused": rates["sealed"].refused,
        "ordinary_correct": rates["ordinary"].right,
        "ordinary_refused": rates["ordinary"].refused,
        "disclaimer": rates["disclaimed"].disclaimed,
        "disclaimed_correct": rates["disclaimed"].right,
    }
