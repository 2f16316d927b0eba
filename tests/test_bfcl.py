"""BFCL v4: gold answers, frozen verdicts of the leaderboard's own checker, prompts, averages, published scores."""
import contextlib
import gzip
import hashlib
import importlib.util
import json
import math
import os
import random
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from qwen_eval.bfcl_prompts import as_tools, bfcl_native, bfcl_prompted, bfcl_texts, shown_functions
from qwen_eval.conformance.base import conformance
from qwen_eval.conformance.bfcl import _parsed
from qwen_eval.datasets.all import benchmark
from qwen_eval.datasets.base import load
from qwen_eval.datasets.bfcl import SINGLE_TURN, bfcl_join
from qwen_eval.engines.base import FakeEngine
from qwen_eval.errors import ConfigError, IntegrityError
from qwen_eval.extract import extractors
from qwen_eval.extract_calls import LONGEST, call_readers, hermes_calls, python_calls, read_calls, show_calls
from qwen_eval.goldcalls import UNANSWERABLE, gold_call_answer
from qwen_eval.goldcheck import gold_check
from qwen_eval.metrics import metrics, stratum_weights
from qwen_eval.models import Model
from qwen_eval.plans import plan_run
from qwen_eval.protocols import protocol
from qwen_eval.records import Completion, Item, Score
from qwen_eval.requests import build_requests
from qwen_eval.scorers.bfcl import Rules, _short, bfcl_scorer, wrong_call
from qwen_eval.scores import score_frame
from qwen_eval.sources import unpack
from qwen_eval.weighing import measured, weigh

ROOT = Path(__file__).parents[1]
FORMS = ("native", "native-llama", "prompted")


def _script():
    spec = importlib.util.spec_from_file_location("bfcl_mutations", ROOT / "benchmarks" / "bfcl_mutations.py")
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


script = _script()


@pytest.fixture(scope="module")
def items():
    folder = os.environ.get("QWEN_EVAL_DATA")
    if not folder or not (Path(folder) / "bfcl_v4.jsonl.gz").is_file():
        pytest.skip("needs QWEN_EVAL_DATA: a folder with bfcl_v4.jsonl.gz")
    item_set = load(benchmark("bfcl"), "file")
    assert item_set.verified == "verified"
    return item_set.items


@pytest.fixture(scope="module")
def specimens(): return load(benchmark("bfcl"), "specimen").items


@pytest.fixture(scope="module")
def texts():
    try: return bfcl_texts()
    except ConfigError as e: pytest.skip(f"needs the wheel bfcl-eval from PyPI, once: {e}")


def judge(item, text, form="prompted", **how):
    return bfcl_scorer(item, Completion(item_id=item.id, text=text, **how), benchmark("bfcl").variants[form])


# Gold answers

def gold_text(item, form): return gold_call_answer(item, benchmark("bfcl").variants[form]).text


@pytest.mark.parametrize("form", FORMS)
def test_gold_answers_of_specimens_are_right(specimens, form):
    for item in specimens:
        assert judge(item, gold_text(item, form), form).value == 1, item.id


@pytest.mark.parametrize("form", FORMS)
def test_gold_answers_are_right_and_shuffled_ones_are_not(items, form, monkeypatch):
    asked = [i for i in items if i.target is not None]
    monkeypatch.setattr("qwen_eval.goldcalls.UNANSWERABLE", frozenset())
    wrong = {i.id for i in asked if judge(i, gold_text(i, form), form).value != 1}
    assert len(asked) == 2501 and wrong == UNANSWERABLE
    random.Random(0).shuffle(others := list(asked))
    pairs = [(a, b) for a, b in zip(asked, others, strict=True) if a is not b]
    right = sum(judge(a, gold_text(b, form), form).value for a, b in pairs)
    assert right <= 0.02 * len(asked)
    monkeypatch.undo()
    found = gold_check(benchmark("bfcl"), items, form)
    assert found.ok and (found.n_gold, found.n_right) == (len(items) - 7, len(items) - 7), found


