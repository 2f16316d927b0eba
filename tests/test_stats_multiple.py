"""All pairs, families of hypotheses: right answers at the edges, and an error where there is none."""
import time

import numpy as np
import pytest

from qwen_eval.errors import ConfigError
from qwen_eval.stats.multiple import Family, adjust, compare_all, decide, pair_name
from qwen_eval.stats.pairs import all_pairs, midp_mcnemar

NAN, INF = float("nan"), float("inf")

REFUSED = {
    "no items": ([[], []], "items are needed"),
    "no models": ([], "shape"),
    "one model": ([[1, 0, 1]], "at least 2"),
    "NaN": ([[1, 0], [NAN, 1]], "not finite"),
    "infinite": ([[1, 0], [INF, 1]], "not finite"),
    "unlike items": ([[1, 0, 1], [1, 0]], "3 items"),
    "text": ([["right"], ["wrong"]], "no table of numbers"),
    "out of range": ([[1, 2], [0, 1]], "possible is"),
    "one item of real values": ([[0.2], [0.4]], "at least 2"),
    "no epochs": (np.empty((2, 3, 0)), "items are needed"),
    "one axis": ([1, 0, 1], "n_models"),
}


@pytest.mark.parametrize("values, said", REFUSED.values(), ids=REFUSED)
def test_all_pairs_refuses(values, said):
    with pytest.raises(ConfigError, match=said): all_pairs(values)


ANSWERED = {
    "one item": [[1], [0]],
    "two items": [[1, 0], [0, 0]],
    "all right": [[1] * 9, [1] * 9, [1] * 9],
    "all right and all wrong": [[1] * 9, [0] * 9],
    "ties": [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]],
    "real": [[0.1, 0.5, 0.3], [0.2, 0.1, 0.9]],
    "real, one constant apart": [[0.1, 0.5, 0.3], [0.2, 0.6, 0.4]],
    "real, equal": [[0.1, 0.5, 0.3]] * 2,
    "more models than items": [[1, 0], [0, 1], [1, 1], [0, 0], [0, 1]],
    "epochs": np.ones((2, 3, 4)),
}


@pytest.mark.parametrize("values", ANSWERED.values(), ids=ANSWERED)
def test_all_pairs_answers_within_the_range(values):
    found = all_pairs(values)
    ends = np.array([found.low, found.difference, found.high])
    assert np.isfinite(ends).all() and (np.abs(ends) <= 1).all() and (np.diff(ends, axis=0) >= 0).all()
    assert (found.low < found.high).all() and ((found.p_value > 0) & (found.p_value <= 1)).all()


def test_equal_models_are_not_told_apart():
    for values in (ANSWERED["all right"], ANSWERED["real, equal"], ANSWERED["epochs"]):
        assert (all_pairs(values).p_value == 1).all()


def test_pairs_do_not_depend_on_company():
    x = np.random.default_rng(0).uniform(size=(5, 60))
    for values in (x, np.round(x)):
        many, two = all_pairs(values), all_pairs(values[[1, 3]])
        k = int(np.flatnonzero((many.first == 1) & (many.second == 3))[0])
        for name in ("difference", "low", "high", "p_value"):
            assert np.isclose(getattr(many, name)[k], getattr(two, name)[0], rtol=1e-12), name


def test_midp_counts_half_of_what_was_seen():
    from scipy.stats import binom
    b, c = np.meshgrid(np.arange(30), np.arange(30))
    less = np.minimum(b, c) # P(X < less) + P(X = less) / 2, on either side
    one_sided = binom.cdf(less - 1, b + c, 0.5) + binom.pmf(less, b + c, 0.5) / 2
    p = midp_mcnemar(b, c)
    assert np.allclose(p, 2 * one_sided) and (p == p.T).all() and np.allclose(np.diag(p), 1)


@pytest.mark.parametrize("method", ["holm", "bh", "by", "bonferroni"])
def test_adjusting_keeps_order_and_never_shrinks(method):
    p = np.random.default_rng(1).uniform(size=40) ** 2
    p[:6] = p[6], p[6], 0, 1, p[7], p[8] # ties and both ends
    out = adjust(p, method)
    assert (out >= p - 1e-15).all() and (out <= 1).all() and (np.diff(out[np.argsort(p)]) >= -1e-15).all()
    assert adjust([0.03], method) == 0.03


