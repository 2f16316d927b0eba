"""Studies: what is asked is what is done, nothing is done twice, a failure stays where it is."""
import io
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import papermill
import psutil
import pytest

import qwen_eval.runner as runner
from qwen_eval.closing import close_study, outcome_text, report_folder
from qwen_eval.errors import ConfigError, EngineError, IntegrityError
from qwen_eval.evaluation import evaluate
from qwen_eval.runner import run_study
from qwen_eval.runs import Run, list_runs
from qwen_eval.store import read_manifest
from qwen_eval.studies import Study, plan
from qwen_eval.templates import find_template

ROOT = Path(__file__).resolve().parent.parent
SMALL = Study(id="small", models=("smollm2_135m",), benchmarks=("gsm8k", "arc_challenge"),
              presets=("balanced", "performance"), limit=3, answer_tok=17, engine="fake", allow_specimens=True)
ONE = replace(SMALL, id="one", benchmarks=("gsm8k",), presets=("balanced",))


def do(study, **more): return run_study(study, stream=io.StringIO(), **more)


def own_template(lab, change):
    "A template of the lab's own, which wins over the checkout's."
    book = nbformat.read(find_template("run_task"), 4)
    change(book)
    (lab / "nbs/templates").mkdir(parents=True)
    nbformat.write(book, lab / "nbs/templates/run_task.ipynb")
    assert find_template("run_task") == lab / "nbs/templates/run_task.ipynb"


def first_code(book): return next(c for c in book.cells if c.cell_type == "code")


def test_specimens_do_not_replace_what_real_items_gave(lab):
    stand_in = plan(ONE)
    real = replace(stand_in, runs=tuple(replace(r, plan=replace(r.plan, marks=())) for r in stand_in.runs))
    assert report_folder(real) == lab / "reports/one"
    assert do(ONE).files["table"].parent == report_folder(stand_in) == lab / "reports/one-specimens"


def test_two_presets_two_benchmarks_and_nothing_twice(lab, monkeypatch):
    here = Path.cwd()
    outcome = do(SMALL)
    assert not outcome.failures and len(outcome.rows) == 4 and Path.cwd() == here
    assert {(r["preset"], r["benchmark"], r["n_items"]) for r in outcome.rows} == {
        (p, b, 3) for p in SMALL.presets for b in SMALL.benchmarks}
    assert len(list((lab / "reports/small-specimens/notebooks").glob("*.ipynb"))) == 4
    for run in list_runs(): assert len((run.path / "completions.jsonl").read_text().splitlines()) == 3
    for name in ("table", "figure", "report"): assert outcome.files[name].stat().st_size > 0
    page = outcome.files["report"].read_text()
    assert "hand-written specimen items" in page and str(lab) not in page
    side = json.loads((lab / "reports/small-specimens/forest.json").read_text())
    assert set(side["run_ids"]) == {r.id for r in list_runs()}

    def no(*_, **__): raise AssertionError("started again")
    for name in ("EngineProcess", "job_of", "contexts"): monkeypatch.setattr(runner, name, no)
    before = {f: f.stat().st_mtime_ns for f in (lab / "runs").rglob("*") if f.is_file()}
    again = do(SMALL)
    assert [r["value"] for r in again.rows] == [r["value"] for r in outcome.rows]
    assert {f: f.stat().st_mtime_ns for f in (lab / "runs").rglob("*") if f.is_file()} == before


def test_injected_values_are_the_ones_used(lab):
    [row] = do(ONE).rows
    manifest = Run(lab / "runs" / row["run_id"]).manifest
    assert manifest["effective"]["max_tok"] == 17 and manifest["effective"]["limit"] == 3
    assert manifest["notebook"]["overrides"] == {"answer_tok": 17} and manifest["notebook"]["limit"] == 3
    [book] = [nbformat.read(f, 4) for f in (lab / "reports/one-specimens/notebooks").glob("*.ipynb")]
    injected = next(c for c in book.cells if "injected-parameters" in c.metadata.get("tags", []))
    assert "'answer_tok': 17" in injected.source.replace('"', "'")
    shown = "".join(json.dumps(c.get("outputs", [])) for c in book.cells)
    assert "SPECIMEN" in shown and shown.count("\\n") < 120


def test_a_template_without_its_tag_is_found_out(lab):
    own_template(lab, lambda book: first_code(book).metadata.pop("tags"))
    def default_to_fake(book): first_code(book).source += '\nengine, allow_specimens, model = "fake", True, "smollm2"'
    book = nbformat.read(find_template("run_task"), 4)
    default_to_fake(book)
    nbformat.write(book, find_template("run_task"))
    # papermill puts the values before everything, and the defaults overwrite them
    [failure] = do(ONE).failures
    assert "was not made" in failure.message or "other values" in failure.message


