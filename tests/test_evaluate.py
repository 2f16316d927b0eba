"The one loop: nothing asked twice, nothing lost, nothing started for nothing; scoring again; outputs made elsewhere."
import gzip
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qwen_eval.closing import attention
from qwen_eval.datasets.all import benchmark
from qwen_eval.datasets.base import load
from qwen_eval.engines.base import Capabilities, FakeEngine, ReplayEngine
from qwen_eval.engines.process import EngineProcess
from qwen_eval.errors import ConfigError, ContextOverflow, EngineError, IntegrityError, QwenEvalError
from qwen_eval.evaluation import evaluate, rescore
from qwen_eval.models import Model, from_checkpoint
from qwen_eval.outputs import score_outputs
from qwen_eval.plans import fingerprint, plan_run, required_context, survey
from qwen_eval.records import Completion
from qwen_eval.runs import open_run, summary
from qwen_eval.store import RunWriter, read_completions, read_manifest
from qwen_eval.tables import show_table

TOY = Model(id="toy", context_tok=8192)
GOLD = {i.id: i.target for i in load(benchmark("gsm8k"), "specimen").items}
DATA = os.environ.get("QWEN_EVAL_DATA")
PUBLISHED = os.environ.get("QWEN_EVAL_PUBLISHED") or (DATA and Path(DATA).parent / "published")
needs_data = pytest.mark.skipif(not DATA, reason="needs QWEN_EVAL_DATA: a folder of benchmark files")
needs_published = pytest.mark.skipif(not (DATA and PUBLISHED and Path(PUBLISHED).is_dir()),
                                     reason="needs QWEN_EVAL_DATA and QWEN_EVAL_PUBLISHED: published outputs")


def right(request): return f"#### {GOLD[request.item_id]}" if request.item_id in GOLD else "A"


def ask(root, engine, name="gsm8k", **how):
    how = {"source": "specimen", "answer_tok": 32, "progress": False, **how}
    return evaluate(how.pop("model", TOY), name, engine=engine, runs=root, **how)


def lines(run): return [json.loads(line) for line in (run.path / "completions.jsonl").read_text().splitlines()]
def once(run): return set(Counter((c["item_id"], c.get("epoch", 0)) for c in lines(run)).values()) == {1}


# ---------------------------------------------------------------- resuming
def test_the_second_call_asks_nothing_and_starts_nothing(tmp_path):
    first = ask(tmp_path, "fake")
    before = {f.name: f.stat().st_mtime_ns for f in first.path.iterdir()}
    again = ask(tmp_path, "fake", engine_address=tmp_path / "nobody answers here")
    assert again.id == first.id and again.estimate() == first.estimate()
    assert {f.name: f.stat().st_mtime_ns for f in first.path.iterdir()} == before
    with RunWriter(first.path): assert ask(tmp_path, "fake", limit=2).complete # not even the lock is wanted
    with pytest.raises(EngineError, match="nobody answers here"):
        ask(tmp_path, "fake", answer_tok=33, engine_address=tmp_path / "nobody answers here")


@pytest.mark.slow
def test_resuming_after_a_cut_at_every_byte_of_the_tail(tmp_path):
    whole = ask(tmp_path / "whole", FakeEngine(right))
    data, manifest = ((whole.path / f).read_bytes() for f in ("completions.jsonl", "manifest.json"))
    last = data[:-1].rfind(b"\n") + 1
    for cut in [*range(last - 3, len(data) + 1)]:
        path = tmp_path / str(cut) / whole.id
        path.mkdir(parents=True)
        (path / "completions.jsonl").write_bytes(data[:cut])
        (path / "manifest.json").write_bytes(manifest)
        engine = FakeEngine(right)
        run = ask(path.parent, engine)
        assert engine.n_requests == 4 - data[:cut].count(b"\n"), cut
        assert run.path == path and run.complete and once(run) and run.scores.equals(whole.scores), cut
        shutil.rmtree(path.parent)


