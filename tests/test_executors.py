"""Executors: plain data in, plain data out; a lab's own is one class; what is lost is told and may be tried again."""
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import psutil
import pytest

import qwen_eval.runner as runner
from qwen_eval.errors import ConfigError, EngineError, UnknownNameError
from qwen_eval.executors import Ended, Executor, Job, executor
from qwen_eval.live import LiveRows
from qwen_eval.ordering import execution_order
from qwen_eval.progress import Board
from qwen_eval.runner import run_study, todo_rows
from qwen_eval.runs import list_runs
from qwen_eval.store import update_manifest
from qwen_eval.studies import Study, plan, status_rows
from qwen_eval.templates import find_template

ROOT = Path(__file__).resolve().parent.parent
SMALL = Study(id="small", models=("smollm2_135m",), benchmarks=("gsm8k", "arc_challenge", "truthfulqa"), limit=3,
              answer_tok=17, engine="fake", allow_specimens=True)


@pytest.fixture
def lab(tmp_path, monkeypatch):
    (tmp_path / "settings.ini").write_text(
        f"[paths]\nruns = runs\ncache = cache\nreports = reports\nspecimens = {ROOT / 'data/specimens'}\n"
        "[engine]\nengine = fake\n[study.small]\nmodels = smollm2_135m\nbenchmarks = gsm8k, arc_challenge, truthfulqa\n"
        "limit = 3\nanswer_tok = 17\nallow_specimens = true\n")
    monkeypatch.delenv("QWEN_EVAL_DATA", raising=False)
    monkeypatch.setenv("QWEN_EVAL_SETTINGS", str(tmp_path / "settings.ini"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests"),
                                                     os.environ.get("PYTHONPATH", "")]))
    return tmp_path


def job(folder, x, source="1 / x"):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x = 1", metadata={"tags": ["parameters"]}),
                                           nbformat.v4.new_code_cell(source)])
    nbformat.write(book, folder / "page.ipynb")
    return Job(str(folder / "page.ipynb"), str(folder / f"out/{x}.ipynb"), {"x": x}, str(folder))


def ended_of(pool, n):
    found = []
    while len(found) < n: found += pool.poll(5)
    return {e.ticket: e for e in found}


def command(*words):
    code = "from qwen_eval.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, "study", *words], capture_output=True, text=True)


class Subprocesses(Executor):
    "What a cluster looks like from here: jobs go out as JSON, and are asked after."
    def __init__(self, n): self.under_way, self.n = {}, 0

    def submit(self, job):
        code = ("import json, sys; from qwen_eval.executors import Job, execute; "
                "print(json.dumps(execute(Job(**json.loads(sys.argv[1])))))")
        self.n += 1
        spec = json.dumps(vars(job))
        self.under_way[self.n] = subprocess.Popen([sys.executable, "-c", code, spec], stdout=subprocess.PIPE, text=True)
        return self.n

    def poll(self, wait_s=0.0):
        end = time.monotonic() + wait_s
        while time.monotonic() < end and all(p.poll() is None for p in self.under_way.values()): time.sleep(0.05)
        over = [t for t, p in self.under_way.items() if p.poll() is not None]
        return [Ended(t, *json.loads(self.under_way.pop(t).communicate()[0].splitlines()[-1])) for t in over]

    def cancel(self):
        for p in self.under_way.values(): p.terminate()


def test_a_pool_of_processes_says_what_went_wrong_and_survives_a_worker(tmp_path):
    with executor("processes", 1) as pool:
        good, bad = pool.submit(job(tmp_path, 2)), pool.submit(job(tmp_path, 0))
        found = ended_of(pool, 2)
        assert found[good] == Ended(good) and found[bad].kind == "ZeroDivisionError" and not found[bad].again
        assert "ZeroDivisionError" in (tmp_path / "out/0.ipynb").read_text()
        lost = pool.submit(job(tmp_path, 3, "import time; time.sleep(60)"))
        [worker] = pool._pool._processes.values()
        os.kill(worker.pid, signal.SIGKILL)
        assert (e := ended_of(pool, 1)[lost]).kind == "WorkerLost" and e.again
        ticket = pool.submit(job(tmp_path, 4)) # a new pool
        assert ended_of(pool, 1)[ticket] == Ended(ticket)


