"""Every kind of figure, with few rows and many: width, type, places of texts, bytes, numbers and words."""
import json
import math
import re

import numpy as np
import pytest
from figure_checks import faults, texts_of

from qwen_eval.calibration_figures import null_band, reliability_figure
from qwen_eval.comparison_figures import deltas_figure, differences_figure
from qwen_eval.errors import ConfigError
from qwen_eval.figure_layout import RowChart, name_points, settle, spread, wrapped
from qwen_eval.figure_style import VENUES, paper_style, venue_width
from qwen_eval.figures import figure_bytes, forest, save_figure
from qwen_eval.item_figures import difficulty_figure, disagreements_figure, information_figure
from qwen_eval.performance_figures import latency_figure, latency_rows
from qwen_eval.planning_figures import power_figure
from qwen_eval.ranking_figures import ladder_figure
from qwen_eval.scaling_figures import sizes_figure
from qwen_eval.tradeoff_figures import pareto_figure, pareto_rows, profile_figure, profile_rows, throughput_figure
from qwen_eval.trend_figures import cusum_figure

LONG = "a_model_with_a_long_name_$5_and_$6"
GONE = {"value": math.nan, "low": math.nan, "high": math.nan, "note": "12 of 900 answers ended in engine errors"}


def name(i): return f"{LONG}_{i}" if i % 3 == 1 else f"model_{i}"


def ends(value, half, key=""):
    low, high = (f"{key}_low", f"{key}_high") if key else ("low", "high")
    return {key or "value": value, low: value - half, high: value + half}


def differences(n, rng):
    rows = [{"a": name(i % 3), "b": "balanced", "benchmark": f"bench{i // 3}", "adjusted": float(rng.random() ** 3),
             **ends(rng.normal(0, 0.02), 0.015), "n_items": 1319, "margin": 0.02} for i in range(n)]
    if n > 3: rows[3] |= GONE
    rows[1] |= {"verdict": "equivalent", "marks": ("specimen",)}
    return rows


def deltas(n, rng):
    across = ["gsm8k", "mmlu"] if n < 4 else [f"benchmark_{j}" for j in range(12)]
    rows = [{"row": name(i), "column": b, "value": rng.normal(0, 0.03), "adjusted": float(rng.random() ** 3)}
            for i in range(n) for b in across]
    rows[1] |= {"value": None, "note": "timed out"}
    return rows


def points(n, rng):
    rows = [{"name": f"{name(i // 3)}/p{i % 3}", "group": f"p{i % 3}", **ends(rng.uniform(500, 5000), 90, "x"),
             **ends(rng.uniform(0.4, 0.8), 0.02, "y")} for i in range(n)]
    if n > 3: rows[2] |= {"x": None, "note": "does not fit"}
    return rows


def table(n, rng):
    rows = [{"name": name(i), "benchmark": f"b{j}", "value": rng.uniform(0.3, 0.9)} for i in range(n) for j in range(6)]
    rows[4]["value"] = None
    return rows