CHILD = """
import sys
from qwen_eval.engines.base import FakeEngine
from qwen_eval.evaluation import evaluate
from qwen_eval.models import Model
evaluate(Model(id="toy", context_tok=8192), "gsm8k", engine=FakeEngine("random", delay_s=0.01), source="specimen",
         answer_tok=32, temperature=0.7, epochs=60, runs=sys.argv[1], progress=False)
"""


@pytest.mark.slow
def test_kill_minus_nine_in_the_middle_and_resume(tmp_path):
    file, rng, seen = None, random.Random(0), []
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)])
        before, deadline = seen[-1] if seen else 0, time.monotonic() + 60
        while time.monotonic() < deadline and child.poll() is None:
            file = file or next(iter(tmp_path.glob("*/completions.jsonl")), None)
            if file and file.read_bytes().count(b"\n") > before + rng.randint(5, 30): break
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        child.wait()
        seen.append(file.read_bytes().count(b"\n"))
    assert 0 < seen[0] < seen[1] < seen[2] < 240
    engine = FakeEngine("random")
    run = ask(tmp_path, engine, temperature=0.7, epochs=60)
    assert engine.n_requests == 240 - seen[2]
    assert run.complete and once(run) and len(run.scores) == 240 and run.manifest["epochs"] == 60
    sessions = run.manifest["sessions"]
    assert len(sessions) == 4 and sessions[-1]["n_completions"] == engine.n_requests
    assert run.manifest["stages"]["generate"]["status"] == run.manifest["stages"]["score"]["status"] == "complete"


class Stops(FakeEngine):
    "Raises after some answers."
    def __init__(self, error, after):
        super().__init__(right, window=1)
        self.error, self.after, self.info = error, after, FakeEngine(right).info

    def step(self):
        if self.n_requests > self.after: raise self.error
        return super().step()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), EngineError("It died.", retryable=True)], ids=["^C", "engine"])
def test_what_was_finished_is_kept(tmp_path, error):
    with pytest.raises(type(error), match=r"2 of 4 answers of run .* run the same again") as caught:
        ask(tmp_path, Stops(error, 2))
    assert getattr(caught.value, "retryable", True)
    (path,) = tmp_path.iterdir()
    assert read_manifest(path)["stages"]["generate"] == {"status": "partial", "n_items": 4, "n_done": 2, "n_wanted": 4}
    engine = FakeEngine(right)
    run = ask(tmp_path, engine)
    assert engine.n_requests == 2 and run.complete and once(run) and run.estimate().value == 1


def test_an_interrupted_run_that_is_scored_says_that_it_is_incomplete(tmp_path):
    with pytest.raises(EngineError): ask(tmp_path, Stops(EngineError("It died."), 3))
    run = rescore(next(tmp_path.iterdir()), progress=False)
    assert run.estimate().n_items == 3 and not run.complete and "INCOMPLETE" in repr(run)


def test_engine_errors_are_asked_again(tmp_path):
    died = Completion(item_id="", finish_reason="error", error="no")
    run = ask(tmp_path, FakeEngine(lambda r: died if r.item_id[-1] in "01" else right(r)))
    assert run.counts["engine_error"] == 2 and not run.complete
    assert run.manifest["stages"]["generate"]["status"] == "partial"
    with pytest.raises(ConfigError, match="2 of 4"): run.estimate()
    engine = FakeEngine(right)
    again = ask(tmp_path, engine)
    assert engine.n_requests == 2 and again.counts["scored"] == 4 and again.estimate().value == 1
    assert len(lines(again)) == 6 and again.manifest["stages"]["generate"]["status"] == "complete"


def test_an_answer_that_a_power_cut_took_takes_its_score_with_it(tmp_path):
    run = ask(tmp_path, FakeEngine(right))
    file = run.path / "completions.jsonl"
    *kept, last = file.read_text().splitlines(keepends=True)
    file.write_text("".join(kept))
    again, key = ask(tmp_path, FakeEngine(lambda r: "It is 77.")), json.loads(last)["item_id"]
    assert again.scores.set_index("item_id").answer[key] == "77" and again.counts["scored"] == 4


