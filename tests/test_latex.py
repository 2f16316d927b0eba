"""LaTeX tables: whatever is told, TeX reads text; rows have as many cells as their table has columns."""
import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_eval.documents import StudyReport, Table
from qwen_eval.errors import ConfigError
from qwen_eval.latex import PER_TABLE, booktabs, score_tables, tables_tex, tex, text_table, write_latex

COMMANDS = {
    "begin", "end", "centering", "small", "caption", "label", "toprule", "midrule", "bottomrule",
    "addlinespace", "multicolumn", "emph", "textbf", "footnotesize", "raggedright", "arraybackslash",
    "textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar",
    "textasciigrave", "ldots", "dag", "ddag", "S", "P", "times", "leq", "geq", "pm"}
HOSTILE = r"""\input{/etc/passwd} \end{table} 50 % of $x_1^2$ & {y}} # ~ | " ` <b> --x [0] * 数 é † \\ \verb|a|"""


def problems(text):
    "What a strict reader of LaTeX finds wrong with a file of tables."
    found, depth, open_, column = [], 0, [], None
    text = "\n".join(re.split(r"(?<!\\)%", line)[0] for line in text.split("\n")) # comments
    marks = r"\\([A-Za-z]+)|\\(.)|\$(.*?)\$|[{}&#_^~\"`]|[^\x00-\x7f]|[\x00-\x09\x0b-\x1f]"
    for token in re.finditer(marks, text, re.S):
        word, escaped, math, raw = token[1], token[2], token[3], token[0]
        unknown = word and word not in COMMANDS
        if unknown or (escaped and escaped not in r"\{}$&%#_"): found.append(f"command {raw}")
        elif math is not None and math not in ("-", r"\leq", r"\geq", r"\times", r"\pm"): found.append(f"math {raw}")
        elif raw in "{}": depth += 1 if raw == "{" else -1
        elif raw in "#_^\"": found.append(f"bare {raw}")
        elif not raw.isascii() and not ("À" <= raw <= "ſ"): found.append(f"character {raw!r}")
        elif len(raw) == 1 and raw < " ": found.append(f"control {raw!r}")
        if depth < 0: found.append("a brace closes nothing")
    if depth: found.append(f"{depth} braces are open")
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin": open_.append(name)
        elif not open_ or open_.pop() != name: found.append(f"{name} ends what it did not begin")
    nested = r"\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"
    for spec, body in re.findall(rf"\\begin\{{tabular\}}{nested}(.*?)\\end\{{tabular\}}", text, re.S):
        column = len(re.findall(r"[lrp]", re.sub(r"@\{\}|>\{[^{}]*(?:\{[^{}]*\})*[^{}]*\}|p\{[^}]*\}",
                                                  lambda m: "p" if m[0][0] == "p" else "", spec)))
        for row in re.split(r"\\\\(?:\n|$)", re.sub(r"\\(?:top|mid|bottom)rule|\\addlinespace", "", body)):
            if not row.strip(): continue
            wide = 1 + len(re.findall(r"(?<!\\)&", row))
            if span := re.match(r"\s*\\multicolumn\{(\d+)\}", row): wide += int(span[1]) - 1
            if wide != column: found.append(f"{wide} cells in {column} columns: {row.strip()[:60]}")
            if re.match(r"\s*[\[*]", row): found.append(f"read as an argument: {row.strip()[:60]}")
    return found + [f"{name} is open" for name in open_]


def row(**more):
    return {"run_id": "1", "benchmark": "gsm8k", "model": "toy_1", "preset": "balanced", "metric": "accuracy",
            "variant": "cot", "value": 0.425, "low": 0.285, "high": 0.578, "level": 0.95, "method": "wilson",
            "n_items": 40, "n_epochs": 1, **more}


def decision(**more):
    return {"hypothesis": HOSTILE, "kind": "superior", "a": HOSTILE, "b": "b", "benchmark": HOSTILE,
            "metric": "accuracy", "value": -0.031, "low": -0.052, "high": -0.01, "level": 0.95, "n_items": 1319,
            "p_value": 0.0002,
            "adjusted": 0.0004, "verdict": "confirmed", "why": HOSTILE, **more}


def test_the_reader_finds_what_is_wrong():
    good = booktabs(["a", "b"], [("", [["1", "2"]])], "c", "tab:x")
    assert problems(good) == []
    for bad, said in ((good.replace("1 &", "1 & 3 &"), "3 cells"), (good.replace("c}", "_}", 1), "bare _"),
                      (good.replace(r"\end{table}", ""), "table is open"), (good.replace("1 &", r"\input & "), "input"),
                      (good.replace("1 &", "{1 &"), "open"), (good.replace("1 &", "[1] &"), "argument"),
                      (good.replace("1 &", "数 &"), "character"), (good.replace("1 &", "$x$ &"), "math")):
        assert any(said in p for p in problems(bad)), (said, problems(bad))


