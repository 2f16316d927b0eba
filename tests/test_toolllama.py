# ruff: noqa: E501 (an answer and what is read from it are one line of the table)
"API selection: the reference is right, chance is chance, naming everything is no skill, and n says what is counted."
import io
import json
import math
import os
import random
import re
from dataclasses import replace

import pytest

from qwen_eval.closing import outcome_text
from qwen_eval.datasets.base import load, make_items
from qwen_eval.datasets.toolllama import api_names, name_key, toolllama
from qwen_eval.diffs import diff_runs
from qwen_eval.engines.base import FakeEngine
from qwen_eval.errors import IntegrityError
from qwen_eval.evaluation import evaluate
from qwen_eval.models import Model
from qwen_eval.prompts import as_messages, as_text, prompts
from qwen_eval.records import Completion
from qwen_eval.runner import run_study
from qwen_eval.scorers.text import score_items
from qwen_eval.scorers.toolllama import called_names, listed_names, select_all_baseline
from qwen_eval.scores import score_frame
from qwen_eval.studies import Study
from qwen_eval.toolllama_prompts import shown_apis
from qwen_eval.weighing import truncation_bounds, weigh

A, B, C = "tide_for_sea", "sun_for_sea", "moon_for_sea"


@pytest.fixture(scope="module")
def items():
    if not os.environ.get("QWEN_EVAL_DATA"): pytest.skip("needs QWEN_EVAL_DATA: the folder of benchmark files")
    return load(toolllama, source="file").items


def scored(items, answer, variant="prompted"):
    v = toolllama.variants[variant]
    pairs = [(i, Completion(item_id=i.id, text=answer(i))) for i in items]
    return list(score_items(pairs, v.score, v)), {c.key: c for _, c in pairs}


def table(items, answer, variant="prompted"): return score_frame(*scored(items, answer, variant), items)


def calls(names): return "\n".join(f'<tool_call>\n{{"name": "{n}", "arguments": {{}}}}\n</tool_call>' for n in names)


def gold(item): return json.dumps(item.target)
def everything(item): return json.dumps([a["name"] for a in item.extra["apis"]])


def test_the_data_are_what_is_said_of_them(items):
    assert len(items) == 765 and len({i.stratum for i in items}) == 6
    assert sum(len(i.target) == len(i.extra["apis"]) for i in items) == 196
    base = select_all_baseline(items)
    assert round(base["api_f1"], 3) == 0.688 and base["api_recall"] == 1 and base["exact_set"] == 0
    assert base["exact_set_all"] == 196 / 765 and (base["n"], base["n_distractors"]) == (765, 569)


def test_names_can_be_called_and_differ(items):
    for i in items:
        names = [a["name"] for a in i.extra["apis"]]
        assert len(set(names)) == len(names) and all(re.fullmatch(r"[a-z][a-z0-9_]{0,63}", n) for n in names)
        assert [name_key(n) for n in names] == names
        assert sorted(t["function"]["name"] for t in prompts.get("api-tools")(i).tools) == sorted(names)
    assert len(set(api_names([("t", "x")] * 5 + [("t", "x 2")]))) == 6


@pytest.mark.parametrize("variant, answer", [("prompted", gold), ("plain", gold), ("native", lambda i: calls(i.target)),
                                             ("native", lambda i: json.dumps([{"name": n, "parameters": {}} for n in i.target]))])
def test_the_reference_is_right(items, variant, answer):
    frame = table(items, answer, variant)
    for m in ("exact_set", "exact_set_all", "api_precision", "api_recall", "api_f1", "valid_call_rate"):
        assert weigh(frame, m).value == 1, m
    assert set(frame.status) == {"scored"}


def test_the_primary_estimate_is_over_queries_with_distractors(items):
    frame = table(items, everything)
    e, every = weigh(frame, "exact_set"), weigh(frame, "exact_set_all")
    assert (e.value, e.n_items, sum(e.counts.values())) == (0, 569, 569) and "distractors" in e.estimand
    assert (every.value, every.n_items) == (196 / 765, 765)
    for m in ("api_f1", "api_f1_select_all"): assert round(weigh(frame, m).value, 3) == 0.688
    assert weigh(frame, "valid_call_rate").value == 1


