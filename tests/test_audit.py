"""The extraction audit: both readings, blinded sheets, corrected estimates whose intervals hold their level."""
import csv
import io
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_cli import ask, lab  # noqa: F401

from qwen_eval.audit import HandCheck, audit_outputs, audit_run, read_sheet
from qwen_eval.datasets.all import benchmark
from qwen_eval.datasets.base import load
from qwen_eval.engines.base import FakeEngine
from qwen_eval.errors import ConfigError, IntegrityError, UnknownNameError
from qwen_eval.evaluation import evaluate, rescore
from qwen_eval.readings import measured, readings, readings_of
from qwen_eval.records import Completion
from qwen_eval.runs import Run
from qwen_eval.scorers.text import score_items
from qwen_eval.settings import settings
from qwen_eval.stats.labels import error_rates, share_from_labels


def specimens(name): return load(benchmark(name), "specimen").items


def outputs(path, lines):
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


# --- statistics

def coverage(n_items, shares, right, n_labels, population, reps=400):
    "Share of simulated benchmarks whose interval holds the truth; `n_labels` of each stratum are looked at."
    rng, hits = np.random.default_rng(0), 0
    for _ in range(reps):
        h = rng.choice(len(shares), n_items, p=shares)
        y = (rng.random(n_items) < np.array(right)[h]).astype(float)
        seen = np.full(n_items, np.nan)
        for k in range(len(shares)):
            of = np.flatnonzero(h == k)
            pick = rng.choice(of, min(len(of), n_labels[k]), replace=False)
            seen[pick] = y[pick]
        e = share_from_labels(h, seen, population=population)
        hits += e.low <= (np.dot(shares, right) if population else y.mean()) <= e.high
    return hits / reps


@pytest.mark.parametrize("case", [
    (1319, (.6, .35, .05), (.98, .03, .5), (36, 24, 999)), (200, (.5, .4, .1), (.95, .1, .6), (30, 30, 999)),
    (1000, (.7, .3), (.9, .1), (10, 10)), (1319, (.9, .1), (.7, .3), (60, 30)), (164, (.5, .5), (1., 0.), (20, 20))],
    ids=["usual", "small", "ten labels", "bad scorer", "perfect scorer"])
@pytest.mark.parametrize("population", [True, False], ids=["population", "these items"])
def test_intervals_hold_their_level(case, population):
    assert coverage(*case, population) >= 0.92 # 0.95 less three standard errors of 400 draws


def test_intervals_are_not_idle():
    "Where labels are many and errors common, coverage is near nominal, not far above it."
    assert coverage(1319, (.9, .1), (.7, .3), (60, 30), True) <= 0.985


def test_prediction_powered_form():
    "The stratified share is the scorer's mean plus the weighted mean correction, and more labels narrow it."
    rng = np.random.default_rng(1)
    f, y = rng.integers(0, 2, 500), rng.integers(0, 2, 500).astype(float)
    widths = []
    for n in (20, 80, 200):
        seen = np.full(500, np.nan)
        for v in (0, 1):
            pick = rng.choice(np.flatnonzero(f == v), n, replace=False)
            seen[pick] = y[pick]
        e = share_from_labels(f, seen)
        assert np.isclose(e.value, f.mean() + sum((f == v).mean() * np.nanmean((seen - f)[f == v]) for v in (0, 1)))
        widths.append(e.high - e.low)
    assert widths == sorted(widths, reverse=True)


def test_error_rates_of_a_known_scorer():
    y = np.repeat([1.0, 0, 1, 0], [90, 10, 20, 80])
    f = np.repeat([1.0, 1, 0, 0], [90, 10, 20, 80])
    found = error_rates(f, f, y)
    assert (found["false_right"].value, found["false_wrong"].value) == (0.1, 0.2)
    from qwen_eval.stats.intervals import wilson
    whole = wilson(10, 100)
    low, high = found["false_right"].low, found["false_right"].high
    assert np.allclose((low, high), (whole.low, whole.high)) # all of them looked at


# --- readings

GOOD = {"gsm8k": lambda i: f"\\boxed{{{i.target}}}", "humaneval": lambda i: f"```python\n{i.question}{i.target}\n```",
        "math500": lambda i: f"So \\boxed{{{i.target}}}", "mbpp": lambda i: f"```python\n{i.target}\n```"}