def rates(n, rng):
    rows = [{"model": name(i // 3), "preset": ("balanced", "performance", "memory_optimized")[i % 3],
             **ends(rng.uniform(500, 5000), 90)} for i in range(n)]
    if n > 3: rows[4] |= GONE
    return rows


def sizes(n, rng):
    rows = [{"model": name(i), "benchmark": f"bench{i // 10}", "family": f"generation {i % 2}", "chance": 0.25,
             "n_params": (0.6e9, 1.7e9, 4e9, 8.2e9, 14.8e9)[i // 2 % 5], **ends(rng.uniform(0.3, 0.8), 0.03)}
            for i in range(n)]
    if n > 3: rows[3] |= GONE
    return rows


def rungs(n, rng):
    rows = [{"model": name(i), **ends(rng.normal(), 0.2, "strength"), "rank_low": i + 1, "rank_high": i + 2}
            for i in range(n)]
    for r in rows: r["low"], r["high"] = r.pop("strength_low"), r.pop("strength_high")
    if n > 3: rows[3] |= {"strength": None, "note": "no game"}
    return rows


def items(n, rng):
    n *= 6
    rows = [{"item": f"mmlu/test/{i}", "difficulty": rng.normal(), "slope": rng.uniform(0.5, 2), "difficulty_se": 0.3,
             "slope_se": 0.2} for i in range(n)]
    for r in rows[::20]: r |= {"slope": -0.2, "flag": "check the key"}
    rows[-1] |= {"slope": math.nan, "difficulty": math.nan}
    return rows


def told(n, rng):
    rows = [{"name": f"set {k}", "ability": float(t), "information": (k + 1) / (1 + t * t)}
            for k in range(min(3, n)) for t in np.linspace(-3, 3, 15)]
    rows += [{"model": name(i), "ability": rng.normal(), "se": 0.3} for i in range(n)]
    if n > 3: rows[-1] |= {"ability": math.nan, "note": "all items right"}
    return rows


def parting(n, rng):
    rows = [{"group": name(i), "a": "qwen3_14b", "b": "qwen3_8b", "both": 500, "only_a": int(rng.integers(5, 200)),
             "only_b": int(rng.integers(5, 200)), "neither": 100, "adjusted": 0.02} for i in range(n)]
    if n > 3: rows[3] |= dict.fromkeys(("both", "only_a", "only_b", "neither"), 0) | {"note": "no common item"}
    return rows


def bins(n, rng):
    rows = [{"name": name(k), "from": i / 10, "to": (i + 1) / 10, "confidence": i / 10 + 0.05, "n": 3 + 10 * i,
             **ends(rng.uniform(0.1, 0.9), 0.1, "correct")} for k in range(1 if n < 4 else 5) for i in range(10)]
    for r in rows: r["low"], r["high"] = r.pop("correct_low"), r.pop("correct_high")
    return null_band(rows)


def latencies(n, rng):
    rows = [{"name": name(i), "seconds": list(rng.lognormal(i / 10, 0.5, 50))} for i in range(min(n, 12))]
    if n > 3: rows[3] |= {"seconds": [], "note": "refused"}
    return rows


def powers(n, rng):
    return [{"name": f"{k + 1} points", "n_items": 50 * 2**i, "power": min(1, 0.05 + 0.02 * (k + 1) * 1.7**i)}
            for k in range(min(n, 8)) for i in range(7)]


def runs(n, rng):
    rows, n = [], 3 * n
    for i in range(n):
        kind = "baseline" if i < n / 3 else "drop" if i > 0.8 * n else ""
        sums = {"up": None, "down": None} if kind == "baseline" else {"up": rng.random(), "down": 5 * (i / n)}
        rows.append({"run": i, "alarm": kind, "label": f"2026-01-{i % 28 + 1:02d}", **sums,
                     **ends(rng.uniform(0.65, 0.75), 0.02, "score")})
    for r in rows: r["low"], r["high"] = r.pop("score_low"), r.pop("score_high")
    return rows


def cusums(rows, **more): return cusum_figure(rows, limit=4, target=0.7, began=3, **more)


# each: what makes the rows, the figure, what is saved, gids and the keys of the rows that they show
KINDS = {
    "differences": (differences, differences_figure, None, {"estimate": ("x", "value", 100)}),
    "deltas": (deltas, deltas_figure, None, {}),
    "pareto": (points, pareto_figure, pareto_rows, {"estimate": ("y", "y", 100), "front": ("x", "x", 1)}),
    "profile": (table, profile_figure, profile_rows, {"steps": ("x", "factor", 1)}),
    "throughput": (rates, throughput_figure, None, {"interval": ("x", ("low", "high"), 1)}),
    "sizes": (sizes, sizes_figure, None, {"estimate": ("y", "value", 100), "interval": ("y", ("low", "high"), 100)}),
    "ladder": (rungs, ladder_figure, None, {"estimate": ("x", "strength", 1), "interval": ("x", ("low", "high"), 1)}),
    "difficulty": (items, difficulty_figure, None, {"estimate": ("y", "slope", 1)}),
    "information": (told, information_figure, None, {"information": ("y", "information", 1),
                                                     "estimate": ("x", "ability", 1)}),
    "disagreements": (parting, disagreements_figure, None, {}),
    "reliability": (bins, reliability_figure, None, {"estimate": ("y", "correct", 1)}),
    "latency": (latencies, latency_figure, latency_rows, {"quantiles": ("x", ("p50", "p95", "p99"), 1)}),
    "power": (powers, power_figure, None, {"power": ("y", "power", 1)}),
    "cusum": (runs, cusums, None, {"estimate": ("y", "score", 100), "up": ("y", "up", 1), "down": ("y", "down", -1)}),
}


def made(kind, n, width_in):
    make, draw, *_ = KINDS[kind]
    rows = make(n, np.random.default_rng(n))
    return rows, draw(rows, width_in=width_in)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "width_in"), [(2, 3.25), (30, 5.5)])
def test_texts_stay_inside_and_apart_and_are_large_enough(kind, n, width_in):
    _, fig = made(kind, n, width_in)
    assert faults(fig, width_in) == []


@pytest.mark.parametrize("kind", KINDS)
def test_narrow_columns_with_many_rows(kind):
    _, fig = made(kind, 12, venue_width("acl", "column"))
    assert faults(fig, 3.03) == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_is_the_same_again_and_says_what_it_shows(kind, tmp_path):
    numbers = KINDS[kind][2]
    rows, fig = made(kind, 5, 5.5)
    data = numbers(rows) if numbers else rows
    first = {k: f.read_bytes() for k, f in save_figure(fig, tmp_path / "f", data, ["r"], seed=0, dpi=60).items()}
    again = save_figure(made(kind, 5, 5.5)[1], tmp_path / "f", data, ["r"], seed=0, dpi=60)
    assert {k: f.read_bytes() for k, f in again.items()} == first
    assert b"/Type3" not in first["pdf"] and b"/FontFile2" in first["pdf"] and b"/Subject" in first["pdf"]
    alt = json.loads(first["json"])["alt"]
    assert len(alt) > 40 and alt.endswith(".") and "nan" not in alt
    assert alt.split(".")[0].split(" ")[0] in first["svg"].decode() and b"Description" in first["png"]
    box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+)", first["pdf"])
    assert float(box[1]) == pytest.approx(72 * 5.5, abs=0.01)


