"""`exo run`, `exo eval` and `exo bench` with a model of a hub, from a server on loopback with
faults.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from golden_data import DATA, Case, folder_cases
from hub_server import Hub, serve
from tiny_checkpoint import write_tokenizer

from exo.cli.commands import evaluation
from exo.cli.commands import run as oneshot
from exo.cli.failures import Failure
from exo.contract import env_name

MODEL = "hf:owner/model"
CASE: Case = next(case for case in folder_cases() if case.name == "qwen3-qknorm-sharded")
ASK = oneshot.Ask(
    model=MODEL,
    prompt="hello",
    system=None,
    max_tokens=60,
    temperature=0.0,
    seed=None,
    engine="numpy",
)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setattr("exo.utils.retry.random.uniform", lambda low, high: 0.001)
    (tmp_path / "model").mkdir()
    files = [*CASE.checkpoint.glob("*.json"), *CASE.checkpoint.glob("*.safetensors")]
    files += write_tokenizer(tmp_path / "model").iterdir()
    gguf = DATA / "tiny-gguf" / "tiny-llama.Q4_0.gguf"
    with serve(Hub({path.name: path.read_bytes() for path in [*files, gguf]})) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.setenv(env_name("cache-dir"), str(tmp_path / "cache"))
        yield served


def test_a_model_is_fetched_despite_faults_and_answers_a_prompt(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = sorted(name for name in hub.files if name.endswith("safetensors"))[:2]
    hub.faults |= {"config.json": ["503"], first: ["cut", "429"], second: ["wrong", "late"]}
    assert oneshot.run_once(ASK) == 0
    assert not any(hub.faults.values())
    answer = capsys.readouterr().out
    assert len(answer) > 5
    for path in CASE.checkpoint.iterdir():
        (tmp_path / "model" / path.name).write_bytes(path.read_bytes())
    oneshot.run_once(replace(ASK, model=str(tmp_path / "model")))
    assert capsys.readouterr().out == answer


def test_offline_a_second_run_says_the_same(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    oneshot.run_once(ASK)
    online, asked = capsys.readouterr().out, len(hub.requests)
    monkeypatch.setenv(env_name("offline"), "true")
    oneshot.run_once(ASK)
    assert capsys.readouterr().out == online
    assert len(hub.requests) == asked


def test_logits_of_a_model_of_the_hub_are_the_references(hub: Hub, tmp_path: Path) -> None:
    ids, out = tmp_path / "ids.json", tmp_path / "out.npz"
    ids.write_text(json.dumps([s.tolist() for s in CASE.sequences()]))
    assert evaluation.logits(MODEL, ids, out, "numpy", 2, batch=True) == 0
    with np.load(out) as got:
        for i in range(len(CASE.sequences())):
            np.testing.assert_allclose(
                got[f"logits_{i}"], CASE.load()[f"logits_{i}"], atol=1e-4, rtol=0
            )


def test_perplexity_and_bench_of_a_gguf_file_of_the_hub_name_it(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = f"{MODEL}:tiny-llama.Q4_0.gguf"
    (tmp_path / "text").write_text("the quick brown fox")
    evaluation.perplexity(model, tmp_path / "text", "numpy")
    evaluation.bench(model, "numpy", "1", "8")
    results = [
        json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")
    ]
    assert [result["model"] for result in results] == ["tiny-llama.Q4_0"] * 2
    assert {name.rpartition("/")[2] for name in hub.fetched()} & {
        "model.safetensors.index.json"
    } == set()


def test_a_model_the_hub_does_not_have_says_so(hub: Hub) -> None:
    with pytest.raises(
        Failure, match=r"the hub has no model 'owner/none', or shows it only .*EXO_HUB_TOKEN"
    ):
        oneshot.run_once(replace(ASK, model="hf:owner/none"))
