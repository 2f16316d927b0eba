"""Judges and agreement: edge inputs give a right answer or say what is missing."""
import itertools
import math

import numpy as np
import pytest

from qwen_eval.errors import ConfigError
from qwen_eval.stats.agreement import cohen_kappa, fleiss_kappa, krippendorff_alpha
from qwen_eval.stats.judges import (
    corrected_share,
    effective_labels,
    judge_plan,
    labels_needed,
    length_controlled,
    position_bias,
    ppi_mean,
    rogan_gladen,
)

NAN = math.nan


def sound(e, low, high):
    "Finite, in order, inside the range, and it can be printed."
    assert all(map(math.isfinite, (e.value, e.low, e.high)))
    assert low - 1e-12 <= e.low <= e.value + 1e-12 and e.value - 1e-12 <= e.high <= high + 1e-12
    assert e.se is None or math.isfinite(e.se)
    assert "nan" not in e.sentence and "nan" not in e.latex_row() and str(e)
    return True


REFUSED = [
    ("ppi, no labels", lambda: ppi_mean([], [], [1]), "at least 2"),
    ("ppi, one label", lambda: ppi_mean([1], [1], [1]), "at least 2"),
    ("ppi, two real labels", lambda: ppi_mean([1, 2], [1, 2], [1], kind="bounded", range=(1, 10)), "at least 3"),
    ("ppi, NaN", lambda: ppi_mean([1, 0, NAN], [1, 0, 1], [1]), "not finite"),
    ("ppi, NaN of the judge", lambda: ppi_mean([1, 0], [1, 0], [1, NAN]), "not finite"),
    ("ppi, unequal", lambda: ppi_mean([1, 0, 1], [1, 0], [1]), "same items"),
    ("ppi, out of range", lambda: ppi_mean([1, 0], [1, 2], [1]), "possible"),
    ("ppi, shares as labels", lambda: ppi_mean([1, 0.5], [1, 1], [1]), "bounded"),
    ("ppi, kind", lambda: ppi_mean([1, 0], [1, 1], [1], kind="odd"), "binary"),
    ("ppi, level", lambda: ppi_mean([1, 0], [1, 1], [1], level=95), "level"),
    ("ppi, two axes", lambda: ppi_mean([[1, 0]], [1, 1], [1]), "axes"),
    ("share, a coin", lambda: corrected_share(0.5, 100, 0.5, 50, 0.5, 50), "tells nothing"),
    ("share, worse than a coin", lambda: corrected_share(0.5, 100, 0.2, 50, 0.3, 50), "tells nothing"),
    ("share, no items", lambda: corrected_share(0.5, 0, 0.9, 50, 0.9, 50), "share"),
    ("share, NaN", lambda: corrected_share(NAN, 10, 0.9, 50, 0.9, 50), "share"),
    ("share, beyond 1", lambda: corrected_share(0.5, 10, 1.9, 50, 0.9, 50), "specificity"),
    ("rogan-gladen, all right", lambda: rogan_gladen([1] * 9, [1] * 9, [1] * 9), "both rates"),
    ("rogan-gladen, all wrong", lambda: rogan_gladen([0] * 9, [1] * 9, [1] * 9), "both rates"),
    ("rogan-gladen, shares", lambda: rogan_gladen([0, 1], [0.5, 1], [1]), "0 or 1"),
    ("effective, no labels", lambda: effective_labels(0, 10, 0.5), "above 0"),
    ("effective, correlation", lambda: effective_labels(10, 10, 1.5), "-1 to 1"),
    ("needed, no effect", lambda: labels_needed(0), "effect"),
    ("needed, power", lambda: labels_needed(0.1, power=1), "chance"),
    ("plan, neither", lambda: judge_plan(0.5, 1, 0.1), "either"),
    ("plan, both", lambda: judge_plan(0.5, 1, 0.1, budget=5, effective_n=5), "either"),
    ("plan, too little", lambda: judge_plan(0.5, 10, 0.1, budget=5), "does not buy"),
    ("plan, free labels", lambda: judge_plan(0.5, 0, 0.1, budget=5), "positive"),
    ("plan, endless", lambda: judge_plan(0.5, 1, 0.1, budget=math.inf), "does not buy"),
    ("position, none", lambda: position_bias([], []), "at least 1"),
    ("position, unequal", lambda: position_bias([1, 0], [1]), "both of each pair"),
    ("position, NaN", lambda: position_bias([1, NAN], [1, 0]), "not finite"),
    ("length, too few", lambda: length_controlled([1, 0, 1], [1, 2, 3], [2, 2, 2]), "at least 4"),
    ("length, all won", lambda: length_controlled([1] * 9, range(9), [4] * 9), "all the same"),
    ("length, all lost", lambda: length_controlled([0] * 9, range(9), [4] * 9), "all the same"),
    ("length, equal lengths", lambda: length_controlled([1, 0, 1, 0], [5] * 4, [5] * 4), "spread"),
    ("length, told apart", lambda: length_controlled([0, 0, 0, 1, 1, 1], range(6), [3] * 6), "told apart"),
    ("length, unequal", lambda: length_controlled([1, 0, 1, 0], [1, 2, 3], [2, 2, 2, 2]), "one per item"),
    ("length, same difficulty", lambda: length_controlled([1, 0, 1, 0], [1, 2, 3, 5], [2] * 4, [1] * 4), "constant"),
    ("kappa, none", lambda: cohen_kappa([], []), "at least 2"),
    ("kappa, one", lambda: cohen_kappa([1], [1]), "at least 2"),
    ("kappa, one label", lambda: cohen_kappa([1, 1, 1], [1, 1, 1]), "one label"),
    ("kappa, a constant rater", lambda: cohen_kappa([1, 1, 1], [1, 0, 1]), "one label"),
    ("kappa, NaN", lambda: cohen_kappa([1, NAN], [1, 0]), "missing"),
    ("kappa, unequal", lambda: cohen_kappa([1, 0], [1]), "same items"),
    ("kappa, weights", lambda: cohen_kappa([1, 0], [1, 0], weights="odd"), "known"),
    ("kappa, unknown label", lambda: cohen_kappa(["a", "b"], ["a", "c"], categories=["a", "b"]), "none of"),
    ("fleiss, one item", lambda: fleiss_kappa([[2, 1]]), "at least 2"),
    ("fleiss, one category used", lambda: fleiss_kappa([[2, 0], [2, 0]]), "one category"),
    ("fleiss, unequal", lambda: fleiss_kappa([[2, 0], [1, 2]]), "same"),
    ("fleiss, one rater", lambda: fleiss_kappa([[1, 0], [0, 1]]), "at least 2"),
    ("fleiss, NaN", lambda: fleiss_kappa([[1, NAN], [0, 2]]), "missing"),
    ("fleiss, negative", lambda: fleiss_kappa([[3, -1], [1, 1]]), "negative"),
    ("alpha, none", lambda: krippendorff_alpha(np.empty((0, 3))), "at least 2"),
    ("alpha, no pairs", lambda: krippendorff_alpha([[1, NAN], [NAN, 2]]), "at least 2"),
    ("alpha, one value", lambda: krippendorff_alpha([[1, 1], [1, 1]], "interval"), "only one value"),
    ("alpha, names", lambda: krippendorff_alpha([["a", "b"]]), "numbers"),
    ("alpha, infinite", lambda: krippendorff_alpha([[1, math.inf], [1, 2]]), "infinite"),
    ("alpha, kind", lambda: krippendorff_alpha([[1, 2], [1, 2]], "ratio"), "nominal"),
]