def test_an_engine_that_leaves_questions_unanswered_is_found_out(tmp_path):
    class Lazy(FakeEngine):
        def run(self, requests): yield from list(super().run(requests))[:2]
    with pytest.raises(EngineError, match="left 2 requests unanswered"): ask(tmp_path, Lazy(right))

    class Wild(FakeEngine):
        def run(self, requests): yield from (replace(c, epoch=7) for c in super().run(requests))
    with pytest.raises(EngineError, match="not asked for"): ask(tmp_path, Wild(right), seed=1)


def test_a_changed_prompt_is_not_the_same_run(tmp_path):
    run = ask(tmp_path, FakeEngine(right), limit=2)
    changed = [{**c, "prompt_hash": "0" * 16} if i else c for i, c in enumerate(lines(run))]
    (run.path / "completions.jsonl").write_text("".join(json.dumps(c) + "\n" for c in changed))
    for limit in (2, 3):
        with pytest.raises(IntegrityError, match=f"{changed[1]['item_id']}.*prompt 0000000000000000"):
            ask(tmp_path, FakeEngine(right), limit=limit)


def test_a_folder_of_another_run_is_not_written_to(tmp_path):
    run = ask(tmp_path, FakeEngine(right), limit=2)
    manifest = run.manifest
    manifest["fingerprint"]["protocol"]["max_tok"] = 31
    (run.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(IntegrityError, match=r"protocol\.max_tok"): ask(tmp_path, FakeEngine(right), limit=3)


# ---------------------------------------------------------------- what is asked
def test_limits_are_views_of_one_run(tmp_path):
    engine = FakeEngine(right)
    counts, ids = [], []
    for limit in (2, 3, 1, None, 4, 99):
        run = ask(tmp_path, engine, limit=limit)
        counts.append((engine.n_requests, run.estimate().n_items))
        ids.append([*run.scores.item_id])
    assert counts == [(2, 2), (3, 3), (3, 1), (4, 4), (4, 4), (4, 4)] and len({*tmp_path.iterdir()}) == 1
    assert all(x == ids[3][:len(x)] for x in ids)
    assert len(ask(tmp_path, engine, limit=2).completions()) == 2


def test_all_models_are_asked_the_same_items(tmp_path):
    runs = [ask(tmp_path, FakeEngine(right), model=Model(id=m), limit=3) for m in ("a", "b")]
    assert [*runs[0].scores.item_id] == [*runs[1].scores.item_id] and runs[0].id != runs[1].id


def test_label_scoring_sends_one_request_a_question(tmp_path):
    engine = FakeEngine("constant")
    run = ask(tmp_path, engine, "arc_challenge", variant="label")
    choices = [len(i.choices) for i in load(benchmark("arc_challenge"), "specimen").items]
    assert engine.n_requests == len(choices) and math.isclose(run.estimate().value, np.mean([1 / k for k in choices]))


@needs_data
@pytest.mark.parametrize("variant", ["label", "cloze", "letter"])
def test_engines_that_know_nothing_score_chance(tmp_path, variant):
    choices = [len(i.choices) for i in load(benchmark("arc_challenge"), "file").items]
    constant, chance = FakeEngine("constant"), np.mean([1 / k for k in choices])
    how = {"variant": variant, "n_shot": 0, "source": "file"}
    if variant != "letter":
        run = ask(tmp_path, constant, "arc_challenge", **how)
        assert constant.n_requests == len(choices) == 1172
        for e in run.estimates().values(): assert math.isclose(e.value, chance, abs_tol=1e-9)
    if variant != "cloze":
        run = ask(tmp_path, FakeEngine("first-label"), "arc_challenge", **how)
        for e in run.estimates().values(): assert abs(e.value - chance) < 0.02


def test_epochs_are_rows_of_one_item(tmp_path):
    run = ask(tmp_path, FakeEngine("random"), temperature=0.7, epochs=3, limit=2)
    assert len(run.scores) == 6 and run.estimate().n_items == 2 and run.estimate().n_epochs == 3
    assert [*run.scores.epoch] == [0, 1, 2] * 2 and len({c["prompt_hash"] for c in lines(run)}) == 6


def test_several_runs_share_an_engine_process(tmp_path):
    with EngineProcess("fake", args={"answer": "first-label"}) as process:
        names = ("arc_challenge", "hellaswag", "gsm8k")
        runs = [ask(tmp_path, "fake", name, engine_address=process.address) for name in names]
    assert all(r.complete for r in runs)
    assert runs[0].manifest["sessions"][0]["engine"]["args"]["answer"] == "first-label"


def test_context_is_the_most_that_any_benchmark_needs():
    how = {"engine": "fake", "source": "specimen", "answer_tok": 100}
    each = [survey(plan_run(TOY, b, **how))[0] for b in ("gsm8k", "hellaswag")]
    assert required_context(TOY, ["gsm8k", "hellaswag"], **how) == max(each) and max(each) % 16 == 0


# ---------------------------------------------------------------- what is refused
WRONG = [{"limit": 0}, {"limit": -1}, {"limit": 1.5}, {"limit": True}, {"variant": "x"}, {"n_shot": 9}, {"preset": "x"},
         {"protocol": "x"}, {"protocol": "qwen3_thinking"}, {"model": "x"}, {"name": "x"}, {"answer_tok": 0},
         {"nonsense": 1}, {"answer_tok": 8192}, {"data_file": "/nowhere.jsonl"}, {"source": "pypi"}]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_what_cannot_work_is_refused_before_anything_is_asked(tmp_path, wrong):
    engine = FakeEngine(right)
    with pytest.raises(QwenEvalError): ask(tmp_path, engine, **wrong)
    assert engine.n_requests == 0 and not [*tmp_path.iterdir()]


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be kept in"): ask(tmp_path / "file", FakeEngine(right))


def test_an_engine_that_cannot_do_it_is_refused(tmp_path):
    engine = FakeEngine()
    engine.capabilities = Capabilities(token_ids=True)
    with pytest.raises(ConfigError, match=r"needs labels.*can serve: letter"):
        ask(tmp_path, engine, "arc_challenge", variant="label")
    small = FakeEngine(right)
    small.info = replace(small.info, effective={"max_model_len": 64})
    with pytest.raises(ConfigError, match="holds 64 tokens"): ask(tmp_path, small)
    assert not [*tmp_path.iterdir()]
    narrow = replace(TOY, context_tok=150)
    with pytest.raises(ContextOverflow, match="gsm8k: even the shortest prompt"):
        ask(tmp_path, FakeEngine(), model=narrow)


LONG = [("gsm8k", "cot"), ("humaneval", None), ("arc_challenge", "letter"), ("arc_challenge", "label"),
        ("hellaswag", "cloze")]


@pytest.mark.parametrize("name, variant", LONG)
def test_a_prompt_longer_than_the_context_is_counted_and_said(tmp_path, name, variant):
    "The longest is not asked, the rest are; nothing is asked again; table and sentence say so."
    def size(r): return len(r.prompt_ids) + max(map(len, r.continuation_ids), default=0)
    p = plan_run(TOY, name, engine="fake", variant=variant, n_shot=0, source="specimen", answer_tok=4)
    sizes = {r.item_id: size(r) for r in p.requests(p.items)}
    most = max(sizes.values())
    longest = {i for i, n in sizes.items() if n == most}
    short = {i for i, n in sizes.items() if most > n > most - 4} if p.variant.mode == "generate" else set()
    assert 0 < len(longest) < len(sizes)
    engine, asked = FakeEngine("random"), []
    submit = engine.submit
    engine.submit = lambda r: (asked.append(r), submit(r))[1]
    how = {"variant": variant, "n_shot": 0, "model": replace(TOY, context_tok=most), "answer_tok": 4}
    run = ask(tmp_path, engine, name, **how)
    assert {r.item_id for r in asked} == sizes.keys() - longest and all(r.max_tok for r in asked)
    scores = run.scores.set_index("item_id")
    assert (scores.loc[list(longest)].status == "truncated").all() and (scores.loc[list(longest)].value == 0).all()
    assert scores.detail[min(longest)].startswith("not asked: a prompt of") and run.complete
    assert run.counts["engine_error"] == 0 and all(e.n_items == len(sizes) for e in run.estimates().values())
    row = summary(run)
    assert (row["unasked"], row["shortened"]) == (len(longest), len(short)) and row["truncated"] >= len(longest)
    assert f"({len(longest)} of {len(sizes)}): prompts longer than the model's context" in " ".join(attention([row]))
    again = FakeEngine("random")
    ask(tmp_path, again, name, **how)
    assert again.n_requests == 0


def test_the_engine_behind_an_address_must_be_the_planned_one(tmp_path):
    with EngineProcess("fake") as process, pytest.raises(ConfigError, match=r"is fake 1.*planned for replay 1"):
        ask(tmp_path, "replay", engine_address=process.address)


# ---------------------------------------------------------------- the manifest
def test_the_manifest_holds_what_shaped_the_run(tmp_path):
    m = ask(tmp_path, FakeEngine(right), limit=2, n_shot=1, seed=3).manifest
    assert m["asked"]["limit"] == m["effective"]["limit"] == 2 and m["n_shot"] == 1 and m["effective"]["seed"] == 3
    assert m["items"]["n"] == 4 and len(m["items"]["item_set_hash"]) == 64 and "specimen" in m["marks"]
    assert {"commit", "dirty", "python", "packages", "n_cpu"} <= m["environment"].keys()
    asked = m["fingerprint"]
    assert asked["benchmark"]["declaration"]["prompt"] == "gsm8k-cot" and asked["engine"]["version"] == "1"
    assert m["sessions"][0]["engine"]["name"] == "fake" and m["sessions"][0]["generate_s"] >= 0
    assert m["counts"] == {"scored": 2} and m["protocol"]["answer_tok"] == 32 and m["preset"]["max_num_seqs"] == 64


def test_what_shapes_nothing_changes_no_run(tmp_path):
    def planned(name, **how): return plan_run(TOY, name, engine="fake", source="specimen", runs=tmp_path, **how)
    one, *same = [planned("gsm8k", **how).path for how in ({}, {"limit": 3}, {"allow_specimens": True})]
    assert {*same} == {one} and json.loads(json.dumps(fingerprint(planned("gsm8k"))))
    changes = ({}, {"answer_tok": 5}, {"temperature": 0.5}, {"n_shot": 1})
    one, *same, other = [planned("hellaswag", **how).path for how in changes]
    assert {*same} == {one} != {other}


def checkpoint(folder):
    "A folder with a config and a tokenizer of bytes, without weights."
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    raw = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok = PreTrainedTokenizerFast(tokenizer_object=raw)
    tok.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:\n"
    tok.save_pretrained(folder)
    config = {"model_type": "qwen3", "torch_dtype": "bfloat16", "max_position_embeddings": 4096, "num_hidden_layers": 2}
    (folder / "config.json").write_text(json.dumps(config))
    return config


def test_a_local_checkpoint_is_known_by_its_content(tmp_path):
    folder = tmp_path / "tiny"
    config = checkpoint(folder)
    how = {"engine": "fake", "source": "specimen", "runs": tmp_path / "runs", "answer_tok": 16}
    first = fingerprint(plan_run(folder, "gsm8k", **how))
    found = first["model"]
    assert found["id"] == "tiny" and found["revision"].startswith("folder:") and found["template"]
    assert ask(tmp_path / "runs", FakeEngine(right), model=from_checkpoint(folder)).complete
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 5.0}))
    assert fingerprint(plan_run(folder, "gsm8k", **how))["model"]["revision"] != first["model"]["revision"]


