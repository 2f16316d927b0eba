"""Templates take what they say and nothing else; contrasts of stored runs say what was planned, shown or not."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_comparisons import ran, with_values
from typer.testing import CliRunner

from qwen_eval.cli import app
from qwen_eval.contrasts import at_place, contrast_models, is_twin, latex_rows, select_runs, shown, size_rows
from qwen_eval.errors import ConfigError, UnknownNameError
from qwen_eval.hypotheses import parse_hypotheses
from qwen_eval.models import model
from qwen_eval.runs import Run
from qwen_eval.stats.multiple import adjust
from qwen_eval.stats.scaling import error_elasticity
from qwen_eval.store import update_manifest
from qwen_eval.templates import NotebookFailed, parameter_values, read_template, run_template, template_folders
from qwen_eval.tradeoffs import (
    contrast_presets,
    front_rows,
    memory_rows,
    overall_speed,
    rate_of,
    speed_rows,
    throughput,
)

ROOT = Path(__file__).resolve().parent.parent
N = 2000


def answers(share, seed=0): return (np.random.default_rng(seed).uniform(size=N) < share).astype(float)


def stored(root, name, values, preset="balanced", seconds=100.0, tok=10, twin=False, benchmark="gsm8k", **more):
    "A stored run of a registered model with these values, and times that go with its seconds."
    facts = {k: v for k, v in model(name).__dict__.items() if k in ("n_params", "family")}
    place = root / f"{name}-{preset}-{benchmark}-{twin}" # a folder for each, since these are asked the same way
    run = ran(place, benchmark, name, preset=preset)
    pace = seconds / len(values) * np.random.default_rng(len(name + preset) + twin).uniform(0.8, 1.2, size=len(values))
    run = with_values(run, values, latency_s=pace, ttft_s=pace / 4, n_output_tok=np.full(len(values), tok), **more)
    f = run.manifest["fingerprint"]
    session = {**run.manifest["sessions"][0], "generate_s": seconds, "n_completions": len(values),
               "n_output_tok": tok * len(values)}
    update_manifest(run.path, sessions=[session], model={**run.manifest["model"], **facts},
                    fingerprint={**f, **({"twin": True} if twin else {})})
    shutil.move(run.path, root / f"{run.path.name}{'-twin' * twin}")
    shutil.rmtree(place)
    return Run(root / f"{run.path.name}{'-twin' * twin}")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    "Two sizes that differ by some points on gsm8k, and not at all on arc_challenge."
    root, small = tmp_path_factory.mktemp("models"), answers(0.6)
    large = np.where(np.arange(N) % 10 == 0, 1.0, small)
    stored(root, "qwen3_8b", small)
    stored(root, "qwen3_14b", large, seconds=180.0)
    x, y = answers(0.5, 3), answers(0.5, 3)
    x[:4], y[:4] = [1, 1, 0, 0], [0, 0, 1, 1]
    for name, v in (("qwen3_8b", x), ("qwen3_14b", y)): stored(root, name, v, benchmark="arc_challenge", column="acc")
    return root


def planned(text, names=("qwen3_8b", "qwen3_14b")):
    return parse_hypotheses(text, names, ["balanced"], ["gsm8k", "arc_challenge"])


def test_what_was_planned_is_tested_together_and_the_rest_is_exploratory(models):
    found = contrast_models(select_runs(models), planned(
        "qwen3_14b > qwen3_8b on gsm8k; qwen3_14b = qwen3_8b within 0.02 on arc_challenge"))
    assert [c.verdict for c in found.planned] == ["confirmed", "confirmed"] and not found.exploratory
    p = [c.p_value for c in found.planned]
    assert [c.adjusted for c in found.planned] == adjust(p).tolist() and p[1] > 0
    assert "2 planned hypotheses" in found.sentence and "2 confirmed" in found.sentence
    one = contrast_models(select_runs(models), planned("qwen3_14b > qwen3_8b on gsm8k"))
    assert [c.verdict for c in one.exploratory] == ["exploratory"] and one.exploratory[0].adjusted is None
    assert one.planned[0].adjusted == one.planned[0].p_value


def test_a_wrong_direction_is_refuted_and_a_missing_run_is_said(models):
    found = contrast_models(select_runs(models), parse_hypotheses(
        "qwen3_8b > qwen3_14b on gsm8k; qwen3_8b != qwen3_14b on arc_challenge; qwen3_4b > qwen3_8b on gsm8k; "
        "qwen3_8b >= qwen3_14b within 0.02 on gsm8k; qwen3_14b >= qwen3_8b within 0.02 on gsm8k",
        ["qwen3_8b", "qwen3_14b", "qwen3_4b"], ["balanced"], ["gsm8k", "arc_challenge"]))
    assert [c.verdict for c in found.planned] == ["refuted", "not confirmed", "missing", "not confirmed", "confirmed"]
    assert "qwen3_4b" in found.planned[2].why and found.planned[2].comparison is None
    assert [r["value"] is None for r in found.rows()] == [False, False, True, False, False]


def test_truncation_takes_the_winner(models, tmp_path):
    cut = tmp_path / "runs"
    shutil.copytree(models, cut)
    [run] = select_runs(cut, ["qwen3_14b"], benchmarks=["gsm8k"])
    frame = run.scores.copy()
    frame.loc[:200, "status"] = "truncated"
    from qwen_eval.scores import write_scores
    write_scores(run.path, frame)
    found = contrast_models(select_runs(cut), planned("qwen3_14b > qwen3_8b on gsm8k"))
    assert found.planned[0].verdict == "no winner" and "cut off" in found.planned[0].why
    assert found.planned[0].p_value is None and "may not name a winner" in found.sentence


def test_without_a_plan_all_pairs_are_adjusted_and_named_exploratory(models):
    found = contrast_models(select_runs(models), margin=0.02)
    assert [c.adjusted for c in found.exploratory] == adjust([c.p_value for c in found.exploratory]).tolist()
    verdicts = {c.benchmark: c.verdict for c in found.exploratory}
    assert verdicts == {"gsm8k": "exploratory", "arc_challenge": "equivalent"}
    assert "nobody planned" in found.sentence


def test_an_elasticity_only_within_a_family(models, tmp_path):
    row = next(r for r in size_rows(select_runs(models)) if r["benchmark"] == "gsm8k")
    small, large = answers(0.6), np.where(np.arange(N) % 10 == 0, 1.0, answers(0.6))
    direct = error_elasticity(large, small, 14_768_307_200, 8_190_735_360)
    assert (row["a"], row["b"]) == ("qwen3_14b", "qwen3_8b") and row["value"] == pytest.approx(direct.value)
    assert (row["low"], row["high"]) == pytest.approx(direct.ends) and row["value"] < 0
    stored(tmp_path, "qwen2.5_8b", small), stored(tmp_path, "qwen3_14b", large)
    assert size_rows(select_runs(tmp_path)) == []
    full = stored(tmp_path / "full", "qwen3_8b", np.ones(N))
    [none] = size_rows([full, stored(tmp_path / "full", "qwen3_14b", large)])
    assert none["value"] is None and "no error" in none["note"]


def test_runs_are_chosen_by_name_and_never_two_for_one_place(models, tmp_path):
    assert [r.manifest["fingerprint"]["model"]["id"] for r in select_runs(
        models, ["qwen3_14b", "qwen3_8b"], benchmarks=["gsm8k"])] == ["qwen3_14b", "qwen3_8b"]
    with pytest.raises(ConfigError, match=r"it holds models: .*qwen3_8b"): select_runs(models, ["qwen3_4b"])
    with pytest.raises(ConfigError, match="holds no runs"): select_runs(tmp_path)
    [run] = select_runs(models, ["qwen3_8b"], benchmarks=["gsm8k"])
    shutil.copytree(run.path, tmp_path / run.path.name)
    shutil.copytree(run.path, tmp_path / "another")
    with pytest.raises(ConfigError, match="two runs are of qwen3_8b, balanced, gsm8k"): select_runs(tmp_path)
    assert len(select_runs(tmp_path, ids=[run.id])) == 1


@pytest.fixture(scope="module")
def presets(tmp_path_factory):
    "A preset that changes nothing, one that loses five points, and the reference twice."
    root, x = tmp_path_factory.mktemp("presets"), answers(0.6)
    again, same = x.copy(), x.copy()
    again[[1, 2, 3, 4]], same[[5, 6, 7, 8]] = 1 - x[[1, 2, 3, 4]], 1 - x[[5, 6, 7, 8]]
    stored(root, "qwen3_8b", x)
    stored(root, "qwen3_8b", again, twin=True, seconds=104.0)
    stored(root, "qwen3_8b", same, "performance", seconds=50.0)
    stored(root, "qwen3_8b", np.where(np.arange(N) % 12 == 0, 0.0, x), "memory_optimized", seconds=103.0)
    return root


def test_equivalence_over_a_noise_floor(presets):
    found = contrast_presets(select_runs(presets), "balanced", margin=0.02)
    verdicts = {c.preset: c.verdict for c in found.contrasts}
    assert verdicts["performance"] == "equivalent" and verdicts["memory_optimized"] in ("different", "not equivalent")
    [noise] = found.noise
    assert noise.verdict == "repeats" and noise.noise_flips == 4 / N and noise.preset == "balanced (A/A)"
    same = next(c for c in found.contrasts if c.preset == "performance")
    assert same.flips == 4 / N and same.noise_flips == 4 / N and same.adjusted >= same.estimate.p_value
    assert "A/A" in found.sentence and len(found.rows()) == 3


def test_few_items_or_a_floor_are_not_testable(presets, tmp_path):
    for preset, seconds in (("balanced", 1.0), ("performance", 2.0)):
        stored(tmp_path, "qwen3_8b", answers(0.003)[:400], preset, seconds)
    [c] = contrast_presets(select_runs(tmp_path), margin=0.02).contrasts
    assert c.verdict.startswith("not testable: needs ") and "floor" in c.why and c.needs > 400
    assert "no A/A run" in c.why and "," in c.verdict # thousands stand apart


def test_a_reference_that_does_not_repeat_decides_nothing(presets, tmp_path):
    x = answers(0.6)
    stored(tmp_path, "qwen3_8b", x), stored(tmp_path, "qwen3_8b", x, "performance")
    stored(tmp_path, "qwen3_8b", np.where(np.arange(N) % 10 == 0, 0.0, x), twin=True)
    found = contrast_presets(select_runs(tmp_path), margin=0.02)
    assert found.contrasts[0].verdict == "not testable" and found.noise[0].verdict == "does not repeat"


def test_twins_are_kept_apart(presets):
    runs = select_runs(presets)
    assert sum(map(is_twin, runs)) == 1 and len(at_place(runs)) == 3 and len(at_place(runs, twins=True)) == 1
    assert {r["preset"] for r in front_rows(runs)} == {"balanced", "performance", "memory_optimized"}


def test_the_twin_of_a_study_is_the_noise_floor(lab):
    from qwen_eval.runner import run_study
    from qwen_eval.studies import Study
    study = Study(id="aa", models=("smollm2_135m",), presets=("balanced", "performance"), benchmarks=("gsm8k",),
                  engine="fake", allow_specimens=True, answer_tok=16, aa=True)
    assert not run_study(study, notebooks=False).failures
    runs = select_runs(benchmarks=["gsm8k"])
    assert len(runs) == 3 and len(at_place(runs, twins=True)) == 1
    found = contrast_presets(runs, "balanced", margin=0.05)
    assert found.noise[0].preset == "balanced (A/A)" and "not a result" in found.contrasts[0].why


def test_speed_is_told_only_beyond_the_repeat(presets):
    rows = {r["a"]: r for r in speed_rows(select_runs(presets), "balanced")}
    assert rows["performance"]["verdict"] == "faster" and rows["performance"]["value"] == pytest.approx(2.0)
    low, high = rows["performance"]["low"], rows["performance"]["high"]
    assert low < 2.0 < high
    slower = rows["memory_optimized"] # 3 % slower, and a repeat is 4 % slower
    assert slower["high"] < 1 and slower["verdict"] == "no difference shown" and slower["noise"] == pytest.approx(1.04)
    assert rows["balanced (A/A)"]["verdict"] == ""


def test_the_interval_of_a_speed_holds_as_often_as_it_says():
    "Ratio of throughputs of two presets on items drawn from one population: 95 % intervals, 400 studies."
    from qwen_eval.tradeoffs import _half
    rng, held, true = np.random.default_rng(5), 0, np.log(1.5)
    for _ in range(400):
        tok = rng.lognormal(4, 0.8, size=300)
        a, b = (tok * pace * rng.lognormal(0, 0.3, size=300) for pace in (1.0, 1.5))
        u, w = (tok / tok.mean() - s / s.mean() for s in (a, b))
        held += abs(np.log(b.sum() / a.sum()) - true) <= _half(u - w, 0.95)
    assert 0.92 <= held / 400 <= 0.98


def test_scored_endings_are_counted_by_items(tmp_path):
    run = stored(tmp_path, "qwen3_8b", answers(0.5), tok=0, seconds=20.0)
    assert rate_of(run) == (N / 20.0, "items") and throughput(run).metric == "items a second"
    assert front_rows([run])[0]["x_unit"] == "items"


def test_several_benchmarks_tell_the_speed_of_a_preset():
    rows = [{"model": "m", "a": "performance", "b": "balanced", "value": v} for v in (1.4, 1.5, 1.6, None)]
    [r] = overall_speed(rows)
    logs = np.log([1.4, 1.5, 1.6])
    from scipy.stats import t
    half = t.isf(0.025, 2) * logs.std(ddof=1) / np.sqrt(3)
    assert (r["low"], r["high"]) == pytest.approx((np.exp(logs.mean() - half), np.exp(logs.mean() + half)))
    assert r["verdict"] == "faster" and overall_speed(rows[:2])[0]["verdict"] == "no verdict"


def test_memory_is_compared_only_where_it_was_measured_alike(presets, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(presets, runs)
    for preset, peak in (("balanced", 60.5), ("performance", 80.5)):
        [run] = [r for r in select_runs(runs, presets=[preset]) if not is_twin(r)]
        update_manifest(run.path, engine_memory={"before_gib": 0.5, "peak_gib": peak})
    rows = {r["preset"]: r for r in memory_rows(select_runs(runs), "balanced")}
    assert rows["performance"]["difference_gib"] == 20.0 and rows["balanced"]["how"] == "measured"
    assert "memory_optimized" not in rows or rows["memory_optimized"]["difference_gib"] is None


def test_tables_are_printed_as_the_house_does(models):
    rows = contrast_models(select_runs(models), planned("qwen3_14b > qwen3_8b on gsm8k")).rows()
    first = shown(rows)[0]
    assert first["difference"].startswith("+") and first["n"] == "2,000" and first["adjusted p"] == "< 0.001"
    tex = latex_rows(rows).splitlines()[0]
    assert tex.endswith(r"\\") and r"qwen3\_14b $-$ qwen3\_8b" in tex and "$<$ 0.001" in tex and "0.0" in tex


def test_every_template_says_what_it_takes():
    names = [p.stem for p in template_folders()[-1].glob("*.ipynb")]
    assert {"run_task", "coverage", "compare_models", "compare_presets", "performance"} <= {*names}
    for name in names:
        t = read_template(name)
        assert t.title and t.about and t.parameters and "output" in {p.name for p in t.parameters}


@pytest.mark.parametrize("given, kind, match", [
    ({"modles": "a"}, UnknownNameError, "Did you mean 'models'"),
    ({"power": "much"}, ConfigError, "a number is wanted"), ({"evaluate": "maybe"}, ConfigError, "true or false"),
    ({"overrides": "4"}, ConfigError, "JSON object"),
])
def test_wrong_parameters_are_named_before_anything_runs(given, kind, match):
    with pytest.raises(kind, match=match): parameter_values(read_template("compare_presets"), given)


def test_texts_become_what_the_notebook_means():
    t = read_template("compare_presets")
    given = {"models": "a, b", "margin": "0.01", "evaluate": "yes", "limit": "5", "overrides": '{"answer_tok": 64}',
             "runs": "none", "study": "demo"}
    assert parameter_values(t, given) == {"models": ["a", "b"], "margin": 0.01, "evaluate": True, "limit": 5,
                                          "overrides": {"answer_tok": 64}, "runs": None, "study": "demo"}
    assert parameter_values(t, {"models": ["x"], "limit": None}) == {"models": ["x"], "limit": None}


def test_the_template_of_models_says_what_the_functions_say(lab, models):
    text = "qwen3_14b > qwen3_8b on gsm8k"
    done = run_template("compare_models", {"runs": str(models), "hypotheses": text, "output": str(lab / "out")})
    assert done == lab / "reports/notebooks/compare_models.ipynb"
    kept = json.loads((lab / "out/compare_models.json").read_text())
    direct = contrast_models(select_runs(models), planned(text))
    assert kept["sentence"] == direct.sentence and kept["latex"] == direct.latex_rows()
    assert [r["value"] for r in kept["contrasts"]] == [r["value"] for r in direct.rows()]
    assert len(kept["run_ids"]) == 4 and {r["benchmark"] for r in kept["sizes"]} == {"gsm8k", "arc_challenge"}
    side = json.loads((lab / "out/differences.json").read_text())
    assert side["data"][0]["adjusted"] == direct.planned[0].adjusted and (lab / "out/front-gsm8k.pdf").is_file()


def test_the_template_of_presets_has_the_noise_floor_first(lab, presets):
    run_template("compare_presets", {"runs": str(presets), "output": str(lab / "out")}, lab / "done.ipynb")
    kept = json.loads((lab / "out/compare_presets.json").read_text())
    assert kept["contrasts"][0]["a"] == "balanced (A/A)" and kept["parameters"]["reference"] == "balanced"
    assert {r["a"]: r["verdict"] for r in kept["contrasts"]}["performance"] == "equivalent"
    assert {r["a"]: r["verdict"] for r in kept["speed"]}["performance"] == "faster"
    page = (lab / "done.ipynb").read_text()
    assert "0.2 % of the items change" in page and (lab / "out/front-qwen3_8b-gsm8k.svg").is_file()


def test_what_is_missing_is_asked_first_where_that_is_wanted(lab):
    run_template("compare_models", {
        "models": "smollm2_135m,qwen3_8b", "benchmarks": "gsm8k", "evaluate": "true", "engine": "fake", "limit": "3",
        "allow_specimens": "true", "overrides": '{"answer_tok": 16}', "output": str(lab / "out")})
    kept = json.loads((lab / "out/compare_models.json").read_text())
    assert kept["contrasts"][0]["marks"].split(", ") == ["specimen", "fake-engine"]
    assert len(kept["run_ids"]) == 2 == len(list((lab / "runs").glob("*/manifest.json")))
    assert kept["contrasts"][0]["verdict"] == "no winner" and "not a result" in kept["contrasts"][0]["note"]


def test_the_command_names_what_is_wrong(lab):
    own = lab / "own.ipynb"
    cell = {"cell_type": "code", "execution_count": None, "outputs": [], "source": "n = 1", "id": "a",
            "metadata": {"tags": ["parameters"]}}
    own.write_text(json.dumps({"cells": [cell, {**cell, "metadata": {}, "id": "b", "source": "1 / n"}], "metadata": {},
                               "nbformat": 4, "nbformat_minor": 5}))

    def command(*words):
        code = "from qwen_eval.cli import main; main()"
        return subprocess.run([sys.executable, "-c", code, "notebook", *words], capture_output=True, text=True)

    wrong = command(str(own), "-p", "m", "2")
    assert wrong.returncode == 2 and "Unknown parameter of own 'm'" in wrong.stderr and "Traceback" not in wrong.stderr
    failed = command(str(own), "-p", "n", "0", "--out", str(lab / "failed.ipynb"))
    assert failed.returncode == 1 and "ZeroDivisionError" in failed.stderr and "failed.ipynb" in failed.stderr
    assert "ZeroDivisionError" in (lab / "failed.ipynb").read_text() and "Traceback" not in failed.stderr
    asked = ([], ["compare_presets", "--parameters", "--json"])
    listed, told = (CliRunner().invoke(app, ["notebook", *words]) for words in asked)
    assert "compare_presets" in listed.stdout and listed.exit_code == 0
    assert {"parameter": "margin", "default": 0.02, "note": "largest difference that does not matter"} in json.loads(
        told.stdout)


def test_a_template_is_never_written_over(lab):
    own = lab / "own.ipynb"
    shutil.copy(template_folders()[-1] / "coverage.ipynb", own)
    before = own.read_bytes()
    with pytest.raises(ConfigError, match="is the template"): run_template(own, {}, own)
    assert own.read_bytes() == before and issubclass(NotebookFailed, Exception)
    with pytest.raises(UnknownNameError, match="compare_models"): run_template("compare_model")
