"""BFCL's conversations: data, prompts, the tool loop, the sandbox, official verdicts, killed runs."""
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qwen_eval.bfcl_environments import BFCL_LIMITS, call_results, environment_sandbox, read_verdict, verdict_program
from qwen_eval.bfcl_overall import bfcl_score
from qwen_eval.bfcl_prompts import bfcl_texts
from qwen_eval.bfcl_tools import calls_as_text, right_answers, trajectory
from qwen_eval.bfcl_turns import check_bfcl_package, function_docs, with_functions
from qwen_eval.cli import app
from qwen_eval.conversations import next_request, whole
from qwen_eval.datasets.all import benchmark
from qwen_eval.datasets.base import load
from qwen_eval.datasets.bfcl import MULTI_TURN
from qwen_eval.engines.base import FakeEngine
from qwen_eval.errors import ConfigError, SandboxError
from qwen_eval.evaluation import evaluate
from qwen_eval.models import Model
from qwen_eval.plans import plan_run, survey
from qwen_eval.protocols import protocol
from qwen_eval.records import Completion
from qwen_eval.requests import build_requests
from qwen_eval.sandbox import available
from qwen_eval.scorers.text import ScoreOptions, batch_scorers
from qwen_eval.weighing import measured, weigh

ROOT = Path(__file__).resolve().parent.parent
BENCH = benchmark("bfcl_multi_turn")
TOY = Model(id="toy", context_tok=1 << 17)
FORMS = {"native": "hermes-calls", "native-llama": "llama-calls", "prompted": "prompted-calls",
         "prompted-tools": "prompted-calls"}


def _lacking():
    try: check_bfcl_package()
    except ConfigError as e: return str(e)
    return "" if available() else "needs a sandbox, and none works here"


needs_package = pytest.mark.skipif(bool(_lacking()), reason=_lacking() or "the package is there")


@pytest.fixture(scope="module")
def talks(): return {i.id: i for i in load(BENCH, "specimen").items}


@pytest.fixture(scope="module")
def real():
    folder = os.environ.get("QWEN_EVAL_DATA")
    if not folder or not (Path(folder) / "bfcl_v4.jsonl.gz").is_file():
        pytest.skip("needs QWEN_EVAL_DATA: a folder with bfcl_v4.jsonl.gz")
    item_set = load(BENCH, "file")
    assert item_set.verified == "verified"
    return item_set.items


@pytest.fixture
def how(tmp_path): return {"source": "specimen", "runs": tmp_path, "progress": False}


def script():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        spec = importlib.util.spec_from_file_location("bfcl_multi_turn", ROOT / "benchmarks" / "bfcl_multi_turn.py")
        spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
        return module
    finally: sys.path.pop(0)


def scored(item, texts, form="prompted", **more):
    c = Completion(item_id=item.id, turns=tuple(texts[:-1]), text=texts[-1], **more)
    return next(iter(batch_scorers.get("bfcl-turns")([(item, c)], BENCH.variants[form], ScoreOptions(n_workers=1))))


def scored_all(talks):
    "Scores of (item, form, conversation), in order; a case is an epoch of its item."
    found = {}
    for form in FORMS:
        pairs = [(i, replace(c, epoch=n)) for n, (i, f, c) in enumerate(talks) if f == form]
        found |= {s.epoch: s for s in batch_scorers.get("bfcl-turns")(pairs, BENCH.variants[form], ScoreOptions())}
    return [found[n] for n in range(len(talks))]


def played(item, form, texts):
    "All requests of a conversation whose answers are given, and the conversation."
    [asked], answers = build_requests([item], (), BENCH, BENCH.variants[form], TOY, None, protocol("greedy")), []
    requests, rest = [], iter(texts)
    while asked is not None:
        requests.append(asked)
        answers.append(Completion(item_id=item.id, text=next(rest, "Done.")))
        asked = next_request(item, asked, answers, BENCH.variants[form], TOY, None, protocol("greedy"))
    return requests, whole(answers)


# Data

