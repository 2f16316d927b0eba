"Killed processes, engines that die, full disks, readers and second runners: nothing is lost, torn or done twice."
import collections
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from qwen_eval.engines.base import FakeEngine
from qwen_eval.errors import ConfigError
from qwen_eval.evaluation import evaluate
from qwen_eval.store import by_key, check_free, claim, read_completions, read_manifest
from qwen_eval.studies import Study, plan

ROOT = Path(__file__).resolve().parent.parent
WINDOW = 8 # requests that a client of the fake engine keeps in flight
pytestmark = pytest.mark.slow

# What an engine's process loads, beside the package: an engine that notes every request where a kill cannot reach it.
ENGINES = """
import hashlib, json, os
from qwen_eval.engines.base import FakeEngine
from qwen_eval.errors import EngineError
from qwen_eval.records import Completion

def said(r): return f"So it is {int(hashlib.sha256(repr(r.key).encode()).hexdigest(), 16) % 30}."

def odd(r):
    n = int(r.item_id.rpartition("/")[2]) % 4
    if n == 0: return FakeEngine.refuse(r, f"a prompt of {len(r.prompt_ids)} tokens is longer than the context of 64")
    if n == 1: return ""
    return Completion(item_id="", text="Let me think", finish_reason="length") if n == 2 else said(r)

class Counted(FakeEngine):
    def __init__(self, log, delay_s=0.0, dies_after=None, policy="said"):
        super().__init__({"said": said, "odd": odd}[policy], delay_s=delay_s)
        self.info, self.dies_after = FakeEngine().info, dies_after
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    def submit(self, request):
        os.write(self.log, (json.dumps(request.key) + "\\n").encode())
        return super().submit(request)
    def step(self):
        if self.dies_after is not None and self.n_requests > self.dies_after: raise EngineError("The card fell out.")
        return super().step()
"""

# Holds the imports, so that a runner is a fork; takes in whoever loses its parent, and says what became of each runner.
NURSERY = """
import ctypes, json, os, resource, sys, traceback
import pandas, pyarrow.parquet, papermill, msgspec
import qwen_eval.metrics, qwen_eval.stats.intervals, qwen_eval.runner as runner
from qwen_eval.closing import StudyOutcome, outcome_text
from qwen_eval.studies import Study
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) # PR_SET_CHILD_SUBREAPER
real = runner.EngineProcess

def run(spec):
    os.setsid()
    with open(spec["out"], "a") as out: os.dup2(out.fileno(), 1); os.dup2(out.fileno(), 2)
    runner.EngineProcess = lambda name, path, args, *a, **k: real("crashlab:Counted", None, spec["engine"], *a, **k)
    if spec["most_bytes"]: resource.setrlimit(resource.RLIMIT_FSIZE, (spec["most_bytes"], resource.RLIM_INFINITY))
    if spec["no_report"]: runner.close_study = lambda p, failures, folder: StudyOutcome(p.study, (), tuple(failures))
    study = Study(**{k: tuple(v) if isinstance(v, list) else v for k, v in spec["study"].items()})
    outcome = runner.run_study(study, notebooks=spec["notebooks"])
    print(outcome_text(outcome), *map(str, outcome.failures), sep="\\n", flush=True)
    return 1 if outcome.failures else 0

for line in sys.stdin:
    pid = os.fork()
    if not pid:
        try: status = run(json.loads(line))
        except BaseException as e: traceback.print_exc(); status = 2
        os._exit(status)
    print(pid, flush=True)
    while (ended := os.waitpid(-1, 0))[0] != pid: pass
    print(os.waitstatus_to_exitcode(ended[1]), flush=True)
    try:
        while os.waitpid(-1, os.WNOHANG)[0]: pass
    except ChildProcessError: pass
"""


def said(request):
    space = {}
    exec(ENGINES, space)
    return space["said"](request)


