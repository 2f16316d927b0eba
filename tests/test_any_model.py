"""Models that nobody registered: hub ids, folders, adapters, own templates, series; and the prompts that they get."""
import hashlib
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from local_hub import HubHandler, LocalHub, about, serving
from tiny_models import save_tiny_qwen3

from qwen_eval.checkpoints import read_adapter, series, with_adapter
from qwen_eval.closing import difference_rows, outcome_text
from qwen_eval.engines.base import FakeEngine
from qwen_eval.errors import ConfigError, UnknownNameError
from qwen_eval.evaluation import evaluate
from qwen_eval.models import model
from qwen_eval.plans import fingerprint, plan_run
from qwen_eval.presets import engine_args, preset
from qwen_eval.preview import preview, preview_text
from qwen_eval.prompts import correct_letter
from qwen_eval.requests import encode, render_chat
from qwen_eval.runner import run_study
from qwen_eval.studies import Study, plan, study
from qwen_eval.weights import describe, locate, tokenizer

ROOT = Path(__file__).parents[1]
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "num_attention_heads": 2,
          "num_key_value_heads": 1, "head_dim": 4, "intermediate_size": 16, "num_hidden_layers": 2, "vocab_size": 320,
          "max_position_embeddings": 8192, "torch_dtype": "bfloat16"}
CHAT = ("{{ bos_token }}{% for m in messages %}<|head|>{{ m['role'] }}<|end|>\n{{ m['content'] }}<|eot|>{% endfor %}"
        "{% if add_generation_prompt %}<|head|>assistant<|end|>\n{% endif %}")
N_PARAMS = 6312
OWN = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant] "


def llama_tokenizer(folder, template=CHAT):
    "A byte-level tokenizer that puts <|begin|> before every text, as Llama's does."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|begin|>", "<|end|>", "<|head|>", "<|eot|>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    raw.train_from_iterator(["A man walks into a shop. The baker gives him bread."] * 4, trainer)
    raw.post_processor = processors.TemplateProcessing(single="<|begin|> $A", pair="<|begin|> $A $B",
                                                       special_tokens=[("<|begin|>", 0)])
    made = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<|begin|>", eos_token="<|eot|>")
    made.chat_template = template
    made.save_pretrained(folder)


def safetensors(file, shapes):
    head, at = {}, 0
    for name, shape in shapes.items():
        n = 4 * shape[0] * shape[1]
        head[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + n]}
        at += n
    text = json.dumps(head).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    "A chat checkpoint in the layout of the hub, without a real model in it."
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("made") / "my-llama"
    folder.mkdir()
    llama_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    safetensors(folder / "model.safetensors", {"w": [6312, 1]})
    return folder


@pytest.fixture
def base(made, tmp_path):
    "The same without a chat template."
    folder = shutil.copytree(made, tmp_path / "my-base")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    told = json.loads((folder / "tokenizer_config.json").read_text())
    told.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return folder


def lora(folder, rank=4, hidden=8, layers=2, value=8, **more):
    folder.mkdir(parents=True)
    told = {"peft_type": "LORA", "r": rank, "lora_alpha": value, "target_modules": ["q_proj"],
            "base_model_name_or_path": "some/base"}
    (folder / "adapter_config.json").write_text(json.dumps(told | more))
    name = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    safetensors(folder / "adapter_model.safetensors", {name.format(i, s): [rank, hidden] if s == "A" else [8, rank]
                                                       for i in range(layers) for s in "AB"})
    return folder


@pytest.fixture
def ini(tmp_path, monkeypatch):
    def write(text):
        (tmp_path / "settings.ini").write_text(f"[paths]\nspecimens = {ROOT / 'data' / 'specimens'}\n" + text)
        monkeypatch.setenv("QWEN_EVAL_SETTINGS", str(tmp_path / "settings.ini"))
        monkeypatch.setenv("QWEN_EVAL_TEST_ROUND", str(time.monotonic_ns()))  # settings are cached by environment
    return write


def how(tmp_path, **more): return {"source": "specimen", "runs": tmp_path / "runs", "engine": "fake", **more}


