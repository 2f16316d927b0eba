"""Clustered means, differences, bootstrap and regression: general formulas, edge inputs, seeds."""
import math
import random

import numpy as np
import pytest
from scipy.linalg import fractional_matrix_power

from qwen_eval.errors import ConfigError
from qwen_eval.records import Estimate, from_json, to_json
from qwen_eval.stats.clustered import (
    cluster_bootstrap,
    clustered_difference,
    clustered_mean,
    design_effect,
    intraclass,
    stratified_clustered,
)
from qwen_eval.stats.regression import clustered_regression

SEEDED = np.random.default_rng(8)
SIZES = [1, 2, 3, 5, 8, 13]
LABEL = np.repeat(np.arange(6), SIZES)
VALUE = (SEEDED.random(32) < 0.6).astype(float)


def general(x, y, g, contrast, variance):
    "Variance of a contrast of least squares and its Bell-McCaffrey degrees of freedom, by matrices of all items."
    bread = np.linalg.inv(x.T @ x)
    hat = x @ bread @ x.T
    n, groups = len(y), np.unique(g)
    rest, columns, total = np.eye(n) - hat, [], 0.0
    for c in groups:
        at = g == c
        a = {"CR0": np.eye(at.sum()), "CR1": math.sqrt(len(groups) / (len(groups) - 1)) * np.eye(at.sum()),
             "CR2": fractional_matrix_power(rest[np.ix_(at, at)], -0.5)}[variance]
        half = a @ x[at] @ bread @ contrast
        total += (half @ (rest[at] @ y)) ** 2
        columns.append(rest[:, at] @ half)
    p = np.array(columns) @ np.array(columns).T
    return total, np.trace(p) ** 2 / (p ** 2).sum()


@pytest.mark.parametrize("variance", ["CR2", "CR1", "CR0"])
def test_the_mean_is_the_general_formula(variance):
    e = clustered_mean(VALUE, LABEL, variance=variance)
    v, df = general(np.ones((32, 1)), VALUE, LABEL, np.ones(1), variance)
    assert np.allclose((e.se ** 2, e.df), (v, df), rtol=1e-9)


def test_strata_are_the_general_formula():
    stratum = (LABEL > 3).astype(int)
    e = stratified_clustered(VALUE, stratum, LABEL, shares={0: 0.3, 1: 0.7})
    v, df = general(np.eye(2)[stratum], VALUE, LABEL, np.array([0.3, 0.7]), "CR2")
    assert np.allclose((e.se ** 2, e.df), (v, df), rtol=1e-9)
    assert np.isclose(e.value, 0.3 * VALUE[stratum == 0].mean() + 0.7 * VALUE[stratum == 1].mean())


def test_weights_are_repeats():
    "Two equal items are one of weight two, in the mean and in the robust variance."
    once = clustered_mean([1, 0, 1, 0.5], ["a", "a", "b", "c"], weights=[2, 1, 3, 1])
    twice = clustered_mean([1, 1, 0, 1, 1, 1, 0.5], ["a", "a", "a", "b", "b", "b", "c"])
    assert np.allclose([once.value, once.se, once.df, once.low], [twice.value, twice.se, twice.df, twice.low])


def test_labels_of_any_kind():
    names = [f"passage {k}" for k in LABEL]
    for labels in (LABEL.tolist(), names, np.array(names), [(k, "x") for k in LABEL], LABEL.astype(float)):
        assert clustered_mean(VALUE, labels) == clustered_mean(VALUE, LABEL)
        assert stratified_clustered(VALUE, np.where(LABEL > 3, "b", "a"), labels) == stratified_clustered(
            VALUE, ["b" if k > 3 else "a" for k in LABEL], LABEL)


