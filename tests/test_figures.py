"""Figures: the same bytes twice, the right numbers in the side file, print rules."""
import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys

import pytest

from qwen_eval.errors import ConfigError
from qwen_eval.figures import MARKS, explain_marks, forest, save_figure

PRESETS = ("balanced", "performance", "memory_optimized")


def rows(n_benchmarks=3, models=("toy",), **more):
    return [
        {"benchmark": f"bench{b}", "model": m, "preset": p, "value": 0.2 + 0.1 * b + 0.01 * i, "low": 0.1 + 0.1 * b,
         "high": 0.35 + 0.1 * b, "n_items": 40, "level": 0.95, "metric": "acc", "chance": 0.25 if b else None, **more}
        for b in range(n_benchmarks) for m in models for i, p in enumerate(PRESETS)
    ]


def test_saving_twice_gives_the_same_bytes_even_in_another_process(tmp_path):
    files = save_figure(forest(rows()), tmp_path / "a", rows(), ["r1"], seed=0)
    first = {k: f.read_bytes() for k, f in files.items()}
    again = save_figure(forest(rows()), tmp_path / "a", rows(), ["r1"], seed=0)
    assert {k: f.read_bytes() for k, f in again.items()} == first
    code = ("import sys, json; from qwen_eval.figures import *; rows = json.load(open(sys.argv[1]));"
            "save_figure(forest(rows), sys.argv[2], rows, ['r1'], seed=0)")
    (tmp_path / "rows.json").write_text(json.dumps(rows()))
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    subprocess.run([sys.executable, "-c", code, tmp_path / "rows.json", tmp_path / "b" / "a"], check=True, env=env)
    assert {k: (tmp_path / "b" / f"a.{k}").read_bytes() for k in first} == first


def test_saving_one_figure_twice_gives_the_same_bytes(tmp_path):
    fig = forest(rows())
    a, b = (save_figure(fig, tmp_path / n / "f", rows(), ["r1"], seed=0) for n in "ab")
    assert {k: f.read_bytes() for k, f in a.items()} == {k: f.read_bytes() for k, f in b.items()}


def test_every_plotted_number_stands_in_the_side_file(tmp_path):
    shown = [*rows(), {**rows()[0], "preset": "none", "value": math.nan, "low": math.nan, "high": math.nan}]
    fig = forest(shown)
    side = json.loads(save_figure(fig, tmp_path / "f", shown, ["b", "a", "b"], seed=3)["json"].read_text())
    assert side["run_ids"] == ["a", "b"] and side["seed"] == 3 and side["data"][-1]["value"] is None
    ax = fig.axes[0]
    points = {line.get_xdata()[0] for line in ax.lines if line.get_gid() == "estimate"}
    ends = {tuple(line.get_xdata()) for line in ax.lines if line.get_gid() == "interval"}
    assert points == {100 * r["value"] for r in side["data"] if r["value"] is not None}
    assert ends == {(100 * r["low"], 100 * r["high"]) for r in side["data"] if r["low"] is not None}
    chance = {x for line in ax.lines if line.get_gid() == "chance" for x in line.get_xdata()}
    assert chance == {100 * r["chance"] for r in side["data"] if r["chance"] is not None}
    said = {t.get_text() for t in ax.texts}
    assert {f"{100 * r['value']:.1f}" for r in side["data"] if r["value"] is not None} <= said


@pytest.mark.parametrize("width_in", [3.4, 5.5, 6.75])
def test_width_is_exact_and_nothing_sticks_out(tmp_path, width_in):
    fig = forest(rows(marks=("specimen",)), width_in=width_in)
    files = save_figure(fig, tmp_path / "f", rows(), ["r"], seed=0)
    assert struct.unpack(">I", files["png"].read_bytes()[16:20])[0] == round(300 * width_in)
    box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+)", files["pdf"].read_bytes())
    assert float(box[1]) == pytest.approx(72 * width_in, abs=0.01)
    said = re.search(r'width="([\d.]+)pt"', files["svg"].read_text())
    assert float(said[1]) == pytest.approx(72 * width_in, abs=0.01)
    right, top = fig.bbox.width, fig.bbox.height
    for text in [*fig.texts, *fig.axes[0].texts, *fig.axes[0].get_xticklabels(), fig.axes[0].xaxis.label]:
        b = text.get_window_extent()
        assert b.x0 > -1 and b.x1 < right + 1 and b.y0 > -1 and b.y1 < top + 1, text.get_text()