def test_values_that_did_not_arrive_are_an_integrity_error(lab):
    from qwen_eval.runner import check_effective, parameters
    [run] = plan(ONE).runs
    with pytest.raises(IntegrityError, match="was not made"): check_effective(run, parameters(run, ONE))
    assert not do(ONE).failures
    asked = parameters(run, ONE, lab / "reports/one-specimens/notebooks" / f"{run.path.name}.ipynb")
    check_effective(run, asked)
    with pytest.raises(IntegrityError, match="'limit': \\(4, 3\\)"): check_effective(run, {**asked, "limit": 4})


def test_a_folder_is_found_from_the_kernels_own_place(lab, monkeypatch):
    from types import SimpleNamespace

    from qwen_eval.runner import parameters
    from qwen_eval.studies import Planned
    (lab / "elsewhere" / "my_model").mkdir(parents=True)
    monkeypatch.chdir(lab / "elsewhere")
    here = SimpleNamespace(runs=lab, stopping=None)
    assert parameters(Planned(here, "my_model", "balanced", "gsm8k"), ONE)["model"] == str(lab / "elsewhere/my_model")
    assert parameters(Planned(here, "smollm2", "balanced", "gsm8k"), ONE)["model"] == "smollm2"


def test_a_failing_run_leaves_its_notebook_and_the_others_end(lab):
    def break_one(book): book.cells.insert(2, nbformat.v4.new_code_cell("if benchmark == 'gsm8k': 1 / 0"))
    own_template(lab, break_one)
    outcome = do(replace(SMALL, presets=("balanced",)))
    [failure] = outcome.failures
    assert failure.run.benchmark == "gsm8k" and "ZeroDivisionError" in str(failure)
    assert "ZeroDivisionError" in failure.notebook.read_text()
    assert [r["benchmark"] for r in outcome.rows] == ["arc_challenge"]
    assert "ZeroDivisionError" in outcome.files["report"].read_text()
    (lab / "nbs/templates/run_task.ipynb").unlink()
    assert len(do(replace(SMALL, presets=("balanced",))).rows) == 2


def test_the_command_names_what_failed_and_exits_1(lab):
    with open(lab / "settings.ini", "a") as f:
        f.write("[engine]\nengine = fake\n[study.one]\nmodels = smollm2_135m\nbenchmarks = gsm8k\nlimit = 2\n"
                "allow_specimens = true\n")
    own_template(lab, lambda book: book.cells.insert(2, nbformat.v4.new_code_cell("raise ValueError('made up')")))
    code = "from qwen_eval.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "study", "run", "one"], capture_output=True, text=True)
    assert done.returncode == 1 and "FAILED smollm2_135m, balanced, gsm8k: ValueError: made up" in done.stderr
    assert "Traceback" not in done.stderr and "encryption" not in done.stderr


def test_what_is_stored_is_not_asked_again(lab):
    how = {"engine": "fake", "answer_tok": 17, "allow_specimens": True, "progress": False, "seed": 0}
    run = evaluate("smollm2_135m", "gsm8k", limit=2, **how)
    before = (run.path / "completions.jsonl").read_bytes()
    [row] = do(ONE).rows
    assert row["run_id"] == run.id and row["n_items"] == 3
    assert (run.path / "completions.jsonl").read_bytes().startswith(before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, EngineError("the engine died")])
def test_the_engine_is_stopped_whatever_happens(lab, monkeypatch, error):
    started, others = [], set(psutil.Process().children()) # those of earlier tests in this process

    def fails(runs, study, folder, address, *_):
        started.extend(set(psutil.Process().children()) - others)
        assert Path(address).exists() and started
        raise error

    monkeypatch.setattr(runner, "run_group", fails)
    if error is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt): do(ONE)
    else:
        [failure] = do(ONE).failures
        assert failure.message == "the engine died"
    assert not psutil.wait_procs(started, timeout=5)[1]


def test_an_interrupted_group_ends_its_kernels(lab, monkeypatch):
    own_template(lab, lambda book: book.cells.insert(2, nbformat.v4.new_code_cell("import time; time.sleep(300)")))

    def kernels():
        return [c for c in psutil.Process().children(recursive=True) if any("ipykernel" in x for x in c.cmdline())]

    def interrupted(*_):
        end = time.monotonic() + 60
        while not kernels() and time.monotonic() < end: time.sleep(0.2)
        assert kernels()
        time.sleep(2)
        raise KeyboardInterrupt

    monkeypatch.setattr("qwen_eval.executors.ThreadExecutor.poll", interrupted)
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt): do(ONE)
    assert time.monotonic() - begin < 100
    assert not psutil.wait_procs(kernels(), timeout=10)[1]


def test_an_engine_that_does_not_start_fails_its_runs_only(lab, monkeypatch):
    real = runner.EngineProcess

    def refuses(*a, **k):
        seen.append(1)
        if len(seen) == 1: raise EngineError("no memory")
        return real(*a, **k)

    seen = []
    monkeypatch.setattr(runner, "EngineProcess", refuses)
    outcome = do(replace(SMALL, benchmarks=("gsm8k",)))
    assert [(f.run.preset, f.message) for f in outcome.failures] == [("balanced", "no memory")]
    assert [r["preset"] for r in outcome.rows] == ["performance"]