def shown_numbers(fig, gid, axis):
    lines = [line for ax in fig.axes for line in ax.lines if line.get_gid() == gid]
    return [float(x) for line in lines for x in (line.get_xdata() if axis == "x" else line.get_ydata())]


@pytest.mark.parametrize("kind", [k for k, v in KINDS.items() if v[3]])
def test_every_drawn_number_stands_in_the_side_file(kind, tmp_path):
    rows, fig = made(kind, 7, 5.5)
    numbers, shows = KINDS[kind][2:]
    data = numbers(rows) if numbers else rows
    side = json.loads(save_figure(fig, tmp_path / "f", data, ["r"], seed=0, dpi=60)["json"].read_text())["data"]
    for gid, (axis, keys, times) in shows.items():
        kept = []
        for r in side:
            for k in (keys,) if isinstance(keys, str) else keys:
                x = r.get(k)
                kept += [y for y in (x if isinstance(x, list) else [x]) if y is not None]
        drawn = shown_numbers(fig, gid, axis)
        assert drawn and {round(x, 9) for x in drawn} <= {round(times * x, 9) for x in kept}
        if gid not in ("front", "interval") and keys != "ability": assert len(drawn) == len(kept) - (kind == "pareto")


def test_missing_numbers_are_shown_with_their_reason():
    for kind in ("differences", "throughput", "ladder", "disagreements", "pareto", "sizes", "latency"):
        rows, fig = made(kind, 6, 6.75)
        why = next(r["note"] for r in rows if r.get("note"))
        said = " ".join(t for t, *_ in texts_of(fig)).replace("\n", " ")
        assert why in said, kind
        assert why in fig.get_label() or kind in ("differences", "sizes"), kind


def test_colour_is_never_alone():
    _, fig = made("differences", 6, 5.5)
    faces = {line.get_markerfacecolor() for line in fig.axes[0].lines if line.get_gid() == "estimate"}
    assert "white" in faces and len(faces) > 1
    _, heat = made("deltas", 2, 5.5)
    assert any(t.startswith(("+", "−")) for t, *_ in texts_of(heat))
    _, many = made("deltas", 12, 3.25)
    assert {line.get_marker() for line in many.axes[0].lines if line.get_gid() == "delta"} == {"^", "v"}
    for kind in ("throughput", "disagreements"):
        _, bars = made(kind, 3, 5.5)
        assert len({p.get_hatch() for c in bars.axes[0].containers for p in c if p.get_gid()}) > 1
    for kind in ("profile", "power", "latency"):
        _, lines = made(kind, 4, 5.5)
        drawn = [li for li in lines.axes[0].lines if li.get_gid() in ("profile", "power", "ecdf")]
        assert len({str(li._unscaled_dash_pattern) for li in drawn}) == len(drawn) > 1