def test_the_categories_of_several_turns(real):
    by = {c: [i for i in real if i.stratum == c] for c in MULTI_TURN}
    assert {c: len(x) for c, x in by.items()} == dict.fromkeys(MULTI_TURN, 200) and len(real) == 800
    assert all(len(i.target) == len(i.extra["talks"]) for i in real)
    assert all(i.extra["missed"] for i in by["multi_turn_miss_func"])
    assert not any(i.extra["missed"] for c in MULTI_TURN if "func" not in c for i in by[c])
    assert load(benchmark("bfcl"), "file").item_set_hash.startswith("5bb1a2a5641d") # one turn is as it was


def test_functions_are_those_of_the_folder_or_of_the_wheel(tmp_path, monkeypatch):
    here = function_docs("MathAPI")
    folder = tmp_path / "bfcl_multi_turn_func_doc"
    folder.mkdir()
    (folder / "math_api.json").write_text('{"name": "made_up"}\n')
    monkeypatch.setenv("QWEN_EVAL_DATA", str(tmp_path))
    function_docs.cache_clear()
    try: assert function_docs("MathAPI") == here # another file is passed over
    finally: function_docs.cache_clear()


# The package

@pytest.mark.parametrize("found", [None, "2025.1.1"])
def test_without_the_package_nothing_begins(how, monkeypatch, found):
    true = metadata.version
    def version(dist):
        if dist != "bfcl-eval": return true(dist)
        if found is None: raise metadata.PackageNotFoundError(dist)
        return found
    monkeypatch.setattr(metadata, "version", version)
    engine = FakeEngine("constant")
    with pytest.raises(ConfigError, match=r"pip install --no-deps bfcl-eval==2026.3.23 mpmath==1.3.0") as e:
        evaluate(TOY, "bfcl_multi_turn", engine=engine, **how)
    assert "bfcl, of one turn, needs none of it" in str(e.value) and (found or "is missing") in str(e.value)
    assert engine.n_requests == 0
    assert evaluate(TOY, "bfcl", engine=engine, **how).counts["engine_error"] == 0


@needs_package
def test_without_a_sandbox_nothing_begins(how, monkeypatch):
    def none(*_, **__): raise SandboxError("none here")
    monkeypatch.setattr("qwen_eval.bfcl_environments.Sandbox", none)
    engine = FakeEngine("constant")
    with pytest.raises(SandboxError, match="none here"): evaluate(TOY, "bfcl_multi_turn", engine=engine, **how)
    assert engine.n_requests == 0


# Calls

@pytest.mark.parametrize("reader, text, calls", [
    ("hermes-calls", '<tool_call>\n{"name": "a", "arguments": {"x": [1, null]}}\n</tool_call>', ("a(x=[1, None])",)),
    ("hermes-calls", '<tool_call>\n{"name": "a", "arguments": "{\\"x\\": true}"}\n</tool_call>', ("a(x=True)",)),
    ("hermes-calls", '<tool_call>\n<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call>', ()), # not JSON
    ("hermes-calls", '<tool_call>\n{"name": "a", "arguments": {}}', ()),
    ("hermes-calls", '<tool_call>\n{"name": "a", "arguments": []}\n</tool_call>', ()),
    ("hermes-calls", '<tool_call>\n[]\n</tool_call>', ()),
    ("hermes-calls", '<tool_call>\n{"name": ["a"], "arguments": {}}\n</tool_call>', ()),
    ("llama-calls", '{"name": "a", "parameters": {}}; {"name": "b", "parameters": {"x": 1}}', ("a()", "b(x=1)")),
    ("llama-calls", "a()", ()),
    ("prompted-calls", "[a(x=b(y=1), z={'k': 1}), c()]", ("a(x=b(y=1), z={'k': 1})", "c()")),
    ("prompted-calls", "[a(x={})]", ()), # an empty object stops the original
    ("prompted-calls", "a(x=b())", ("a(x='b()')",)),
    ("prompted-calls", "I will look.", ()), ("prompted-calls", "", ()), ("prompted-calls", "[]", ()),
    ("prompted-calls", "[a(x=9**9**9)]", ())])
def test_calls_as_the_environments_take_them(reader, text, calls): assert calls_as_text(text, reader) == calls


