"The store and the runs in it: torn files, locks, full disks, views, names, tables, queries."
import json
import math
import multiprocessing
import os
import subprocess
import threading
from pathlib import Path

import pytest

from qwen_eval import store
from qwen_eval.datasets.all import benchmark
from qwen_eval.datasets.base import load
from qwen_eval.engines.base import FakeEngine
from qwen_eval.errors import ConfigError, EngineError, IntegrityError, UnknownNameError
from qwen_eval.evaluation import evaluate
from qwen_eval.models import Model
from qwen_eval.prompts import letter_order
from qwen_eval.records import Completion, Continuation, Item, Score, to_json
from qwen_eval.runs import describe, list_runs, open_run, summary
from qwen_eval.scores import score_frame, write_scores
from qwen_eval.store import (
    RunWriter,
    Session,
    by_key,
    check_free,
    differences,
    read_completions,
    read_manifest,
    run_id,
    update_manifest,
)
from qwen_eval.tables import item_table, markdown_table, query, run_table, show_table
from qwen_eval.weighing import weigh

TOY = Model(id="toy", context_tok=8192)
SAID = [Completion(item_id="q0", text="18"), Completion(item_id="q1", text="zwölf \u2028 \x00 \ud83d", n_output_tok=3),
        Completion(item_id="q2", epoch=1, continuations=(Continuation(logprob=-1.5, n_tok=2),), label_logprobs=(None,))]


def ran(root, benchmark="gsm8k", **how):
    how = {"engine": FakeEngine(lambda r: "It is 18."), "source": "specimen", "answer_tok": 32, **how}
    return evaluate(TOY, benchmark, runs=root, progress=False, **how)


# ---------------------------------------------------------------- the file
def test_a_torn_tail_is_cut_off_at_every_byte(tmp_path):
    lines = [to_json(c) + b"\n" for c in SAID]
    whole, file = b"".join(lines), tmp_path / "completions.jsonl"
    for cut in range(len(whole) + 1):
        file.write_bytes(whole[:cut])
        before = whole[:cut].count(b"\n")
        with RunWriter(tmp_path) as writer:
            assert len(writer.stored) == before
            for c in SAID[before:]: writer.append(c)
        assert file.read_bytes() == whole


def test_zeros_after_a_power_cut_are_cut_off(tmp_path):
    with RunWriter(tmp_path) as writer: writer.append(SAID[0])
    with open(tmp_path / "completions.jsonl", "ab") as f: f.write(b"\0" * 4096)
    with RunWriter(tmp_path) as writer: writer.append(SAID[1])
    assert [c.item_id for c in read_completions(tmp_path / "completions.jsonl")[0]] == ["q0", "q1"]


@pytest.mark.parametrize("broken", [b'{"item_id": 3}', b"{}", b"\xff\xfe", b'{"item_id": "q1"', b""])
def test_a_broken_line_in_the_middle_is_named(tmp_path, broken):
    file = tmp_path / "completions.jsonl"
    file.write_bytes(to_json(SAID[0]) + b"\n" + broken + b"\n" + to_json(SAID[2]) + b"\n")
    before = file.read_bytes()
    for read in (lambda: read_completions(file), lambda: RunWriter(tmp_path).__enter__()):
        with pytest.raises(IntegrityError, match=r"completions\.jsonl, line 2"): read()
    assert file.read_bytes() == before
    with pytest.raises(IntegrityError): RunWriter(tmp_path).__enter__() # not "is being written"


def test_the_first_answer_counts_and_an_answer_counts_before_an_error():
    error = Completion(item_id="q", finish_reason="error")
    one, two = (Completion(item_id="q", text=text) for text in "12")
    assert by_key([error, one, two, error])["q", 0] is one
    assert by_key([error, error])["q", 0].finish_reason == "error"


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_likelihood_that_is_no_number_does_not_break_the_run(tmp_path, odd):
    ends = (Continuation(logprob=-1.0, n_tok=1), Continuation(logprob=odd, n_tok=1))
    with RunWriter(tmp_path) as writer:
        writer.append(Completion(item_id="a", continuations=ends, label_logprobs=(None, odd), ttft_s=odd))
        writer.append(SAID[0])
        live = dict(writer.stored)
    with RunWriter(tmp_path) as writer: assert repr(writer.stored) == repr(live) # NaN is not equal to itself
    again = writer.stored["a", 0]
    assert repr([again.continuations[1].logprob, again.label_logprobs[1], again.ttft_s]) == repr([odd] * 3)