def test_wrong_names_of_executors():
    with pytest.raises(UnknownNameError, match="Did you mean 'threads'"): executor("thread")
    with pytest.raises(ConfigError, match="PYTHONPATH"): executor("nowhere:Slurm")


def test_any_executor_makes_the_same_study(lab):
    def values(by, **how):
        o = run_study(SMALL, runs=lab / by.replace(":", "_"), reports=lab / "reports" / by.replace(":", "_"),
                      stream=io.StringIO(), by=by, **how)
        assert not o.failures
        return [(r["run_id"], r["value"], r["low"]) for r in o.rows]
    assert values("processes", parallel=2) == values("test_executors:Subprocesses")


def test_only_some_runs_are_done_and_the_others_stay_planned(lab):
    o = run_study(SMALL, notebooks=False, stream=io.StringIO(), only=["benchmark=gsm8k"])
    assert [r["benchmark"] for r in o.rows] == ["gsm8k"]
    assert {r["benchmark"]: r["state"] for r in status_rows(plan(SMALL))} == {
        "gsm8k": "complete", "arc_challenge": "to do", "truthfulqa": "to do"}
    for wrong, near in (("benchmark=gsm9k", "Did you mean 'gsm8k'"), ("bench=gsm8k", "Did you mean 'benchmark'"),
                        ("gsm8k", "names nothing")):
        with pytest.raises((ConfigError, UnknownNameError), match=near):
            run_study(SMALL, notebooks=False, stream=io.StringIO(), only=[wrong])


def test_a_dry_run_starts_and_writes_nothing_and_tells_the_order(lab):
    done = command("run", "small", "--dry-run", "--json", "--only", "benchmark=gsm8k,benchmark=truthfulqa")
    assert done.returncode == 0, done.stderr
    rows, [group] = json.loads(done.stdout), execution_order(plan("small").runs)
    assert [r["benchmark"] for r in rows] == [r.benchmark for r in group if r.benchmark != "arc_challenge"]
    assert [r["n_left"] for r in rows] == [3, 3]
    assert not list((lab / "runs").glob("*/*")) and not (lab / "reports").exists()


def test_the_order_is_drawn_from_the_seed_and_a_resumed_study_keeps_it(lab):
    orders = {tuple(r["benchmark"] for r in todo_rows(replace(SMALL, seed=s))) for s in range(8)}
    assert 3 <= len(orders) <= 6 and all(sorted(o) == sorted(SMALL.benchmarks) for o in orders)
    first, *rest = [r["benchmark"] for r in todo_rows(SMALL)]
    run_study(SMALL, notebooks=False, stream=io.StringIO(), only=[f"benchmark={first}"])
    assert [r["benchmark"] for r in todo_rows(SMALL)] == rest


def test_engine_failures_are_retried_and_wrong_input_is_not(lab, monkeypatch):
    tries = []

    def fails(*a, **k):
        tries.append(a[1])
        if a[1] == "gsm8k": raise ConfigError("no such thing")
        if tries.count(a[1]) < 2: raise EngineError("the card fell out", retryable=True)
        return real(*a, **k)
    real = runner.evaluate
    monkeypatch.setattr(runner, "evaluate", fails)
    o = run_study(SMALL, notebooks=False, stream=io.StringIO())
    assert [(f.run.benchmark, f.message) for f in o.failures] == [("gsm8k", "no such thing")] and len(o.rows) == 2
    assert sorted(tries) == sorted(["gsm8k", *["arc_challenge", "truthfulqa"] * 2])
    tries.clear()

    def gone(*a, **k):
        tries.append(1)
        raise EngineError("gone", retryable=True)
    monkeypatch.setattr(runner, "evaluate", gone)
    o = run_study(replace(SMALL, seed=5), notebooks=False, stream=io.StringIO(), retries=0)
    assert len(tries) == len(o.failures) == 3