def test_whether_to_call_at_all(items):
    for item in (i for i in items if i.target is None):
        wanted = float("irrelevance" not in item.stratum)
        assert judge(item, "[f(a=1)]").value == wanted == judge(item, "f()").value
        assert judge(item, "I cannot do that.").value == 1 - wanted == judge(item, "[]").value
        assert judge(item, "It is 5.", "native").value == 1 - wanted


# The leaderboard's own verdicts

def test_verdicts_of_the_official_checker(items):
    frozen = json.loads((ROOT / "tests" / "data" / "bfcl_verdicts.json").read_text())
    cases = list(script.answers(items, len(frozen["valid"]), frozen["seed"]))
    made = hashlib.sha256(json.dumps([(i.id, *rest) for i, *rest in cases]).encode()).hexdigest()
    if made != frozen["answers_sha256"]: pytest.skip("this Python makes other answers of the seed")
    ours = "".join(str(int(judge(i, text, form).value)) for i, form, text in cases)
    assert ours == frozen["valid"] and 80 < ours.count("1") < 220


def test_a_broken_rule_is_seen(items, monkeypatch):
    frozen = json.loads((ROOT / "tests" / "data" / "bfcl_verdicts.json").read_text())
    monkeypatch.setattr("qwen_eval.scorers.bfcl.standard_text", str)
    cases = script.answers(items, len(frozen["valid"]), frozen["seed"])
    assert "".join(str(int(judge(i, text, form).value)) for i, form, text in cases) != frozen["valid"]


# Answers of every kind

WEATHER = {"name": "weather.now", "description": "", "parameters": {"required": ["city"], "properties": {
    "city": {"type": "string"}, "days": {"type": "array", "items": {"type": "integer"}}, "unit": {"type": "string"},
    "at": {"type": "tuple", "items": {"type": "float"}}, "wind": {"type": "float"}}}}
RIGHT = {"weather.now": {"city": ["Oslo", "Oslo, Norway"], "days": [[1, 2], ""], "unit": ["celsius", ""],
                         "at": ["", [59.9, 10.7]], "wind": [3.0, ""]}}
OSLO = Item(id="demo", question="How warm is it in Oslo?", stratum="simple_python", target=[RIGHT],
            extra={"functions": [WEATHER], "messages": [{"role": "user", "content": "How warm is it in Oslo?"}]})
SAID = [("[weather.now(city='Oslo')]", 1), ("weather.now(city='Oslo')", 1), ("```\n[weather.now(city='Oslo')]\n```", 1),
        ("[weather.now(city=\"oslo norway\", unit='Celsius')]", 1), ("[weather.now(city='Oslo', wind=3)]", 1),
        ("[weather.now(city='Oslo', at=(59.9, 10.7))]", 1), ("[weather.now(city='Oslo', days=[1, 2])]", 1),
        ("[weather.now(city='Oslo', days=[1.0, 2])]", 1), # a list that may be left out: elements of any type
        ("[weather.now(city='Oslo', days=(1, 2))]", 0), ("[weather.now(city='Oslo', days=[2, 1])]", 0),
        ("[weather.now(city='Oslo', wind='3')]", 0), ("[weather.now(city='Oslo', wind=True)]", 0),
        ("[weather.now(city='Oslo', town='Oslo')]", 0), ("[weather.now()]", 0), ("[weather.now('Oslo')]", 0),
        ("[weather_now(city='Oslo')]", 0), ("[weather.now(city='Oslo'), weather.now(city='Oslo')]", 0),
        ("```python\n[weather.now(city='Oslo')]\n```", None), ("Sure! [weather.now(city='Oslo')]", None),
        ("I'm sorry, but none of the functions can answer that.", None), ("[weather.now(city='Os", None), ("", None),
        ('{"name": "weather.now", "arguments": {"city": "Oslo"}}', None)]


