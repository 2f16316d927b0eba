"Two runs side by side: pairs, the table of right and wrong, refusals, what was written by models, JSON."
import json

import pytest

from qwen_eval.diffs import Diff, diff_runs
from qwen_eval.engines.base import FakeEngine
from qwen_eval.errors import ConfigError, UnknownNameError
from qwen_eval.evaluation import evaluate
from qwen_eval.metrics import Metric
from qwen_eval.models import Model
from qwen_eval.records import Completion, to_json
from qwen_eval.runs import Run
from qwen_eval.scores import write_scores
from qwen_eval.sharing import publish
from qwen_eval.store import update_manifest

GOLD = {"gsm8k/test/0": "720", "gsm8k/test/1": "72", "gsm8k/test/2": "9900", "gsm8k/test/3": "-7"}


def ran(root, answers, benchmark="gsm8k", model="toy", **how):
    "A run on specimens; `answers` maps item ids, or ids with an epoch, to texts or completions; others are wrong."
    def say(r): return answers.get((r.item_id, r.epoch), answers.get(r.item_id, "It is 1."))
    how = {"source": "specimen", "answer_tok": 32, **how}
    model = Model(id=model, context_tok=8192)
    return evaluate(model, benchmark, engine=FakeEngine(say), runs=root, progress=False, **how)


def right(*digits): return {f"gsm8k/test/{d}": f"It is {GOLD[f'gsm8k/test/{d}']}." for d in digits}


def test_the_table_of_right_and_wrong(tmp_path):
    a, b = ran(tmp_path, right(0, 1, 2)), ran(tmp_path, right(0, 1), model="other")
    d = diff_runs(a, b)
    wanted = {"n_items": 4, "n_pairs": 4, "flipped": 1, "a_better": 1, "b_better": 0, "both_right": 2, "only_a": 1,
              "only_b": 0, "both_wrong": 1, "partial": 0, "not_judged": 0}
    assert d["counts"] == wanted
    [item] = d["items"]
    assert (item["item_id"], item["outcome"], item["gold"]) == ("gsm8k/test/2", "only_a", "9900")
    assert (item["a"]["answer"], item["b"]["answer"], item["b"]["status"]) == ("9900", "1", "scored")
    assert "printing house" in item["question"] and "text" not in item["a"]
    assert d["differs"] == {"model.id": ("toy", "other")}
    back = diff_runs(b, a)
    assert back["counts"]["only_b"] == 1 == back["counts"]["b_better"] and back["counts"]["only_a"] == 0
    assert diff_runs(a.id, b.id[-8:], root=tmp_path) == d


@pytest.mark.parametrize("how, field", [
    ({"benchmark": "arc_challenge"}, "benchmark.id"), ({"benchmark": "arc_challenge"}, "metric"),
    ({"benchmark": "arc_challenge"}, "items.hash")])
def test_runs_of_different_things_are_refused_by_field(tmp_path, how, field):
    a, b = ran(tmp_path, {}), ran(tmp_path, {}, **how)
    with pytest.raises(ConfigError, match=field.replace(".", r"\.")): diff_runs(a, b)


@pytest.mark.parametrize("part, key, field", [("items", "hash", "items.hash"),
                                              ("benchmark", "version", "benchmark.version")])
def test_one_changed_field_is_the_one_named(tmp_path, part, key, field):
    a, b = ran(tmp_path, {}), ran(tmp_path, {}, model="other")
    f = b.manifest["fingerprint"]
    update_manifest(b.path, fingerprint={**f, part: {**f[part], key: "zzz"}})
    with pytest.raises(ConfigError) as e: diff_runs(a, Run(b.path))
    assert f"{field} is" in str(e.value) and "zzz in B" in str(e.value) and "metric is" not in str(e.value)