def test_a_kernel_that_dies_is_tried_once_more(lab):
    book = nbformat.read(find_template("run_task"), 4)
    once = ("import os\nfrom pathlib import Path\n"
            f"if benchmark == 'gsm8k' and not (f := Path({str(lab / 'died')!r})).exists():\n"
            "    f.touch()\n    os.kill(os.getpid(), 9)")
    book.cells.insert(2, nbformat.v4.new_code_cell(once))
    (lab / "nbs/templates").mkdir(parents=True)
    nbformat.write(book, lab / "nbs/templates/run_task.ipynb")
    stream = io.StringIO()
    o = run_study(replace(SMALL, benchmarks=("gsm8k",)), stream=stream)
    assert not o.failures and len(o.rows) == 1 and "trying 1 run once more" in stream.getvalue()


def test_an_interruption_exits_130_and_says_how_to_go_on(lab):
    with open(lab / "settings.ini", "a") as f: f.write("[study.long]\nmodels = smollm2_135m\nbenchmarks = gsm8k\n"
                                                       "limit = 4\nepochs = 4000\ntemperature = 0.7\nanswer_tok = 17\n"
                                                       "allow_specimens = true\n")
    code = "from qwen_eval.cli import main; main()"
    p = subprocess.Popen([sys.executable, "-c", code, "study", "run", "long"], stderr=subprocess.PIPE, text=True,
                         stdout=subprocess.DEVNULL, start_new_session=True)
    end = time.monotonic() + 120
    while time.monotonic() < end and not [f for f in (lab / "runs").glob("*/completions.jsonl") if f.stat().st_size]:
        time.sleep(0.1)
    family = psutil.Process(p.pid).children(recursive=True)
    p.send_signal(signal.SIGINT)
    said = p.communicate(timeout=60)[1]
    assert p.returncode == 130 and "of 16000 answers are stored. The same command goes on:" in said
    assert "study run long" in said and not psutil.wait_procs(family, timeout=20)[1]


# ---------------------------------------------------------------- what a person sees meanwhile
def test_interim_estimates_are_labelled_and_gone_at_the_end(lab):
    [run] = plan(replace(SMALL, benchmarks=("gsm8k",))).runs
    live = LiveRows([run])
    assert live.rows()[0]["state"] == "waiting"
    run.path.mkdir(parents=True)
    (run.path / "completions.jsonl").write_text('{"item_id": "x"}\n')
    so_far = {"metric": "accuracy", "n_items": 1, "of": 3, "value": 0.5, "low": 0.1, "high": 0.9, "level": 0.95}
    update_manifest(run.path, sessions=[{"interim": so_far}])
    [row] = live.rows()
    assert row["state"] == "asking" and row["estimate"] == "accuracy 50.0 [10.0, 90.0] %, interim, 1 items"
    for f in run.path.iterdir(): f.unlink()
    run_study(replace(SMALL, benchmarks=("gsm8k",)), notebooks=False, stream=io.StringIO())
    [row] = LiveRows([run]).rows()
    assert row["state"] == "complete" and "interim" not in row["estimate"]
    assert row["estimate"].startswith("exact_match ")
    said = command("status", "small")
    assert said.returncode == 0 and "exact_match" in said.stdout and "to do" in said.stdout, said.stderr


def test_a_log_says_what_ended_and_a_terminal_shows_a_table(lab):
    log = io.StringIO()
    run_study(SMALL, notebooks=False, stream=log)
    assert log.getvalue().count(": complete, 3 of 3 answers, ") == 3 and len(list_runs()) == 3

    class Terminal(io.StringIO):
        def isatty(self): return True
    screen, rows = Terminal(), LiveRows(plan(SMALL).runs)
    with Board(9, rows.n_done, screen, rows=rows.rows) as board: board.say("smollm2_135m, balanced: gsm8k")
    shown = screen.getvalue()
    assert "estimate" in shown and shown.count("complete") >= 3 and "truthfulqa" in shown and "9/9" in shown