def test_a_line_as_it_was_always_written_is_read(tmp_path):
    file = tmp_path / "completions.jsonl"
    file.write_bytes(b'{"item_id":"a","epoch":0,"text":"null","thinking":"nan","finish_reason":"stop","n_output_tok":3,'
                     b'"queue_s":null,"label_logprobs":[null,-1.5],"continuations":[{"logprob":-2,"n_tok":1}]}\n')
    assert read_completions(file)[0] == [Completion(
        item_id="a", text="null", thinking="nan", n_output_tok=3, label_logprobs=(None, -1.5),
        continuations=(Continuation(logprob=-2.0, n_tok=1),))]


@pytest.mark.parametrize("wrong", [{"n_output_tok": 1.5}, {"text": None}, {"text": 3}, {"error": object()},
                                   {"continuations": (Continuation(logprob=None, n_tok=1),)}])
def test_what_could_not_be_read_back_is_not_written(tmp_path, wrong):
    with RunWriter(tmp_path) as writer:
        writer.append(SAID[0])
        with pytest.raises(EngineError, match=r"\('q9', 0\) cannot be stored"):
            writer.append(Completion(**{"item_id": "q9", **wrong}))
        writer.append(SAID[2])
        assert list(writer.stored) == [SAID[0].key, SAID[2].key]
    assert read_completions(tmp_path / "completions.jsonl")[0] == [SAID[0], SAID[2]]


def test_the_writer_holds_what_the_file_holds(tmp_path):
    with RunWriter(tmp_path) as writer: writer.append(SAID[1])
    assert [writer.stored[SAID[1].key]] == read_completions(tmp_path / "completions.jsonl")[0] != [SAID[1]]


def test_a_line_that_the_disk_did_not_take_is_taken_back(tmp_path):
    class Full:
        def __init__(self, file): self.file, self.name = file, file.name
        def write(self, line): return self.file.write(line[:7])
        def __getattr__(self, name): return getattr(self.file, name)
    with RunWriter(tmp_path) as writer:
        writer.append(SAID[0])
        real, writer._file = writer._file, Full(writer._file)
        with pytest.raises(OSError): writer.append(SAID[1])
        writer._file = real
        assert ("q1", 0) not in writer.stored
        writer.append(SAID[2])
    assert [c.item_id for c in read_completions(tmp_path / "completions.jsonl")[0]] == ["q0", "q2"]


def _hold(path, ready, leave):
    with RunWriter(path):
        ready.set()
        leave.wait(60)


def test_a_second_writer_is_refused_and_the_lock_dies_with_its_holder(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, leave = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, ready, leave))
    holder.start()
    assert ready.wait(60)
    with pytest.raises(ConfigError, match=f"process {holder.pid} on"), RunWriter(tmp_path): pass
    holder.kill()
    holder.join()
    with RunWriter(tmp_path) as writer: assert writer.stored == {}


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, leave = context.Event(), context.Event()
    child = context.Process(target=lambda: (ready.set(), leave.wait(60)))
    with RunWriter(tmp_path):
        child.start()
        assert ready.wait(60)
    try:
        with RunWriter(tmp_path) as writer: assert writer.stored == {} and child.is_alive()
    finally:
        child.kill()
        child.join()


def test_readers_never_fail_while_a_run_writes(tmp_path):
    done, seen, wrong = threading.Event(), [], []

    def read():
        try:
            while not done.is_set():
                for r in list_runs(tmp_path): seen.append((len(r.completions()), describe(r)["run"]))
        except BaseException as e: wrong.append(e)
    reader = threading.Thread(target=read)
    reader.start()
    try: run = ran(tmp_path, engine=FakeEngine(lambda r: "18", delay_s=0.002), temperature=0.5, epochs=40)
    finally:
        done.set()
        reader.join()
    assert not wrong and len(run.completions()) == 160 and len({n for n, _ in seen}) > 2


def test_a_damaged_manifest_hides_no_other_run(tmp_path):
    ran(tmp_path)
    (tmp_path / "zz").mkdir()
    (tmp_path / "zz" / "manifest.json").write_text("{")
    with pytest.warns(UserWarning, match="zz"): assert len(list_runs(tmp_path)) == 1


