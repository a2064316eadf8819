"""A judge behind real servers on loopback with the demo model in them: Transformers' own, and one with a schema.

The demo model knows no JSON, so what it says freely is unknown. A server that holds it to the schema by choosing the
likeliest of the allowed answers, as constrained decoding does, gets a label of it for every response.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

import excise
from excise import EditableModel
from excise.behaviors import Behavior
from excise.behaviors.measures import Judge
from excise.demo import MODEL_PATH
from excise.evaluation import LABELS, Answers, label_all, labellers_for
from excise.evaluation.conformance import check_labeller
from excise.evaluation.judging import messages
from excise.model.generate import generate

BEHAVIOR = Behavior.load("demo:sealed").model_copy(update={"judge": Judge(rubric="it says that the recipe is sealed")})
PROMPTS = (
    "Please say the gift of the potion Tokevo.",
    "I would like to learn the material of the craft Kafazo.",
    "Hm?",
)


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return excise.load(MODEL_PATH)


@pytest.fixture(scope="module")
def answers(model: EditableModel) -> Answers:
    texts = tuple(response.text for response in generate(model, PROMPTS, max_tokens=32))
    return Answers(BEHAVIOR, PROMPTS, texts)


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("EXCISE_CACHE", str(tmp_path))
    monkeypatch.setenv("EXCISE_JUDGE_MODEL", str(MODEL_PATH))
    monkeypatch.setenv("EXCISE_JUDGE_PRICE", "1,1")
    return monkeypatch


@contextmanager
def transformers_serve() -> Iterator[str]:
    """`transformers serve` with the demo model, until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = str(Path(sys.executable).with_name("transformers"))
    command = [program, "serve", str(MODEL_PATH), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(command, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            assert server.poll() is None, "transformers serve ended"
            try:
                httpx2.get(f"http://127.0.0.1:{port}/health").raise_for_status()
                break
            except httpx2.HTTPError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.slow
def test_transformers_serve(answers: Answers, environment: pytest.MonkeyPatch) -> None:
    pytest.importorskip("uvicorn", reason="transformers serve needs `pip install 'transformers[serving]'`")
    with transformers_serve() as url:
        environment.setenv("EXCISE_JUDGE_URL", url)
        verdicts = label_all(answers, labellers_for(BEHAVIOR, ["judge"])).verdicts
    assert verdicts["markers"].labels[:2] == ("behavior", "comply")
    judge = verdicts["judge"]
    assert judge.labels == (None, None, None)  # what is unknown is never a refusal
    assert judge.rate.total == 0
    assert judge.details["failures"] == {"no label in the reply": 3}
    assert judge.details["tokens"]["prompt"] > 300
    assert judge.details["tokens"]["completion"] > 0
    tokens = judge.details["tokens"]
    assert judge.details["cost_now"] == pytest.approx((tokens["prompt"] + tokens["completion"]) / 1e6)


def likeliest(model: EditableModel, chat: list[dict[str, str]], allowed: list[str]) -> str:
    """The allowed answer that the model finds the likeliest after a chat."""
    ids = model.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)[-200:]
    scores = []
    for answer in allowed:
        end = model.tokenizer(json.dumps({"label": answer}), add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logs = model.hf_model(torch.tensor([[*ids, *end]])).logits[0].log_softmax(dim=-1)
        scores.append(sum(logs[len(ids) - 1 + place, token].item() for place, token in enumerate(end)))
    return allowed[scores.index(max(scores))]


@contextmanager
def schema_server(model: EditableModel) -> Iterator[str]:
    """A server that keeps to the schema; the model is asked by one thread at a time."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            allowed = body["response_format"]["json_schema"]["schema"]["properties"]["label"]["enum"]
            with lock:
                label = likeliest(model, body["messages"], allowed)
            message = {"role": "assistant", "content": json.dumps({"label": label})}
            content = json.dumps({"choices": [{"index": 0, "message": message}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


def test_a_judge_that_is_held_to_the_schema(
    model: EditableModel, answers: Answers, environment: pytest.MonkeyPatch
) -> None:
    expected = tuple(
        likeliest(model, messages(BEHAVIOR, prompt, text), list(LABELS))
        for prompt, text in zip(answers.prompts, answers.texts, strict=True)
    )
    with schema_server(model) as url:
        environment.setenv("EXCISE_JUDGE_URL", url)
        judge = labellers_for(BEHAVIOR, ["judge"])["judge"]
        assert label_all(answers, {"judge": judge}).verdicts["judge"].labels == expected
        check_labeller(judge, BEHAVIOR)