@pytest.mark.parametrize(("text", "value"), SAID)
def test_prompted_answers(text, value):
    score = judge(OSLO, text)
    assert score.value == (value or 0) and score.status == ("no_answer" if value is None else "scored")
    assert value == 1 or score.detail


def test_answers_with_tools():
    call = '<tool_call>\n{"name": "weather_now", "arguments": {"city": "Oslo"}}\n</tool_call>'
    assert judge(OSLO, call, "native").value == 1 == judge(OSLO, f"<think>Hm.</think>\n\n{call}", "native").value
    assert judge(OSLO, call.replace("_", "."), "native").value == 0 # tools are shown without dots
    assert judge(OSLO, "It is 5 degrees.", "native").status == "no_answer" == judge(OSLO, "[]").status
    assert judge(OSLO, call[:-20], "native", finish_reason="length").status == "truncated"
    llama = '{"name": "weather_now", "parameters": {"city": "Oslo"}}'
    assert judge(OSLO, llama, "native-llama").value == 1 and judge(OSLO, llama, "native").value == 0


def test_an_engine_error_is_nobody_s_answer():
    assert math.isnan(judge(OSLO, "", finish_reason="error", error="gone").value)


NASTY = ["[" * 10_000, "{" * 10_000, "f(a=" * 10_000, "-" * 10_000, "not " * 10_000, "f(a=" + "1+" * 20_000 + "1)",
         "f(a=" + "(" * 150 + "1" + ")" * 150 + ")", "a" + ".b" * 20_000 + "()", "f(a='" + "\ud83d" * 9 + "')", "\x00",
         "f(a=9**9**9)", "f(a='x'*9**9)", "f(a=[0]*9**9)", "f(a=1<<9**9)", "f(a=" + "9" * 5000 + ")", "f(a=1e999)",
         '<tool_call>\n{"name": "f", "arguments": ' + '{"a":' * 10_000 + "1" + "}" * 10_000 + "}\n</tool_call>",
         "<tool_call>\n" * 90_000, "x" * 1_000_000, "f(a=new int[]{" + "1," * 15_000 + "1})", "𝐟(𝐚=1)",
         "f(a=b'\\xff')"]


def test_tags_pair_up_as_in_the_leaderboards_expression():
    bits = ["<tool_call>\n", "\n</tool_call>", '{"name": "f", "arguments": {"a": 1}}', "<tool_call>", "\n", "x"]
    rng, found = random.Random(0), 0
    for _ in range(20_000):
        text, theirs = "".join(rng.choices(bits, k=rng.randint(1, 9))), []
        for inside in re.findall(r"<tool_call>\n(.*?)\n</tool_call>", text, re.DOTALL): # Qwen's handler in bfcl-eval
            with contextlib.suppress(ValueError): theirs.append(json.loads(inside))
        assert hermes_calls(text) == [{c["name"]: c["arguments"]} for c in theirs], text
        found += bool(theirs)
    assert found > 50


@pytest.mark.parametrize("reader", ["prompted-calls", "hermes-calls", "llama-calls"])
def test_nasty_text_neither_crashes_nor_hangs(reader, specimens):
    by = {i.stratum: i for i in specimens}
    form = {"prompted-calls": "prompted", "hermes-calls": "native", "llama-calls": "native-llama"}[reader]
    for text in NASTY:
        for stratum in ("simple_python", "simple_java", "simple_javascript", "irrelevance"):
            score = judge(by[stratum], text, form)
            assert score.value in (0, 1) and len(score.answer or "") <= 2000
            shown = extractors.get(reader)(text, by[stratum])
            assert shown is None or len(shown) <= 2000


def test_deep_values_are_compared_or_refused():
    deep = {"weather.now": {"city": json.loads("[" * 900 + "]" * 900)}}
    assert wrong_call(WEATHER, deep, RIGHT)
    assert wrong_call(WEATHER, {"weather.now": {"city": "Oslo", "wind": 10 ** 400}}, RIGHT) # too large for a float


