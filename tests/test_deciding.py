"""Decisions: planned tests get one verdict each, adjusted together; what differs otherwise gets no winner."""
from dataclasses import replace

import numpy as np
import pytest
from made_studies import made_study, with_scores

from qwen_eval.anytime import anytime_difference, anytime_estimate, anytime_p, asked_first
from qwen_eval.common import Common
from qwen_eval.comparisons import compare_runs
from qwen_eval.deciding import VERDICTS, best_of_study, decide
from qwen_eval.hypotheses import parse_hypotheses
from qwen_eval.metrics import metrics
from qwen_eval.runs import Run
from qwen_eval.stats.equivalence import equivalence
from qwen_eval.stats.multiple import adjust
from qwen_eval.store import update_manifest

SMALL, LARGE, OTHER = "smollm2_135m", "qwen3_8b", "qwen3_14b"


def better(n, share, gain, seed=0):
    "Right and wrong answers of two, the second right on `gain` more of the items."
    skill = np.random.default_rng(seed).random(n)
    return (skill < share).astype(float), (skill < share + gain).astype(float)


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.delenv("QWEN_EVAL_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def one(p, text, **fields):
    s = replace(p.study, hypotheses=text, **fields)
    return decide(replace(p, study=s, hypotheses=parse_hypotheses(text, s.models, s.presets, s.benchmarks)))


def test_each_verdict_in_the_direction_that_was_stated(lab):
    x, y = better(800, 0.5, 0.06)
    p = made_study(lab, {(SMALL, "balanced", "gsm8k"): x, (LARGE, "balanced", "gsm8k"): y,
                         (SMALL, "performance", "gsm8k"): x, (LARGE, "performance", "gsm8k"): x})
    d = one(p, f"{LARGE} > {SMALL} on gsm8k; balanced = performance within 0.02 on gsm8k;"
            f"{SMALL}/performance != {LARGE}/performance on gsm8k; performance >= balanced within 0.02 on gsm8k")
    said = {x.hypothesis.id: x.verdict for x in d.decisions}
    assert said == {"H1": "confirmed", "H2.1": "confirmed", "H2.2": "refuted", "H3": "not confirmed",
                    "H4.1": "confirmed", "H4.2": "refuted"}
    assert one(p, f"{SMALL} > {LARGE} on gsm8k").decisions[0].verdict == "refuted"
    assert "does not show that there is none" in d.decisions[3].sentence
    assert "6 planned hypotheses" in d.sentence and "3 confirmed, 1 not confirmed, 2 refuted" in d.sentence


def test_p_values_are_those_of_the_comparisons_and_holm_is_over_the_plan_alone(lab):
    x, y = better(400, 0.5, 0.02)
    z = better(400, 0.6, 0.03, seed=3)
    p = made_study(lab, {(SMALL, "balanced", "gsm8k"): x, (LARGE, "balanced", "gsm8k"): y,
                         (SMALL, "balanced", "arc_challenge"): z[0], (LARGE, "balanced", "arc_challenge"): z[1],
                         (OTHER, "balanced", "arc_challenge"): z[1]})
    d = one(p, f"{LARGE} != {SMALL} on all; {OTHER} > {SMALL} on gsm8k")
    runs = {(r.model, r.benchmark): r.run() for r in p.runs}
    direct = [compare_runs(runs[LARGE, b], runs[SMALL, b]).difference.p_value for b in ("gsm8k", "arc_challenge")]
    assert [x.p_value for x in d.decisions] == [*direct, None]
    assert [x.adjusted for x in d.decisions[:2]] == adjust([*direct, 1.0]).tolist()[:2]
    assert d.decisions[2].verdict == "missing" and d.decisions[2].adjusted is None
    assert {(c.names, c.benchmark) for c in d.exploratory} == {
        ((SMALL, OTHER), "arc_challenge"), ((LARGE, OTHER), "arc_challenge")}
    assert all(r["p_value"] is None and r["adjusted"] is None and not r["verdict"] for r in d.exploratory_rows())


def test_equivalence_is_that_of_the_statistics_and_needs_items(lab):
    x, y = better(300, 0.5, 0.02)
    p = made_study(lab, {(SMALL, "balanced", "gsm8k"): x, (SMALL, "performance", "gsm8k"): y})
    [d] = one(p, "balanced = performance within 0.02 on gsm8k").decisions
    direct = equivalence(x, y, 0.02)
    assert d.verdict == "not testable" and direct.verdict.partition(": ")[2] in d.why and d.p_value is None
    assert d.estimate.value == direct.estimate.value and d.estimate.ends == direct.estimate.ends
    [d] = one(p, "balanced = performance within 0.05 on gsm8k").decisions
    assert d.verdict == "confirmed" and d.p_value == pytest.approx(equivalence(x, y, 0.05).estimate.p_value)
    [d] = one(p, "performance >= balanced within 0.05 on gsm8k", alpha=0.01).decisions
    direct = equivalence(y, x, 0.05, side="not worse", alpha=0.01)
    assert d.p_value == pytest.approx(direct.estimate.p_value) and d.estimate.level == 0.98


@pytest.mark.parametrize("share", [0.0, 0.995])
def test_equivalence_at_the_floor_or_ceiling_is_not_testable(lab, share):
    x = (np.arange(300) < 300 * share).astype(float)
    p = made_study(lab, {(SMALL, "balanced", "gsm8k"): x, (SMALL, "performance", "gsm8k"): x})
    [d] = one(p, "balanced = performance within 0.05 on gsm8k").decisions
    assert d.verdict == "not testable" and ("floor" if share == 0 else "ceiling") in d.why and "needs" in d.sentence


def changed(run, part, **values):
    f = run.manifest["fingerprint"]
    update_manifest(run.path, fingerprint={**f, part: {**f[part], **values}})


@pytest.mark.parametrize(("how", "why"), [
    (lambda r: changed(r, "items", hash="other"), "items.hash"),
    (lambda r: changed(r, "items", order_seed=7), "different orders"),
    (lambda r: changed(r, "benchmark", variant="other"), "variant differs"),
    (lambda r: changed(r, "model", template="other"), "chat template"),
    (lambda r: update_manifest(r.path, marks=["fake-engine"]), "not a result"),
    (lambda r: with_scores(r, np.ones(390)), "different items"),
    (lambda r: with_scores(r, np.ones(400), status=["truncated"] * 9 + ["scored"] * 391), "were cut off"),
])
def test_what_differs_otherwise_gets_no_winner_and_says_why(lab, how, why):
    p = made_study(lab, {(SMALL, "balanced", "gsm8k"): np.zeros(400), (SMALL, "performance", "gsm8k"): np.ones(400)})
    text = "performance != balanced on gsm8k; performance >= balanced within 0.05 on gsm8k"
    assert one(p, text).decisions[0].verdict == "confirmed"
    how(p.runs[1].run())
    for d in one(p, text).decisions:
        assert d.verdict == "no winner" and why in d.why and why in d.sentence and d.adjusted is None


def test_a_run_that_is_cut_off_below_two_percent_may_win(lab):
    p = made_study(lab, {(SMALL, "balanced", "gsm8k"): np.zeros(400), (SMALL, "performance", "gsm8k"): np.ones(400)})
    with_scores(p.runs[1].run(), np.ones(400), status=["truncated"] * 8 + ["scored"] * 392)
    assert one(p, "performance != balanced on gsm8k").decisions[0].verdict == "confirmed"


def test_bold_is_for_models_of_one_preset_and_nothing_in_the_way(lab):
    x, y = better(600, 0.5, 0.1)
    values = {(m, q, "gsm8k"): v for q in ("balanced", "performance") for m, v in ((SMALL, x), (LARGE, y), (OTHER, y))}
    p = made_study(lab, values, n=600)
    best = best_of_study(p)
    assert best.runs == {r.path.name for r in p.runs if r.model != SMALL} and "Hsu" in best.how and not best.notes
    changed(p.runs[0].run(), "benchmark", variant="other")
    best = best_of_study(p)
    assert len(best.runs) == 2 and "none is bold, since" in best.notes[0] and "variant differs" in best.notes[0]
    alone = made_study(lab / "alone", {(SMALL, "balanced", "gsm8k"): x}, n=600)
    assert best_of_study(alone).runs == frozenset() and best_of_study(alone).how == ""


# Early stopping

def common(x, y):
    ids = tuple(map(str, range(len(x))))
    return Common(values=np.array([x, y], float)[:, :, None], items=ids, clusters=ids, metric=metrics.get("accuracy"),
                  weighted=False, sizes=((len(ids), 1),) * 2)


def test_a_study_that_stops_early_is_judged_by_what_holds_at_every_look(lab):
    x, y = better(800, 0.5, 0.1)
    p = made_study(lab, {(SMALL, "balanced", "gsm8k"): x, (LARGE, "balanced", "gsm8k"): y}, n=800)
    with_scores(p.runs[1].run(), y[:300])
    text = f"{LARGE} > {SMALL} on gsm8k"
    assert one(p, text).decisions[0].verdict == "no winner"
    [d] = one(p, text, early=True).decisions
    direct = anytime_difference(common(y[:300], x[:300]), 0)
    assert d.verdict == "confirmed" and d.early and d.estimate.ends == direct.ends and d.estimate.n_items == 300
    assert d.p_value == direct.p_value and "at every look" in d.sentence and d.row()["e_value"] == direct.e_value
    assert asked_first(p.runs[1].run()) == 300


def test_equivalence_at_every_look(lab):
    x, _ = better(1000, 0.5, 0.0)
    y = x.copy()
    y[:3] = 1 - y[:3]
    p = made_study(lab, {(SMALL, "balanced", "gsm8k"): x, (SMALL, "performance", "gsm8k"): y}, n=1000)
    [d] = one(p, "balanced = performance within 0.05 on gsm8k", early=True).decisions
    assert d.verdict == "confirmed" and d.estimate.low > -0.05 and d.estimate.high < 0.05
    [d] = one(p, "balanced = performance within 0.005 on gsm8k", early=True).decisions
    assert d.verdict == "not confirmed" and "beyond the margin" in d.why
    gone = with_scores(p.runs[1].run(), 1 - x)
    x[:] = 1
    with_scores(p.runs[0].run(), x)
    assert gone.id == p.runs[1].run().id
    [d] = one(p, "balanced = performance within 0.05 on gsm8k", early=True).decisions
    assert d.verdict == "refuted"


def test_the_first_items_without_a_gap_are_what_was_asked(lab):
    p = made_study(lab, {(SMALL, "balanced", "gsm8k"): np.ones(50)})
    run = p.runs[0].run()
    frame = run.scores
    from qwen_eval.scores import write_scores
    write_scores(run.path, frame[frame.order != 20])
    assert asked_first(Run(run.path)) == 20 and anytime_estimate(Run(run.path)).n_items == 20


def test_anytime_p_values_are_rarely_small_where_nothing_is_equivalent():
    "A true difference at the margin: shown equivalent at any of many looks in at most alpha of the studies."
    rng, hits = np.random.default_rng(5), 0
    for _ in range(60):
        up = rng.random(600) < 0.05 # of A only: the difference is 5 points
        x, y = up.astype(float), np.zeros(600)
        hits += any(anytime_p(common(x[:n], y[:n]), 0, -0.05, 0.05) <= 0.05 for n in (200, 400, 600))
    assert hits <= 6


def test_decisions_are_data_and_latex(lab):
    x, y = better(300, 0.5, 0.1)
    p = made_study(lab, {(SMALL, "balanced", "gsm8k"): x, (LARGE, "balanced", "gsm8k"): y})
    d = one(p, f"{LARGE} > {SMALL} on gsm8k")
    data = d.data()
    assert data["decisions"][0]["verdict"] in VERDICTS and data["sentence"] == d.sentence and data["alpha"] == 0.05
    assert d.latex_rows().count("&") == 6 and r"smollm2\_135m" in d.latex_rows()
    assert set(d.exploratory_rows()[0] if d.exploratory else ()) <= set(data["decisions"][0])