def test_who_writes_is_known_before_an_engine_starts(tmp_path):
    run = ran(tmp_path)
    check_free(run.path)
    check_free(tmp_path / "none")
    with RunWriter(run.path), pytest.raises(ConfigError, match=f"being written by process {os.getpid()}"):
        check_free(run.path)
    check_free(run.path)


def test_choices_stand_under_the_labels_that_the_model_saw(tmp_path):
    run = ran(tmp_path, "arc_challenge", engine=FakeEngine("random"))
    known = {i.id: i for i in load(benchmark("arc_challenge"), "specimen").items}
    for row in run.items().itertuples():
        item = known[row.item_id]
        assert row.choices == dict(zip("ABCDE", (item.choices[i] for i in letter_order(item)), strict=False))
        assert row.choices[row.target] == item.choices[item.target]
        if row.status == "scored": assert row.value == (row.answer == row.target)


# ---------------------------------------------------------------- names and manifests
def test_run_ids():
    f = {"model": {"id": "org/name@a1"}, "benchmark": {"id": "gsm8k"}, "preset": {"id": "balanced"}, "x": 1}
    assert run_id(f).startswith("org-name-a1--gsm8k--balanced--") and len(run_id(f).split("--")[-1]) == 8
    assert run_id(f) == run_id(dict(reversed(f.items()))) == run_id(json.loads(json.dumps(f))) != run_id({**f, "x": 2})
    assert run_id({**f, "model": {"id": "../../etc"}}).startswith("etc--")
    assert differences(f, {**f, "x": 2, "model": {"id": "b"}}) == {"model.id": ("org/name@a1", "b"), "x": (1, 2)}


def test_a_manifest_is_written_whole_and_knows_no_nan(tmp_path):
    update_manifest(tmp_path, a={"x": 1, "y": 2}, b=math.inf, folder=tmp_path, t=(1, (2,)))
    stages = {"generate": {"n": 1, "status": "complete"}, "score": {"options": {"a": 1}}}
    for name in stages: update_manifest(tmp_path, stages={name: {"old": 1}}) # each replaces its own
    for name, stage in stages.items(): now = update_manifest(tmp_path, stages={name: stage}, a={"y": 3})
    wanted = {"a": {"y": 3}, "b": None, "folder": str(tmp_path), "t": [1, [2]], "stages": stages}
    assert read_manifest(tmp_path) == wanted == now
    assert os.listdir(tmp_path) == ["manifest.json"]
    (tmp_path / "manifest.json").write_text("[")
    with pytest.raises(IntegrityError, match=r"manifest\.json"): read_manifest(tmp_path)


def test_text_that_is_not_unicode_gives_no_run_id():
    f = {**{k: {"id": "a"} for k in ("model", "benchmark", "preset")}, "system": "a \ud83d"}
    with pytest.raises(ConfigError, match="half a surrogate pair"): run_id(f)


def test_git_that_does_not_answer_is_not_a_clean_checkout(monkeypatch):
    def run(command, **how):
        if "status" in command: raise subprocess.TimeoutExpired(command, 10)
        return subprocess.CompletedProcess(command, 0, "abc\n", "")
    monkeypatch.setattr(subprocess, "run", run)
    assert store._commit(Path(store.__file__)) == {"commit": "abc", "dirty": None}


def test_a_session_is_accounted_for_while_it_lasts(tmp_path):
    def stage(): return read_manifest(tmp_path)["stages"]["generate"]
    update_manifest(tmp_path, run_id="x")
    with RunWriter(tmp_path) as writer:
        session = Session(writer, n_items=2, epochs=1, engine={"name": "fake"})
        assert stage() == {"status": "partial", "n_items": 2, "n_done": 0, "n_wanted": 2}
        for c in (Completion(item_id="a", n_output_tok=5), Completion(item_id="b", finish_reason="error")):
            writer.append(c)
            session.count(c)
        session.save()
    with RunWriter(tmp_path) as writer: Session(writer, n_items=1, epochs=1)
    assert stage() == {"status": "partial", "n_items": 2, "n_done": 1, "n_wanted": 2} # the larger wish stays
    kept = [[s[k] for k in ("n_completions", "n_errors", "n_output_tok")] for s in read_manifest(tmp_path)["sessions"]]
    assert kept == [[2, 1, 5], [0, 0, 0]]