@pytest.mark.parametrize("text", [
    '[f(x="%2000000000d" % 1)]', '[f(x="%*d" % (2000000000, 1))]', "[f(x=[[[1]*900]*900]*900)]", "[f(x=[[1]*900]*900)]",
    '[f(x=b"%9999999d" % 1)]', '[f(x="%.999999999f" % 1.5)]', f"[f(x={'%999d' * 900!r} % 1)]"])
def test_small_texts_make_no_large_values(text, specimens):
    began = time.monotonic()
    with pytest.raises(ValueError, match="too l"): read_calls(text, "prompted-calls")
    v = replace(benchmark("bfcl").variants["prompted"], extract="prompted-calls")
    assert bfcl_scorer(specimens[0], Completion(item_id=specimens[0].id, text=text), v).status == "no_answer"
    assert time.monotonic() - began < 2


def test_small_products_and_formats_are_computed():
    assert python_calls("f(a=[0] * 3, b='%03d%%' % 7, c='ab' * 2, d=2 ** 10)") == [
        {"f": {"a": [0, 0, 0], "b": "007%", "c": "abab", "d": 1024}}]


def test_what_is_too_large_to_be_shown_is_said():
    class Large:
        def __repr__(self): raise MemoryError
    assert show_calls([{"f": {"a": Large()}}]).endswith("to be shown") and _short(Large()) == "Large"


def test_nothing_is_run():
    assert python_calls("f(a=__import__('os').system('x'))") == [{"f": {"a": "__import__('os').system('x')"}}]
    for text in ("f(a=1 + len('x'))", "f(a=2 + x)", "f(a=[x for x in y])", "f(a=lambda: 1)"):
        with pytest.raises(ValueError): python_calls(text)
    with pytest.raises(ValueError): read_calls("print(1)", "llama-calls")
    with pytest.raises(ValueError): read_calls(f"f(a='{'x' * LONGEST}')", "prompted-calls")
    assert len(call_readers) == 3


def test_rules_of_2024():
    one = {"name": "f", "parameters": {"properties": {"d": {"type": "dict"}}}}
    right = {"f": {"d": [{"a": [1], "b": [2, ""]}]}}
    assert not wrong_call(one, {"f": {"d": {"a": 1}}}, right)
    assert wrong_call(one, {"f": {"d": {"a": 1}}}, right, rules=Rules(version="2024-08"))


# Rows, prompts, variants

def test_the_wheel_holds_the_same_items(items):
    try: assert load(benchmark("bfcl"), "pypi").items == items
    except ConfigError as e: pytest.skip(f"needs PyPI, once: {e}")


def test_questions_and_answers_must_name_the_same_items():
    with pytest.raises(IntegrityError, match="ids of answers differ"):
        bfcl_join({"data/BFCL_v4_multiple.json": [{"id": "multiple_0"}],
                   "data/possible_answer/BFCL_v4_multiple.json": [{"id": "multiple_1", "ground_truth": []}]})


def test_prompts_of_all_items(items, texts):
    for item in items:
        block, prompted = bfcl_native(item), bfcl_prompted(item)
        assert len(block.tools) == len(item.extra["functions"]) and block.turns[-1]["role"] == "user"
        assert all("." not in t["function"]["name"] for t in block.tools)
        system = prompted.turns[0]["content"]
        assert json.dumps(shown_functions(item), indent=4) in system and "{functions}" not in system
        assert [t for t in prompted.turns if t["role"] != "system"] == [t for t in block.turns if t["role"] != "system"]


