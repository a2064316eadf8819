"""Every decoder architecture of the installed Transformers: covered and proven, live and baked, or known to be refused.

The list comes from Transformers, so an architecture that is new there fails here until it builds and is measured.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from excise import EditableModel
from excise.errors import SurveyError
from zoo.build import build
from zoo.document import documented, documented_out_of_scope, line, out_of_scope
from zoo.measure import NOT_LOADED, measure
from zoo.scope import CAUSAL, IN_SCOPE, OUT_OF_SCOPE, VARIANTS, VISION_LANGUAGE

REFUSED = {
    "gemma3n": "once more behind a gained norm",
    "gemma3n_text": "once more behind a gained norm",
    "longcat_flash": "once more behind a gained norm",
    "qwen4_exp_text+n-grams": "a nonlinearity",
    "rwkv": "a gate that depends on the input",
}
"""Those that cannot be edited exactly, and a part of the reason that the survey gives."""

FAST = (
    *("llama", "gpt2", "gemma2", "gemma3", "gemma4_text", "olmo2", "exaone4", "glm4", "phi", "falcon", "opt", "bloom"),
    *("mixtral", "qwen3_moe", "gpt_oss", "llama4_text", "deepseek_v3", "jetmoe", "dbrx", "jamba", "granitemoehybrid"),
    *("mamba", "mamba2", "falcon_h1", "recurrent_gemma", "rwkv", "xlstm", "qwen3_next", "kimi_linear", "lfm2"),
    *("minimax", "openai-gpt", "doge", "inkling2_text", "hrm_text", "deepseek_v4", "qwen4_exp_text", "reformer"),
    *("zamba2", "gemma3n_text", "xglm", "qwen2_5_vl", "mllama", "blip-2", "idefics", "qwen4_exp_text+n-grams"),
)
"""One of each kind of writer and of stream: measured in every test run, the others in `make zoo`."""

KINDS = [pytest.param(kind, marks=() if kind in FAST else pytest.mark.slow) for kind in sorted((*IN_SCOPE, *VARIANTS))]


@pytest.mark.parametrize("kind", KINDS)
def test_architecture(kind: str, tmp_path: Path) -> None:
    row = measure(kind, tmp_path)
    assert [reason for reason in row.refused if REFUSED.get(kind, "-") not in reason] == []
    assert bool(row.refused) == (kind in REFUSED)
    assert row.routers == (), "routers and gates are never writers"
    if not row.refused:
        assert row.leak < 1e-4
        assert row.unnoticed == (), "the probe does not notice that these are missing"
    if kind not in NOT_LOADED:
        assert row.baked is not None
        assert row.difference is not None
        assert row.refused or row.baked < 1e-4
        assert kind == "longcat_flash" or row.difference < 1e-4  # its routers choose by hairs' breadths
    assert documented().get(kind) == line(row), "run `make architectures`"


def test_every_architecture_is_in_the_page_and_no_other() -> None:
    assert sorted(documented()) == sorted((*IN_SCOPE, *VARIANTS, "architecture"))
    assert documented_out_of_scope() == out_of_scope()


def test_the_lists_are_of_the_installed_transformers() -> None:
    known = {*CAUSAL, *VISION_LANGUAGE}
    assert set(OUT_OF_SCOPE) <= known
    assert len(REFUSED.keys() - VARIANTS.keys()) <= 5
    assert set(FAST) <= {*IN_SCOPE, *VARIANTS}


@pytest.mark.parametrize("kind", ["gemma3n_text", "rwkv"])
def test_a_refusal_names_parameters_and_reason(kind: str) -> None:
    with pytest.raises(SurveyError, match=REFUSED[kind]) as refusal:
        _ = EditableModel(build(kind), name=kind).survey
    partial = EditableModel(build(kind), name=kind, allow_partial=True)
    assert partial.survey.unresolved[0].parameters[0] in refusal.value.message
    assert partial.leak() > 1e-3
    assert "--allow-partial" in refusal.value.hint
