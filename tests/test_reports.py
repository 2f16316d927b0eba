"""Reports: self-contained, safe against what models write, readable without seeing the figure."""
import html
import html.parser
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
from made_studies import made_study
from typer.testing import CliRunner

from qwen_eval.cli import app
from qwen_eval.closing import close_study, difference_text, outcome_text, stored_failures
from qwen_eval.documents import Picture, StudyReport, alt_text, shown
from qwen_eval.errors import ConfigError
from qwen_eval.figures import forest, save_figure
from qwen_eval.markdown import markdown, plain, write_markdown
from qwen_eval.reports import write_report
from qwen_eval.results_file import SCHEMA_VERSION, results_data
from qwen_eval.typeset import literal, typst_source, write_pdf

ROWS = [
    {"benchmark": b, "model": "toy", "preset": p, "value": 0.4, "low": 0.3, "high": 0.5, "level": 0.95,
     "method": "wilson", "estimand": "items like these", "n_items": 40, "truncated": 2, "no_answer": 1,
     "output_tok_s": 300.0, "seconds": 4.21,
     "metric": "acc", "marks": ("prejoined",) if b == "hellaswag" else ()}
    for b in ("gsm8k", "hellaswag") for p in ("balanced", "performance")
]
HOSTILE = '"><img src=x onerror=alert(1)><script>alert(2)</script>{{ 7*7 }}'


def page(tmp_path, **more):
    files = save_figure(forest(ROWS), tmp_path / "forest", ROWS, ["a"], seed=0)
    alt = more.pop("alt", None) or alt_text(more.get("rows", ROWS))
    given = {"title": "Demo", "rows": ROWS, "pictures": [Picture(files=files, alt=alt)], "environment": {"vllm": "1"},
             "runs": [{"run_id": "a"}], "files": {"runs": tmp_path / "runs"}, "command": "qwen-eval study run demo"}
    return write_report(StudyReport(**{**given, **more}), tmp_path / "report.html").read_text(encoding="utf-8")