def test_a_letter_and_a_likelihood_are_no_pair(tmp_path):
    a, b = (ran(tmp_path, {}, "arc_challenge", variant=v, n_shot=0) for v in ("letter", "cloze"))
    with pytest.raises(ConfigError, match="metric is acc in A, acc_norm in B"): diff_runs(a, b)
    c = ran(tmp_path, {}, "arc_challenge", variant="label", n_shot=0)
    assert diff_runs(a, c)["counts"]["n_pairs"] > 0 and "benchmark.variant" in diff_runs(a, c)["differs"]


def test_other_numbers_of_items_and_epochs_are_said_loudly(tmp_path):
    a, b = ran(tmp_path, right(0, 3), temperature=0.5, epochs=3), ran(tmp_path, right(0), limit=2)
    d = diff_runs(a, b)
    assert d["counts"]["n_items"] == 2 == d["counts"]["n_pairs"] and {i["epoch"] for i in d["items"]} <= {0}
    assert any("A has 4 items, B 2, both 2" in n for n in d["notes"])
    assert any("A asked up to 3 times per item, B up to 1" in n for n in d["notes"])
    one = diff_runs(a, b, limit=1)
    assert one["counts"]["n_items"] == 1 and any("THE FIRST 1 of 2 shared" in n for n in one["notes"])
    assert repr(one).index("THE FIRST 1 of 2") < repr(one).index("flipped")
    assert not any("BOTH" in n or "FIRST" in n for n in diff_runs(a, a, limit=4)["notes"])
    with pytest.raises(ConfigError, match="limit is 0"): diff_runs(a, b, limit=0)


def test_epochs_are_pairs_of_their_own(tmp_path):
    a = ran(tmp_path, {("gsm8k/test/0", 1): "It is 720."}, temperature=0.5, epochs=2)
    b = ran(tmp_path, {("gsm8k/test/0", 0): "It is 720."}, temperature=0.5, epochs=2, model="other")
    d = diff_runs(a, b)
    assert [(i["epoch"], i["outcome"]) for i in d["items"]] == [(0, "only_b"), (1, "only_a")]
    assert d["counts"]["n_pairs"] == 8 and d["counts"]["n_items"] == 4 and "(epoch 1)" in repr(d)


def test_a_view_of_a_run_is_compared_as_it_is(tmp_path):
    a, b = ran(tmp_path, right(0, 1, 2, 3)), ran(tmp_path, {}, model="other")
    assert diff_runs(Run(a.path, limit=3), b)["counts"]["n_items"] == 3


def test_runs_without_common_items_are_refused(tmp_path):
    a, b = ran(tmp_path, {}), ran(tmp_path, {}, model="other")
    write_scores(b.path, b.scores[:0])
    with pytest.raises(ConfigError, match="no item in common"): diff_runs(a, Run(b.path))
    (b.path / "scores.parquet").unlink()
    with pytest.raises(ConfigError, match="no scores yet"): diff_runs(a, Run(b.path))
    with pytest.raises(UnknownNameError): diff_runs(a, "nobody", root=tmp_path)


def test_what_was_not_judged_is_neither_right_nor_wrong(tmp_path):
    died = Completion(item_id="", finish_reason="error", error="out of memory")
    a, b = ran(tmp_path, right(0, 1)), ran(tmp_path, {**right(1), "gsm8k/test/0": died}, model="other")
    d = diff_runs(a, b, every=True, texts=True)
    assert d["counts"]["not_judged"] == 1 and d["counts"]["flipped"] == 0 and "1 not judged" in repr(d)
    item = next(i for i in d["items"] if i["outcome"] == "not_judged")
    assert item["b"] | {"detail": ""} == {"value": None, "status": "engine_error", "answer": "", "detail": "",
                                          "text": "", "thinking": "", "error": "out of memory"}
    assert any(n.startswith("B IS INCOMPLETE") for n in d["notes"])


