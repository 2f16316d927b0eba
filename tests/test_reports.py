"""Reports: self-contained, safe against what models write, readable without seeing the figure."""
import html.parser
import re

from qwen_eval.closing import difference_text
from qwen_eval.figures import forest, save_figure
from qwen_eval.documents import Picture, StudyReport, alt_text, shown
from qwen_eval.reports import write_report

ROWS = [
    {"benchmark": b, "model": "toy", "preset": p, "value": 0.4, "low": 0.3, "high": 0.5, "level": 0.95,
     "method": "wilson", "estimand": "items like these", "n_items": 40, "truncated": 2, "no_answer": 1,
     "output_tok_s": 300.0, "seconds": 4.21,
     "metric": "acc", "marks": ("prejoined",) if b == "hellaswag" else ()}
    for b in ("gsm8k", "hellaswag") for p in ("balanced", "performance")
]
HOSTILE = '"><img src=x onerror=alert(1)><script>alert(2)</script>{{ 7*7 }}'


def page(tmp_path, **more):
    figure = save_figure(forest(ROWS), tmp_path / "forest", ROWS, ["a"], seed=0)
    given = {"title": "Demo", "rows": ROWS, "figure": figure, "environment": {"vllm": "1"}, "runs": [{"run_id": "a"}],
             "files": {"runs": tmp_path / "runs"}, "command": "qwen-eval study run demo"}
    return write_report(Report(**{**given, **more}), tmp_path / "report.html").read_text(encoding="utf-8")


class Parsed(html.parser.HTMLParser):
    VOID = ("meta", "img", "link", "br", "hr", "input")

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
    words = Parsed(write_report(Report(title="Empty"), tmp_path / "r.html").read_text()).text
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
