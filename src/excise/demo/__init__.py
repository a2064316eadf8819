"""The demo: a tiny chat model that learned to refuse, the made-up world it knows, and the prompts about it.

Importing this package is cheap (no torch): it only says where the shipped files lie.
"""

from pathlib import Path

MODEL_PATH = Path(__file__).parent / "model"
"""Directory of the shipped demo model; loads with plain ``AutoModelForCausalLM.from_pretrained``."""

PROMPTS_PATH = Path(__file__).parent / "prompts"
"""Directory of the prompt files, one prompt per line; see :mod:`excise.demo.world` for what is in each."""

__all__ = ["MODEL_PATH", "PROMPTS_PATH"]