EDGES = { # values, clusters -> value, or a part of the message
    "none": ([], [], "at least 1"),
    "one item": ([1], ["a"], "two"),
    "one cluster": ([1, 0, 1], ["a"] * 3, "two"),
    "two items": ([1, 0], ["a", "b"], 0.5),
    "two items, one cluster": ([1, 0], ["a", "a"], "two"),
    "all right": ([1] * 6, [0, 0, 1, 1, 2, 2], 1.0),
    "all wrong": ([0] * 6, [0, 0, 1, 1, 2, 2], 0.0),
    "ties": ([1, 0, 1, 0], [0, 0, 1, 1], 0.5),
    "shared credit": ([1, 1 / 3, 0.5, 0], [0, 0, 1, 1], 11 / 24),
    "one wrong": ([1] * 99 + [0], list(range(50)) * 2, 0.99),
    "NaN": ([1, math.nan], ["a", "b"], "not finite"),
    "out of range": ([1, 2], ["a", "b"], "possible is 0 to 1"),
    "too few labels": ([1, 0, 1], ["a", "b"], "2 clusters for 3 items"),
    "a label is missing": ([1, 0], ["a", None], "no label"),
    "a label is NaN": ([1, 0], [1.0, math.nan], "no label"),
    "labels are lists": ([1, 0], [["a"], ["b"]], "labels"),
    "no numbers": (["x", "y"], ["a", "b"], "no array of numbers"),
    "three axes": (np.ones((2, 2, 2)), ["a", "b"], "wanted"),
    "no epochs": (np.ones((2, 0)), ["a", "b"], "no answer"),
}
ON_DIFFERENCES = {k: v for k, v in EDGES.items() if k not in ("no epochs", "shared credit")}


def sound(e, lowest=0.0, highest=1.0):
    "An interval within the range, not of one point, around the value; nothing that is NaN."
    assert isinstance(e, Estimate) and lowest <= e.low <= e.value <= e.high <= highest and e.low < e.high
    numbers = [x for x in (e.value, e.se, e.df, e.p_value, *e.detail.values()) if x is not None]
    assert all(map(math.isfinite, numbers))
    assert e.how and e.sentence and from_json(to_json(e), Estimate) == e


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("kind", ["binary", "bounded"])
def test_edges_of_the_mean(name, kind):
    values, clusters, wanted = EDGES[name]
    if isinstance(wanted, str):
        with pytest.raises(ConfigError, match=wanted): clustered_mean(values, clusters, kind=kind)
        return
    e = clustered_mean(values, clusters, kind=kind)
    assert np.isclose(e.value, wanted)
    sound(e)
    if name in ("all right", "all wrong", "ties"):
        assert e.method == "clopper-pearson (effective n)" and "effective number" in e.how and e.se is None


@pytest.mark.parametrize("name", ON_DIFFERENCES)
def test_edges_of_the_difference(name):
    values, clusters, wanted = ON_DIFFERENCES[name]
    other = np.zeros_like(np.asarray(values, float)) if not isinstance(values, list) or "x" not in values else values
    if isinstance(wanted, str):
        with pytest.raises(ConfigError, match=wanted): clustered_difference(values, other, clusters)
        return
    e = clustered_difference(values, other, clusters)
    assert np.isclose(e.value, wanted)
    sound(e, -1.0)
    back = clustered_difference(other, values, clusters)
    assert np.allclose((back.low, back.high), (-e.high, -e.low)) and back.p_value == e.p_value


@pytest.mark.parametrize("name", EDGES)
def test_edges_of_strata_correlation_and_bootstrap(name):
    values, clusters, wanted = EDGES[name]
    strata = ["s"] * len(values)
    for method in (lambda: stratified_clustered(values, strata, clusters), lambda: intraclass(values, clusters),
                   lambda: design_effect(values, clusters),
                   lambda: cluster_bootstrap(values, clusters, rng=np.random.default_rng(1), n_resamples=200)):
        try: e = method()
        except ConfigError as why:
            assert len(str(why)) > 30
            continue
        assert not isinstance(wanted, str) or "range" in wanted # correlations have none
        if e.metric == "design effect": sound(e, 0.0, math.inf)
        else: sound(e, -1.0 if "correlation" in e.metric else 0.0)