# ---------------------------------------------------------------- facts, base or chat, BOS
def test_facts_come_from_config_and_tokenizer(made, base):
    chat, plain = model(made), model(base)
    assert (chat.id, chat.variant, chat.thinking, chat.context_tok) == ("my-llama", "chat", "none", 8192)
    assert chat.n_params == N_PARAMS
    assert (plain.variant, plain.thinking) == ("base", "none")
    assert model(base, variant="chat").variant == "chat" and model(made, variant="base").variant == "base"


def test_base_or_chat_decides_how_it_is_asked(made, base, tmp_path):
    names = [plan_run(f, "gsm8k", **how(tmp_path, **more)).variant_name for f, more in (
        (made, {}), (base, {}), (made, {"model_variant": "base"}), (base, {"chat_template": OWN}))]
    assert names == ["cot", "fewshot", "fewshot", "cot"]
    with pytest.raises(ConfigError, match="no chat template"):
        list(plan_run(base, "gsm8k", model_variant="chat", **how(tmp_path)).requests([]))


@pytest.mark.parametrize("benchmark, variant", [("gsm8k", "cot"), ("gsm8k", "fewshot"), ("arc_challenge", "letter"),
                                                ("hellaswag", "cloze-0shot"), ("humaneval", None)])
def test_one_bos_whatever_is_asked(made, tmp_path, benchmark, variant):
    seen = preview(made, benchmark, variant=variant, n_shot=0, source="specimen", runs=tmp_path)
    assert seen.n_bos == 1 and seen.ids.count(0) == 1 and seen.text.startswith("<|begin|>")
    assert "".join(seen.tokens) == seen.text and "BOS  1 time at the start" in preview_text(seen)


def test_a_bos_in_the_text_is_not_put_there_twice(made):
    tok = tokenizer(locate(model(made)))
    chat = render_chat(tok, [{"role": "user", "content": "Hi"}])
    for texts, special in (([chat], False), ([chat], True), (["Hi"], True), (["<|begin|>Hi"], True)):
        (ids,) = encode(tok, texts, special)
        assert ids[0] == 0 and ids.count(0) == 1


# ---------------------------------------------------------------- own template, own system text
def test_an_own_template_wins_and_is_in_the_fingerprint(made, tmp_path):
    (file := tmp_path / "own.jinja").write_text(OWN)
    plans = [plan_run(made, "gsm8k", **how(tmp_path, **more)) for more in (
        {}, {"chat_template": file}, {"chat_template": OWN}, {"chat_template": OWN + " "}, {"system": "Be brief."})]
    hashes = [fingerprint(p)["model"]["template"] for p in plans]
    assert hashes[1] == hashes[2] == hashlib.sha256(OWN.encode()).hexdigest()[:16] and len(set(hashes)) == 3
    assert len({p.path for p in plans}) == 4
    prompts = [next(p.requests(p.items)).prompt for p in plans]
    assert prompts[1].startswith("[user] ") and prompts[0].startswith("<|begin|><|head|>user")
    assert prompts[4].startswith("<|begin|><|head|>system<|end|>\nBe brief.<|eot|>")


def test_a_template_tells_whether_its_model_thinks():
    thinks = "{% if enable_thinking %}<think>{% endif %}"
    assert model("qwen3_8b", chat_template=OWN).thinking == "none"
    assert model("qwen_8b", chat_template=thinks).thinking == "switch"
    assert model("qwen_8b", chat_template=thinks, thinking="none").thinking == "none" # who says it, knows it
    assert model("qwen3_8b_base", chat_template=OWN).variant == "chat"


@pytest.mark.parametrize("wrong", ["no/such.jinja", "just words"])
def test_what_is_no_template_is_refused(wrong):
    with pytest.raises(ConfigError, match="neither Jinja nor a file"): model("qwen3_8b", chat_template=wrong)


def test_a_broken_template_is_refused_before_anything_starts(made, tmp_path):
    p = plan_run(made, "gsm8k", chat_template="{% for m in messages %}", **how(tmp_path))
    with pytest.raises(ConfigError, match="chat template"): list(p.requests(p.items))