@pytest.mark.parametrize("p", [[], [NAN], [-0.1], [1.1], ["x"], [[0.1]], None])
def test_adjust_refuses(p):
    with pytest.raises(ConfigError): adjust(p)


def test_a_family_is_what_was_planned():
    family = Family(names=["a", "b"])
    assert family.names == ("a", "b") and hash(family)
    found = decide(family, {"c": 0.0001, "b": 0.04, "a": 0.025})
    assert found.adjusted == (None, 0.05, 0.05) and found.rejected == ("b", "a")
    assert [r["kind"] for r in found.rows()] == ["exploratory", "planned", "planned"]
    assert [r["rejected"] for r in found.rows()] == ["", "*", "*"] # nothing exploratory carries a star
    with pytest.raises(ConfigError, match="no p-value: 'b'"): decide(family, {"a": 0.1})
    with pytest.raises(ConfigError, match="not finite"): decide(family, {"a": 0.1, "b": NAN})
    with pytest.raises(AttributeError): family.method = "bh"
    for wrong in ({"names": "ab"}, {"names": []}, {"names": ["a", "a"]}, {"names": ["a"], "level": 1}):
        with pytest.raises(ConfigError): Family(**wrong)


def test_groups_are_compared_apart_and_adjusted_together():
    rng = np.random.default_rng(2)
    values, groups = rng.integers(0, 2, size=(3, 90)).astype(float), np.repeat(["x", "y", "z"], 30)
    values[0] = 1
    found = compare_all(values, "abc", groups)
    assert len(found.rows()) == 9 and found.rows()[0]["n"] == 30
    alone = all_pairs(values[:, 30:60]).p_value
    mine = [p for n, p in zip(found.decisions.names, found.decisions.p_values, strict=True) if n.startswith("y: ")]
    assert np.allclose(alone, mine)
    assert np.allclose(found.decisions.adjusted, adjust(found.decisions.p_values))
    plan = Family(names=[pair_name("a", "b", "x")])
    assert sum(r["adjusted p"] is not None for r in compare_all(values, "abc", groups, plan).rows()) == 1
    wide = compare_all(values, "abc", groups, simultaneous=True)
    assert all(w["low"] <= r["low"] and w["high"] >= r["high"] for w, r in zip(wide.rows(), found.rows(), strict=True))


def test_results_print_a_table_latex_and_a_sentence():
    found = compare_all([[1, 0, 1, 1], [0, 0, 1, 0]], ["a_1", "b"])
    assert len(found.table()) == 1 and "Holm" in found.sentence
    assert found.latex_rows().startswith(r"a\_1 & b & 50.0 & $-$26.3")
    assert "& 0.250 & 0.250 &" in found.latex_rows() and found.latex_rows().endswith(r"& 4 \\")
    graded = compare_all([[9, 2, 7, 8], [3, 2, 5, 1]], ["a", "b"], range=(1, 10))
    assert "& 3.75 &" in graded.latex_rows() # of a score from 1 to 10 there are no points
    assert "<table>" in found._repr_html_() and "a_1" in str(found)


def test_the_global_random_state_is_not_touched():
    before = np.random.get_state()[1].copy()
    compare_all(np.random.default_rng(0).integers(0, 2, size=(3, 50)), "abc")
    assert (np.random.get_state()[1] == before).all()


def study(rng, n_models=18, sizes=(164, 500, 1000, 1319, 1172, 10042, 14042, 817, 900, 600, 805, 80)):
    "Answers of configurations on twelve benchmarks, a little over 30,000 items."
    groups = np.repeat([f"b{k}" for k in range(len(sizes))], sizes)
    hard = rng.normal(size=len(groups))
    skill = np.linspace(0.3, 0.9, n_models)[:, None]
    return (hard + rng.normal(size=(n_models, len(groups))) < skill).astype(float), groups


def test_eighteen_configurations_on_twelve_benchmarks_are_quick():
    values, groups = study(np.random.default_rng(0))
    compare_all(values[:, :200], list(range(18)), groups[:200]) # imports
    took = min(_seconds(values, groups) for _ in range(3))
    assert took < 2, f"{took:.2f} s"


def _seconds(values, groups):
    start = time.process_time() # of all threads: what one core would take
    found = compare_all(values, list(range(18)), groups)
    assert len(found.decisions.names) == 12 * 153
    return time.process_time() - start