@needs_package
def test_a_turn_ends_after_the_step_that_is_too_many(talks):
    tea, most = talks["multi_turn_base_0"], bfcl_texts()["steps"]
    assert most == 20
    allowed = trajectory(tea, ["[ls()]"] * most, "prompted-calls")
    assert not allowed.over and len(allowed.steps) == most
    assert trajectory(tea, ["[ls()]"] * (most + 1), "prompted-calls").over
    requests, talk = played(tea, "prompted", ["[ls()]"] * 50)
    assert len(requests) == len(talk.turns) + 1 == most + 1 and scored(tea, (*talk.turns, talk.text)).value == 0
    last = right_answers(tea, "prompted-calls")[:2] + [right_answers(tea, "prompted-calls")[2]] * 40
    requests, talk = played(tea, "prompted", last) # in the last turn, what was done by then counts
    assert len(requests) == 2 + most + 1 and "force" not in scored(tea, (*talk.turns, talk.text)).detail


# Conversations

@needs_package
@pytest.mark.parametrize("form", FORMS)
def test_right_answers_of_specimens_score_one(talks, form):
    held = {k: played(i, form, right_answers(i, FORMS[form])) for k, i in talks.items()}
    scores = scored_all([(talks[k], form, talk) for k, (_, talk) in held.items()])
    assert {s.item_id: s.value for s in scores} == dict.fromkeys(talks, 1)
    for requests, talk in held.values():
        assert len(requests) == len(talk.turns) + 1 and requests[-1].messages[:1] == requests[0].messages[:1]


@needs_package
def test_right_answers_of_real_items_score_one(real):
    forms = [(i, [*FORMS][n % len(FORMS)]) for n, i in enumerate(real[::20])]
    scores = scored_all([(i, f, played(i, f, right_answers(i, FORMS[f]))[1]) for i, f in forms])
    assert len(scores) == 40 and not [(s.item_id, s.detail) for s in scores if s.value != 1]


@needs_package
def test_a_function_is_added_in_its_turn(talks):
    item = talks["multi_turn_miss_func_0"]
    for form in ("native", "prompted"):
        requests, _ = played(item, form, ["No."] * 3)
        names = [{t["function"]["name"] for t in r.tools} for r in requests]
        assert [r.messages[-1]["content"] == bfcl_texts()["more"] for r in requests] == [False, form == "native", False]
        if form == "native": assert ["sort" in n for n in names] == [False, True, True]
        else: assert "'name': 'sort'" in requests[1].messages[-1]["content"] and not any(names)
    assert '"sort"' not in json.dumps(with_functions(item).extra["functions"])


@needs_package
def test_results_are_in_the_next_prompt_of_real_templates(talks, qwen):
    item, said = talks["multi_turn_base_0"], right_answers(talks["multi_turn_base_0"], "hermes-calls")
    for name in ("qwen2_5", "qwen3"):
        v, m = BENCH.variants["native"], replace(TOY, tool_format="hermes")
        [first] = build_requests([item], (), BENCH, v, m, qwen[name], protocol("greedy"))
        answers = [Completion(item_id=item.id, text=said[0], thinking="First a folder.")]
        second = next_request(item, first, answers, v, m, qwen[name], protocol("greedy"))
        assert second.prompt.startswith(first.prompt.rpartition("<|im_start|>assistant")[0])
        assert second.prompt.count("<tool_response>") == 2
        assert '"mkdir", "arguments": {"dir_name": "tea"}' in second.prompt
        assert ("First a folder." in second.prompt) == (name == "qwen3") # within a turn, what was thought is kept


@needs_package
def test_a_run_from_prompts_to_the_average(how, talks):
    said = {k: right_answers(i, "prompted-calls") for k, i in talks.items()}
    bad = "multi_turn_base_1"
    engine = FakeEngine(lambda r: "I cannot." if r.item_id == bad else said[r.item_id][r.turn])
    run = evaluate(TOY, "bfcl_multi_turn", engine=engine, **how)
    frame = run.scores
    assert dict(zip(frame.item_id, frame.value, strict=True)) == {k: float(k != bad) for k in talks}
    assert dict(zip(frame.item_id, frame.status, strict=True))[bad] == "no_answer"
    assert "bfcl_multi_turn" in measured(frame) and "bfcl[single-turn]" not in measured(frame)
    assert weigh(frame, "bfcl_multi_turn").value == pytest.approx((2 / 3 + 3) / 4)
    assert weigh(frame, "acc").value == pytest.approx(5 / 6)
    part = frame[frame.stratum != "multi_turn_base"]
    assert "bfcl_multi_turn" not in measured(part) # no average with a category missing


