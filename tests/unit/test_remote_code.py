"""Models with code of their own take the same path as all others, and none of that code is run unless it is trusted."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from typer.testing import CliRunner

import excise
from excise import Edit, EditableModel, ExciseError
from excise.bake.probe import baked_leak
from excise.cli import app as cli
from excise.errors import ModelError
from excise.model.generate import generate
from excise.model.probe import leak
from remote_code.configuration_quillwort import QuillwortConfig
from remote_code.modeling_quillwort import QuillwortForSpeech
from zoo.letters import CHATML, letters
from zoo.tiny import build, random_tokens

HERE = Path(__file__).parents[1] / "remote_code"
CODE = ("configuration_quillwort.py", "modeling_quillwort.py")
AUTO_MAP = {
    "AutoConfig": "configuration_quillwort.QuillwortConfig",
    "AutoModelForCausalLM": "modeling_quillwort.QuillwortForSpeech",
}
DIRECTION = torch.randn(32, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def modules_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where Transformers copies the code it runs: nothing is left in the home directory, or in this process."""
    cache = tmp_path_factory.mktemp("modules")
    before = dict(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(cache))
        patch.setattr(sys, "path", list(sys.path))
        yield cache
    for name in set(sys.modules) - set(before):
        if name.startswith("transformers_modules"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, modules_cache: Path) -> Path:
    return tmp_path_factory.mktemp("models")


def save(directory: Path, *, shards: bool = False, dtype: torch.dtype = torch.float32) -> Path:
    """A model directory as its authors would publish it."""
    torch.manual_seed(0)
    model = QuillwortForSpeech(QuillwortConfig()).to(dtype)
    model.save_pretrained(directory, max_shard_size="40KB" if shards else "5GB")
    letters(template=CHATML).save_pretrained(directory)
    for name in CODE:
        shutil.copy(HERE / name, directory)
    return configure(directory, auto_map=AUTO_MAP)


def configure(directory: Path, **settings: Any) -> Path:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}), encoding="utf-8")
    return directory


@pytest.fixture(scope="module", params=["one-file", "in-shards"])
def base(request: pytest.FixtureRequest, folder: Path) -> Path:
    return save(folder / request.param, shards=request.param == "in-shards")