# ---------------------------------------------------------------- scores and estimates
def test_scores_of_different_runs_can_be_read_as_one(tmp_path):
    import pyarrow.parquet as pq
    items = [Item(id="a", question="?"), Item(id="b", question="?")]
    cases = {"none": [], "silent": [Score(item_id="a", value=0, status="no_answer")],
             "metrics": [Score(item_id="b", value=1, answer="x", metrics={"acc": 1.0}), Score(item_id="a")]}
    for name, scores in cases.items():
        (tmp_path / name).mkdir()
        write_scores(tmp_path / name, score_frame(scores, {}, items))
    schemas = [{f.name: str(f.type) for f in pq.read_schema(tmp_path / n / "scores.parquet")} for n in cases]
    assert schemas[0] == schemas[1] == {k: v for k, v in schemas[2].items() if k != "acc"}
    frame = score_frame(cases["metrics"], {}, items)
    assert list(frame.item_id) == ["a", "b"] and list(frame.order) == [0, 1]
    with pytest.raises(ConfigError, match="cannot be called status"):
        score_frame([Score(item_id="a", metrics={"status": 1})], {}, items)


def test_engine_errors_above_one_percent_are_refused_and_said():
    items = [Item(id=str(i), question="?") for i in range(200)]

    def frame(n_errors):
        died, fine = {"status": "engine_error"}, {"value": 1.0}
        return score_frame([Score(item_id=i.id, **(died if int(i.id) < n_errors else fine)) for i in items], {}, items)

    assert weigh(frame(2), "accuracy").n_items == 198 and weigh(frame(2), "accuracy").counts["engine_error"] == 2
    with pytest.raises(ConfigError, match="3 of 200"): weigh(frame(3), "accuracy")
    assert weigh(frame(3), "accuracy", max_error_rate=1).value == 1


def test_a_run_with_too_many_errors_still_shows_itself(tmp_path):
    died = Completion(item_id="", finish_reason="error", error="no")
    run = ran(tmp_path, engine=FakeEngine(lambda r: died if r.item_id[-1] in "01" else "18"))
    row = summary(run)
    assert math.isnan(row["value"]) and "are missing" in row["note"] and row["engine_error"] == 2
    assert all("2 of 4 values" in text for text in (repr(run), run._repr_html_(), show_table([run])._repr_html_()))
    assert run.estimates()["exact_match"].n_items == 2


def test_finding_runs(tmp_path):
    run = ran(tmp_path)
    for name in (run.id, run.id[-8:], run.path, str(run.path)): assert open_run(name, root=tmp_path).id == run.id
    (tmp_path / "not a run").mkdir()
    assert [r.id for r in list_runs(tmp_path)] == [run.id] and list_runs(tmp_path / "nowhere") == []
    with pytest.raises(UnknownNameError, match=run.id): open_run(run.id[:-2], root=tmp_path)


def test_a_run_without_completions_is_still_a_result(tmp_path): # what a project commits: manifest and scores only
    run = ran(tmp_path)
    (run.path / "completions.jsonl").unlink()
    (run.path / ".lock").unlink()
    again = open_run(run.path)
    assert again.complete and again.estimate() == run.estimate() and repr(again) == repr(run)
    assert len(again.items()) == 4


# ---------------------------------------------------------------- tables
def test_tables_and_queries(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    runs = [ran(tmp_path, b, seed=s) for b in ("gsm8k", "arc_challenge") for s in (0, 1)]
    table = run_table(runs)
    assert len(table) == 4 and set(table.marks) == {"specimen, fake-engine"} and table.complete.all()
    assert len(item_table(runs)) == table.n_items.sum()
    means = query("""select run_id, avg(s.value) as mean, any_value(r.value) as value
                     from scores s join runs r using (run_id) group by run_id""", tmp_path)
    assert len(means) == 4 and (means["mean"] - means["value"]).abs().max() < 1e-12
    text = repr(show_table(runs)), show_table(runs)._repr_html_(), markdown_table(runs)
    assert all(t.count("SPECIMEN") == 4 for t in text)
    with pytest.raises(ConfigError, match="no scored runs"): query("select 1", tmp_path / "nowhere")


def test_what_a_model_wrote_cannot_break_a_page(tmp_path):
    run = ran(tmp_path)
    update_manifest(run.path, marks=["<script>alert(1)</script>"])
    for page in (open_run(run.path)._repr_html_(), show_table([open_run(run.path)])._repr_html_()):
        assert "<script" not in page.lower() and "&lt;" in page