def test_a_section_holds_all_of_it(made, ini, tmp_path):
    (tmp_path / "own.jinja").write_text(OWN)
    lora(tmp_path / "tuned")
    ini(f"[model.mine]\npath = {made}\nadapter = tuned\nchat_template = own.jinja\nsystem = Be brief.\n"
        "[model.far]\nhub_id = some-lab/some-model\n[model.said]\nhub_id = a/b\nvariant = base\n")
    m = model("mine")
    assert (m.id, m.adapter, m.chat_template, m.system) == ("mine", str(tmp_path / "tuned"), OWN, "Be brief.")
    assert (model("far").variant, model("said").variant) == (None, "base")
    p = plan_run("mine", "gsm8k", **how(tmp_path))
    first = next(p.requests(p.items))
    assert first.prompt.startswith("[system] Be brief.\n[user]") and p.located.adapter.rank == 4
    cloze = plan_run("mine", "hellaswag", **how(tmp_path)) # a system text of the model is no fault where no chat is
    assert cloze.system is None and next(cloze.requests(cloze.items)).prompt.startswith("<|begin|>")
    assert plan_run("mine", "gsm8k", system="Now!", **how(tmp_path)).system == "Now!"


# ---------------------------------------------------------------- adapters
def test_an_adapter_is_part_of_the_run(made, tmp_path, capsys):
    one, two = lora(tmp_path / "one"), lora(tmp_path / "two", value=16)
    plans = [plan_run(made, "gsm8k", **how(tmp_path, **more)) for more in ({}, {"adapter": one}, {"adapter": two})]
    seen = [fingerprint(p)["model"] for p in plans]
    assert [p.model.id for p in plans] == ["my-llama", "my-llama+one", "my-llama+two"] and "adapter" not in seen[0]
    assert seen[1]["adapter"].startswith("sha256:") and seen[1]["adapter"] != seen[2]["adapter"]
    assert len({p.path for p in plans}) == 3
    assert "trained on some/base, not on my-llama" in capsys.readouterr().err
    device = type("D", (), {"kind": "cpu", "memory_gib": 8.0, "free_gib": 6.0})
    assert engine_args(preset("balanced"), plans[1].model, device, 512)["adapter"] == str(one)
    assert "adapter" not in engine_args(preset("balanced"), plans[0].model, device, 512)


def test_a_folder_with_an_adapter_names_its_base(made, tmp_path):
    tuned = lora(tmp_path / "run" / "checkpoint-20", base_model_name_or_path=str(made))
    m = model(tuned)
    assert (m.id, m.path, m.adapter) == ("my-llama+run/checkpoint-20", str(made), str(tuned))
    lost = lora(tmp_path / "lost", base_model_name_or_path="/no/such/base")
    with pytest.raises(ConfigError, match="LoRA adapter of '/no/such/base', which is not here"): model(lost)


