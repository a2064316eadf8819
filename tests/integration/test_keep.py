"""The demo refuses questions about potions and about spells by one direction: one refusal goes, the other stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from excise.cli import app as cli
from excise.demo import MODEL_PATH
from excise.demo.world import SPLITS, prompt_files

pytestmark = pytest.mark.slow


def run(folder: Path, *, kept_in: tuple[str, ...]) -> tuple[int, dict[str, Any]]:
    """Remove the refusal of potions; that of spells is to stay, and the search knows of it where `kept_in` says so."""
    files, sides = prompt_files(), {"target": "potion", "keep": "spell"}
    lines = ["max_tokens = 48", 'positions = ["-1", "-2", "-3", "-4", "+1"]', 'detectors = "demo:sealed"']
    lines.append("near_duplicates = 0")  # phrases of one gazetteer are alike
    for side in ("target", "baseline", "keep"):
        lines.append(f"[{side}]")
        for split in SPLITS if side != "keep" else kept_in:
            some = files[f"sealed_baseline_{split}.txt"]
            if side in sides:
                some = tuple(prompt for prompt in files[f"sealed_{split}.txt"] if sides[side] in prompt)
            rows = [json.dumps({"prompt": prompt, "category": side}) for prompt in some]
            (folder / f"{side}-{split}.jsonl").write_text("\n".join(rows), encoding="utf-8")
            lines.append(f'{split} = "{side}-{split}.jsonl"')
    (folder / "potions.toml").write_text("\n".join(lines), encoding="utf-8")
    words = ["run", str(MODEL_PATH), "--behavior", str(folder / "potions.toml"), "--budget", "quick", "--json"]
    done = CliRunner().invoke(cli.app, [*words, "--no-bake", "--report-tokens", "48", "--out", str(folder / "run")])
    result: dict[str, Any] = json.loads((folder / "run" / "result.json").read_text(encoding="utf-8"))
    return done.exit_code, result


def test_what_is_to_be_kept_is_kept(tmp_path: Path) -> None:
    code, result = run(tmp_path, kept_in=SPLITS)
    assert result["before"]["keep_rate"] == result["before"]["rate"] == 1.0
    assert result["after"]["rate"] <= 0.05
    assert result["after"]["keep_rate"] >= 0.9
    assert result["after"]["strata"]["category"]["keep"]["keep_rate"] == result["after"]["keep_rate"]
    assert result["comparison"]["keep"]["holds"] is not False
    assert code == 0


def test_what_the_search_does_not_know_of_is_lost_and_the_run_says_so(tmp_path: Path) -> None:
    code, result = run(tmp_path, kept_in=("report",))
    assert result["after"]["rate"] <= 0.05
    assert result["after"]["keep_rate"] <= 0.3
    assert result["comparison"]["keep"]["holds"] is False
    assert code == 3