def test_an_engine_on_another_device_or_checkpoint_is_refused(tmp_path):
    from qwen_eval.hardware import detect
    checkpoint(tmp_path / "tiny")
    here = detect().kind
    for wrong, said in (({"device": "cpu" if here == "cuda" else "cuda"}, f"planned for {here!r}"),
                        ({"device": here, "effective": {"checkpoint": str(tmp_path)}}, "has loaded")):
        engine = FakeEngine(right)
        engine.info = replace(engine.info, name="vllm", version="1", **wrong)
        with pytest.raises(ConfigError, match=said):
            ask(tmp_path / "runs", engine, model=from_checkpoint(tmp_path / "tiny"))
        assert engine.n_requests == 0 and not list((tmp_path / "runs").glob("*/*"))


def test_an_engine_at_an_address_must_be_set_up_as_the_preset_asks(tmp_path):
    from qwen_eval import opening
    from qwen_eval.presets import engine_args
    checkpoint(tmp_path / "tiny")
    (tmp_path / "tiny/pytorch_model.bin").write_bytes(b"PK") # nothing reads it here
    tiny, runs = from_checkpoint(tmp_path / "tiny"), tmp_path / "runs"
    plan = plan_run(tiny, "gsm8k", engine="vllm", source="specimen", runs=runs)
    args = engine_args(plan.preset, plan.model, plan.device, 512)
    engine = FakeEngine(right)
    for own in ({}, {"max_model_len": 1024}):
        engine.info = replace(engine.info, name="vllm", device=plan.device.kind, args={**args, **own})
        opening._check_arguments(plan, engine)
    engine.info = replace(engine.info, args={**args, "max_num_batched_tokens": 17, "quantization": "fp8"})
    with pytest.raises(ConfigError, match="max_num_batched_tokens=17, quantization=fp8"):
        opening._check_arguments(plan, engine)