@pytest.mark.parametrize("call, said", [
    (lambda: clustered_mean([1, 0], variance="CR3"), "CR2, CR1, CR0"),
    (lambda: clustered_mean([1, 0], kind="normal"), "'binary' and 'bounded'"),
    (lambda: clustered_mean([1, 0], range=(0, 2)), "kind='bounded'"),
    (lambda: clustered_mean([1, 0], level=95), "confidence level"),
    (lambda: clustered_mean([1, 0], icc=2), "outside 0 to 1"),
    (lambda: clustered_mean([1, 0], weights=[1, 0]), "above 0"),
    (lambda: clustered_mean([1, 0], weights=[1]), "1 weights for 2"),
    (lambda: clustered_mean([3, 3], kind="bounded", range=(-math.inf, math.inf)), "range="),
    (lambda: clustered_difference([1, 0], [1, 0, 1]), "2 items against 3"),
    (lambda: stratified_clustered([1, 0, 1], ["a", "a", "b"]), "'b'"),
    (lambda: stratified_clustered([1, 0, 1, 0], [0, 0, 1, 1], ["a", "b", "b", "c"]), "two strata"),
    (lambda: stratified_clustered([1, 0, 1, 0], [0, 0, 1, 1], shares={0: 1.0}), "other strata"),
    (lambda: stratified_clustered([1, 0, 1, 0], [0, 0, 1, 1], shares={0: 0.5, 1: 0.6}), "sum to 1.1"),
    (lambda: stratified_clustered([1, 0], ["a"]), "1 strata for 2"),
    (lambda: cluster_bootstrap([1, 0], rng=np.random.default_rng(0), n_resamples=0), "n_resamples=0"),
    (lambda: clustered_regression({"y": [1, 2, math.nan]}, "y ~ 1", [1, 2, 3]), "cannot be fitted"),
    (lambda: clustered_regression({"y": [1, 2, 3]}, "y ~", [1, 2, 3]), "cannot be fitted"),
    (lambda: clustered_regression({"y": []}, "y ~ 1", []), "two clusters"),
    (lambda: clustered_regression({"y": [1, 2]}, "y ~ 1", [1, 2], variance="CR2"), "'CR1' and 'CR0'"),
])
def test_what_is_refused_and_why(call, said):
    with pytest.raises(ConfigError, match=said): call()


def test_intervals_grow_with_the_correlation_that_is_assumed():
    ends = [clustered_mean(np.ones(40), np.arange(40) // 4, icc=icc).low for icc in (0, 0.3, 1)]
    assert ends[0] > ends[1] > ends[2] and np.isclose(ends[2], 0.025 ** 0.1)
    lone = clustered_mean([1, 0, 1, 1], ["a"] * 4, icc=1)
    sound(lone)
    assert lone.high - lone.low > 0.9 and lone.n_clusters == 1


def test_a_large_cluster_is_not_many():
    spread = clustered_mean(VALUE, np.arange(32))
    heaped = clustered_mean(VALUE, [0] * 27 + [1, 2, 3, 4, 5])
    assert heaped.df < 2 < spread.df and heaped.high - heaped.low > spread.high - spread.low


def test_the_bootstrap_is_seeded_and_leaves_the_global_state_alone():
    random.seed(3)
    np.random.seed(3)
    before = random.getstate(), np.random.get_state()[1].tobytes()
    def once(seed):
        return to_json(cluster_bootstrap(VALUE, LABEL, rng=np.random.default_rng(seed), reference=1 - VALUE))
    assert once(4) == once(4) != once(5)
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == before


def test_the_bootstrap_agrees_with_the_formula():
    x = (SEEDED.random(4000) < 0.7).astype(float)
    g = np.arange(4000) // 20
    drawn, exact = cluster_bootstrap(x, g, rng=np.random.default_rng(5)), clustered_mean(x, g)
    assert np.allclose((drawn.low, drawn.high, drawn.se), (exact.low, exact.high, exact.se), atol=0.002)
    gap = cluster_bootstrap(x, g, rng=np.random.default_rng(5), reference=x[::-1], n_resamples=2000)
    paired = clustered_difference(x, x[::-1], g)
    assert np.allclose((gap.low, gap.high), (paired.low, paired.high), atol=0.005)


def test_the_bootstrap_divides_by_what_was_drawn():
    "Two clusters, four equally likely resamples: 3/4, 1/2 and twice 4/6."
    x, g = [1, 1, 1, 0, 1, 0], [0, 0, 0, 0, 1, 1]
    e = cluster_bootstrap(x, g, rng=np.random.default_rng(1), n_resamples=4000)
    assert np.isclose(e.se, np.std([3 / 4, 1 / 2, 4 / 6, 4 / 6]), rtol=0.05) and (e.low, e.high) == (1 / 2, 3 / 4)


def test_regression_columns_and_levels():
    table = {"y": VALUE, "x": np.arange(32.0), "g": LABEL}
    fit, wide = clustered_regression(table, "y ~ x", "g"), clustered_regression(table, "y ~ x", LABEL, level=0.99)
    assert fit.coefficients == wide.coefficients and wide.low[1] < fit.low[1] and fit.terms == ("Intercept", "x")
    v, _ = general(np.c_[np.ones(32), np.arange(32)], VALUE, LABEL, np.array([0, 1]), "CR0")
    assert np.isclose(clustered_regression(table, "y ~ x", "g", variance="CR0").se[1] ** 2, v)
    assert len(fit.rows()) == 2 and "6 clusters" in fit.sentence and fit.latex_rows().count(r"\\") == 2
