"""How the edit was made and what it does, for the model card and the page."""

from __future__ import annotations

from excise.report import edited, formats
from excise.report.points import chosen_parameters
from excise.report.record import Record
from excise.report.subject import strengthens

_PAPER = "[Arditi et al., 2024](https://arxiv.org/abs/2406.11717)"


def family(result: Record) -> str:
    """The name of the technique."""
    if strengthens(result):
        return "directional ablation with its sign turned round"
    if not edited.has_low_rank(result):
        return "directional ablation"
    return "a conditional form of directional ablation" if _is_conditional(result) else "a form of directional ablation"


def technique(result: Record) -> str:
    """What was done to the weights, in sentences of Markdown. Nothing of the result but numbers is in them."""
    sentences = [f"by {family(result)} ({_PAPER}): {_changes(result)}"]
    projected = edited.kinds(result)["projection"]
    if edited.has_low_rank(result) and projected:
        count = formats.count(projected, "other weight")
        sentences.append(f"In {count} the directions were projected out, whatever is read.")
    sentences += _training(result)
    sentences.append("There is no custom code: it loads in stock Transformers.")
    return " ".join(sentences)


def _changes(result: Record) -> str:
    if strengthens(result):
        return (
            "what the weights that write to the residual stream write along directions of the behavior was amplified."
        )
    if not edited.has_low_rank(result):
        return "directions that carry the behavior were taken out of the weights that write to the residual stream."
    kinds = edited.kinds(result)
    del kinds["projection"]
    weights = formats.count(kinds.total(), "weight that writes", "weights that write")
    form = f"W′ = W + BA{edited.ranks(result, *kinds)}"
    if not _is_conditional(result):
        return f"{weights} to the residual stream got a change that depends on what the weight reads, {form}."
    return (
        f"in {weights} to the residual stream, less is written along directions that carry the behavior, by an amount "
        f"that depends on what the weight reads: {form}. A was made to respond where the behavior would begin and to "
        "be silent on ordinary prompts, in closed form from statistics of the model’s activations."
    )


def _training(result: Record) -> list[str]:
    """Whether gradients had a part in it; nothing where the result does not say."""
    parameters = chosen_parameters(result)
    kind, steps, along = parameters.text("kind"), parameters.number("step"), parameters.number("along")
    if kind == "polish" or (kind == "between" and along != 0):
        how = f"for {formats.count(int(steps), 'gradient step')}" if steps else "by gradient descent"
        return [f"The changes, and nothing else, were then trained {how} on responses of the model’s own."]
    solved = kind in ("closed form", "between") or parameters.text("units") is not None
    known = solved or not edited.has_low_rank(result)
    return ["There was no training."] if known else []


def _is_conditional(result: Record) -> bool:
    """Whether the search was for changes that are silent on ordinary prompts."""
    units = chosen_parameters(result).text("units")
    return result.text("search", "method") == "polish" or units == "conditional"
