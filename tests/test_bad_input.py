"""Whatever cannot work ends before a model loads: status 2, a few clear lines, no traceback, nothing left behind."""
import gzip
import json
import shutil
from pathlib import Path

import pytest
from tiny_models import train_tokenizer
from typer.testing import CliRunner

from qwen_eval import fetch
from qwen_eval.cli import app
from qwen_eval.errors import ConfigError, QwenEvalError
from qwen_eval.runner import run_study
from qwen_eval.studies import Study

ROOT = Path(__file__).resolve().parent.parent
RUN = ("run", "smollm2_135m", "--benchmarks", "gsm8k", "--allow-specimens")
SETTINGS = """[paths]
runs = runs
cache = cache
reports = reports
specimens = {specimens}
[engine]
engine = fake
[protocol.cold]
thinking = true
thinking_tok = 100
temperature = 0
"""


STUDY = "[study.mine]\nmodels = smollm2_135m\nbenchmarks = gsm8k\npresets = mine\nallow_specimens = true\n"


@pytest.fixture
def lab(tmp_path, monkeypatch):
    "A lab with the fake engine, which stands for an engine that must not start."
    (tmp_path / "settings.ini").write_text(SETTINGS.format(specimens=ROOT / "data/specimens"))
    monkeypatch.delenv("QWEN_EVAL_DATA", raising=False)
    monkeypatch.setenv("QWEN_EVAL_SETTINGS", str(tmp_path / "settings.ini"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def started(*_, **__): raise AssertionError("an engine was started")
    monkeypatch.setattr("qwen_eval.runner.EngineProcess", started)
    return tmp_path


def refused(*words):
    "What a command that cannot work says; exit status 2."
    done = CliRunner().invoke(app, list(words))
    if done.exception and not isinstance(done.exception, SystemExit): raise done.exception
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output and len(done.stderr.strip().splitlines()) <= 4, done.stderr
    return " ".join(done.stderr.split())


@pytest.mark.parametrize(("words", "said"), [
    (("run", "smollm_135m", "--benchmarks", "gsm8k"), "Did you mean 'smollm2_135m'"),
    (("run", "smollm2_135m", "--benchmarks", "gsm8"), "Did you mean 'gsm8k'"),
    ((*RUN, "--preset", "balancd"), "Did you mean 'balanced'"),
    ((*RUN, "--protocol", "greddy"), "Did you mean 'greedy'"),
    ((*RUN, "--variant", "cott"), "Did you mean 'cot'"),
    ((*RUN, "--limit", "0"), "greater than or equal to 1"),
    ((*RUN, "--limit", "-3"), "greater than or equal to 1"),
    ((*RUN, "--shots", "6"), "pool holds 5 examples"),
    ((*RUN, "--shots", "-1"), "0 or more"),
    ((*RUN, "--answer-tok", "9000"), "context of smollm2_135m is 8192"),
    ((*RUN, "--protocol", "cold"), "thinks, but smollm2_135m cannot"),
    (("run", "qwen3_8b", "--benchmarks", "gsm8k", "--allow-specimens", "--protocol", "cold"), "temperature"),
    (("run", "qwen3_8b", "--benchmarks", "arc_challenge", "--variant", "label", "--protocol", "qwen3_thinking",
      "--allow-specimens"), "labels"),
    (("run", "smollm2_135m", "--benchmarks", ","), "no benchmarks"),
    (("study", "run", "nothing"), "Unknown study 'nothing'"),
    (("run", "{folder:max_position_embeddings=long}", "--benchmarks", "gsm8k", "--allow-specimens"), "'long'; it is a"),
    (("run", "{folder:num_hidden_layers=-1}", "--benchmarks", "gsm8k", "--allow-specimens"), "num_hidden_layers = -1"),
    (("run", "{folder:max_position_embeddings=0}", "--benchmarks", "gsm8k", "--allow-specimens"), "embeddings = 0"),
    (("prompt", "smollm2_135m", "gsm8k", "--item", "\u00b2", "--allow-specimens"), "Unknown item of gsm8k"),
    (("score", "nowhere.jsonl", "--benchmark", "gsm8k"), "cannot be read"),
    (("rescore", "nothing"), "Unknown run 'nothing'"),
    ((*RUN, "--seed", "-1"), "seed is -1; it must be from 0"),
    ((*RUN, "--seed", str(2**32)), "it must be from 0"),
    (("run", "~nobody-of-that-name/model", "--benchmarks", "gsm8k"), "There is no folder ~nobody-of-that-name/model"),
    (("run", "a" * 5000, "--benchmarks", "gsm8k"), "it is too long"),
    (("rescore", "a" * 5000), "it is too long"),
])
def test_words_that_cannot_work(lab, words, said):
    for n, word in enumerate(words):
        if not word.startswith("{folder:"): continue
        key, _, value = word[8:-1].partition("=")
        facts = {"model_type": "qwen3", "num_hidden_layers": 2, "max_position_embeddings": 512, "hidden_size": 8,
                 key: int(value) if value.lstrip("-").isdecimal() else value}
        (lab / "mine").mkdir()
        (lab / "mine" / "config.json").write_text(json.dumps(facts))
        words = (*words[:n], str(lab / "mine"), *words[n + 1:])
    assert said in refused(*words)
    assert not list(lab.glob("runs/*/*.json*"))


LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "num_hidden_layers": 2,
         "num_attention_heads": 2, "vocab_size": 320, "max_position_embeddings": 512}


@pytest.fixture
def mine(lab, monkeypatch):
    "A checkpoint folder that a real engine would load, but for what a test does to it; nothing may start."
    from qwen_eval.weights import settings as of_weights
    (lab / "settings.ini").write_text((lab / "settings.ini").read_text().replace("engine = fake", "engine = vllm"))
    monkeypatch.setenv("QWEN_EVAL_TEST_ROUND", "vllm")
    assert of_weights().engine["engine"] == "vllm"
    folder = lab / "mine"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    train_tokenizer(folder)
    return folder


@pytest.mark.parametrize(("files", "said"), [
    ({}, "holds no weights"),
    ({"model.safetensors": "version https://git-lfs.github.com/spec/v1"}, "no safetensors file"),
    ({"pytorch_model.bin": "version https://git-lfs.github.com/spec/v1"}, "holds no weights"),
    ({"model.safetensors.index.json": {"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}},
     "2 of the 2 files"),
    ({"config.json": LLAMA | {"architectures": ["BertForMaskedLM"], "model_type": "bert"}}, "writes no text"),
    ({"config.json": LLAMA | {"architectures": ["MineForCausalLM"], "model_type": "mine"}},
     "does not know MineForCausalLM"),
    ({"generation_config.json": {"temperature": "hot"}}, "Expected `float | null`, got `str`"),
    ({"config.json": {}}, "config.json holds nothing"),
], ids=lambda x: "".join(x) if isinstance(x, dict) else "")
def test_weights_that_no_engine_could_load(mine, files, said):
    pytest.importorskip("vllm")
    for name, content in files.items():
        (mine / name).write_text(content if isinstance(content, str) else json.dumps(content))
    if {"config.json", "generation_config.json"} & {*files}: (mine / "pytorch_model.bin").write_bytes(b"PK")
    assert said in refused("run", str(mine), "--benchmarks", "gsm8k", "--allow-specimens", "--answer-tok", "64")


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_a_cache_that_the_engine_does_not_know(mine, engine, monkeypatch):
    pytest.importorskip(engine)
    file = mine.parent / "settings.ini"
    file.write_text(file.read_text().replace("engine = vllm", f"engine = {engine}")
                    + "[preset.odd]\nkv_cache_dtype = fp17\n")
    monkeypatch.setenv("QWEN_EVAL_TEST_ROUND", f"odd {engine}")
    (mine / "pytorch_model.bin").write_bytes(b"PK")
    said = refused("run", str(mine), "--benchmarks", "gsm8k", "--allow-specimens", "--preset", "odd",
                   "--answer-tok", "64")
    assert f"Unknown kv_cache_dtype for the engine {engine} 'fp17'" in said


HELLASWAG = ("score", "{file}", "--benchmark", "hellaswag", "--allow-specimens")


@pytest.mark.parametrize(("name", "text", "said"), [
    ("x.csv", "id,nll_0,loglik_1\n{id},1,2\n", "the columns nll_0, loglik_1"),
    ("x.csv", "id,loglik_0,loglik_2,loglik_3,loglik_4\n{id},-1,-2,-3,-4\n", "it needs nll_0"),
    ("x.csv", "id,loglik_0,loglik_0\n", "several columns 'loglik_0'"),
    ("x.csv", f"id,loglik_{'9' * 5000}\n{{id}},-1\n", "it needs nll_0"),
    ("x.csv", "id,loglik_0,loglik_1,loglik_2,loglik_3\n{id},-1,-2,-3,inf\n", "above 0"),
    ("x.csv", "id,loglik_0,loglik_1,loglik_2,loglik_3\n{id},1,2,3,4\n", "(loglik_0, ...) are at most 0"),
    ("x.csv", "id,nll_0,nll_1,nll_2,nll_3\n{id},1,2,3,inf\n{id},1,2,3,nan\n", "has 4 choices"),
    ("x.csv", "id,loglik_0,loglik_1,loglik_2,loglik_3\r{id},-1,-2,-3\r", "has 4 choices"),
    ("x.csv", "id,loglik_0,loglik_1,loglik_2,loglik_3\n{id},-1,-2,-3," + "x" * 200_000 + "\n", "is no number"),
    ("x.csv", 'id,"loglik_0\n', "holds no rows"),
    ("x.jsonl", '{"id": "a", "completion": ' + "[" * 100_000 + "]" * 100_000 + "}", "Each line is one JSON object"),
    ("x.jsonl", '{"id": "a", "completion": NaN, "x": ' + "[" * 5_000 + "]" * 5_000 + "}", "line 1"),
])
def test_outputs_that_would_score_the_wrong_ending(lab, name, text, said):
    (lab / name).write_text(text.replace("{id}", "hellaswag/validation/0"))
    words = [str(lab / name) if w == "{file}" else w for w in HELLASWAG]
    if name.endswith("jsonl"): words[3] = "gsm8k"
    assert said in refused(*words)[:2000]


@pytest.mark.parametrize("option", ["--variant", "--chat-template", "--preset", "--protocol", "--model-variant"])
def test_an_empty_name_is_no_default(lab, option):
    said = refused(*RUN, option, "")
    assert "is empty" in said or "names no" in said or "Unknown" in said or "no presets" in said, said


def test_arguments_of_evaluate_that_cannot_be():
    from qwen_eval.evaluation import evaluate
    for words, more, said in ((("smollm2_135m", ["gsm8k"]), {}, "no name of a benchmark"),
                              (("smollm2_135m", "gsm8k"), {"limits": 3}, "Did you mean 'limit'"),
                              (("smollm2_135m", "gsm8k"), {"answer_toks": 3}, "Did you mean 'answer_tok'")):
        with pytest.raises(QwenEvalError, match=said): evaluate(*words, engine="fake", source="specimen", **more)


def test_a_nasty_name_draws_nothing(lab):
    said = refused("run", "a\x1b[31mb", "--benchmarks", "gsm8k") + refused("run", "./\x1b[2J", "--benchmarks", "gsm8k")
    assert "\x1b" not in said and "no folder" in said


@pytest.mark.parametrize(("text", "said"), [
    ("[pathes]\nruns = x\n", "Did you mean 'paths'"),
    ("[paths]\nrun = x\n", "Did you mean 'runs'"),
    ("[preset.mine]\nmax_num_seq = 4\n", "Did you mean 'max_num_seqs'"),
    ("[study.mine]\nmodel = a\n", "Did you mean 'models'"),
    ("[study.mine]\nlimit = five\nmodels = smollm2_135m\nbenchmarks = gsm8k\n", "[study.mine]"),
    ("[paths\n", "cannot be read"),
    ("[study.../../evil]\nmodels = smollm2_135m\nbenchmarks = gsm8k\n", "cannot name a study"),
    ("[preset.a b]\n", "cannot name a preset"),
    ("[engine]\ndtype = bf16\n", "Did you mean 'bfloat16'"),
    ("[preset.mine]\ncpu_kv_gib = nan\n" + STUDY, "positive and finite"),
    ("[preset.mine]\ncpu_kv_gib = inf\n" + STUDY, "positive and finite"),
    ("[preset.mine]\n[protocol.mine]\ntemperature = inf\n" + STUDY + "protocol = mine\n", "finite"),
])
def test_settings_that_cannot_be(lab, text, said):
    (lab / "settings.ini").write_text(text)
    assert said in refused("study", "run", "mine")


def test_a_model_that_is_too_large(lab, monkeypatch):
    from qwen_eval.hardware import Device
    small = Device(kind="cuda", name="a small card", n_devices=1, memory_gib=8.0, free_gib=8.0)
    monkeypatch.setattr("qwen_eval.hardware.detect", lambda: small)
    done = CliRunner().invoke(app, ["fit", "qwen3_14b"])
    assert done.exit_code == 1 and "weights 27.51" in done.stdout and "a small card" in done.stdout


@pytest.mark.parametrize(("content", "said"), [
    (b"not json\n", "line 1"),
    (gzip.compress(b'{"question": "q", "answer": "#### 1"}\n' * 9, mtime=0)[:-9], "decoded"), # a name for every worker
    (b"", "no row of"), (b'{"question": "q"}\n', "answer"), (b'{"question": "q", "answer": "no mark"}\n', "row"),
])
def test_data_that_cannot_be_read(lab, monkeypatch, content, said):
    folder = lab / "data"
    folder.mkdir()
    (folder / ("gsm8k.jsonl.gz" if content[:2] == b"\x1f\x8b" else "gsm8k.jsonl")).write_bytes(content)
    monkeypatch.setenv("QWEN_EVAL_DATA", str(folder))
    assert said in refused(*RUN[:4]).lower()


def test_folders_that_cannot_be_written(lab, monkeypatch):
    for name in ("RUNS", "CACHE"):
        with monkeypatch.context() as m:
            m.setenv(f"QWEN_EVAL_{name}", "/proc/none")
            assert "/proc/none" in refused(*RUN)
    (lab / "reports").write_text("a file, not a folder")
    with pytest.raises(ConfigError, match="Reports cannot be kept"):
        run_study(Study(id="x", models=("smollm2_135m",), benchmarks=("gsm8k",), limit=1, allow_specimens=True))


def test_a_disk_that_is_nearly_full(lab, monkeypatch):
    usage = type(shutil.disk_usage("."))
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: usage(10 ** 12, 10 ** 12 - 5_000_000, 5_000_000))
    assert "only 4 MiB of its disk are free" in refused(*RUN)


def test_an_argument_that_the_engine_does_not_know():
    from qwen_eval.engines.all import start
    from qwen_eval.errors import UnknownNameError
    with pytest.raises((ConfigError, UnknownNameError), match="max_num_seqs"), \
         start("vllm", Path("nowhere"), {"max_num_seq": 4}): pass


def test_nothing_is_written_where_a_study_is_refused(lab):
    both = Study(id="both", models=("smollm2_135m",), benchmarks=("gsm8k", "arc_challenge"), n_shot=6, limit=1,
                 allow_specimens=True)
    with pytest.raises(ConfigError): run_study(both)
    assert not [p for p in lab.rglob("*.jsonl") if json.loads(p.read_text() or "0")]