# ---------------------------------------------------------------- scoring again
def test_scoring_again_gives_the_same(tmp_path):
    for name, how in (("gsm8k", {}), ("arc_challenge", {}), ("hellaswag", {}), ("arc_challenge", {"variant": "label"})):
        run = ask(tmp_path, FakeEngine("random"), name, **how)
        assert rescore(run.id, runs=tmp_path, progress=False).scores.equals(run.scores)
        assert ask(tmp_path, ReplayEngine(run.completions().values()), name, **how).scores.equals(run.scores)


def test_scoring_again_needs_the_same_items(tmp_path):
    rows = [{"question": f"{i} + {i}?", "answer": f"#### {2 * i}", "split": "test"} for i in range(3)]
    file = tmp_path / "sums.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    run = ask(tmp_path / "runs", FakeEngine(lambda r: "2"), source=None, data_file=file)
    assert "custom-data" in run.manifest["marks"] and rescore(run, progress=False).estimate() == run.estimate()
    assert run.estimate().value == 1 / 3
    assert [*run.items().target] == [str(2 * int(q[0])) for q in run.items().question]
    file.write_text("\n".join(map(json.dumps, [{**rows[0], "answer": "#### 5"}, *rows[1:]])))
    with pytest.raises(IntegrityError, match="cannot be found"): rescore(run, progress=False)
    assert "question" not in open_run(run.path).items()