@pytest.mark.parametrize("higher, better", [(True, "a"), (False, "b")])
def test_values_between_are_partial_and_have_a_direction(tmp_path, monkeypatch, higher, better):
    from qwen_eval import diffs
    a, b = ran(tmp_path, {}), ran(tmp_path, {}, model="other")
    for run, values in ((a, [0.75, 1, 0, 0.5]), (b, [0.25, 0, 0, 0.5])):
        write_scores(run.path, run.scores.assign(value=[float(v) for v in values]))
    graded = Metric(id="exact_match", column="value", label="", kind="bounded", higher_is_better=higher)
    monkeypatch.setattr(diffs.metrics, "get", lambda name: graded)
    d = diff_runs(Run(a.path), Run(b.path), every=True)
    assert [i["better"] for i in d["items"]] == [better, better, None, None]
    assert [i["outcome"] for i in d["items"]] == ["partial", f"only_{better}", "both_wrong" if higher else "both_right",
                                                  "partial"]


def test_what_a_model_wrote_stays_what_it_is(tmp_path):
    nasty = "<script>alert(1)</script>\x1b[2J\u202etxt\ud83d\x00\r\n" + "9" * 5000
    a, b = ran(tmp_path, right(0)), ran(tmp_path, {"gsm8k/test/0": nasty}, model="<b>other")
    d = diff_runs(a, b, texts=True)
    for shown in (repr(d), d.text(), d._repr_html_()):
        assert not {"\x1b", "\u202e", "\x00", "\r", "\ud83d"} & {*shown}
        shown.encode()
    assert "<script" not in d._repr_html_() and "<b>" not in d._repr_html_() and "&lt;script" in d._repr_html_()
    assert d["items"][0]["b"]["text"].startswith("<script>alert(1)</script>\x1b[2J") # JSON keeps it
    assert json.loads(to_json(dict(d)))["counts"] == d["counts"]


def test_shared_copies_have_no_texts_and_are_compared(tmp_path):
    a, b = ran(tmp_path / "r", right(0)), ran(tmp_path / "r", {}, model="other")
    d = diff_runs(*[Run(p) for p in publish([a, b], tmp_path / "s")], texts=True)
    assert d["counts"] == diff_runs(a, b)["counts"] and d["items"][0]["a"]["text"] == ""


def test_items_that_cannot_be_loaded_leave_questions_empty(tmp_path):
    a, b = ran(tmp_path, right(0)), ran(tmp_path, {}, model="other")
    for run in (a, b): update_manifest(run.path, items={**run.manifest["items"], "item_set_hash": "0"})
    d = diff_runs(Run(a.path), Run(b.path))
    assert d["counts"]["only_a"] == 1 and d["items"][0]["question"] == "" == d["items"][0]["gold"] and repr(d)


def test_choices_are_named_by_the_label_that_the_model_saw(tmp_path):
    a, b = (ran(tmp_path, {}, "arc_challenge", model=m) for m in ("one", "two"))
    gold = [i["gold"] for i in diff_runs(a, b, every=True)["items"]]
    assert gold and all(g[0] in "ABCDE" and g[1:3] == ": " and len(g) > 4 for g in gold)


def test_many_flips_are_shortened_and_counted():
    side = {"value": 1.0, "status": "scored", "answer": "x" * 400, "detail": ""}
    items = [{"item_id": f"i{n}", "epoch": 0, "better": "a", "outcome": "only_a", "question": "w " * 400, "gold": "g",
              "a": side, "b": {**side, "value": None}} for n in range(60)]
    counts = {"n_items": 60, "n_pairs": 60, "flipped": 60, "a_better": 60, "b_better": 0, "only_a": 60, "only_b": 0,
              "both_right": 0, "both_wrong": 0, "partial": 0, "not_judged": 0}
    gain = {"value": 1.0, "low": 0.94, "high": 1.0, "level": 0.95, "method": "m", "n_items": 60, "note": ""}
    d = Diff(a="A", b="B", metric="acc", notes=[], differs={}, counts=counts, difference=gain, items=items)
    assert "and 50 more" in repr(d) and max(map(len, repr(d).splitlines())) < 130
    assert "and 10 more" in d._repr_html_() and "more" not in d.text() and "i59" in d.text()
    assert "nothing in their fingerprints" in repr(d) and "+100.0 points, 95% interval +94.0 to +100.0" in d.text(0)