@pytest.mark.parametrize("call,said", [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_what_cannot_be_answered_says_what_is_missing(call, said):
    with pytest.raises(ConfigError, match=said): call()


@pytest.mark.parametrize("n", [2, 3, 50])
@pytest.mark.parametrize("labels", ["right", "wrong", "mixed"])
@pytest.mark.parametrize("verdicts", ["same", "right", "wrong", "other"])
@pytest.mark.parametrize("others", ["right", "wrong", "mixed", "one"])
def test_ppi_of_any_zeros_and_ones_is_an_interval(n, labels, verdicts, others):
    kinds = {"right": np.ones(n), "wrong": np.zeros(n), "mixed": np.arange(n) % 2}
    y = kinds[labels]
    f = {"same": y, "other": 1 - y, **kinds}[verdicts]
    g = np.ones(1) if others == "one" else {k: np.tile(v, 9) for k, v in kinds.items()}[others]
    e = ppi_mean(y, f, g)
    assert sound(e, 0, 1) and e.high - e.low > 0.01
    if n > 2: assert sound(ppi_mean(1 + 9 * y, 1 + 9 * f, 1 + 9 * g, kind="bounded", range=(1, 10)), 1, 10)


def test_ppi_is_the_same_from_either_side():
    rng = np.random.default_rng(0)
    y, f, g = (rng.random(n) < 0.7 for n in (40, 40, 300))
    a, b = ppi_mean(y * 1.0, f * 1.0, g * 1.0), ppi_mean(1.0 - y, 1.0 - f, 1.0 - g)
    assert np.allclose((a.value, a.low, a.high), (1 - b.value, 1 - b.high, 1 - b.low))
    c = ppi_mean(1 + 9.0 * y, 1 + 9.0 * f, 1 + 9.0 * g, kind="bounded", range=(1, 10))
    d = ppi_mean(1.0 * y, 1.0 * f, 1.0 * g, kind="bounded")
    assert np.allclose((c.value, c.low, c.high), 1 + 9 * np.array((d.value, d.low, d.high)))


def test_more_labels_and_a_better_judge_make_it_sharper():
    def width(n, wrong): # every `wrong`-th verdict is wrong, one kind after the other
        y, flip = np.arange(n) % 10 < 7, np.arange(n) % wrong == 0
        g = np.arange(5000) % 10 < 7
        e = ppi_mean(y * 1.0, (y ^ flip) * 1.0, g * 1.0)
        return e.high - e.low
    assert width(400, 9) < width(200, 9) < width(100, 9) and width(200, 50) < width(200, 9) < width(200, 3)


@pytest.mark.parametrize("shown", list(itertools.product([0, 0.5, 1], repeat=4)))
def test_position_bias_of_two_pairs(shown):
    found = position_bias(shown[:2], shown[2:])
    assert sound(found.effect, -1, 1) and sound(found.consistency, 0, 1) and sound(found.win_rate, 0, 1)
    assert 0 < found.effect.p_value <= 1 and found.sentence and len(found.rows()) == 3


@pytest.mark.parametrize("ratings", list(itertools.product([1, 2], repeat=6)))
def test_agreement_of_three_items_is_an_interval_or_refused(ratings):
    x = np.reshape(ratings, (3, 2))
    for call in (lambda: cohen_kappa(*x.T), lambda: fleiss_kappa([[(r == 1).sum(), (r == 2).sum()] for r in x]),
                 *(lambda k=k: krippendorff_alpha(x, k) for k in ("nominal", "ordinal", "interval"))):
        try: e = call()
        except ConfigError as refused:
            assert "beyond chance" in str(refused)
            continue
        assert sound(e, -1, 1)
        if (x[:, 0] == x[:, 1]).all(): assert math.isclose(e.value, 1) and e.low < 0.7
        else: assert e.value < 1


def test_alpha_of_two_complete_raters_is_close_to_kappa():
    rng = np.random.default_rng(1)
    x = rng.integers(1, 5, 3000)
    y = np.where(rng.random(3000) < 0.6, x, rng.integers(1, 5, 3000))
    assert abs(cohen_kappa(x, y).value - krippendorff_alpha(np.c_[x, y]).value) < 1e-3
    assert abs(cohen_kappa(x, y, "quadratic").value - krippendorff_alpha(np.c_[x, y], "interval").value) < 1e-3


@pytest.mark.parametrize("rho", [0.05, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("cost", [0.01, 0.5, 2.0])
def test_plans_are_the_best_that_money_buys(rho, cost):
    plan = judge_plan(rho, cost_label=1, cost_judge=cost, budget=60, cost_item=0.1)
    best = int(60 / 1.1 + 1e-9)
    for n in range(1, 60):
        total = int((60 - n) / (cost + 0.1) + 1e-9)
        if total > n: best = max(best, effective_labels(n, total - n, rho))
    assert plan.cost <= 60 + 1e-9 and plan.effective_n >= best - 1e-9 and plan.sentence


def test_no_global_random_state_is_touched():
    import random
    before, plain = np.random.get_state()[1].tobytes(), random.getstate()
    rng = np.random.default_rng(3)
    y, f, g = (rng.random(n) < 0.5 for n in (60, 60, 90))
    found = [ppi_mean(y * 1.0, f * 1.0, g * 1.0), rogan_gladen(y * 1.0, y * 1.0, g * 1.0), cohen_kappa(y, f),
             krippendorff_alpha(np.c_[y, f] * 1.0), position_bias(y * 1.0, f * 1.0),
             length_controlled(y * 1.0, rng.random(60), rng.random(60))]
    assert len(found) == 6 and np.random.get_state()[1].tobytes() == before and random.getstate() == plain