def test_types_of_tools(texts):
    properties = {"a": {"type": "tuple", "items": {"type": "float"}}, "b": {"type": "float", "description": "x"},
                  "c": {"type": "dict", "properties": {"d": {"type": "any"}}}, "e": {"type": "HashMap"}, "f": {}}
    [tool] = as_tools([{"name": "x.y", "parameters": {"type": "dict", "properties": properties}}])
    made = tool["function"]["parameters"]
    assert tool["function"]["name"] == "x_y" and made["type"] == "object" and properties["f"] == {}
    assert [made["properties"][k]["type"] for k in "abcef"] == ["array", "number", "object", "object", "string"]
    assert made["properties"]["a"]["items"]["type"] == "number" and made["properties"]["b"]["format"] == "float"
    assert made["properties"]["c"]["properties"]["d"]["type"] == "string"


@pytest.mark.parametrize(("model", "variant"), [
    ("qwen3_8b", "native"), ("qwen2.5_14b", "native"), ("qwen_8b", "prompted"), ("llama3.1_8b", "native-llama"),
    ("smollm2_135m", "prompted"), ("qwen3_8b_base", "prompted-text")])
def test_the_variant_follows_the_model(model, variant, tmp_path, texts):
    plan = plan_run(model, "bfcl", engine=FakeEngine(), source="specimen", runs=tmp_path)
    assert plan.variant_name == variant
    assert plan_run(model, "bfcl", variant="prompted", engine=FakeEngine(), source="specimen",
                    runs=tmp_path).variant_name == "prompted"
    if variant != "prompted-text":
        request = next(plan.requests([plan.items[0]]))
        assert bool(request.tools) == variant.startswith("native") and len(request.messages) >= 1


def test_tools_reach_a_real_template(npm_tokenizers, specimens, texts):
    from transformers import AutoTokenizer
    tok, b = AutoTokenizer.from_pretrained(npm_tokenizers["qwen3"]), benchmark("bfcl")
    model = Model(id="x", hub_id="x", context_tok=32768)
    for r in build_requests(specimens, (), b, b.variants["native"], model, tok, protocol("greedy")):
        item = next(i for i in specimens if i.id == r.item_id)
        assert all(f'"name": "{f["name"].replace(".", "_")}"' in r.prompt for f in item.extra["functions"])
        assert ("<tools>" in r.prompt) == bool(item.extra["functions"]) and item.question in r.prompt
    for r in build_requests(specimens, (), b, b.variants["prompted"], model, tok, protocol("greedy")):
        assert "<tools>" not in r.prompt and r.prompt.startswith(f"<|im_start|>system\n{texts['system'][:40]}")


# Averages

def _frame(values, sizes):
    made = [Item(id=f"{c}_{n}", question="?", stratum=c) for c, size in sizes.items() for n in range(size)]
    right = {c: round(values[c] * sizes[c]) for c in sizes}
    scores = [Score(item_id=i.id, value=float(n < right[i.stratum]), metrics={"acc": float(n < right[i.stratum])})
              for i in made for n in [int(i.id.rpartition("_")[2])]]
    return score_frame(scores, {}, made)


def test_averages_as_the_leaderboard_forms_them():
    sizes = {"simple_python": 40, "simple_java": 10, "simple_javascript": 5, "multiple": 20, "parallel": 20,
             "parallel_multiple": 20, "live_simple": 26, "live_multiple": 105, "live_parallel": 4,
             "live_parallel_multiple": 4, "irrelevance": 24, "live_irrelevance": 88, "live_relevance": 16}
    assert set(sizes) == set(SINGLE_TURN)
    v = {"simple_python": 0.9, "simple_java": 0.6, "simple_javascript": 0.4, "multiple": 0.8, "parallel": 0.7,
         "parallel_multiple": 0.5, "live_simple": 0.5, "live_multiple": 0.4, "live_parallel": 0.75,
         "live_parallel_multiple": 0.25, "irrelevance": 0.75, "live_irrelevance": 0.25, "live_relevance": 1.0}
    frame = _frame(v, sizes)
    non_live = ((0.9 + 0.6 + 0.4) / 3 + 0.8 + 0.7 + 0.5) / 4
    live = (13 + 42 + 3 + 1) / 139
    for name, expected in (("bfcl_non_live", non_live), ("bfcl_live", live), ("bfcl_irrelevance", 0.5),
                           ("bfcl[single-turn]", (non_live + live + 0.5) / 3)):
        found = weigh(frame, name)
        assert abs(found.value - expected) < 1e-12 and found.low < expected < found.high, name
        assert name in measured(frame)
    assert "multi-turn (30 %)" in metrics.get("bfcl[single-turn]").estimand
    assert weigh(frame, "bfcl_live").n_items == 139