class Parsed(html.parser.HTMLParser):
    VOID = ("meta", "img", "link", "br", "hr", "input", "wbr")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID: self.open.append(tag)

    def handle_endtag(self, tag): assert self.open.pop() == tag
    def handle_data(self, data): self.text += data


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    parsed = Parsed(page(tmp_path))
    for tag, attrs in parsed.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed")
        for key in ("src", "href", "action", "data", "poster"):
            value = attrs.get(key) or ""
            assert value.startswith("data:image/svg+xml;base64,") or not re.match(r"[a-z]+:|//", value), (tag, value)
        assert not any(k.startswith("on") for k in attrs)
    metas = [a for t, a in parsed.tags if t == "meta"]
    policy = next(a["content"] for a in metas if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_hostile_text_stays_text(tmp_path):
    rows = [{**r, "preset": HOSTILE, "benchmark": HOSTILE, "estimand": HOSTILE} for r in ROWS]
    text = page(tmp_path, title=HOSTILE, lead=HOSTILE, rows=rows, notes=[HOSTILE], environment={HOSTILE: HOSTILE},
                command=HOSTILE, runs=[{"run_id": HOSTILE, "x": {HOSTILE: [HOSTILE]}}], alt=HOSTILE,
                files={HOSTILE: tmp_path / "a"})
    parsed = Parsed(text)
    assert [t for t, _ in parsed.tags].count("img") == 1 and not any(t == "script" for t, _ in parsed.tags)
    assert "{{ 7*7 }}" in parsed.text and "<script>alert(2)" in parsed.text


def test_it_says_what_was_measured(tmp_path):
    parsed = Parsed(page(tmp_path, notes=["Weights of four bits."]))
    words = " ".join(parsed.text.split())
    expected = ("40.0", "30.0 to 50.0", "Weights of four bits.", "joined beforehand", "items like these",
                "wilson", "4.2")
    for said in expected:
        assert said in words, said
    alt = next(a["alt"] for t, a in parsed.tags if t == "img")
    assert "gsm8k, toy, balanced: 40.0 % (30.0 to 50.0, n = 40)" in alt
    names = {a.get("scope") for t, a in parsed.tags if t == "th"}
    assert names == {"col", "rowgroup"} and ("html", {"lang": "en"}) in parsed.tags
    assert any(t == "meta" and a.get("name") == "viewport" for t, a in parsed.tags)


def test_the_same_report_has_the_same_bytes(tmp_path):
    assert page(tmp_path) == page(tmp_path)


def test_without_runs_it_says_so(tmp_path):
    words = Parsed(write_report(StudyReport(title="Empty"), tmp_path / "r.html").read_text()).text
    assert "No run has a score yet" in words


def test_the_speed_of_a_fake_engine_is_not_shown(tmp_path):
    words = Parsed(page(tmp_path, rows=[{**r, "engine": "fake"} for r in ROWS])).text
    assert "300" in Parsed(page(tmp_path)).text and "300" not in words and "4.2" not in words


def test_words_follow_the_number_of_estimates():
    assert alt_text(ROWS[:1]).startswith("Forest plot of one estimate with its interval.")
    assert alt_text(ROWS).startswith("Forest plot of 4 estimates with their intervals.")


def test_a_score_of_a_judge_is_no_percentage():
    row = {"model": "m", "benchmark": "mt_bench", "preset": "p", "metric": "judge_score", "value": 7.0, "low": 2.869,
           "high": 9.447, "n_items": 3, "level": 0.95}
    share = {**row, "benchmark": "gsm8k", "metric": "accuracy", "value": 0.7, "low": 0.4, "high": 0.9}
    both = shown(row, {}), shown(share, {})
    assert [s["score"] for s in both] == ["7.00 of 10", "70.0"]
    assert [s["interval"] for s in both] == ["2.87 to 9.45 of 10", "40.0 to 90.0"]
    assert "7.00 of 10 (2.87" in alt_text([row]) and "%" not in alt_text([row]) and "70.0 % (" in alt_text([share])
    axes = forest([row, share]).axes[0]
    places = [line.get_xdata()[0] for line in axes.lines if line.get_gid() == "estimate"]
    assert [round(float(x), 6) for x in places] == [66.666667, 70.0] and axes.get_xlabel() == "score (%)"
    steps = [{**r, "reference": "a", "against": "first", "note": "", "value": -0.5, "low": -1.0, "high": 0.25}
             for r in (row, share)]
    assert [(d["points"], d["interval"]) for d in difference_text(steps)] == [
        ("-0.50 of 10", "[-1.00, +0.25]"), ("-50.0", "[-100.0, +25.0]")]


# The same numbers in every format

MODELS, PRESETS = ("smollm2_135m", "qwen3_8b", "qwen3_14b"), ("balanced", "performance")
PLAN = ("qwen3_14b > qwen3_8b on all; balanced = performance within 0.02 on gsm8k; qwen3_8b > qwen3_14b on "
        "arc_challenge metric label_acc; performance >= balanced within 0.03 on arc_challenge")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    "A study with made-up scores, closed; the folder of its report."
    root, rng, n = tmp_path_factory.mktemp("study"), np.random.default_rng(0), 700
    values, kept = {}, {k: os.environ.pop(k, None) for k in ("QWEN_EVAL_DATA",)}
    for b, base in (("gsm8k", 0.55), ("arc_challenge", 0.7)):
        skill = rng.random(n)
        for k, m in enumerate(MODELS):
            for p in PRESETS: values[m, p, b] = (np.where(rng.random(n) < 0.01, 0.99, skill) < base + 0.06 * k) * 1.0
    del values["qwen3_14b", "performance", "gsm8k"]
    p = made_study(root / "runs", values, n, hypotheses=PLAN)
    lost = next(r for r in p.runs if r.run() is None)
    error = {"output_type": "error", "ename": "EngineError", "evalue": "no memory", "traceback": []}
    pages = root / "report" / "notebooks"
    pages.mkdir(parents=True)
    (pages / f"{lost.path.name}.ipynb").write_text(json.dumps({"cells": [{"outputs": [error]}]}, indent=1))
    os.environ.update({k: v for k, v in kept.items() if v})
    return close_study(p, reports=root / "report"), root / "report", p


def cells_of_html(text):
    "Section -> rows of cells."
    found, head = {}, ""
    for part in re.finditer(r"<h2>(.*?)</h2>|<tr[^>]*>(.*?)</tr>", text, re.S):
        if part[1]: head = html.unescape(part[1]); continue
        cells = re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", part[2], re.S)
        found.setdefault(head, []).append([" ".join(html.unescape(re.sub(r"<[^>]+>", "", c)).split()) for c in cells])
    return found


def cells_of_markdown(text):
    found, head = {}, ""
    for line in text.split("\n"):
        if line.startswith("## "): head = line[3:]
        if not line.startswith("| ") or line.startswith("| ---"): continue
        cells = re.split(r"(?<!\\)\|", line.strip("| "))
        bare = (re.sub(r"^\*\*(.*)\*\*$", r"\1", c.strip()) for c in cells)
        found.setdefault(head, []).append([re.sub(r"\\(.)", r"\1", c) for c in bare])
    return found


def cells_of_typst(text):
    found, head = {}, ""
    for line in text.split("\n"):
        if line.startswith("#let"): continue
        literals = [json.loads(s) for s in re.findall(r'"(?:[^"\\]|\\.)*"', line)]
        if line.startswith("#heading"): head = literals[0]
        elif line.startswith("  ") and literals: found.setdefault(head, []).append(literals)
    return found


def scores_of(rows, grouped):
    "(model, preset, benchmark) -> score, interval, n; groups stand above their rows, or in the first cell."
    found, benchmark = {}, ""
    for cells in rows:
        if grouped and len(cells) < 5: benchmark = cells[0].split(" ")[0].split(",")[0]; continue
        if not grouped: benchmark, cells = cells[0].split(",")[0], cells[1:]
        if ", " not in cells[0]: continue # the heads
        model, preset = cells[0].split(", ")
        found[model, preset, benchmark] = tuple(cells[1:4])
    return found


def untex(text):
    for a, b in (("$-$", "-"), (r"\textless{}", "<"), (r"\_", "_"), ("--", "–"), ("{}", "")): text = text.replace(a, b)
    return re.sub(r"\\(?:textbf|footnotesize|emph)\b|[{}]", "", text).strip()


def rows_of_tex(text, label):
    "Cells of the table with that label."
    body = re.search(rf"\\label{{{label}}}.*?\\midrule(.*?)\\bottomrule", text, re.S)[1]
    return [[untex(c) for c in re.split(r"(?<!\\)&", row)] for row in re.split(r"\\\\\n", body) if row.strip()]


def scores_of_tex(text):
    benchmarks = [untex(c) for c in re.search(r"\\toprule\n(.*?) \\\\", text)[1].split("&")][1:]
    found, preset, model = {}, "", ""
    for cells in rows_of_tex(text, "tab:scores-1"):
        if len(cells) == 1: preset = re.sub(r".*@(?:l)?", "", cells[0].replace("\\addlinespace", "")).strip(); continue
        cells = [c.replace("\\addlinespace", "").strip() for c in cells]
        if cells[0] == "items": continue
        if cells[0]: model, scores = cells[0], cells[1:]; continue
        for b, score, ends in zip(benchmarks, scores, cells[1:], strict=True):
            if score != "–": found[model, preset, b] = score, ends.strip("[]").replace(", ", " to ")
    return found


def expected_scores(data):
    "What the numbers in the results file are in print, formatted here."
    return {(e["model"], e["preset"], e["benchmark"]): (
        f"{100 * e['value']:.1f}", f"{100 * e['low']:.1f} to {100 * e['high']:.1f}", f"{e['n_items']:,}")
        for e in data["estimates"] if e["primary"]}


def p_text(p): return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def expected_decisions(data):
    found = []
    for d in data["decisions"]:
        star = "*" * (d["verdict"] in ("confirmed", "refuted"))
        ends = "–" if d["low"] is None else f"[{100 * d['low']:+.1f}, {100 * d['high']:+.1f}]"
        found.append([d["hypothesis"], "–" if d["value"] is None else f"{100 * d['value']:+.1f}", ends,
                      "–" if d["n_items"] is None else f"{d['n_items']:,}", p_text(d["p_value"]),
                      p_text(d["adjusted"]) + star, d["verdict"]])
    return [[re.sub(r"([-+])0\.0\b", "+0.0", x) for x in row] for row in found]


def test_the_numbers_agree_in_every_file(study):
    outcome, folder, _ = study
    data = json.loads((folder / "results.json").read_text())
    read = {"html": cells_of_html((folder / "report.html").read_text()),
            "md": cells_of_markdown((folder / "report.md").read_text()),
            "typst": cells_of_typst((folder / "report.typ").read_text())}
    tex = (folder / "tables.tex").read_text()
    scores = expected_scores(data)
    assert len(scores) == 11
    for kind, sections in read.items():
        assert scores_of(sections["Results"], kind != "md") == scores, kind
    assert scores_of_tex(tex) == {k: v[:2] for k, v in scores.items()}
    decided = expected_decisions(data)
    assert {d[-1] for d in decided} >= {"confirmed", "missing"} and len(decided) == 9
    for kind, sections in read.items():
        rows = [r[:7] for r in sections["Decisions"] if r[0] in {d[0] for d in decided}]
        assert rows == decided, kind
    assert rows_of_tex(tex, "tab:decisions") == decided
    others = [[c["a"], c["b"], f"{100 * c['value']:+.1f}"] for c in data["comparisons"]]
    found = [[*r[:2], re.sub(r"([-+])0\.0\b", "+0.0", r[2])] for r in rows_of_tex(tex, "tab:exploratory") if len(r) > 1]
    assert [[r[0].split("}")[-1], *r[1:]] for r in found] == [
        [*c[:2], re.sub(r"([-+])0\.0\b", "+0.0", c[2])] for c in others]
    assert outcome.decisions.sentence == data["decided"]


def test_bold_is_the_same_in_every_file(study):
    _, folder, _ = study
    data = json.loads((folder / "results.json").read_text())
    best = {f"{100 * e['value']:.1f}" for e in data["estimates"] if e["best"]}
    assert 0 < len(best) < 11
    assert set(re.findall(r"<strong>([\d.]+)</strong>", (folder / "report.html").read_text())) == best
    assert set(re.findall(r"\*\*([\d.]+)\*\*", (folder / "report.md").read_text())) == best
    assert set(re.findall(r'strong\("([\d.]+)"\)', (folder / "report.typ").read_text())) == best
    assert set(re.findall(r"\\textbf{([\d.]+)}", (folder / "tables.tex").read_text())) == best


def test_results_are_documented_and_name_no_place_of_this_machine(study):
    import nbformat
    _, folder, _ = study
    text = (folder / "results.json").read_text()
    data = json.loads(text)
    assert data["schema_version"] == SCHEMA_VERSION and data["study"]["id"] == "made" and str(folder.parent) not in text
    book = nbformat.read(os.path.join(os.path.dirname(__file__), "../nbs/82_results.ipynb"), 4)
    told = set(re.findall(r"`(\w+)", "".join(re.findall(r"`[^`]+`", book.cells[1].source)).replace(", ", "``")))
    assert set(data) - told == set(), "keys that the table of the notebook does not name"
    assert set(data["estimates"][0]) - told == set() and set(data["decisions"][0]) - told == set()
    assert {f["label"] for f in data["files"]} >= {"report", "markdown", "latex", "table", "figure"}
    assert all((folder / f["path"]).exists() for f in data["files"])
    assert sum(not e["primary"] for e in data["estimates"]) > 0


def test_what_the_report_must_say(study):
    _, folder, _ = study
    for name in ("report.html", "report.md", "report.typ"):
        words = " ".join((folder / name).read_text().replace("\\", "").split())
        for said in ("Not run yet, 1 of 12 runs", "What do the error bars show?", "What compute was used?", "Methods",
                     "familywise error of 5 %", "so they decide nothing", "no scores are stored of qwen3", "wilson"):
            assert said in re.sub(r"<wbr>|\u200b", "", words), (name, said)


def test_closing_twice_gives_the_same_bytes(study):
    _, folder, p = study
    before = {f.name: f.read_bytes() for f in folder.glob("*.*")}
    close_study(p, reports=folder)
    assert {f.name: f.read_bytes() for f in folder.glob("*.*")} == before


def test_the_pdf_is_set_and_holds_the_numbers(study):
    pytest.importorskip("typst")
    _, folder, _ = study
    assert (folder / "report.pdf").read_bytes()[:5] == b"%PDF-"
    if not shutil.which("pdftotext"): pytest.skip("no pdftotext here")
    said = subprocess.run(["pdftotext", "-layout", folder / "report.pdf", "-"], capture_output=True, text=True).stdout
    data = json.loads((folder / "results.json").read_text())
    for score, interval, _ in expected_scores(data).values(): assert score in said and interval in said


def test_without_typst_the_source_is_left(tmp_path, monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, "typst", None)
    (tmp_path / "report.pdf").write_text("old")
    made = write_pdf(StudyReport(title="x", rows=ROWS), tmp_path / "report.pdf")
    assert set(made) == {"typst"} and made["typst"].exists() and not (tmp_path / "report.pdf").exists()


def test_hostile_text_in_markdown_and_typst(tmp_path):
    rows = [{**r, "preset": HOSTILE + "|x", "benchmark": HOSTILE + "\n## head"} for r in ROWS]
    report = StudyReport(title=HOSTILE + "\n# x", rows=rows, notes=["* x\n> y"], checklist=[(HOSTILE, '#panic("x")')])
    text = markdown(report, tmp_path)
    assert not re.search(r"(?<!\\)<", text) and text.count("\n# ") == 0 and text.count("\n## ") == 3
    table = text[text.index("## Results"):text.index("## How")].strip().split("\n")[2:]
    assert len({len(re.split(r"(?<!\\)\|", line)) for line in table if line.startswith("|")}) == 1
    source = typst_source(report, tmp_path)
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", source)
    assert "panic" not in bare and "alert" not in bare and "onerror" not in bare
    assert plain("1. x") == "1\\. x" and literal('a"b') == '"a\\"b"'
    with pytest.raises(ConfigError, match="md"): write_markdown(report, tmp_path / "a.txt")
    with pytest.raises(ConfigError, match="pdf"): write_pdf(report, tmp_path / "a.txt")


def test_published_scores_stand_beside_ours(tmp_path):
    rows = [{"model": "m", "benchmark": "gsm8k", "metric": "accuracy", "ours": 0.5, "theirs": 0.519, "source": "card",
             "verdict": "agree", "note": ""},
            {"model": "m", "benchmark": "mmlu", "ours": None, "theirs": 0.7, "source": "the paper",
             "verdict": "not comparable: n_shot", "note": "5-shot"}]
    report = StudyReport(title="x", rows=ROWS, published=rows)
    wanted = ("Beside what others published", "51.9", "card", "not comparable: n", "5-shot")
    for text in (write_report(report, tmp_path / "a.html").read_text(), markdown(report, tmp_path),
                 typst_source(report, tmp_path)):
        assert all(said in text.replace("\\", "") for said in wanted)
    assert results_data(report, tmp_path)["published"] == [{**r} for r in rows]


def test_a_report_says_what_failed_when_the_study_was_run_last(study):
    outcome, folder, p = study
    [failure] = stored_failures(p, folder)
    assert failure.message == "no memory" and failure.run.run() is None and outcome.failures == (failure,)
    assert "no memory" in outcome.files["report"].read_text() and "H1.1  " in outcome_text(outcome)
    assert "no memory" in json.loads(outcome.files["results"].read_text())["failures"][0]


def test_both_commands_report(tmp_path, monkeypatch):
    for command in (["study", "report"], ["report"]):
        done = CliRunner().invoke(app, [*command, "--help"])
        assert done.exit_code == 0 and "qwen-eval report demo" in done.output


@pytest.mark.skipif(not shutil.which("chromium"), reason="no browser here")
@pytest.mark.parametrize("width", [400, 1400])
def test_a_browser_shows_the_page_without_a_network(study, tmp_path, width):
    _, folder, _ = study
    probe = ("<script>addEventListener('load', () => document.title = 'wide ' + document.documentElement.scrollWidth + "
             "' of ' + innerWidth)</script></head>")
    text = re.sub(r"<meta http-equiv[^>]+>", "", (folder / "report.html").read_text()).replace("</head>", probe)
    (tmp_path / "probe.html").write_text(text)
    how = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
           f"--window-size={width},900", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    probed = subprocess.run([*how, f"file://{tmp_path}/probe.html"], capture_output=True, text=True, timeout=120)
    wide, room = map(int, re.search(r"<title>wide (\d+) of (\d+)", probed.stdout).groups())
    assert wide <= room, "the page is wider than its window"
    done = subprocess.run([*how, f"file://{folder}/report.html"], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr and "Decisions" in done.stdout