@pytest.mark.parametrize("name", GOOD)
def test_answers_in_the_form_asked_for_pass_both_readings(name):
    v, items = benchmark(name).variant()[1], specimens(name)
    for which in ("strict", "flexible"):
        left = [readings_of(v)(GOOD[name](i), i, v)[which] for i in items]
        pairs = [(i, Completion(item_id=i.id, text=text)) for i, text in zip(items, left, strict=True)]
        assert [s.value for s in score_items(pairs, v.score, v)] == [1.0] * len(items), which


def test_every_generated_variant_has_two_readings():
    from qwen_eval.datasets.all import benchmarks
    own = [b for b in benchmarks() if b.id in ("humaneval", "mbpp", "gsm8k", "arc_challenge", "mmlu", "math500")]
    scorers = {v.score for b in own for v in b.variants.values() if v.mode == "generate"}
    assert scorers <= {*readings.names()} and {"ifeval"} == {*measured.names()}
    with pytest.raises(ConfigError, match="continuations"): readings_of(benchmark("hellaswag").variants["cloze"])


# --- audit of a run

def words_only(request):
    "Every second item is answered in the form asked for, the others in words; one is wrong in both."
    items = specimens("gsm8k")
    n = [i.id for i in items].index(request.item_id)
    target = items[n].target
    return (f"\\boxed{{{target}}}", f"It comes to {target}.", "\\boxed{1}", f"I get {target} in 2 steps.")[n % 4]


@pytest.fixture
def run(tmp_path):
    return evaluate("qwen3_8b", "gsm8k", engine=FakeEngine(words_only), source="specimen", runs=tmp_path,
                    progress=False)


def test_audit_of_a_run(run):
    found = audit_run(run)
    assert (found["estimates"]["strict"]["value"], found["estimates"]["flexible"]["value"]) == (0.25, 0.5)
    assert found["difference"]["value"] == 0.25 and found["n_differ"] == 1 == len(found["items"])
    assert found["items"][0]["strict_answer"] is None and found["items"][0]["flexible_answer"]
    assert "SPECIMEN" in repr(found) and "sheet" not in found