def test_no_rows_and_rows_without_keys_are_refused():
    for _, draw, *_ in KINDS.values():
        with pytest.raises(ConfigError, match="at least one row"): draw([])
        with pytest.raises(ConfigError, match="lacks"): draw([{"odd": 1}])
    rows = differences(2, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="too narrow"): differences_figure(rows, width_in=1)


def test_a_forest_of_many_rows_keeps_its_texts_apart():
    rows = [{"benchmark": f"bench{i // 6}", "model": name(i % 6), "preset": "balanced", "metric": "acc", "n_items": 900,
             **ends(0.5, 0.03)} for i in range(30)]
    fig = forest(rows, width_in=6.75)
    assert faults(fig, 6.75) == [] and "30 estimates" in fig.get_label()


def test_widths_of_venues():
    assert {v: set(p) for v, p in VENUES.items()} == {"neurips": {"text"}, "iclr": {"text"}, "icml": {"column", "text"},
                                                      "acl": {"column", "text"}}
    assert venue_width("neurips") == venue_width("iclr") == 5.5 and venue_width("icml") == 2 * 3.25 + 0.25


def test_a_pareto_point_is_beaten_only_where_both_are_no_worse():
    rng = np.random.default_rng(0)
    rows = [{"name": str(i), "x": x, "y": y} for i, (x, y) in enumerate(rng.integers(0, 9, (40, 2)).tolist())]
    for less in (False, True):
        found = pareto_rows(rows, x_less=less)
        for r in found:
            s, others = -1 if less else 1, [o for o in rows if (o["x"], o["y"]) != (r["x"], r["y"])]
            beaten = any(s * o["x"] >= s * r["x"] and o["y"] >= r["y"] for o in others)
            assert (r["front"] != "front") == beaten


def test_spread_keeps_gaps_order_and_limits():
    rng = np.random.default_rng(0)
    for _ in range(200):
        n = int(rng.integers(1, 9))
        wanted = rng.uniform(-0.2, 1.2, n).tolist()
        placed = spread(wanted, 0.1, 0, 1)
        order = np.argsort(wanted, kind="stable")
        assert (np.diff(np.array(placed)[order]) >= 0.1 - 1e-9).all() and min(placed) >= 0 and max(placed) <= 1 + 1e-9
        apart = np.diff(np.sort(wanted))
        if (apart >= 0.1).all() and min(wanted) >= 0 and max(wanted) <= 1: assert placed == pytest.approx(wanted)


def test_names_give_way_to_numbers_in_a_crowd_and_numbers_never_overlap():
    from matplotlib.figure import Figure
    with paper_style():
        fig = Figure(figsize=(3.25, 2))
        ax = fig.add_subplot()
        at = [(0.5 + 0.002 * i, 0.5) for i in range(25)]
        ax.plot(*zip(*at, strict=True), "o", ms=4); ax.set_xlim(0, 1); ax.set_ylim(0, 1)
        settle(fig, [[ax]], [1.6])
        listed = name_points(ax, at, [name(i) for i in range(25)])
        settle(fig, [[ax]], [1.6], listed=listed)
    assert len(listed) == 25 and faults(fig, 3.25) == []


def test_wrapped_text_loses_nothing_and_fits():
    from matplotlib.figure import Figure

    from qwen_eval.figure_layout import text_width_pt
    with paper_style():
        fig = Figure()
        for text in (LONG, "one two three four", "x" * 60, "a/b/c, d: e", ""):
            lines = wrapped(fig, text, 50, 7)
            assert "".join(lines).replace(" ", "") == text.replace(" ", "")
            assert all(text_width_pt(fig, x, 7) <= 50 for x in lines if x)


def test_a_row_chart_is_frozen(): assert RowChart.__dataclass_params__.frozen


def test_words_given_by_hand_stand_in_every_file(tmp_path):
    rows, fig = made("power", 3, 3.25)
    files = save_figure(fig, tmp_path / "f", rows, ["r"], seed=None, alt="Three curves.")
    assert json.loads(files["json"].read_text())["alt"] == "Three curves."
    assert all(b"Three curves." in files[k].read_bytes() for k in ("svg", "png"))
    assert figure_bytes(fig, "svg") == files["svg"].read_bytes()