@pytest.mark.parametrize(("missing", "gone"), [("simple_java", {"bfcl_non_live", "bfcl[single-turn]"}),
                                               ("live_parallel", {"bfcl_live", "bfcl[single-turn]"}),
                                               ("irrelevance", {"bfcl_irrelevance", "bfcl[single-turn]"}),
                                               ("live_relevance", set())])
def test_no_average_with_a_part_missing(missing, gone):
    sizes = {c: 4 for c in SINGLE_TURN if c != missing}
    frame = _frame(dict.fromkeys(sizes, 0.5), sizes)
    every = {m for m in metrics.names() if m.startswith("bfcl")} - {"bfcl_multi_turn"} # of another benchmark
    assert every - set(measured(frame)) == gone
    assert all(math.isnan(weigh(frame, m).value) for m in gone)
    assert not any(stratum_weights.get(metrics.get(m).weights)(sizes) for m in gone)


# Published

def test_published_scores_of_august_2024():
    home = Path(os.environ.get("QWEN_EVAL_DATA") or "nowhere").parent / "published"
    if not list(home.glob("bfcl_*")): pytest.skip("needs ../published/bfcl_* beside the folder in QWEN_EVAL_DATA")
    checks = list(conformance(home, "bfcl"))
    assert len(checks) >= 21 and all(c.ran for c in checks)
    for c in checks: assert c.published == c.ours and not c.n_differ, (c.check, c.differences[:2])
    assert sum(c.n for c in checks) >= 3 * 1389


def test_a_changed_verdict_is_a_difference(tmp_path):
    home = Path(os.environ.get("QWEN_EVAL_DATA") or "nowhere").parent / "published"
    [model, *_] = [p for p in home.glob("bfcl_*/score/*") if p.is_dir()] or [None]
    if model is None: pytest.skip("needs ../published/bfcl_* beside the folder in QWEN_EVAL_DATA")
    whole = tmp_path / model.parents[1].name
    shutil.copytree(model.parents[1], whole)
    for path in (whole / "score").glob("*/*"): path.unlink()
    source = model / "simple_score.json.gz"
    [head, first, *rest] = unpack(source, source.read_bytes()).decode().strip().split("\n")
    kept = whole / "score" / model.name / "simple_score.json"
    kept.write_text("\n".join([head, *rest]))
    made = {c.check.rpartition("/")[2]: c for c in conformance(tmp_path, "bfcl") if model.name in c.check}
    [difference] = made["simple"].differences
    assert difference["ours"] == 0 and difference["id"] == json.loads(first)["prompt"]["id"] and difference["why"]
    assert not made["java"].ran and made["java"].note.startswith("not run")


def test_checks_survive_odd_files(tmp_path):
    home = tmp_path / "bfcl_x"
    (home / "result" / "m").mkdir(parents=True)
    (home / "score" / "m").mkdir(parents=True)
    (home / "score" / "m" / "simple_score.json").write_text('{"accuracy": 1.0, "total_count": 3}')
    (home / "result" / "m" / "gorilla_openfunctions_v1_test_simple_result.json").write_text('{"id": "a", "result": ""}')
    (home / "gorilla_openfunctions_v1_test_simple.json").write_text(
        json.dumps({"id": "a", "question": "?", "function": WEATHER}))
    (home / "possible_answer").mkdir()
    (home / "possible_answer" / "gorilla_openfunctions_v1_test_simple.json").write_text(
        json.dumps({"id": "a", "ground_truth": RIGHT}))
    [check] = conformance(tmp_path, "bfcl")
    assert not check.ran and "1 answers to 1 questions, 3 scored" in check.note
    (home / "score" / "m" / "simple_score.json").write_text('{"accuracy": 0.0, "total_count": 1}\n{"id": 1}')
    [check] = conformance(tmp_path, "bfcl")
    assert check.ran and check.ours == 0 and check.n == 1
    (home / "score" / "m" / "simple_score.json").write_text("{")
    [check] = conformance(tmp_path, "bfcl")
    assert not check.ran and "not run" in check.note and "cannot be read" in check.note