def test_a_conversation_may_fill_the_context(how):
    if _lacking(): pytest.skip(_lacking())
    wide = replace(TOY, context_tok=90_000)
    plan = plan_run(wide, "bfcl_multi_turn", engine="fake", source="specimen", runs=how["runs"])
    assert survey(plan)[0] == 90_000


@needs_package
def test_without_room_the_conversation_is_cut_off(how, talks):
    said = {k: right_answers(i, "prompted-calls") for k, i in talks.items()}
    long = "[cat(file_name='leaves.txt')] " + "# " * 9000
    small = replace(TOY, context_tok=60_000)
    engine = FakeEngine(lambda r: long if "long_context" in r.item_id else said[r.item_id][r.turn])
    run = evaluate(small, "bfcl_multi_turn", engine=engine, answer_tok=20_000, **how)
    row = run.scores[run.scores.stratum == "multi_turn_long_context"].iloc[0]
    assert row.status == "truncated" and row.value == 0 and "not asked" in row.detail


@needs_package
def test_no_overall_score_with_parts_missing(how, talks, monkeypatch):
    said = {k: right_answers(i, "prompted-calls") for k, i in talks.items()}
    talked = evaluate(TOY, "bfcl_multi_turn", engine=FakeEngine(lambda r: said[r.item_id][r.turn]), **how)
    single = evaluate(TOY, "bfcl", engine=FakeEngine(lambda r: "No."), **how)
    alone, both = bfcl_score([single]), bfcl_score([talked, single])
    assert (alone.name, alone.missing) == ("bfcl[single-turn]", ("multi-turn", "agentic"))
    assert alone.value == pytest.approx(single.estimates()["bfcl[single-turn]"].value)
    assert (both.name, both.missing) == ("bfcl[single-turn, multi-turn]", ("agentic",))
    assert both.value == pytest.approx((10 * both.parts["irrelevance"]["value"] + 30) / 60)
    assert "no overall score: agentic (40 %) missing" in str(both) and "overall" not in str(both).partition("\n")[0]
    part = evaluate(TOY, "bfcl", engine=FakeEngine(lambda r: "No."), limit=3, **how)
    assert bfcl_score([part]).name.startswith("bfcl[") and "single-turn" not in bfcl_score([part]).name
    monkeypatch.setenv("QWEN_EVAL_RUNS", str(how["runs"]))
    told = CliRunner().invoke(app, ["runs", "bfcl", talked.id, single.id])
    assert told.exit_code == 0 and told.stdout.strip() == str(both)
    other = evaluate(replace(TOY, id="other"), "bfcl", engine=FakeEngine("constant"), **how)
    with pytest.raises(ConfigError, match="different models"): bfcl_score([talked, other])
    asked = evaluate(replace(TOY, tool_format="hermes"), "bfcl", engine=FakeEngine("constant"), **how)
    with pytest.raises(ConfigError, match="different ways of asking"): bfcl_score([talked, asked])


# The sandbox

@needs_package
def test_calls_reach_nothing(talks, tmp_path):
    (tmp_path / "secret").write_text("x")
    tea, name = talks["multi_turn_base_0"], str(tmp_path / "secret")
    said = call_results(tea, [[f"open({name!r}).read()", "__import__('socket').create_connection(('127.0.0.1', 9))",
                               f"open({name + '2'!r}, 'w')", "ls()"]])
    assert all(s.startswith("Error during execution") for s in said[:3]) and "leaves.txt" in said[3]
    assert [p.name for p in tmp_path.iterdir()] == ["secret"]