def test_a_guess_gets_what_chance_gives(items):
    "As many names as are right, drawn at random: exact in one of as many as there are such sets."
    chance = [1 / math.comb(len(i.extra["apis"]), len(i.target)) for i in items if len(i.target) < len(i.extra["apis"])]
    rng, got = random.Random(0), []
    for _ in range(4):
        frame = table(items, lambda i: json.dumps(rng.sample([a["name"] for a in i.extra["apis"]], len(i.target))))
        got.append(weigh(frame, "exact_set").value)
    mean, sd = sum(chance) / 569, math.sqrt(sum(p * (1 - p) for p in chance)) / 569 / 2
    assert abs(sum(got) / 4 - mean) < 4 * sd and mean < 0.25
    other = dict(zip((i.id for i in items), items[200:] + items[:200], strict=True))
    moved = weigh(table(items, lambda i: gold(other[i.id])), "exact_set").value
    assert moved <= mean


def test_the_order_is_each_items_own_and_favours_nobody(items):
    choose = [i for i in items if len(i.target) < len(i.extra["apis"])]
    def first(order): return sum(order(i)[0]["relevant"] for i in choose) / len(choose)
    share = sum(len(i.target) / len(i.extra["apis"]) for i in choose) / len(choose)
    assert abs(first(shown_apis) - share) < 4 * math.sqrt(0.25 / 569) < first(lambda i: i.extra["apis"]) - share + 0.1
    assert shown_apis(choose[0]) == shown_apis(replace(choose[0], extra={"apis": choose[0].extra["apis"][::-1]}))
    for i in choose[:50]:
        at = [as_text(prompts.get("api-list")(i)).find(f"- {a['name']}(") for a in shown_apis(i)]
        assert at == sorted(at) and at[0] >= 0
        assert i.question.strip() in as_messages(prompts.get("api-tools")(i))[0]["content"]


@pytest.mark.parametrize("text, names", [
    (f'["{A}", "{B}"]', [A, B]), (f"['{A}', '{B}']", [A, B]), (f"[{A}, {B}]", [A, B]), (f'```json\n["{A}"]\n```', [A]),
    (f"1. {A}\n2. {B}", [A, B]), (f"- `{A}()`\n- **{B}**: for the sun", [A, B]), (f"{A},{B}", [A, B]),
    (f"I would call {A} and then {B}.", [A, B]), (f'{{"functions": ["{A}"]}}', [A]), (f'[{{"name": "{A}"}}, {{"name": "{A}"}}]', [A]),
    (f'["{A.upper()}", "functions.{B}"]', [A, B]), (f'["{A}(harbour=1)"]', [A]), (f'First ["{C}"]? No: ["{A}"]', [A]),
    (f'<think>["{C}"]</think>["{A}"]', [A]), (f'["{A}", "{B}', [A, B]), ('["fish"]', ["fish"]), ("[]", []), ("```json\n[ ]\n```", []),
    ("I am sorry, but I cannot help with that.", None), ("", None), ("None of them.", None), (calls([A]), [A]), ("[1, 2]", None),
    (f'["{A}"] (see [docs_for_x])', [A]), (f'["{A}"]\n["{B}"]', [A, B]), (f'- ["{A}"]\n- ["{B}"]', [A, B]),
    (f'[["{A}"], ["{B}"]]', [A, B]), (f'["{C}"]\nNo, rather:\n["{A}"]', [A]), ('["a_for_b"] or [fish]', ["a_for_b"])])
def test_what_a_text_lists(text, names): assert listed_names(text, [A, B, C]) == names


@pytest.mark.parametrize("text, names", [
    (calls([A, B]), [A, B]), (calls([A, A]), [A]), (calls([A])[:-14], [A]), (calls([A])[:40], [A]), (f"Sure.\n{calls([A])}\nDone.", [A]),
    (f'{{"name": "{A}", "parameters": {{"name": "{B}"}}}}', [A]), (f'[{{"name": "{A}", "arguments": {{}}}}]', [A]),
    (f'<|python_tag|>{{"name": "{A}", "parameters": {{}}}}; {{"name": "{B}", "parameters": {{}}}}', [A, B]),
    (f'```json\n{{"name": "{A}", "arguments": {{}}}}\n```', [A]), (f"<function={A}>\n</function>", [A]),
    (f'<think>{calls([C])}</think>{calls([A])}', [A]), (f'{{"type": "function", "function": {{"name": "{A}"}}}}', [A]),
    (f"I would call {A}.", None), (f'["{A}"]', None), ("", None), ("[]", None), ('{"answer": 3}', None)])