def test_scores_that_were_lost_are_made_again_without_asking(tmp_path):
    run = ask(tmp_path, "fake")
    (run.path / "scores.parquet").unlink()
    again = ask(tmp_path, "fake", engine_address=tmp_path / "nobody")
    assert again.scores.equals(run.scores)


def test_a_larger_run_scores_only_what_is_new(tmp_path, monkeypatch):
    import qwen_eval.scores as scores
    seen, real = [], scores.score_items
    monkeypatch.setattr(scores, "score_items", lambda pairs, *a: real((seen.append(p) or p for p in pairs), *a))
    for limit in (2, 4): ask(tmp_path, FakeEngine(right), limit=limit)
    assert len(seen) == 4


def test_without_a_sandbox_programs_wait_and_are_scored_later(tmp_path, monkeypatch):
    import qwen_eval.scorers.code as code
    from qwen_eval.errors import SandboxError
    gold = {i.id: i for i in load(benchmark("humaneval"), "specimen").items}
    engine = FakeEngine(lambda r: f"```python\n{gold[r.item_id].question}{gold[r.item_id].target}\n```")

    def none(**_): raise SandboxError("install bubblewrap")
    with monkeypatch.context() as m:
        m.setattr(code, "Sandbox", none)
        run = ask(tmp_path, engine, "humaneval")
    assert run.counts["not_scored"] == len(gold) and run.manifest["stages"]["score"]["status"] == "partial"
    assert "no sandbox (install bubblewrap)" in " ".join(repr(run).split())
    assert show_table([run]).rows[0]["%"] == "not scored"
    again = ask(tmp_path, engine, "humaneval")
    if again.counts["not_scored"]: pytest.skip("no sandbox on this machine")
    assert engine.n_requests == len(gold) and again.estimate().value == 1
    assert again.manifest["stages"]["score"]["sandbox"].split(", ")[0] in ("namespaces", "landlock")