@pytest.mark.parametrize("wrong, said", [
    ({"hidden": 16}, r"shape \[4, 16\], and of the model 8"), ({"layers": 3}, "layers end at 1"),
    ({"use_dora": True}, "use_dora"), ({"bias": "all"}, "bias = all"), ({"peft_type": "IA3"}, "peft_type = IA3"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"), ({"rank_pattern": {"q": 1000}}, "1 to 512"),
    ({"init_lora_weights": "pissa"}, "pissa")])
def test_adapters_that_do_not_fit(made, tmp_path, wrong, said):
    folder = lora(tmp_path / "x", **wrong)
    with pytest.raises(ConfigError, match=said): plan_run(made, "gsm8k", adapter=folder, **how(tmp_path))


def test_adapters_that_are_not_there(made, tmp_path):
    with pytest.raises(ConfigError, match="neither a folder here nor an id"): model(made, adapter="./nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no LoRA adapter"):
        with_adapter(locate(model(made, adapter=tmp_path / "empty")))
    assert [read_adapter(lora(tmp_path / f"r{r}", rank=r)).max_lora_rank for r in (1, 4, 8, 9, 64, 300)] == [
        1, 8, 8, 16, 64, 320]


def test_an_engine_that_runs_must_hold_the_adapter(made, tmp_path):
    engine = FakeEngine()
    engine.info = replace(engine.info, name="vllm")
    with pytest.raises(ConfigError, match="holds no adapter; my-llama\\+one is planned with"):
        plan_run(made, "gsm8k", adapter=lora(tmp_path / "one"), **how(tmp_path, engine=engine))


# ---------------------------------------------------------------- series
@pytest.fixture
def training(made, tmp_path):
    for step in (1000, 200, 30): shutil.copytree(made, tmp_path / "run" / f"checkpoint-{step}")
    return tmp_path / "run"


def test_a_series_is_in_the_order_of_its_steps(training, made, tmp_path):
    assert [m.id for m in series(training)] == ["run/checkpoint-30", "run/checkpoint-200", "run/checkpoint-1000"]
    for step in (10, 9): shutil.copytree(made, tmp_path / "rl" / f"global_step{step}")
    assert [m.id for m in series(tmp_path / "rl", variant="base")] == ["rl/global_step9", "rl/global_step10"]
    shutil.copytree(made, tmp_path / "rl" / "checkpoint-9")
    with pytest.raises(ConfigError, match="one step twice: checkpoint-9, global_step9"): series(tmp_path / "rl")
    (training / "checkpoint-1000" / "config.json").unlink()
    with pytest.raises(ConfigError, match="checkpoint-1000 is not whole"): series(training)
    for adapters in (2, 1): lora(tmp_path / "peft" / f"checkpoint-{adapters}", base_model_name_or_path=str(made))
    assert [m.id for m in series(tmp_path / "peft")] == ["my-llama+peft/checkpoint-1", "my-llama+peft/checkpoint-2"]


def test_a_series_as_a_study(training, ini, tmp_path, monkeypatch):
    (training / "checkpoint-200" / "config.json").write_text(json.dumps(CONFIG | {"rope_theta": 1})) # other weights
    (training / "checkpoint-1000" / "config.json").write_text(json.dumps(CONFIG | {"rope_theta": 2}))
    ini(f"runs = {tmp_path / 'runs'}\n[study.steps]\ncheckpoints = run\nbenchmarks = arc_challenge\nengine = fake\n"
        "allow_specimens = true\nanswer_tok = 8\n")
    asked = study("steps")
    assert [Path(m).name for m in asked.models] == ["checkpoint-30", "checkpoint-200", "checkpoint-1000"]
    assert study(asked) == asked
    monkeypatch.delenv("QWEN_EVAL_DATA", raising=False)
    p, n = plan("steps"), [0, 2, 3]
    for right, r in zip(n, p.runs, strict=True): # so many of the items right
        letters = {i.id: (correct_letter(i), k < right) for k, i in enumerate(r.plan.items)}
        def answer(request, letters=letters):
            letter, gold = letters[request.item_id]
            return letter if gold else "B" if letter == "A" else "A"
        engine = FakeEngine(answer)
        engine.info = replace(engine.info, args={}) # as the study plans it
        evaluate(r.model, r.benchmark, engine=engine, runs=r.plan.runs, allow_specimens=True,
                 answer_tok=8, progress=False)
    outcome = run_study("steps", notebooks=True, reports=tmp_path / "report", stream=io.StringIO())
    assert not outcome.failures
    rows, total = list(outcome.differences), p.runs[0].plan.limit
    assert rows == difference_rows(p)
    assert [(*(r[k].removeprefix("run/checkpoint-") for k in ("model", "reference")), r["against"], r["value"])
            for r in rows] == [("200", "30", "first", 2 / total), ("1000", "30", "first", 3 / total),
                               ("1000", "200", "previous", 1 / total)]
    assert all(r["low"] < r["value"] < r["high"] and r["method"] == "bonett-price" for r in rows)
    table = (tmp_path / "report" / "differences.csv").read_text().splitlines()
    assert table[0].startswith("model,reference,against,preset,benchmark,metric,value,low,high") and len(table) == 4
    assert "Differences between checkpoints, on the same items" in (tmp_path / "report" / "report.html").read_text()
    assert "checkpoint-30 (first)" in outcome_text(outcome)


def test_runs_asked_in_another_way_are_not_compared(training, tmp_path, ini, monkeypatch):
    ini(f"runs = {tmp_path / 'runs'}\n")
    monkeypatch.delenv("QWEN_EVAL_DATA", raising=False)
    (training / "checkpoint-1000" / "chat_template.jinja").unlink()
    shutil.rmtree(training / "checkpoint-200")
    s = Study(id="odd", checkpoints=str(training), benchmarks=("gsm8k",), engine="fake", allow_specimens=True,
              answer_tok=8)
    outcome = run_study(s, notebooks=False, stream=io.StringIO())
    assert not outcome.failures
    (row,) = difference_rows(plan(s))
    assert row["value"] is None and "asked in another way" in row["note"]


def test_a_study_passes_on_what_it_says_of_its_models(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QWEN_EVAL_DATA", raising=False)
    (tmp_path / "own.jinja").write_text(OWN)
    lora(tmp_path / "tuned")
    s = Study(id="own", models=(str(made),), benchmarks=("gsm8k",), engine="fake", allow_specimens=True, answer_tok=8,
              adapter="tuned", chat_template="own.jinja", system="Be brief.", limit=2)
    assert [s.overrides[k] for k in ("adapter", "chat_template")] == [f"{tmp_path}/{f}" for f in ("tuned", "own.jinja")]
    (r,) = plan(s, tmp_path / "runs").runs
    assert r.plan.model.id == "my-llama+tuned" and r.plan.system == "Be brief." and r.plan.model.chat_template == OWN
    outcome = run_study(s, tmp_path / "runs", notebooks=False, stream=io.StringIO())
    assert not outcome.failures and outcome.rows[0]["complete"] and outcome.rows[0]["run_id"] == r.path.name
    with pytest.raises(ConfigError, match="names no models"): study(replace(s, models=()))


# ---------------------------------------------------------------- the hub
class Hub(LocalHub):
    "What the hub client asks of a hub for models: commit and file list, the tree, and files by HEAD and GET."
    def put(self, hub_id, folder):
        files = {f.name: f.read_bytes() for f in folder.iterdir()}
        self.repos[hub_id] = hashlib.sha1(b"".join(files.values())).hexdigest(), files
        return self.repos[hub_id][0]


class Handler(HubHandler):
    def handle_any(self):
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        repo = self.server.repos.get((api or file)[1]) if api or file else None
        if repo is None: return self.reply(404, X_Error_Code="RepoNotFound")
        (commit, files), revision = repo, (api[3] if api else file[2])
        if revision not in (None, "main", "v1", commit): return self.reply(404, X_Error_Code="RevisionNotFound")
        if api:
            entries = [{"type": "file", "path": f, "size": len(d), "oid": "0"} for f, d in files.items()]
            return self.json(entries if api[2] == "tree" else about(api[1], commit, files))
        if file[3] not in files: return self.reply(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        data = files[file[3]]
        return self.reply(200, data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=commit)


@pytest.fixture(scope="module")
def hub(made):
    with serving(Hub(Handler)) as server:
        server.commit = server.put("some-lab/some-model", made)
        yield server


def ask(tmp_path, code, *args, **env):
    "In a fresh process, since the hub client reads its environment at import."
    head = ("import sys, time\nfrom qwen_eval.errors import QwenEvalError\nfrom qwen_eval.models import model\n"
            "from qwen_eval.weights import describe, locate\nfrom qwen_eval.preview import preview\n")
    body = "".join(f"    {line}\n" for line in code.splitlines())
    tail = "except QwenEvalError as e: print(type(e).__name__, e); sys.exit(2)\n"
    ours = ("hf_", "qwen_eval_", "http_proxy", "https_proxy", "all_proxy")
    plain = {k: v for k, v in os.environ.items() if not k.lower().startswith(ours)}
    env = {**plain, "HF_HOME": str(tmp_path / "hf"), "QWEN_EVAL_CACHE": str(tmp_path / "cache"),
           "QWEN_EVAL_RUNS": str(tmp_path / "runs"), "PYTHONPATH": str(ROOT), **env}
    return subprocess.run([sys.executable, "-c", f"{head}try:\n{body}{tail}", *args], cwd=ROOT, env=env,
                          capture_output=True, text=True)


SEE = ("m = describe(model(sys.argv[1]))\nprint(m.id, m.variant, m.thinking, m.context_tok, m.revision)\n"
       "print(preview(sys.argv[1], 'gsm8k', source='specimen').n_bos)")


def test_a_hub_id_needs_no_registration_and_a_prompt_no_weights(hub, tmp_path):
    hub.asked.clear()
    done = ask(tmp_path, SEE, "some-lab/some-model@v1", HF_ENDPOINT=hub.url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [f"some-lab/some-model@v1 chat none 8192 {hub.commit}", "1"]
    assert not [p for p in hub.asked if p.endswith("safetensors")]
    whole = "f = locate(model('some-lab/some-model'))\nprint(f.revision, f.model.n_params, f.source)"
    done = ask(tmp_path, whole, HF_ENDPOINT=hub.url)
    assert done.stdout.split() == [hub.commit, str(N_PARAMS), "hub"], done.stdout + done.stderr
    n = len(hub.asked) # offline, from the cache of the client
    again = ask(tmp_path, f"{whole}\nprint(describe(model('some-lab/some-model')).variant)", HF_HUB_OFFLINE="1")
    assert again.stdout.split() == [hub.commit, str(N_PARAMS), "hub", "chat"] and len(hub.asked) == n, again.stderr


def test_an_adapter_of_the_hub(hub, made, tmp_path):
    commit = hub.put("some-lab/some-lora", lora(tmp_path / "lora"))
    code = ("from qwen_eval.checkpoints import with_adapter\n"
            "f = with_adapter(locate(model(sys.argv[1], adapter='some-lab/some-lora')))\n"
            "print(f.model.id, f.adapter.rank, f.adapter.path.name, f.adapter.revision)")
    done = ask(tmp_path, code, str(made), HF_ENDPOINT=hub.url)
    revision = read_adapter(tmp_path / "lora").revision
    assert done.stdout.split() == ["my-llama+some-lora", "4", commit, revision], done.stderr
    none = ask(tmp_path / "other", code, str(made), HF_ENDPOINT="http://127.0.0.1:9")
    assert none.returncode == 2 and "adapter of my-llama+some-lora: some-lab/some-lora cannot be fetched" in none.stdout


@pytest.mark.parametrize("name, env, said", [
    ("Qwen/Qwen3-9B", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "Did you mean 'Qwen/Qwen3-"),
    ("Qwen/Qwen3-9B", {"HF_HUB_OFFLINE": "1"}, "Did you mean 'Qwen/Qwen3-"),
    ("runs/checkpoint-100", {"HF_HUB_OFFLINE": "1"}, "no folder of it is here"),
    ("Qwen/Qwen3-9B", {}, "RepositoryNotFoundError"), ("some-lab/some-model@v7", {}, "RevisionNotFoundError")])
def test_what_cannot_be_had_is_said_with_what_to_do(hub, tmp_path, name, env, said):
    start = time.perf_counter()
    done = ask(tmp_path, "describe(model(sys.argv[1]))", name, **(env or {"HF_ENDPOINT": hub.url}))
    ends = tuple(f"{kind} {name}: " for kind in ("ConfigError", "AbsentError")) # the second: not on this machine
    assert done.returncode == 2 and done.stdout.startswith(ends) and said in done.stdout, done.stderr
    for part in ("HF_HOME", "HF_ENDPOINT", "settings.ini", "smollm2_135m", "No model is registered"):
        assert part in done.stdout
    assert time.perf_counter() - start < 20


def test_a_typo_stays_a_typo():
    for wrong in ("qwen3_7b", "or--g/x"):
        with pytest.raises(UnknownNameError): model(wrong)
    for wrong in ("./no/such", "a/b/c", "/no/such", "org/"):
        with pytest.raises(ConfigError, match=f"no folder {wrong}"): model(wrong)
    for empty in ("", " ", "@main"):
        with pytest.raises(ConfigError, match="name is empty"): model(empty)
    m = model("org/na.me_x-1@abc")
    assert (m.hub_id, m.revision, m.variant, m.id) == ("org/na.me_x-1", "abc", None, "org/na.me_x-1@abc")
    assert describe(model("qwen3_8b")) is model("qwen3_8b")


# ---------------------------------------------------------------- prompts
def test_what_is_shown_is_what_is_sent(made, tmp_path):
    here = {k: v for k, v in how(tmp_path).items() if k != "engine"}
    for benchmark, more in (("gsm8k", {"n_shot": 2}), ("arc_challenge", {"system": "Be brief."}), ("hellaswag", {})):
        p = plan_run(made, benchmark, **how(tmp_path), **more)
        sent = {r.item_id: r for r in p.requests(p.items)}
        for k, item in enumerate(p.items):
            seen, r = preview(made, benchmark, k, **here, **more), sent[item.id]
            assert (seen.item_id, seen.ids, seen.prompt_hash) == (item.id, r.prompt_ids, r.prompt_hash)
            assert [i for _, i in seen.labels] == [*r.label_ids]
            assert [ids for _, ids in seen.continuations] == [*r.continuation_ids]
            assert str(len(seen.ids)) in preview_text(seen)


def test_a_prompt_needs_no_weights(made, tmp_path):
    light = shutil.copytree(made, tmp_path / "light", ignore=shutil.ignore_patterns("*.safetensors"))
    seen = preview(light, "gsm8k", source="specimen", runs=tmp_path, chat_template=OWN, system="Be brief.")
    assert seen.text.startswith("[system] Be brief.") and seen.template == hashlib.sha256(OWN.encode()).hexdigest()[:16]


# ---------------------------------------------------------------- a real engine
@pytest.mark.engine
def test_vllm_puts_an_adapter_on_top(tmp_path_factory):
    torch = pytest.importorskip("torch")
    pytest.importorskip("vllm")
    from safetensors.torch import save_file

    from qwen_eval.engines.vllm import VLLMEngine
    from qwen_eval.records import Request
    folder = tmp_path_factory.mktemp("lora")
    base, tuned = folder / "base", folder / "tuned"
    base.mkdir(); tuned.mkdir()
    llama_tokenizer(base)
    net = save_tiny_qwen3(base)
    ids, labels = (50, 60, 70, 80), (9, 10, 11)
    def score(): return net(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[list(labels)].tolist()
    with torch.no_grad(): plain = score()
    told = {"peft_type": "LORA", "r": 12, "lora_alpha": 24, "target_modules": ["q_proj", "down_proj"], "bias": "none",
            "base_model_name_or_path": "base", "task_type": "CAUSAL_LM"}
    (tuned / "adapter_config.json").write_text(json.dumps(told))
    parts = {}
    for i, layer in enumerate(net.model.layers):
        for name, part in (("self_attn.q_proj", layer.self_attn.q_proj), ("mlp.down_proj", layer.mlp.down_proj)):
            a, b = torch.randn(12, part.in_features) * 0.1, torch.randn(part.out_features, 12) * 0.1
            parts |= {f"base_model.model.model.layers.{i}.{name}.lora_A.weight": a,
                      f"base_model.model.model.layers.{i}.{name}.lora_B.weight": b}
            part.weight.data += 2 * b @ a # merged by hand: alpha / r is 2
    save_file(parts, tuned / "adapter_model.safetensors")
    found = with_adapter(locate(model(base, adapter=tuned)))
    asked = Request(item_id="q", mode="labels", prompt="x", prompt_ids=ids, label_ids=labels)
    with torch.no_grad(): merged = score()
    args = {"max_model_len": 256, "max_num_seqs": 4, "dtype": "float32", "kv_cache_memory_bytes": 64 << 20}
    with VLLMEngine(base, args | {"adapter": str(found.adapter.path)}) as engine: (answer,) = engine.run([asked])
    assert answer.label_logprobs == pytest.approx(merged, abs=2e-3)
    assert answer.label_logprobs != pytest.approx(plain, abs=0.1)