def bfcl_folder(root, model, categories, change=lambda name, rows: rows):
    "Two questions of each category that a model answers in the other order, the first of them wrongly."
    ids, stem = ("a", "b"), "gorilla_openfunctions_v1_test_"
    for c in categories:
        files = {f"{stem}{c}.json": [{"id": i, "question": "?", "function": WEATHER} for i in ids],
                 f"possible_answer/{stem}{c}.json": [{"id": i, "ground_truth": RIGHT} for i in ids],
                 f"result/{model}/{stem}{c}_result.json": [{"id": "b", "result": "[weather.now(city='Oslo')]"},
                                                           {"id": "a", "result": "no"}],
                 f"score/{model}/{c}_score.json": [{"accuracy": 0.5, "total_count": 2}, {"id": "a"}]}
        for name, rows in files.items():
            (path := root / "bfcl_x" / f"{name}.gz").parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(gzip.compress("\n".join(map(json.dumps, change(name, rows))).encode()))


def test_answers_belong_to_their_questions(tmp_path):
    bfcl_folder(tmp_path, "m", ["simple"])
    [check] = conformance(tmp_path, "bfcl")
    assert check.source == "bfcl_x/score/m/simple_score.json.gz"
    assert {i["id"]: i["value"] for i in check.items} == {"a": 0, "b": 1} and check.n_differ == 0


@pytest.mark.parametrize("bad, lost", [({"result": "x"}, 0), ({"id": "b"}, 0), (["a"], 1), (None, 1)])
def test_a_bad_category_takes_no_other_with_it(tmp_path, bad, lost):
    def change(name, rows): return [bad, rows[1]] if name.startswith("result") else rows
    bfcl_folder(tmp_path, "m", ["multiple", "simple"])
    bfcl_folder(tmp_path, "a", ["simple"], change)
    bfcl_folder(tmp_path, "m", ["multiple"], change)
    made = {c.check.partition("/")[2]: c for c in conformance(tmp_path, "bfcl")}
    assert list(made) == ["a/simple", "m/multiple", "m/simple"] and made["m/simple"].n_differ == 0
    for c in ("a/simple", "m/multiple"): assert made[c].ran is not bool(lost) and (made[c].note != "") is bool(lost)
    (tmp_path / "bfcl_x/score/m/multiple_score.json.gz").write_bytes(b"\x1f\x8bxx")
    (tmp_path / "bfcl_x/score/a/simple_score.json.gz").write_bytes(gzip.compress(b"[]"))
    made = {c.check.partition("/")[2]: c for c in conformance(tmp_path, "bfcl")}
    assert [made[k].ran for k in ("a/simple", "m/multiple", "m/simple")] == [False, False, True]


def test_a_replaced_item_keeps_its_functions(specimens):
    item = replace(specimens[0], id="other")
    before = json.dumps(item.extra)
    bfcl_native(item), bfcl_prompted(item)
    assert json.dumps(item.extra) == before


def test_odd_literals_are_read_in_silence(recwarn):
    for name in call_readers.names():
        for text in ('[{"name": "f", "parameters": {"a": 1if 1 else 2}}]', "[f(a='\\d')]", "0x1for x in y"):
            try: read_calls(text, name)
            except ValueError: continue
    with pytest.raises(ValueError): _parsed("1if x else")
    assert not [w for w in recwarn if issubclass(w.category, (SyntaxWarning, DeprecationWarning))]