def test_instructions_are_read_as_their_authors_read_them(tmp_path):
    "With a first line that is no part of the letter, an instruction is followed loosely only; the sheet says which."
    rows = [{"key": n, "prompt": "Say nothing but small letters.", "instruction_id_list": [*kinds],
             "kwargs": [{}] * len(kinds)} for n, kinds in enumerate((["change_case:english_lowercase"],
             ["punctuation:no_comma", "change_case:english_lowercase"], ["punctuation:no_comma"]))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    said = {"0": "Sure!\nthis is the whole answer to what was asked.", "1": "a, b, and c are letters.", "2": ""}
    run = evaluate("qwen3_8b", "ifeval", engine=FakeEngine(lambda r: said[r.item_id]), runs=tmp_path / "runs",
                   data_file=tmp_path / "rows.jsonl", progress=False)
    found = audit_run(run, tmp_path / "sheet.csv", n=1)
    assert {k: e["value"] for k, e in found["estimates"].items()} == {"strict": 0, "flexible": pytest.approx(1 / 3)}
    assert [(i["id"], i["strict_answer"], i["flexible_answer"]) for i in found["items"]] == [
        ("0", "0 of 1 followed", "1 of 1 followed")]
    assert "change_case:english_lowercase" in (tmp_path / "sheet.csv").read_text("utf-8-sig")
    assert found["estimates"]["flexible"]["value"] == pytest.approx(run.estimate("prompt_loose").value)


def test_runs_without_two_readings_are_refused(tmp_path):
    cloze = evaluate("qwen3_8b", "hellaswag", engine="fake", source="specimen", runs=tmp_path, progress=False)
    with pytest.raises(ConfigError, match="nothing is extracted"): audit_run(cloze)


def test_letters_are_audited_as_they_were_shown(tmp_path):
    "The audit of a run and of its exported answers agree, although options were shuffled."
    from qwen_eval.prompts import correct_letter
    items = {i.id: i for i in specimens("arc_challenge")}
    run = evaluate("qwen3_8b", "arc_challenge", source="specimen", runs=tmp_path / "runs", progress=False,
                   engine=FakeEngine(lambda r: f"I would go with ({correct_letter(items[r.item_id])}), I am sure."))
    found = audit_run(run)
    assert found["estimates"]["strict"]["value"] == 0 and found["estimates"]["flexible"]["value"] == 1
    lines = [{"id": c.item_id, "completion": c.text} for c in run.completions().values()]
    again = audit_outputs(outputs(tmp_path / "o.jsonl", lines), "arc_challenge", source="specimen", shuffled=True)
    assert again["estimates"] == found["estimates"]


def test_engine_errors_are_left_out(tmp_path):
    def one_fails(r):
        if r.item_id.endswith("/0"): return Completion(item_id="", finish_reason="error", error="lost")
        return words_only(r)
    run = evaluate("qwen3_8b", "gsm8k", engine=FakeEngine(one_fails), source="specimen", runs=tmp_path, progress=False)
    assert audit_run(run)["n"] == len(specimens("gsm8k")) - 1


# --- sheets

def many(tmp_path, n=100):
    "Outputs for the specimens of GSM8K, n answers each, in four forms."
    items = specimens("gsm8k")
    forms = ("\\boxed{%s}", "It comes to %s.", "So %s after 2 steps.", "\\boxed{1} and not %s")
    lines = [{"id": i.id, "completion": forms[k % 4] % i.target} for i in items for k in range(n)]
    return outputs(tmp_path / "o.jsonl", lines)


def rows_of(sheet):
    return list(csv.DictReader(io.StringIO(Path(sheet).read_text("utf-8-sig"), newline="")))


def save(sheet, rows):
    with open(sheet, "w", newline="", encoding="utf-8-sig") as f:
        out = csv.DictWriter(f, list(rows[0]))
        out.writeheader()
        out.writerows(rows)


def label(rows):
    return [{**r, "label": "wrong" if "not" in r["answer"] else "right"} for r in rows]


@pytest.fixture
def sheet(tmp_path):
    audit_outputs(many(tmp_path), "gsm8k", tmp_path / "s.csv", n=40, most=30, source="specimen")
    return tmp_path / "s.csv"


def test_a_sheet_is_blind(sheet):
    "No column and no cell tells item, model, reading, verdict or what was taken for the answer; order is no order."
    rows = rows_of(sheet)
    assert list(rows[0]) == ["row", "question", "gold", "answer", "label", "note"]
    assert not any(r["label"] or r["note"] for r in rows)
    key = json.loads(sheet.with_suffix(".key.json").read_text())
    assert not any(i.id in sheet.read_text() for i in specimens("gsm8k"))
    strata = [key["rows"][r["row"]]["stratum"] for r in rows]
    assert len(set(strata)) == 3 and strata != sorted(strata) and strata != sorted(strata, reverse=True)


def test_the_design_is_what_it_says(sheet):
    key = json.loads(sheet.with_suffix(".key.json").read_text())
    drawn = {h: sum(r["stratum"] == h for r in key["rows"].values()) for h in key["strata"]}
    differ = {h for h, s in key["strata"].items() if s["strict"] != s["flexible"]}
    assert sum(drawn[h] for h in differ) == 30 and sum(drawn.values()) == 70
    assert sum(s["size"] for s in key["strata"].values()) == 400
    assert len({(r["item"], r["epoch"]) for r in key["rows"].values()}) == 70 # nothing is drawn twice


def test_the_same_seed_draws_the_same_sheet(tmp_path, sheet):
    for seed, same in ((0, True), (1, False)):
        other = tmp_path / f"again{seed}.csv"
        audit_outputs(tmp_path / "o.jsonl", "gsm8k", other, n=40, most=30, seed=seed, source="specimen")
        assert (other.read_bytes() == sheet.read_bytes()) is same


def test_a_sheet_is_never_written_over(tmp_path, sheet):
    before = sheet.read_bytes()
    with pytest.raises(ConfigError, match="may hold labels"):
        audit_outputs(tmp_path / "o.jsonl", "gsm8k", sheet, source="specimen")
    assert sheet.read_bytes() == before


def test_labels_correct_the_score(sheet):
    save(sheet, label(rows_of(sheet)))
    found = read_sheet(sheet)
    assert isinstance(found, HandCheck) and found["scored"]["value"] == 0.5
    assert math.isclose(found["corrected"]["value"], 0.75, abs_tol=0.1) and found["n_labelled"] == 70
    assert found["errors"]["scored"]["false_right"]["value"] == 0
    json.dumps(found)


def test_labels_survive_a_spreadsheet(sheet):
    "Other order, semicolons, no byte order mark, old line ends, capital letters, spaces: the same result."
    rows = label(rows_of(sheet))
    save(sheet, rows)
    wanted = read_sheet(sheet)
    text = io.StringIO(newline="")
    out = csv.DictWriter(text, list(rows[0]), delimiter=";", lineterminator="\r\n")
    out.writeheader()
    out.writerows({**r, "label": f" {r['label'].capitalize()} ", "question": r["question"].replace("\n", "\r\n")}
                  for r in rows[::-1])
    sheet.write_text(text.getvalue(), encoding="utf-8", newline="")
    assert read_sheet(sheet) == wanted


def test_stopping_early_is_allowed_skipping_is_not(sheet):
    rows = label(rows_of(sheet))
    save(sheet, [r if n < 50 else {**r, "label": ""} for n, r in enumerate(rows)])
    assert read_sheet(sheet)["n_unlabelled"] == 20
    save(sheet, [r if n != 7 else {**r, "label": ""} for n, r in enumerate(rows)])
    with pytest.raises(IntegrityError, match=r"row 9 \(r\w+\) has no label"): read_sheet(sheet)


def test_unclear_is_bounded(sheet):
    rows = label(rows_of(sheet))
    save(sheet, [{**r, "label": "unclear"} if n % 10 == 0 else r for n, r in enumerate(rows)])
    found = read_sheet(sheet)
    assert found["n_unclear"] == 7
    assert found["if_unclear_wrong"] < found["corrected"]["value"] < found["if_unclear_right"]


@pytest.mark.parametrize("spoil, said", [
    (lambda r: [{**r[0], "label": "rigth"}, *r[1:]], r"row 2 \(r\w+\) has the label 'rigth'"),
    (lambda r: [*r[:3], r[3], r[3], *r[4:]], r"row 6 \(r\w+\) stands there twice"),
    (lambda r: [{**r[0], "row": "r00000"}, *r[1:]], r"row 2 \(r00000\) is not of this sheet"),
    (lambda r: [{**r[0], "question": "Other?"}, *r[1:]], r"row 2 \(r\w+\) has another question"),
    (lambda r: r[:-2], "2 of its rows are lost"),
    (lambda r: [{k: v for k, v in x.items() if k != "label"} for x in r], "no column label"),
    (lambda r: [{**x, "label": ""} for x in r], "no label"),
], ids=["misspelt", "twice", "unknown", "moved", "lost", "no column", "empty"])
def test_a_sheet_that_was_edited_badly(sheet, spoil, said):
    save(sheet, spoil(label(rows_of(sheet))))
    with pytest.raises((IntegrityError, ConfigError), match=said): read_sheet(sheet)


def test_nasty_answers_make_a_whole_sheet(tmp_path):
    "Formulas, quotes, new lines, half characters, and an answer longer than a cell."
    nasty = ("=HYPERLINK(\"x\")", 'He said "18",\nthen\r\n; left', "\ud800 18", "18 " * 40_000)
    lines = [{"id": i.id, "completion": t} for i, t in zip(specimens("gsm8k"), nasty, strict=True)]
    found = audit_outputs(outputs(tmp_path / "o.jsonl", lines), "gsm8k", tmp_path / "s.csv", source="specimen")
    rows = rows_of(tmp_path / "s.csv")
    assert len(rows) == 4 == found["sheet"]["n"] and all(len(r["answer"]) < 32_767 for r in rows)
    assert not any(c[:1] in ("=", "@") for r in rows for c in r.values())
    save(tmp_path / "s.csv", [{**r, "label": "wrong"} for r in rows])
    assert read_sheet(tmp_path / "s.csv")["corrected"]["value"] == 0


# --- the command

def test_command_end_to_end(lab, tmp_path):  # noqa: F811
    file = many(tmp_path, 8)
    how = ["audit", str(file), "--benchmark", "gsm8k", "--data", str(settings().specimens / "gsm8k.jsonl")]
    said = ask(*how, "--sheet", str(tmp_path / "s.csv"), "--n", "8")
    assert "strict" in said.stdout and "keep it from whoever labels" in said.stdout
    save(tmp_path / "s.csv", label(rows_of(tmp_path / "s.csv")))
    found = json.loads(ask(*how, "--labels", str(tmp_path / "s.csv"), "--json").stdout)
    assert found["corrected"]["value"] == 0.75 and found["run"] == "o.jsonl"
    assert "these items" in ask(*how, "--labels", str(tmp_path / "s.csv")).stdout


def test_command_on_a_run(lab):  # noqa: F811
    ask("run", "smollm2_135m", "--benchmarks", "gsm8k", "--allow-specimens", "--answer-tok", "16")
    name = next((lab / "runs").iterdir()).name
    assert json.loads(ask("audit", name, "--json").stdout)["n"] == 4
    assert "qwen-eval: " in ask("audit", name, "--labels", str(lab / "none.csv"), status=2).stderr
    assert "no label" not in ask("audit", "nobody", status=2).stderr


def test_help_is_instant_and_light():
    code = ("import sys; from qwen_eval.cli import app\n"
            "try: app(['audit', '--help'])\n"
            "except SystemExit: print(*{m.split('.')[0] for m in sys.modules}, file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--labels" in done.stdout and not {"numpy", "pandas", "scipy", "msgspec"} & set(done.stderr.split())


# --- real outputs

REAL = settings().data and settings().data.parent / "outputs" / "smollm2_135m"
needs_real = pytest.mark.skipif(not (REAL and REAL.is_dir()),
                                reason="needs QWEN_EVAL_DATA, and real outputs in outputs/ beside that folder")


@needs_real
def test_real_gsm8k():
    found = audit_outputs(REAL / "gsm8k.jsonl.gz", "gsm8k")
    assert found["n"] == 1319
    assert found["n_differ"] == len(found["items"]) == found["n_only_flexible"] + found["n_only_strict"]
    s, f = (found["estimates"][k] for k in ("strict", "flexible"))
    assert np.isclose(f["value"] - s["value"], found["difference"]["value"])
    from qwen_eval.outputs import score_outputs
    assert f["value"] == score_outputs(REAL / "gsm8k.jsonl.gz", "gsm8k")["estimate"]["value"]


def test_unknown_run_is_named(tmp_path):
    with pytest.raises(UnknownNameError, match="nobody"): audit_run("nobody")


def test_a_sheet_that_is_not_there_is_named_not_its_key(tmp_path):
    with pytest.raises(ConfigError, match=r"nothere\.csv, the sheet with the labels, is no file"):
        read_sheet(tmp_path / "nothere.csv")
    (tmp_path / "a.csv").write_text("row,question,label\n")
    with pytest.raises(ConfigError, match=r"a\.key\.json, the key of the sheet"): read_sheet(tmp_path / "a.csv")


def test_what_cannot_be_written_is_named_as_asked_for(tmp_path):
    from qwen_eval.fetch import write_atomic
    (tmp_path / "full").mkdir()
    for target in (tmp_path / "full", tmp_path / ("x" * 250)): # a folder; a name whose temporary one is too long
        with pytest.raises(OSError, match="Errno") as e: write_atomic(target, "text")
        assert e.value.filename == str(target) and e.value.filename2 is None and f".{target.name}." not in str(e.value)
    assert [p.name for p in tmp_path.iterdir()] == ["full"]


def test_scores_without_completions_are_named_as_such(run):
    file = run.path / "completions.jsonl"
    whole = file.read_bytes()
    for left, said in ((whole[:-20], "1 of 4 scores have no completion"), (b"", "4 of 4 scores have no completion"),
                       (None, "4 of 4 scores have no completion")):
        file.unlink()
        if left is not None: file.write_bytes(left)
        with pytest.raises(ConfigError, match=said): audit_run(run.path)
        file.write_bytes(whole)
    assert audit_run(run.path)["n"] == 4


def test_answers_of_another_run_are_named(run, tmp_path):
    other = evaluate("qwen3_8b", "arc_challenge", engine=FakeEngine("random"), source="specimen",
                     runs=tmp_path / "other", progress=False)
    (run.path / "completions.jsonl").write_bytes((other.path / "completions.jsonl").read_bytes())
    for use in (audit_run, rescore):
        with pytest.raises(IntegrityError, match=r"answer to item .*completions.jsonl is that of another run"):
            use(run.path)


def test_a_refused_rescore_leaves_scores_and_folder_as_they_were(run):
    kept, file = run.scores, run.path / "completions.jsonl"
    file.write_bytes(b"")
    with pytest.raises(IntegrityError, match="4 scores and no answers"): rescore(run.path, progress=False)
    file.unlink()
    with pytest.raises(IntegrityError, match="4 scores and no answers"): rescore(run.path, progress=False)
    manifest = json.loads((run.path / "manifest.json").read_text())
    (run.path / "manifest.json").write_text(json.dumps(manifest | {"shared": "without completions"}))
    with pytest.raises(ConfigError, match="made to be shared"): rescore(run.path, progress=False)
    assert not file.exists() and Run(run.path).scores.equals(kept)
