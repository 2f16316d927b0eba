"The doctor: every row, whatever is wrong; nothing loaded, nothing secret shown."
import os
import subprocess
import sys

import pytest

from qwen_eval import doctor as module
from qwen_eval.doctor import doctor, doctor_text

SECRETS = ("hunter2", "hf_verysecret")


@pytest.fixture
def ill(monkeypatch, tmp_path):
    "A machine without vLLM, data, hub and sandbox, and with secrets in its environment."
    for name in [k for k in os.environ if k.startswith(("HF_", "QWEN_EVAL_"))]: monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    given = {"HF_TOKEN": "hf_verysecret", "HF_ENDPOINT": "http://me:hunter2@127.0.0.1:9", "QWEN_EVAL_DATA": "/nowhere",
             "QWEN_EVAL_RUNS": str(tmp_path / "file" / "runs")}
    for name, value in given.items(): monkeypatch.setenv(name, value)
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "vllm" else object())
    monkeypatch.setattr(module, "available", tuple)
    return {c.what: c for c in doctor(timeout_s=1)}


def test_what_is_missing_is_said_with_what_to_do(ill):
    for name in ("vLLM", "hub", "data", "runs"): assert ill[name].state == "missing" and ill[name].advice, name
    assert ill["sandbox"].state == "missing"
    text = doctor_text(ill.values())
    assert "pip install vllm" in text and "QWEN_EVAL_DATA" in text and "HF_ENDPOINT" in text


def test_no_secret_is_shown(ill):
    assert not any(s in doctor_text(ill.values()) + str(ill) for s in SECRETS)
    assert ill["hub token"].found == "set" and "127.0.0.1:9" in ill["hub"].found


@pytest.mark.parametrize("endpoint", ["http://me:hunter2@127.0.0.1:x", "nonsense", "http://[", "ftp://127.0.0.1:9"])
def test_an_odd_endpoint_is_a_row(monkeypatch, endpoint):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    (row,) = [c for c in doctor(timeout_s=1) if c.what == "hub"]
    assert row.state == "missing" and "hunter2" not in str(row)


def test_an_unreadable_settings_file_is_a_row(monkeypatch, tmp_path):
    (tmp_path / "settings.ini").write_text("[engin]\nengine = vllm\n")
    monkeypatch.setenv("QWEN_EVAL_SETTINGS", str(tmp_path / "settings.ini"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = {c.what: c for c in doctor()}
    assert found["settings"].state == "missing" and "engine" in found["settings"].found
    assert found["Python"].state == "ok" and "vLLM" in found


def test_nothing_heavy_is_imported():
    code = ("import sys; from qwen_eval.doctor import doctor; doctor(timeout_s=0.1)\n"
            "print({'torch', 'vllm', 'transformers', 'datasets', 'pandas', 'huggingface_hub'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.stdout.strip() == "set()"