def test_what_a_text_calls(text, names): assert called_names(text) == names


def test_a_run_shows_what_counts_and_keeps_engine_errors_apart(tmp_path):
    from qwen_eval.records import Completion as Said
    by_id = {i.id: i for i in load(toolllama, "specimen").items}
    def run(model, answer):
        return evaluate(Model(id=model, context_tok=8192), "toolllama", engine=FakeEngine(answer), source="specimen",
                        runs=tmp_path, answer_tok=64, progress=False)
    a, b = run("all", lambda r: everything(by_id[r.item_id])), run("gold", lambda r: gold(by_id[r.item_id]))
    assert (a.estimate().value, a.estimate().n_items, b.estimate().value) == (0, 4, 1)
    assert {"exact_set_all", "api_f1", "api_f1_select_all", "valid_call_rate"} <= a.estimates().keys()
    d = diff_runs(a, b) # the query in which there is nothing to choose is no pair
    assert d["counts"]["n_items"] == 4 == d["counts"]["only_b"] and d["difference"]["value"] == -1
    c = run("cut", lambda r: Said(item_id=r.item_id, text='["x', finish_reason="length"))
    assert c.bounds == (0, 1) and c.estimate().counts["truncated"] == 4
    broken = run("broken", lambda r: Said(item_id=r.item_id, finish_reason="error", error="gone") if r.item_id == "1"
                 else gold(by_id[r.item_id]))
    e = broken.estimate(max_error_rate=1)
    assert (e.value, e.n_items, e.counts["engine_error"]) == (1, 3, 1)


def test_queries_without_distractors_are_counted_below_the_table(tmp_path, monkeypatch):
    monkeypatch.delenv("QWEN_EVAL_DATA", raising=False)
    study = Study(id="t", models=("smollm2_135m",), benchmarks=("toolllama", "gsm8k"), engine="fake", answer_tok=16,
                  allow_specimens=True)
    said = outcome_text(run_study(study, tmp_path, notebooks=False, stream=io.StringIO()))
    assert ("toolllama, smollm2_135m, balanced (1 of 5): items left out of exact_set, which is the mean over the queries "
            "that have distractors.") in said and said.count("left out") == 1


def test_ratio_metrics_count_calls():
    [item] = [i for i in load(toolllama, "specimen").items if i.id == "1"]
    other = replace(item, id="x", cluster="of other candidates")
    texts = {"1": f'["{item.target[0]}"]', "x": '["a", "b", "c"]'}
    frame = table([item, other], lambda i: texts[i.id])
    assert weigh(frame, "valid_call_rate").value == 0.25 and weigh(frame, "valid_call_rate").method == "wilson (ratio)"
    same = weigh(table([item, replace(other, cluster=item.cluster)], lambda i: texts[i.id]), "valid_call_rate")
    assert same.value == 0.25 and same.n_clusters == 1 and same.high - same.low > 0.9 # one set of candidates tells little
    v = toolllama.variants["prompted"]
    said = [Completion(item_id=item.id, epoch=n, text=t) for n, t in enumerate((texts["1"], texts["x"], "No."))]
    frame = score_frame(score_items([(item, c) for c in said], v.score, v), {c.key: c for c in said}, [item])
    assert weigh(frame, "valid_call_rate").value == 0.25 and weigh(frame, "exact_set").value == 1 / 3 # a repeat may name nothing
    none = table([item], lambda i: "No.")
    assert math.isnan(weigh(none, "valid_call_rate").value) and truncation_bounds(none, "exact_set") == (0, 0)


def test_rows_that_are_no_queries_are_refused():
    row = {"query": "How high?", "query_id": 1, "api_list": [{"tool_name": "a", "api_name": "b"}], "relevant APIs": [["a", "c"]]}
    for bad in (row, {**row, "relevant APIs": []}, {**row, "api_list": None}, {**row, "api_list": [{"tool_name": "a"}]}):
        with pytest.raises(IntegrityError, match="row 1"): make_items([bad], toolllama, "x.jsonl")