# ---------------------------------------------------------------- outputs made elsewhere
def scored(tmp_path, rows, name="gsm8k", file="made.jsonl", **how):
    text = "\n".join(map(json.dumps, rows)) if not isinstance(rows, str) else rows
    (tmp_path / file).write_bytes(gzip.compress(text.encode()) if file.endswith(".gz") else text.encode())
    return score_outputs(tmp_path / file, name, source="specimen", **how)


def test_null_is_an_answer_that_says_nothing(tmp_path):
    gold = load(benchmark("gsm8k"), "specimen").items
    rows = [{"id": gold[0].id, "completion": None}, {"id": gold[1].id, "completion": f"#### {gold[1].target}"}]
    found = scored(tmp_path, rows)
    assert [i["status"] for i in found["items"]] == ["no_answer", "scored"] and found["estimate"]["value"] == 0.5


@pytest.mark.parametrize("file", ["made.jsonl", "made.jsonl.gz", "made.txt", "made.gz"])
@pytest.mark.parametrize("text", ["completion", "solution", "text", "output"])
def test_forms_of_outputs(tmp_path, file, text):
    items = load(benchmark("gsm8k"), "specimen").items
    a, b, c, d = items
    keys = [("id", a.id), ("task_id", b.id), ("question", c.question), ("question", f" {a.question}\n")]
    found = scored(tmp_path, [{k: v, text: "It is 18."} for k, v in keys], file=file)
    assert [(i["id"], i["epoch"]) for i in found["items"]] == [(a.id, 0), (a.id, 1), (b.id, 0), (c.id, 0)]
    assert found["counts"]["missing"] == 1 and found["missing"] == [d.id] and "1 of 4" in repr(found)
    assert found["estimate"]["n_items"] == 3 and "SPECIMEN" in repr(found) and json.dumps(found)


UNFIT = [([{"id": "gsm8k/test/77", "completion": ""}], "Did you mean 'gsm8k/test/"),
         ([{"question": "Who?", "completion": ""}], "no item asks 'Who"), ([], "no completions"),
         ([{"id": "gsm8k/test/0"}], "no text stands under completion"), ("{", r"made\.jsonl, line 1"),
         ([{"id": [0], "completion": ""}], "no text stands under id"),
         ([{"id": 0, "completion": ""}], "Unknown item .0"), ("[1]", r"made\.jsonl, line 1")]