@given(st.text())
def test_any_text_is_text(text):
    assert problems(tex(text)) == [] and "&" not in tex(text).replace(r"\&", "")
    assert problems(booktabs(["a", "b"], [(tex(text), [[tex(text), "2"]])], tex(text), "tab:x")) == []


def test_hostile_names_everywhere():
    rows = [row(run_id=str(k), model=HOSTILE + m, benchmark=HOSTILE, preset=HOSTILE, metric=HOSTILE, variant=HOSTILE,
                method=HOSTILE, marks=(HOSTILE,)) for k, m in enumerate("ab")]
    published = [{"model": HOSTILE, "benchmark": HOSTILE, "ours": 0.5, "theirs": 0.6, "source": HOSTILE,
                  "verdict": HOSTILE, "note": HOSTILE}]
    report = StudyReport(title=HOSTILE + "\n\\input{x}", rows=rows, notes=[HOSTILE + "\n\\input{y}"], best_how=HOSTILE,
                         best=frozenset("0"), decisions=[decision()], decided=HOSTILE, comparisons=[decision()],
                         published=published)
    text = tables_tex(report)
    assert problems(text) == [] and r"\input" not in text and text.count(r"\begin{table}") == 4


def test_bold_is_what_is_not_excluded_as_best_and_the_caption_says_how():
    rows = [row(), row(run_id="2", model="toy_2", value=0.6), row(run_id="3", model="toy_3", n_items=38, value=None)]
    [text] = score_tables(StudyReport(title="x", rows=rows, best=frozenset("2"), best_how="Hsu, 95 %"))
    assert r"toy\_2 & \textbf{60.0} \\" in text and r"toy\_1 & 42.5 \\" in text and r"toy\_3 & -- \\" in text
    assert text.count(r"\textbf") == 1 and r"{\footnotesize [28.5, 57.8]}" in text and "items & 38--40" in text
    for said in (r"95 \% intervals", "one answer to each item", "wilson (gsm8k)",
                 r"Bold: not excluded as best (Hsu, 95 \%)"):
        assert said in text, said
    [plain] = score_tables(StudyReport(title="x", rows=rows))
    assert r"\textbf" not in plain and "Nothing is bold" in plain


def test_many_benchmarks_are_laid_out_in_several_tables_and_presets_below_each_other():
    rows = [row(run_id=f"{b}{p}", benchmark=f"b{b}", preset=p) for b in range(PER_TABLE + 2) for p in ("one", "two")]
    first, second = score_tables(StudyReport(title="x", rows=rows))
    assert first.count(r"\emph{one}") == second.count(r"\emph{two}") == 1 and problems(first + second) == []
    assert first.count("42.5") == 2 * PER_TABLE and second.count("42.5") == 4
    assert score_tables(StudyReport(title="x")) == []


def test_scores_of_a_judge_and_repeats_are_said():
    rows = [row(metric="judge_score", value=7.0, low=2.869, high=9.447, n_epochs=4)]
    [text] = score_tables(StudyReport(title="x", rows=rows))
    assert "7.00" in text and "[2.87, 9.45]" in text and "of 10" in text and "answers to each item: 4 (gsm8k)" in text


def test_wrong_endings_and_rows_are_errors(tmp_path):
    with pytest.raises(ConfigError, match="tex"): write_latex(StudyReport(title="x"), tmp_path / "a.txt")
    with pytest.raises(ConfigError, match="2 cells"): booktabs(["a"], [("", [["1", "2"]])], "", "x")
    silent = Table(columns={"a": "a", "note": "note"}, groups=[("", "", [{"a": "1", "note": ""}])])
    assert "note" not in text_table(silent, "x")


@pytest.mark.skipif(not (shutil.which("pdflatex") or shutil.which("tectonic")), reason="no LaTeX here")
def test_latex_itself_reads_it(tmp_path):
    rows = [row(), row(run_id="2", model=HOSTILE)]
    tables = tables_tex(StudyReport(title="x", rows=rows, decisions=[decision()], comparisons=[decision()]))
    (tmp_path / "a.tex").write_text("\\documentclass{article}\\usepackage[utf8]{inputenc}\\usepackage[T1]{fontenc}"
                                    f"\\usepackage{{booktabs,array}}\\begin{{document}}\n{tables}\n\\end{{document}}\n")
    tool = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error"] if shutil.which("pdflatex") else ["tectonic"]
    done = subprocess.run([*tool, "a.tex"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