def test_no_two_texts_overlap():
    marked = rows(models=("qwen2.5_14b", "qwen3_8b"), marks=("prejoined", "specimen"))
    fig = forest(marked, width_in=6.75, title="Two models")
    fig.draw_without_rendering()
    ax = fig.axes[0]
    texts = [*ax.texts, *fig.texts, *ax.get_xticklabels(), ax.xaxis.label]
    boxes = [(t.get_text(), t.get_window_extent().padded(-1)) for t in texts if t.get_text().strip()]
    bad = [(a, b) for i, (a, x) in enumerate(boxes) for b, y in boxes[i + 1:] if x.overlaps(y)]
    assert not bad


def test_text_is_never_below_6_points_and_marked_rows_are_hollow():
    fig = forest([*rows(1), *[{**r, "benchmark": "spec"} for r in rows(1, marks=("specimen",))]])
    ax = fig.axes[0]
    assert min(t.get_fontsize() for t in [*fig.texts, *ax.texts, *ax.get_xticklabels(), ax.xaxis.label]) >= 6
    faces = [line.get_markerfacecolor() for line in ax.lines if line.get_gid() == "estimate"]
    assert [f == "white" for f in faces] == [False] * 3 + [True] * 3
    shapes = [line.get_marker() for line in ax.lines if line.get_gid() == "estimate"]
    assert len(set(shapes[:3])) == 3
    assert any("specimen" in t.get_text() for t in fig.texts)


def test_fonts_are_embedded_and_none_is_type_3(tmp_path):
    if not shutil.which("pdffonts"): pytest.skip("needs pdffonts (Debian package poppler-utils)")
    files = save_figure(forest(rows()), tmp_path / "f", rows(), ["r"], seed=0)
    said = subprocess.run(["pdffonts", files["pdf"]], check=True, capture_output=True, text=True).stdout
    fonts = said.splitlines()[2:]
    assert fonts and all("TrueType" in x and "yes yes yes" in x for x in fonts)


def test_a_figure_without_pedigree_is_refused(tmp_path):
    for run_ids, data in (([], rows()), (["", "a"], rows()), (["a"], [])):
        with pytest.raises(ConfigError): save_figure(forest(rows()), tmp_path / "f", data, run_ids, seed=0)
    assert not list(tmp_path.iterdir())


def test_too_narrow_says_how_wide():
    with pytest.raises(ConfigError, match="too narrow"): forest(rows(), width_in=2)


def test_every_mark_that_a_plan_can_set_has_words(tmp_path):
    from dataclasses import replace

    from qwen_eval.judging import with_jury
    from qwen_eval.plans import plan_run
    from qwen_eval.presets import preset
    loud = replace(preset("balanced"), allow_uncalibrated_fp8=True)
    marks = {*plan_run("smollm2_135m", "gsm8k", loud, engine="fake", source="specimen", runs=tmp_path).marks}
    rows = [{"activity_label": "a", "ctx_a": f"b{i}", "ctx_b": "", "endings": ["c", "d"], "label": 0} for i in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    file = tmp_path / "rows.jsonl"
    marks |= {*plan_run("smollm2_135m", "hellaswag", engine="fake", data_file=file, runs=tmp_path).marks}
    judged = plan_run("smollm2_135m", "mt_bench", engine="fake", source="specimen", runs=tmp_path, answer_tok=64,
                      temperature=0.5)
    marks |= {*with_jury(judged, "smollm2_135m", "fake")[0].marks}
    others = {"unverified", "published-verdicts"} # set by test_hub_source.py, and by benchmarks/demo_results.py
    assert marks | others == MARKS.keys()
    assert all(text != mark for mark, (_, text) in explain_marks([{"marks": sorted(marks)}]).items())