def test_without_notebooks_the_same_runs_are_made(lab):
    plain = do(ONE, notebooks=False)
    assert not plain.failures and not (lab / "reports").exists()
    [row] = do(ONE).rows
    assert row["run_id"] == plain.rows[0]["run_id"]


def test_without_a_sandbox_programs_are_kept_and_not_run(lab, monkeypatch):
    from qwen_eval.errors import SandboxError

    def none(*_, **__): raise SandboxError("no kind of sandbox works here")
    monkeypatch.setattr("qwen_eval.scorers.code.Sandbox", none)
    monkeypatch.setattr("qwen_eval.studies.available", lambda: ())
    study = replace(ONE, benchmarks=("humaneval",))
    [row] = do(study, notebooks=False).rows
    stored = lab / "runs" / row["run_id"] / "completions.jsonl"
    answers = [json.loads(line) for line in stored.read_text().splitlines()]
    stored.write_text("".join(json.dumps({**a, "text": "```python\n    return 1\n```"}) + "\n" for a in answers))
    (stored.parent / "scores.parquet").unlink()
    monkeypatch.setattr(runner, "EngineProcess", lambda *a, **k: pytest.fail("scoring needs no engine"))
    outcome = do(study, notebooks=False)
    [row] = outcome.rows
    assert not outcome.failures and row["not_scored"] == 3 and row["value"] != row["value"]
    assert "no sandbox" in outcome_text(outcome) and "not scored" in outcome_text(outcome)
    page = close_study(study).files["report"].read_text()
    assert "no sandbox" in page and "not scored" in page
    assert plan(study).runs[0].state() == "complete"
    monkeypatch.setattr("qwen_eval.studies.available", lambda: ("namespaces",))
    assert plan(study).runs[0].state() == "partial"


def test_a_plan_says_all_that_is_wrong_before_anything_starts(lab, monkeypatch):
    monkeypatch.setattr(runner, "EngineProcess", lambda *a, **k: pytest.fail("started"))
    with pytest.raises(ConfigError) as e:
        do(replace(SMALL, models=("smollm2_135m", "qwen9"), presets=("balanced", "fats")))
    assert "'qwen9'" in str(e.value) and "'fats'" in str(e.value)
    with pytest.raises(ConfigError, match="QWEN_EVAL_DATA"): do(replace(ONE, allow_specimens=False))
    assert not (lab / "runs").exists() or not list((lab / "runs").iterdir())


def test_the_template_runs_by_hand(lab, tmp_path):
    "Papermill alone, as somebody would call it."
    out = tmp_path / "out.ipynb"
    given = {"engine": "fake", "allow_specimens": True, "limit": 2, "model": "smollm2"}
    papermill.execute_notebook(find_template("run_task"), out, given, kernel_name="python3", progress_bar=False)
    [run] = list_runs()
    assert read_manifest(run.path)["notebook"]["model"] == "smollm2" and run.manifest["effective"]["limit"] == 2
    for cell in nbformat.read(out, 4).cells:
        for output in cell.get("outputs", []):
            assert (output.get("text") or output.get("data", {}).get("text/plain", "")).count("\n") <= 20


def test_programs_left_unscored_are_scored_once_that_is_allowed(lab, monkeypatch):
    import qwen_eval.sandbox as sandbox
    import qwen_eval.studies as studies
    monkeypatch.setattr(sandbox, "available", lambda: ())
    monkeypatch.setattr(sandbox, "_problem", lambda kind: "not here")
    monkeypatch.setattr(studies, "available", lambda: ())
    code = replace(ONE, benchmarks=("humaneval",))
    waiting = do(code, notebooks=False)
    assert not waiting.failures and waiting.rows[0]["not_scored"] == 3
    allowed = do(replace(code, allow_unsafe_code=True), notebooks=False)
    assert allowed.rows[0]["not_scored"] == 0 and allowed.rows[0]["run_id"] == waiting.rows[0]["run_id"]


def test_a_protocol_keeps_its_seed_and_a_benchmark_is_loaded_once(lab, monkeypatch):
    import qwen_eval.studies as studies
    (lab / "settings.ini").write_text((lab / "settings.ini").read_text() + "[protocol.warm]\nseed = 7\n")
    loaded, real = [], studies.load
    monkeypatch.setattr(studies, "load", lambda b, *a, **k: loaded.append(b.id) or real(b, *a, **k))
    found = plan(replace(SMALL, protocol="warm"))
    assert {r.plan.protocol.seed for r in found.runs} == {7} and sorted(loaded) == sorted(SMALL.benchmarks)
    assert {r.plan.protocol.seed for r in plan(replace(SMALL, protocol="warm", seed=1)).runs} == {1}