class Lab:
    "A folder with settings, and runners that can be killed."
    def __init__(self, root, delay_s=0.004):
        self.root, self.delay_s = root, delay_s
        self.tmp = Path(tempfile.mkdtemp(prefix="qe_", dir="/tmp")) # short: sockets lie in it
        (root / "crashlab.py").write_text(ENGINES)
        (root / "settings.ini").write_text(
            f"[paths]\nruns = runs\ncache = cache\nreports = reports\nspecimens = {ROOT / 'data/specimens'}\n")
        self.log, self.out, self.seen = root / "asked", root / "said", {}
        given = {k: v for k, v in os.environ.items() if k != "QWEN_EVAL_DATA"}
        self.environment = given | {
            "QWEN_EVAL_SETTINGS": str(root / "settings.ini"), "HF_HUB_OFFLINE": "1", "TMPDIR": str(self.tmp),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(root)])}
        self.nursery = None

    def start(self, study, notebooks=False, most_bytes=0, no_report=False, **engine):
        "A runner's process, just begun."
        if self.nursery is None:
            self.nursery = subprocess.Popen([sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, text=True,
                                            stdout=subprocess.PIPE, env=self.environment)
        engine = {"log": str(self.log), "delay_s": self.delay_s, **engine}
        spec = {"study": asdict(study), "notebooks": notebooks, "out": str(self.out), "engine": engine,
                "most_bytes": most_bytes, "no_report": no_report}
        self.nursery.stdin.write(json.dumps(spec) + "\n")
        self.nursery.stdin.flush()
        return psutil.Process(int(self.nursery.stdout.readline()))

    def wait(self): return int(self.nursery.stdout.readline()) # a runner's exit status, below 0 the signal

    def family(self, runner, word):
        "Living children of a runner whose command names that."
        found = []
        with contextlib.suppress(psutil.Error):
            for p in runner.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    self.seen[p.pid, p.create_time()] = p
                    if p.status() != psutil.STATUS_ZOMBIE and word in " ".join(p.cmdline()): found.append(p)
        return found

    def asked(self):
        return collections.Counter(map(tuple, map(json.loads, self.log.read_text().splitlines())))

    def close(self):
        if self.nursery:
            self.nursery.stdin.close()
            self.nursery.wait(timeout=30)
        alive = [p for p in self.seen.values() if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        for p in alive: p.kill()
        shutil.rmtree(self.tmp, ignore_errors=True)


@pytest.fixture
def lab(tmp_path, monkeypatch):
    made = Lab(tmp_path)
    for k in ("QWEN_EVAL_SETTINGS", "HF_HUB_OFFLINE", "PYTHONPATH"): monkeypatch.setenv(k, made.environment[k])
    monkeypatch.delenv("QWEN_EVAL_DATA", raising=False)
    try: yield made
    finally: made.close()


def short(n, **more):
    "The n-th short study: 240 answers."
    return Study(**{"id": f"short{n}", "models": ("smollm2_135m",), "benchmarks": ("gsm8k",), "limit": 4, "epochs": 60,
                    "temperature": 0.7, "answer_tok": 17, "seed": n, "engine": "fake", "allow_specimens": True, **more})


def undisturbed(root, study, benchmark="gsm8k", engine=None):
    how = {**study.overrides, "seed": study.seed, "order_seed": study.seed, "allow_specimens": True}
    return evaluate("smollm2_135m", benchmark, limit=4, engine=engine or FakeEngine(said), runs=root, progress=False,
                    **how)


def check(lab, study, n_kills):
    "Everything is there once, as if nothing had happened; how many answers were asked again."
    again = 0
    asked = lab.asked()
    lab.log.write_text("")
    for run in plan(study).runs:
        assert run.state() == "complete" and run.run().complete
        kept = read_completions(run.path / "completions.jsonl")[0]
        wanted = {(i, e) for i in run.wanted for e in range(study.epochs)}
        assert by_key(kept).keys() == wanted and len(kept) == len(wanted)
        assert wanted <= asked.keys()
        again += sum(asked[k] - 1 for k in wanted)
        manifest = read_manifest(run.path)
        assert manifest["run_id"] == run.path.name and manifest["counts"]["scored"] == len(wanted)
        assert {s["status"] for s in manifest["stages"].values()} == {"complete"}
        assert manifest["stages"]["generate"]["n_done"] == manifest["stages"]["generate"]["n_wanted"] == len(wanted)
        calm = undisturbed(lab.root / "calm", study, run.benchmark)
        assert calm.scores.equals(run.run().scores)
        check_free(run.path)
    assert again <= WINDOW * n_kills
    with claim(r.path for r in plan(study).runs): pass
    return again


def kill(p):
    "Was it there to be killed?"
    with contextlib.suppress(psutil.NoSuchProcess):
        p.send_signal(signal.SIGKILL)
        return True
    return False


def disturb(lab, runner, word, rng, longest_s, most):
    "Kill children of that kind, each at a random moment of its life, until the runner ends; how many were hit."
    hits, known = 0, set()
    while hits < most and runner.is_running() and runner.status() != psutil.STATUS_ZOMBIE:
        if not (new := [p for p in lab.family(runner, word) if p.pid not in known]):
            time.sleep(0.01)
            continue
        known.add(new[0].pid)
        time.sleep(rng.uniform(0, longest_s))
        hits += new[0].is_running() and new[0].status() != psutil.STATUS_ZOMBIE and kill(new[0])
    return hits


def test_a_hundred_kills(lab):
    rng, hits, n, in_study, again = random.Random(20), collections.Counter(), 0, 0, []
    turns = ["runner", "engine", "runner", "kernel", "runner", "engine"]
    turn = 0
    while sum(hits.values()) < 100:
        victim = turns[turn % len(turns)] if hits["kernel"] < 12 else ("runner", "engine")[turn % 2]
        turn += 1
        study, begin = short(n), time.monotonic()
        pages = victim == "kernel" or turn % 20 == 0
        runner = lab.start(study, notebooks=pages, no_report=victim == "kernel") # drawing one takes seconds
        if victim == "runner":
            end = time.monotonic() + rng.uniform(0, 4 if pages else 1.4)
            while time.monotonic() < end: lab.family(runner, ""); time.sleep(0.05)
            kill(runner)
        elif victim == "engine": new = disturb(lab, runner, "engines.process", rng, 0.9, 100 - sum(hits.values()))
        else: new = disturb(lab, runner, "ipykernel", rng, 3.0, 100 - sum(hits.values()))
        status = lab.wait()
        if victim == "runner": new = int(status == -signal.SIGKILL)
        print(f"{time.monotonic() - begin:5.1f} s {victim} x{new}: {status}, study {n}", flush=True)
        assert status in ((-signal.SIGKILL, 0) if victim == "runner" else (0, 1)), lab.out.read_text()[-3000:]
        hits[victim] += new
        in_study += new
        if status == 0 or plan(study).runs[0].state() == "complete":
            again.append((check(lab, study, in_study), in_study))
            n, in_study = n + 1, 0
    lab.start(short(n))
    assert lab.wait() == 0, lab.out.read_text()[-3000:]
    again.append((check(lab, short(n), in_study), in_study))
    print(dict(hits), f"{n + 1} studies, asked again {sum(a for a, _ in again)} of {240 * (n + 1)}")
    assert not psutil.wait_procs([p for p in lab.seen.values() if p.is_running()], timeout=10)[1]
    assert not list(lab.tmp.glob("qwen_eval_*/*")) # an empty folder is left by a kill before its engine was forked
    assert min(hits[v] for v in ("runner", "engine", "kernel")) >= 10


@pytest.mark.parametrize("lost", ["counts", "score", "generate"])
def test_a_manifest_that_a_kill_left_behind_is_brought_up_to_date(lab, lost):
    study, runs = short(0), lab.root / "runs"
    before = undisturbed(runs, study, engine="fake").manifest
    m = json.loads(json.dumps(before))
    if lost == "counts": del m["counts"]
    elif lost == "score": del m["stages"]["score"]
    else: m["stages"]["generate"] |= {"n_done": 230, "status": "partial"}
    (run,) = plan(study).runs
    assert run.state() == "complete"
    (run.path / "manifest.json").write_text(json.dumps(m))
    assert run.state() == "partial"
    (run.path / ".manifest.json.cut").write_text("{")
    after = undisturbed(runs, study, engine="fake").manifest
    assert not list(run.path.glob(".*.cut")) # however young: the lock is ours
    assert run.state() == "complete" and after["counts"] == before["counts"]
    assert after["stages"]["generate"] == before["stages"]["generate"] and len(after["sessions"]) == 1
    assert after["stages"]["score"]["status"] == "complete"


# ---------------------------------------------------------------- engines that die, odd answers
def test_an_engine_that_dies_is_started_again(lab):
    runner, hit = lab.start(short(0)), 0
    while not hit:
        if lab.log.exists() and len(lab.log.read_text().splitlines()) > 40:
            (engine,) = lab.family(runner, "engines.process")
            hit += kill(engine)
    assert lab.wait() == 0, lab.out.read_text()
    text = lab.out.read_text()
    assert "The engine process ended with status -9. Its log is" in text and "FAILED" not in text
    assert check(lab, short(0), 1) <= WINDOW


def test_an_engine_that_dies_again_and_again_is_a_stop_that_can_be_resumed(lab):
    lab.start(short(0), notebooks=True, dies_after=30)
    assert lab.wait() == 1
    text, [run] = lab.out.read_text(), plan(short(0)).runs
    assert text.count("ended with status 1") >= 4 and "The card fell out." in text and "same again to go on" in text
    assert "no scores yet" in text and run.state() == "partial" and 0 < run.n_done() < 240
    assert (lab.root / "reports/short0-specimens/report.html").exists()
    assert not list(lab.tmp.glob("qwen_eval_*"))
    lab.start(short(0))
    assert lab.wait() == 0
    check(lab, short(0), 4)
    lab.start(short(1), dies_after=0) # not a single answer: one retry, and no more
    assert lab.wait() == 1 and lab.out.read_text().count("ended with status 1") - text.count("ended with status 1") == 3


def test_refused_empty_and_cut_off_answers_are_counted_and_shown(lab):
    lab.start(short(0), notebooks=True, policy="odd")
    assert lab.wait() == 1 # refused ones would be asked again
    text, [run] = lab.out.read_text(), plan(short(0)).runs
    counts = run.run().counts
    assert {k: counts[k] for k in ("scored", "no_answer", "truncated", "engine_error")} == dict.fromkeys(
        ("scored", "no_answer", "truncated", "engine_error"), 60)
    why = {c.error for c in by_key(read_completions(run.path / "completions.jsonl")[0]).values()} - {""}
    assert len(why) == 1 and "longer than the context of 64" in why.pop()
    assert "60 of 240 answers are missing or engine errors (the first: " in text
    assert "engine errors, which do not count" in text
    row = next(line for line in text.splitlines() if "gsm8k (" in line and "not scored" in line)
    assert row.split().count("60") == 2, row # truncated, no answer


# ---------------------------------------------------------------- full disks
FULL = """
import json, sys
from pathlib import Path
import crashlab, qwen_eval.plans as plans
from qwen_eval.errors import QwenEvalError
from qwen_eval.engines.base import FakeEngine
from qwen_eval.evaluation import evaluate
from qwen_eval.store import read_completions, read_manifest
plans.writable = lambda folder, *_: folder # which would refuse so small a disk at once
runs, blocker = Path(sys.argv[1]), Path(sys.argv[1]) / "blocker"
blocker.write_bytes(b"x" * (int(sys.argv[2]) << 10))
def ask():
    return evaluate("smollm2_135m", "gsm8k", limit=4, epochs=60, temperature=0.7, answer_tok=17, seed=0, runs=runs,
                    engine=FakeEngine(crashlab.said), allow_specimens=True, progress=False)
try: ask()
except QwenEvalError as e: said = str(e)
stored = [len(read_completions(f)[0]) for f in runs.glob("*/completions.jsonl")]
manifests = [read_manifest(f.parent)["run_id"] for f in runs.glob("*/manifest.json")]
blocker.unlink()
run = ask()
whole = [c.key for c in read_completions(run.path / "completions.jsonl")[0]]
print(json.dumps({"said": said, "stored": stored, "manifests": manifests, "n": len(whole), "once": len(set(whole)),
                  "complete": run.complete, "left": sorted(f.name for f in run.path.iterdir())}))
"""


@pytest.mark.parametrize("blocked_kib", [448, 480, 496, 508, 512])
def test_a_full_disk_is_a_stop_that_can_be_resumed(lab, blocked_kib):
    "A disk of 512 KiB, nearly full from the start; then there is room."
    disk = lab.root / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=512k,nr_inodes=100 none {disk} && exec \"$@\""
    inside = ["unshare", "-Urm", "sh", "-c", mount, "sh"]
    if shutil.which("unshare") is None or subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    done = subprocess.run([*inside, sys.executable, "-c", FULL, disk, str(blocked_kib)], capture_output=True, text=True,
                          env=lab.environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert "No space left on device" in found["said"] and "make room and run the same again" in found["said"]
    assert sum(found["stored"]) < 240 and f"{sum(found['stored'])} answers are stored" in found["said"]
    assert found["n"] == found["once"] == 240 and found["complete"]
    assert found["left"] == [".lock", "completions.jsonl", "manifest.json", "scores.parquet"]


@pytest.mark.parametrize("notebooks", [False, True])
def test_a_file_that_may_not_grow_stops_a_study(lab, notebooks):
    lab.start(short(0), notebooks=notebooks, most_bytes=40_000)
    assert lab.wait() == 1, lab.out.read_text()
    text, [run] = lab.out.read_text(), plan(short(0)).runs
    assert "takes no more (File too large)" in text and "make room and run the same again" in text
    assert 0 < run.n_done() < 240 and f"{run.n_done()} answers are stored" in text and "Traceback" not in text
    lab.start(short(0))
    assert lab.wait() == 0
    assert check(lab, short(0), 1) <= WINDOW


# ---------------------------------------------------------------- readers, second runners
READER = """
import json, sys, time, traceback, warnings
from pathlib import Path
warnings.simplefilter("error")
from qwen_eval.runs import describe, list_runs, open_run, summary
from qwen_eval.studies import Study, plan, status_rows
from qwen_eval.tables import query, run_table, show_table
runs, spec = Path(sys.argv[1]), json.loads(sys.argv[2])
study = Study(**{k: tuple(v) if isinstance(v, list) else v for k, v in spec.items()})
n, wrong, seen = 0, [], set()
print(flush=True)
while not (runs / "stop").exists():
    time.sleep(0.01)
    n += bool(list_runs(runs))
    try:
        for r in list_runs(runs):
            again = open_run(r.id, root=runs)
            seen.add((len(again.completions()), describe(again)["run"], summary(r)["complete"])[::2])
            if (r.path / "scores.parquet").exists(): again.items(), again.estimates()
            status_rows(plan(study))
        show_table(run_table(list_runs(runs)))
        asked = "select count(*), avg(scores.value) from scores join runs using (run_id)"
        if list(runs.glob("*/scores.parquet")): query(asked, runs)
    except Exception: wrong.append(traceback.format_exc())
print(json.dumps({"n": n, "wrong": wrong, "n_seen": len(seen)}))
"""


def test_readers_in_another_process_never_fail(lab):
    runs, begin = lab.root / "runs", time.monotonic()
    runs.mkdir()
    reader = subprocess.Popen([sys.executable, "-c", READER, runs, json.dumps(asdict(short(0)))], text=True,
                              stdout=subprocess.PIPE, env=lab.environment)
    reader.stdout.readline()
    for n in range(3):
        runner = lab.start(short(n))
        time.sleep(0.8)
        kill(runner) # a torn tail is cut off under the reader's eyes
        lab.wait()
        lab.start(short(n))
        assert lab.wait() == 0, lab.out.read_text()
    for limit in (1, 2, 3, 4): # scores are written anew each time
        evaluate("smollm2_135m", "gsm8k", limit=limit, engine=FakeEngine("random"), runs=runs, progress=False,
                 allow_specimens=True)
    (runs / "stop").touch()
    found = json.loads(reader.communicate(timeout=60)[0])
    assert not found["wrong"], found["wrong"][0]
    print(found, time.monotonic() - begin)
    assert found["n"] > 5 and found["n_seen"] > 2 # how many depends on how busy the machine is


def test_of_two_runners_at_once_one_does_it_and_one_refuses(lab, tmp_path):
    (tmp_path / "other").mkdir()
    other, ends, rng = Lab(tmp_path), collections.Counter(), random.Random(3)
    other.out = tmp_path / "said too"
    try:
        for runner in (lab, other): # both nurseries are warm
            runner.start(short(99), delay_s=0.0)
            runner.wait()
        lab.log.write_text("")
        for n in range(4):
            lab.out.write_text("")
            other.out.write_text("")
            first, second = (lab, other) if n % 2 else (other, lab)
            first.start(short(n))
            time.sleep(rng.choice([0, 0.01, 0.1, 0.5]))
            second.start(short(n))
            status = sorted((lab.wait(), other.wait()))
            ends[tuple(status)] += 1
            assert status in ([0, 2], [0, 0]), lab.out.read_text() + other.out.read_text()
            text = lab.out.read_text() + other.out.read_text()
            if status == [0, 2]: assert "ConfigError: Run smollm2_135m--gsm8k" in text
            assert check(lab, short(n), 0) == 0
        assert ends[0, 2] >= 1
    finally: other.close()


def test_a_claim_is_of_runs_and_goes_with_its_process(tmp_path):
    a, b = tmp_path / "m--a--p--00000001", tmp_path / "m--b--p--00000002"
    code = ("import sys; from qwen_eval.store import claim\n"
            "with claim(sys.argv[1:]): print(flush=True); sys.stdin.read()")
    holder = subprocess.Popen([sys.executable, "-c", code, a], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    holder.stdout.readline()
    try:
        with claim([b]): pass
        said = f"Run {a.name} is being done by process {holder.pid} on"
        with pytest.raises(ConfigError, match=said), claim([b, a]): pass
        with claim([b]): pass # nothing is left of the refused claim
    finally:
        holder.kill()
        holder.communicate()
    with claim([a, b]):
        child = os.fork()
        if not child: os._exit(0)
        os.waitpid(child, 0)
        assert subprocess.run([sys.executable, "-c", code, a], stdin=subprocess.DEVNULL, capture_output=True).returncode
    with pytest.raises(ConfigError, match="at least one"), claim([]): pass