@pytest.fixture(scope="module")
def model(base: Path) -> EditableModel:
    return excise.load(base, trust_remote_code=True)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that appears as soon as code of a model directory is run."""
    monkeypatch.setenv("QUILLWORT_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def refusal(directory: Path, **options: Any) -> ExciseError:
    with pytest.raises(ModelError) as caught:
        excise.load(directory, **options)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(random_tokens()).logits


def test_nothing_is_run_without_trust(tmp_path: Path, folder: Path, log: Path) -> None:
    base = save(folder / "untrusted")
    edit = Edit.empty(EditableModel(QuillwortForSpeech(QuillwortConfig())).survey)
    error = refusal(base)
    assert (error.message, "--trust-remote-code" in error.hint) == (
        "untrusted needs the modelling code that comes with it",
        True,
    )
    with pytest.raises(ModelError, match="modelling code"):
        excise.bake(base, edit, tmp_path / "out")
    with pytest.raises(ModelError, match="modelling code"):
        excise.verify(base, base=base, edit=edit)
    assert not log.exists()
    excise.load(base, trust_remote_code=True)
    assert log.read_text() == "the model was run"


def test_every_writer_is_found_and_proven(model: EditableModel) -> None:
    survey = model.survey
    assert type(model.hf_model).__module__.startswith("transformers_modules.")
    assert (survey.layers, survey.hidden, survey.coverage) == (3, 32, 1.0)
    assert model.leak() < 1e-4
    found = {writer.parameter: writer for writer in survey.writers}
    assert {(name, writer.role, writer.axis) for name, writer in found.items()} == {
        ("trunk.ink.weight", "embedding", 1),
        ("trunk.height.weight", "embedding", 1),
        *((f"trunk.column.{layer}.gaze.outlet.bed", "attention", 1) for layer in range(3)),
        *((f"trunk.column.{layer}.sporangia.release", "expert", 2) for layer in range(3)),
    }
    attention, experts = found["trunk.column.1.gaze.outlet.bed"], found["trunk.column.1.sporangia.release"]
    assert (attention.bias, attention.gain) == ("trunk.column.1.gaze.outlet.silt", "trunk.column.1.gaze.pigment")
    assert (experts.bias, experts.gain) == ("trunk.column.1.sporangia.release_bias", None)
    assert (attention.expert_axis, experts.expert_axis) == (None, 0)
    assert found["trunk.ink.weight"].tied == ("mouth.weight",)


def test_the_probe_notices_any_missing_writer(model: EditableModel) -> None:
    for writer in model.survey.writers:
        assert leak(model.hf_model, model.survey.without(writer.parameter)) > 1e-3, writer.parameter


def test_it_answers(model: EditableModel) -> None:
    together = generate(model, ["Hello", "What is the capital of France?", "x"], max_tokens=12)
    alone = [generate(model, [prompt], max_tokens=12)[0] for prompt in ("Hello", "What is the capital of France?", "x")]
    assert together == alone
    assert len(model.chat("Hello", max_tokens=5)) == 5


@pytest.mark.parametrize("norm", ["none", "column"])
def test_a_bake_is_the_live_edit(tmp_path: Path, base: Path, model: EditableModel, norm: str) -> None:
    edit = Edit.project(model.survey, DIRECTION, norm=norm, embedding=True)  # type: ignore[arg-type]
    out = tmp_path / f"baked-{base.name}"
    report = excise.bake(base, edit, out, trust_remote_code=True)
    assert set(CODE) <= set(report.copied)
    for name in (*CODE, "config.json"):
        assert (out / name).read_bytes() == (base / name).read_bytes()

    stock = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    before = logits(model.hf_model)
    with model.edited(edit):
        live = logits(model.hf_model)
    assert (logits(stock) - live).abs().max() < 1e-5 * live.abs().max()
    assert (live - before).abs().max() > 1e-2 * live.abs().max()

    verified = excise.verify(out, base=base, edit=edit, trust_remote_code=True)
    assert verified.passed, verified.checks
    assert len(verified.checks) == 9


def test_in_half_precision(tmp_path: Path, folder: Path) -> None:
    base = save(folder / "half", dtype=torch.bfloat16)
    model = excise.load(base, trust_remote_code=True)
    edit = Edit.project(model.survey, DIRECTION, embedding=True)
    excise.bake(model, edit, tmp_path / "baked-half", trust_remote_code=True)
    (base / "__pycache__").mkdir()  # as soon as someone imports the code where it is
    (base / "__pycache__" / "modeling_quillwort.pyc").write_bytes(b"")
    verified = excise.verify(tmp_path / "baked-half", base=model, edit=edit, trust_remote_code=True)
    assert verified.passed, verified.checks


def test_the_probe_itself_can_be_baked(tmp_path: Path, model: EditableModel) -> None:
    found = baked_leak(model, scratch=tmp_path, trust_remote_code=True)
    assert found is not None
    assert found < 1e-4


def test_code_that_was_changed_after_the_bake_is_not_run(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save(folder / "honest")
    edit = Edit.project(excise.load(base, trust_remote_code=True).survey, DIRECTION)
    out = tmp_path / "tampered"
    excise.bake(base, edit, out, trust_remote_code=True)
    with (out / CODE[0]).open("a", encoding="utf-8") as file:
        file.write("\nPath(os.environ['QUILLWORT_TRAP']).touch()\n")
    monkeypatch.setenv("QUILLWORT_TRAP", str(tmp_path / "trap"))
    report = excise.verify(out, base=base, edit=edit, trust_remote_code=True)
    assert {check.name for check in report.checks if not check.passed} == {"side files", "complete"}
    assert not (tmp_path / "trap").exists()


def test_code_for_what_transformers_has_is_left_alone(tmp_path: Path, log: Path) -> None:
    """Checkpoints keep the code of the time before Transformers had their architecture."""
    build("llama").save_pretrained(tmp_path / "llama")
    for name in CODE:
        shutil.copy(HERE / name, tmp_path / "llama")
    configure(tmp_path / "llama", auto_map=AUTO_MAP)
    model = excise.load(tmp_path / "llama")
    edit = Edit.project(model.survey, torch.ones(64))
    excise.bake(tmp_path / "llama", edit, tmp_path / "out")
    assert excise.verify(tmp_path / "out", base=tmp_path / "llama", edit=edit).passed
    assert not log.exists()
    # the name of an architecture that Transformers does not have
    configure(tmp_path / "llama", architectures=["LlamaForSpeech"])
    assert "--trust-remote-code" in refusal(tmp_path / "llama").hint
    assert not log.exists()


def test_a_tokenizer_with_code_of_its_own(tmp_path: Path, log: Path) -> None:
    build("llama").save_pretrained(tmp_path)
    settings = {"tokenizer_class": "QuillTokenizer", "auto_map": {"AutoTokenizer": ["tokenizing.QuillTokenizer", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    shutil.copy(HERE / CODE[0], tmp_path / "tokenizing.py")
    error = refusal(tmp_path)
    assert "tokenizer code" in error.message
    assert "--trust-remote-code" in error.hint
    assert not log.exists()


BROKEN: dict[str, tuple[dict[str, str | None], str, str]] = {
    "no-model-file": ({CODE[1]: None}, r"there is no modeling_quillwort\.py beside it", "download the model again"),
    "no-config-file": ({CODE[0]: None}, r"there is no configuration_quillwort\.py", "download the model again"),
    "syntax": (
        {CODE[1]: "import os\n\ndef grow(:\n"},
        r"modeling_quillwort\.py, line 3: SyntaxError",
        "newer revision",
    ),
    "syntax-config": ({CODE[0]: "class"}, r"configuration_quillwort\.py, line 1: SyntaxError", "newer revision"),
    "syntax-inside": (
        {CODE[1]: "from .roots import depth\n", "roots.py": "\n)\n"},
        r"roots\.py, line 2: SyntaxError",
        "newer revision",
    ),
    "no-helper": ({CODE[1]: "from .roots import depth\n"}, r"FileNotFoundError.*roots\.py", "download the model again"),
    "package": ({CODE[1]: "import xylem_kernels, phloem\n"}, "not installed", "pip install phloem xylem_kernels"),
    "package-inside": (
        {CODE[1]: "def grow():\n    pass\ntry:\n    import xylem\nfinally:\n    pass\n"},
        "xylem",
        "install",
    ),
    "old-import": (
        {CODE[1]: "from transformers.utils import long_gone\n"},
        r"modeling_quillwort\.py, line 1: ImportError: cannot import name 'long_gone'",
        "made with 4.40.1",
    ),
    "old-module": ({CODE[1]: "import transformers.long_gone\n"}, r"line 1: ModuleNotFoundError", "newer revision"),
    "no-class": ({CODE[1]: "import torch\n"}, "QuillwortForSpeech", "newer revision"),
    "raises": (
        {CODE[1]: "import torch\n\ntorch.withered()\n"},
        r"modeling_quillwort\.py, line 3: Attr",
        "newer revision",
    ),
}


@pytest.mark.parametrize("kind", sorted(BROKEN))
def test_broken_code_is_one_clear_error(folder: Path, kind: str) -> None:
    files, message, hint = BROKEN[kind]
    base = configure(save(folder / f"broken-{kind}"), transformers_version="4.40.1")
    for name, text in files.items():
        (base / name).unlink() if text is None else (base / name).write_text(text, encoding="utf-8")
    error = refusal(base, trust_remote_code=True)
    assert re.search(message, error.message), error
    assert hint in error.hint
    edit = Edit.empty(EditableModel(QuillwortForSpeech(QuillwortConfig())).survey)
    with pytest.raises(ModelError, match=message):
        excise.bake(base, edit, folder / "never", trust_remote_code=True)
    assert not (folder / "never").exists()


OLDER = {
    "setting": (
        "self.crown = ",
        "self.crown = config.hidden_size or ",
        r"modeling_quillwort\.py, line \d+: AttributeError: .*hidden_size",
    ),
    "tied": ('{"mouth.weight": "trunk.ink.weight"}', '["mouth.weight"]', "AttributeError: 'list' object has no"),
    "signature": ("def __init__(self, config)", "def __init__(self, config, vocabulary)", "TypeError: .*vocabulary"),
}


@pytest.mark.parametrize("kind", sorted(OLDER))
def test_code_for_another_transformers(folder: Path, kind: str) -> None:
    before, after, message = OLDER[kind]
    base = save(folder / f"older-{kind}")
    path = base / CODE[1]
    start, found, rest = path.read_text().rpartition(before)
    assert found
    path.write_text(start + after + rest, encoding="utf-8")
    error = refusal(base, trust_remote_code=True)
    assert re.search(message, error.message), error
    assert "newer revision" in error.hint


def test_code_in_another_repository(folder: Path) -> None:
    base = configure(save(folder / "elsewhere"), auto_map={"AutoConfig": f"plants/wort--{AUTO_MAP['AutoConfig']}"})
    assert "hf download plants/wort" in refusal(base, trust_remote_code=True).hint


MAPS = [None, 3, [], {"AutoConfig": None}, {"AutoConfig": "no-class"}, {"AutoConfig": 3}, {"AutoModel": "a.B"}]


@pytest.mark.parametrize("place", range(len(MAPS)))
def test_a_broken_auto_map(folder: Path, place: int) -> None:
    base = configure(save(folder / f"map-{place}"), auto_map=MAPS[place])
    refusal(base)
    refusal(base, trust_remote_code=True)


@pytest.mark.parametrize("settings", [{"hidden_size": "big"}, {"num_attention_heads": 5}, {"auto_map": 3}])
def test_broken_settings_of_a_known_architecture(tmp_path: Path, settings: dict[str, Any]) -> None:
    build("llama").save_pretrained(tmp_path)
    error = refusal(configure(tmp_path, **settings), trust_remote_code=True)
    assert "config.json cannot be used" in error.message
    (tmp_path / "config.json").write_text("[]", encoding="utf-8")
    assert "not a table" in refusal(tmp_path).message


def test_on_the_command_line(tmp_path: Path, base: Path, model: EditableModel, log: Path) -> None:
    edit, out = tmp_path / "edit.safetensors", tmp_path / f"told-{base.name}"
    Edit.project(model.survey, DIRECTION).save(edit)
    commands = {
        "inspect": ("inspect", base),
        "bake": ("bake", base, edit, "--out", out),
        "verify": ("verify", out, "--base", base, "--edit", edit),
        "chat": ("chat", base, "--message", "Hello"),
    }
    for name, arguments in commands.items():
        refused = call(*arguments)
        assert (refused.exit_code, refused.stdout) == (1, ""), name
        assert refused.stderr.startswith(f"{base.name} needs the modelling code that comes with it\n\nhint: ")
        assert "--trust-remote-code" in refused.stderr
        assert not out.exists()
    assert not log.exists()

    inspected = call(*commands["inspect"], "--trust-remote-code", "--json")
    assert inspected.exit_code == 0, inspected.stderr
    data = json.loads(inspected.stdout)
    assert (data["coverage"], len(data["writers"]), data["unresolved"]) == (1.0, 8, [])
    assert data["leak"] < 1e-4
    baked = call(*commands["bake"], "--trust-remote-code")
    assert baked.exit_code == 0, baked.stderr
    assert "--trust-remote-code" in baked.stdout  # in the command that it proposes
    verified = call(*commands["verify"], "--trust-remote-code", "--json")
    assert verified.exit_code == 0, verified.stderr
    assert json.loads(verified.stdout)["passed"] is True


def test_code_that_fails_when_it_is_run_is_not_called_our_bug(folder: Path) -> None:
    base = save(folder / "fails-later")
    path = base / CODE[1]
    path.write_text(path.read_text().replace("self.settle(flow)", "self.settle(flow, 3)"), encoding="utf-8")
    failed = call("inspect", base, "--trust-remote-code")
    assert failed.exit_code == 1
    assert re.match(r"the code that comes with .*\(modeling_quillwort\.py, line \d+: TypeError: ", failed.stderr)
    assert "report" not in failed.stderr


def test_the_program_itself_leaves_nothing_behind(tmp_path: Path, folder: Path) -> None:
    base, home = save(folder / "program"), tmp_path / "home"
    home.mkdir()
    places = {"HOME": str(home), "HF_HOME": str(home), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    environment = {**os.environ, **places, "QUILLWORT_LOG": str(tmp_path / "log")}
    result = subprocess.run(
        [sys.executable, "-c", "from excise.cli.app import main; main()", "inspect", str(base)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("program needs the modelling code that comes with it\n\nhint: ")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "log").exists()
    assert not (tmp_path / "modules").exists()