@pytest.mark.parametrize("rows, why", UNFIT, ids=str)
def test_outputs_that_do_not_fit(tmp_path, rows, why):
    with pytest.raises(QwenEvalError, match=why): scored(tmp_path, rows)


def test_outputs_that_were_cut_off_or_think(tmp_path):
    rows = [{"id": "gsm8k/test/0", "completion": "<think>18</think>no", "finish_reason": "length"},
            {"id": "gsm8k/test/1", "completion": "<think>The answer is"}]
    assert {i["status"] for i in scored(tmp_path, rows)["items"]} == {"truncated", "no_answer"}


def test_letters_made_elsewhere_mean_the_order_of_the_source(tmp_path):
    items = load(benchmark("arc_challenge"), "specimen").items
    rows = [{"id": i.id, "completion": "ABCDE"[i.target]} for i in items]
    assert scored(tmp_path, rows, "arc_challenge")["estimate"]["value"] == 1
    from qwen_eval.prompts import correct_letter
    rows = [{"id": i.id, "completion": correct_letter(i)} for i in items]
    assert scored(tmp_path, rows, "arc_challenge", shuffled=True)["estimate"]["value"] == 1


def test_log_likelihoods(tmp_path):
    items = load(benchmark("hellaswag"), "specimen").items
    best = [[-1.0 if k == i.target else -2.0 for k in range(len(i.choices))] for i in items]
    for name, sign in (("nll", -1), ("nll", 1), ("loglik", 1)):
        head = ",".join(f"{name}_{k}" for k in range(len(items[0].choices)))
        text = "\n".join([head, *(",".join(str(sign * x) for x in row) for row in best)])
        for file in ("x.csv", "x.csv.gz"):
            found = scored(tmp_path, text, "hellaswag", file)
            assert found["estimate"]["value"] == 1 and [*found["estimates"]] == [found["metric"]] == ["acc_tok"]
    with pytest.raises(ConfigError, match="3 rows, the benchmark 4 items"):
        scored(tmp_path, text[:text.rfind("\n")], "hellaswag", "x.csv")
    with pytest.raises(ConfigError, match="log-likelihoods"):
        scored(tmp_path, [{"id": "a", "completion": "b"}], "hellaswag")


@needs_published
def test_published_hellaswag():
    found = score_outputs(Path(PUBLISHED) / "hellaswag/Qwen2.5-1.5B_loglik.csv.gz", "hellaswag")
    assert round(100 * found["estimate"]["value"], 2) == 65.86 and found["marks"] == ["prejoined"]


@needs_published
@pytest.mark.parametrize("model, n_right", [("6b_finetuning", 286), ("175b_finetuning", 458)])
def test_published_gsm8k(tmp_path, model, n_right):
    with gzip.open(Path(PUBLISHED) / "gsm8k_openai/solutions.jsonl.gz") as f: rows = [json.loads(line) for line in f]
    made = tmp_path / "made.jsonl"
    outputs = [{"question": r["question"], "completion": r[model]["solution"]} for r in rows]
    made.write_text("\n".join(map(json.dumps, outputs)))
    asked = {i.id: i.question for i in load(benchmark("gsm8k"), "file").items}
    labels, found = {r["question"]: r[model]["is_correct"] for r in rows}, score_outputs(made, "gsm8k")
    assert sum((i["value"] == 1) == labels[asked[i["id"]]] for i in found["items"]) == 1319
    assert sum(i["value"] for i in found["items"]) == n_right


# ---------------------------------------------------------------- cost
@needs_data
def test_the_loop_costs_little(tmp_path):
    engine = FakeEngine(lambda r: "It is 18.", window=64)
    run = ask(tmp_path, engine, source="file")
    session = run.manifest["sessions"][0]
    assert engine.n_requests == len(run.scores) == 1319 and session["n_completions"] / session["generate_s"] > 50
    assert len(read_completions(run.path / "completions.jsonl")[0]) == 1319
