"""Settings of an architecture that nobody has heard of; copied beside the weights by `test_remote_code`."""

import os
from pathlib import Path

from transformers import PreTrainedConfig

if "QUILLWORT_LOG" in os.environ:  # tells the test that code from the model directory was run
    Path(os.environ["QUILLWORT_LOG"]).write_text("the configuration was run", encoding="utf-8")


class QuillwortConfig(PreTrainedConfig):
    """None of the usual names for sizes."""

    model_type = "quillwort"

    def __init__(self, girth=32, storeys=3, eyes=4, sporangia=3, reach=128, glyphs=256, **rest):
        self.girth, self.storeys, self.eyes = girth, storeys, eyes
        self.sporangia, self.reach, self.glyphs = sporangia, reach, glyphs
        super().__init__(**{"tie_word_embeddings": True, **rest})