@needs_package
@pytest.mark.parametrize("call", ["__import__('os')._exit(0)", "exec('while True: pass')", "[0] * 10**10"])
def test_a_call_that_meets_a_limit_ends_the_conversation(talks, monkeypatch, call):
    monkeypatch.setattr("qwen_eval.bfcl_environments.BFCL_LIMITS", replace(BFCL_LIMITS, cpu_s=1, wall_s=5.0))
    tea = talks["multi_turn_base_0"]
    said = '<tool_call>\n' + json.dumps({"name": f"({call} or ls)", "arguments": {}}) + '\n</tool_call>'
    requests, talk = played(tea, "native", [said])
    if "**" in call: assert len(requests) > 1 # an error as any other: no memory
    else: assert len(requests) == 1 and scored(tea, [talk.text], "native").value == 0


@needs_package
def test_a_verdict_cannot_be_made(talks):
    tea, right = talks["multi_turn_base_0"], [[c] for c in talks["multi_turn_base_0"].target]
    with environment_sandbox() as box:
        def verdict(*calls):
            turns = [[[*calls, "ls()"]], [["ls()"]]]
            return read_verdict(tea, box.run(verdict_program(tea, turns), BFCL_LIMITS))
        assert not read_verdict(tea, box.run(verdict_program(tea, right), BFCL_LIMITS))
        for cheat in ("globals().update(_compare_instances=lambda *a: (True, {}))",
                      "setattr(__import__('sys'), 'stdout', None)", "__import__('os')._exit(0)",
                      "class_instance._load_scenario(scenario={})", "print('[true, 0, 0]')",
                      "execution_results.clear()", "(lambda: exec('import sys; sys.__stdout__.write(\"[true]\")'))()",
                      "model_multi_turn_base_0_GorillaFileSystem_instance.mkdir(dir_name='tea')"):
            assert verdict(cheat).startswith(("instance_state", "execution_response")), cheat


# Official verdicts

@needs_package
def test_verdicts_of_the_official_runner(real):
    frozen = json.loads((ROOT / "tests" / "data" / "bfcl_turns_verdicts.json").read_text())
    made = [*script().cases_of(real, frozen["n"], frozen["seed"])][-frozen["n"]:]
    digest = hashlib.sha256(json.dumps([(i.id, form, texts) for i, form, texts in made]).encode()).hexdigest()
    if digest != frozen["scripts_sha256"]: pytest.skip("this Python makes other scripts of the seed")
    scores = scored_all([(i, f, played(i, f, texts)[1]) for i, f, texts in made])
    ours = "".join(str(int(s.value)) for s in scores)
    assert ours == frozen["valid"] and 10 < ours.count("1") < frozen["n"] - 10


# Killed runs

@needs_package
def test_a_killed_run_goes_on(how, tmp_path, talks):
    code = ("import sys\nfrom qwen_eval.evaluation import evaluate\nfrom qwen_eval.engines.base import FakeEngine\n"
            "from qwen_eval.models import Model\nfrom qwen_eval.bfcl_tools import right_answers\n"
            "from qwen_eval.datasets.all import benchmark\nfrom qwen_eval.datasets.base import load\n"
            "items = load(benchmark('bfcl_multi_turn'), 'specimen').items\n"
            "said = {i.id: right_answers(i, 'prompted-calls') for i in items}\n"
            "engine = FakeEngine(lambda r: said[r.item_id][r.turn], window=2, delay_s=0.2)\n"
            "evaluate(Model(id='toy', context_tok=1 << 17), 'bfcl_multi_turn', engine=engine, source='specimen', "
            "runs=sys.argv[1], progress=False)")
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env={**os.environ, "PYTHONPATH": str(ROOT)})
    def done(): return {json.loads(line)["item_id"] for f in tmp_path.glob("*/completions.jsonl")
                        for line in f.read_text().splitlines() if line.endswith("}")}
    while child.poll() is None and len(done()) < 2: pass
    child.send_signal(signal.SIGKILL)
    child.wait()
    kept = done()
    assert 2 <= len(kept) < len(talks)
    said, seen = {k: right_answers(i, "prompted-calls") for k, i in talks.items()}, []
    engine = FakeEngine(lambda r: (seen.append(r.key[0]), said[r.item_id][r.turn])[1], window=2)
    run = evaluate(TOY, "bfcl_multi_turn", engine=engine, **how)
    assert not {*seen} & kept and sorted(seen) == sorted(k for k in talks if k not in kept for _ in said[k])
    assert run.scores.value.mean() == 1
