"""Intervals of one model and of independent groups: edge inputs, refusals, other implementations, randomness."""
import math
import random

import numpy as np
import pytest
from scipy import stats

from qwen_eval.errors import ConfigError
from qwen_eval.records import from_json, to_json
from qwen_eval.stats.bayes import bayes_independent, bayes_proportion
from qwen_eval.stats.bootstrap import bootstrap_corpus, mean_bca
from qwen_eval.stats.independent import agresti_caffo, cohen_h, miettinen_nurminen, newcombe
from qwen_eval.stats.intervals import (
    agresti_coull,
    clopper_pearson,
    estimate,
    from_standard_error,
    jeffreys,
    mean_t,
    ratio,
    stratified,
    wilson,
)
from qwen_eval.stats.rates import event_rate, quantile
from qwen_eval.stats.results import number, whole
from qwen_eval.stats.robust import iqm, probability_of_improvement

NAN, INF = math.nan, math.inf
PROPORTIONS = (wilson, jeffreys, clopper_pearson, agresti_coull, bayes_proportion)
DIFFERENCES = (newcombe, miettinen_nurminen, agresti_caffo, bayes_independent)


def rng(seed=0): return np.random.default_rng(seed)


def rate(sums): return sums[0] / sums[1] if sums[1] else 0.0


def sound(e, low, high):
    "A value within its interval, the interval within the range, everything said."
    assert low <= e.low <= e.value <= e.high <= high, e
    assert all(type(x) is float for x in (e.value, e.low, e.high)), e
    assert e.method and e.how and e.estimand and "nan" not in e.sentence, e
    numbers = [x for x in (e.se, e.df, e.p_value, *e.detail.values()) if x is not None]
    assert all(math.isfinite(x) for x in numbers), e
    assert from_json(to_json(e), type(e)) == e
    return e


@pytest.mark.parametrize("function", PROPORTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_proportions_of_any_counts(function, level):
    for n in (1, 2, 3, 20, 1000):
        for k in {0, 1, n // 2, n - 1, n, n / 3}:
            e = sound(function(k, n, level), 0, 1)
            assert e.low < e.high and e.level == level
            other = function(n - k, n, level) # right and wrong are treated alike
            assert np.allclose((e.low, e.high), (1 - other.high, 1 - other.low))


@pytest.mark.parametrize("function", PROPORTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("given", [(0, 0), (3, 2), (-1, 2), (NAN, 2), (1, NAN), (1, INF), ("a", 2), (None, 2),
                                   (1, 2, 95), (1, 2, 0), (1, 2, NAN)])
def test_what_is_no_proportion_is_refused(function, given):
    with pytest.raises(ConfigError): function(*given)


def test_one_sided_bounds():
    for k, n in ((0, 30), (4, 30), (30, 30)):
        up, down = clopper_pearson(k, n, 0.95, "upper"), clopper_pearson(k, n, 0.95, "lower")
        both = clopper_pearson(k, n, 0.9)
        assert (up.low, down.high) == (0, 1) and np.allclose((down.low, up.high), (both.low, both.high))


@pytest.mark.parametrize("n, population", [(5, 4), (5, 0), (5, NAN), (5, INF)])
def test_a_population_is_no_smaller_than_what_was_asked(n, population):
    with pytest.raises(ConfigError): wilson(2, n, population=population)
    with pytest.raises(ConfigError): mean_t([0.1, 0.2, 0.3, 0.4, 0.5], population=population)


@pytest.mark.parametrize("values, kind", [([1, 0, 1, 1], "binary"), ([0.1, 0.4, 0.4, 0.9], "bounded"),
                                          ([1, 1, 1, 1], "binary"), ([0.5] * 4, "bounded"), ([0], "binary")])
def test_of_this_benchmark_only(values, kind):
    "Nothing is unknown where all were asked; a large benchmark is like an endless one."
    n = len(values)
    whole, large, endless = (estimate(values, kind, population=p) for p in (n, 10**9, None))
    assert whole.low == whole.value == whole.high and str(n) in whole.estimand
    assert np.allclose((large.low, large.high), (endless.low, endless.high), atol=1e-6)
    half = estimate(values, kind, population=2 * n)
    assert endless.high - endless.low >= half.high - half.low > 0 or n == 1
    assert "population" in endless.estimand and f"{2 * n}" in half.estimand


@pytest.mark.parametrize("values", [[0.3], [0, 1], [1, 1], [0, 0, 0], [0.5, 0.5], [0.1 + 0.2, 0.3], [1e-300, 0]])
def test_means_of_few_values(values):
    sound(mean_t(values), 0, 1)
    sound(mean_bca(values, rng(), n_resamples=200), 0, 1)
    sound(mean_t(values, (-INF, INF)), -INF, INF)
    one = mean_t(values, (-3, 7))
    sound(one, -3, 7)
    assert one.low < one.high


@pytest.mark.parametrize("values", [[], [NAN], [1, NAN], [[1, 2]], ["a"], [2], [INF], None])
def test_what_has_no_mean_is_refused(values):
    with pytest.raises(ConfigError): mean_t(values)
    with pytest.raises(ConfigError): mean_bca(values, rng())


def test_bca_is_that_of_scipy():
    x = rng(3).gamma(1.5, size=40)
    theirs = stats.bootstrap((x,), np.mean, method="BCa", n_resamples=40_000, rng=rng(1)).confidence_interval
    mine = mean_bca(x, rng(2), (0, INF), n_resamples=40_000, expand=False)
    assert np.allclose((mine.low, mine.high), theirs, atol=0.01)


def test_bca_of_few_items_is_expanded():
    "By the quantile of Student's t and the root of n / (n - 1), which the draws lack (Hesterberg 2015)."
    for n, wider in ((8, stats.t.ppf(0.975, 7) * (8 / 7) ** 0.5 / 1.96), (400, 1.004)):
        x = rng(4).normal(size=n)
        x = np.r_[x, -x] / 4 if n > 100 else np.r_[x[:4], -x[:4]] / 4 # symmetric, so that nothing else moves the ends
        new, old = (mean_bca(x, rng(5), (-INF, INF), n_resamples=20_000, expand=e) for e in (True, False))
        assert (new.high - new.low) / (old.high - old.low) == pytest.approx(wider, rel=0.03)
        assert "Hesterberg 2015" in new.how and "Efron 1987" in old.how
    for level in (0.99, 0.9999, 1 - 1e-12): sound(mean_bca([0, 0, 0.1, 1], rng(), level=level, n_resamples=200), 0, 1)


@pytest.mark.parametrize("given, said", [
    ((math.nan,), "give one finite number."), (("3",), "give one finite number."), ((-1, 0), "number, 0 or more."),
    ((9, -1e100, 3), "number, 3 or less."), ((2, 0, 1), "number, 0 to 1."), ((1e200,), "number, -1e+100 to 1e+100."),
    ((0, 0, 1, False), "number, above 0 and below 1."), ((0, 0, 1e100, False), "number, above 0."),
])
def test_a_number_is_asked_for_in_the_range_that_it_has(given, said):
    value, *limits = given
    with pytest.raises(ConfigError) as e: number(value, "x", *limits)
    assert str(e.value).endswith(said) and f"x={value!r}" in str(e.value)


def test_bootstrap_memory_is_bounded():
    import tracemalloc
    x = rng().random(20_000)
    tracemalloc.start()
    mean_bca(x, rng(), n_resamples=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6


@pytest.mark.parametrize("values", [[], [NAN, NAN], np.empty((0, 4))])
@pytest.mark.parametrize("kind", ["binary", "bounded"])
def test_nothing_judged_is_said(values, kind):
    e = estimate(values, kind)
    assert e.method == "none" and e.n_items == 0 and "not estimated" in str(e) and "not" in e.sentence


@pytest.mark.parametrize("given", [([1], "corpus"), ([2], "binary"), ([0.5, INF], "bounded"), ([1], "binary", (0, 2)),
                                   ([[[1]]], "binary"), ([1], "binary", (0, 1), 95), ([], "binary", (0, 1), 95)])
def test_what_cannot_be_estimated_is_refused(given):
    with pytest.raises(ConfigError): estimate(*given)


@pytest.mark.parametrize("strata, weights", [
    ([], []), ([[1]], []), ([[1]], [0.5]), ([[1], []], [0.5, 0.5]), ([[1], [NAN]], [0.5, 0.5]), ([[2]], [1]),
    ([[1], [0]], [1.5, -0.5]), ([[1], [0]], [NAN, 1])])
def test_strata_that_are_none_are_refused(strata, weights):
    with pytest.raises(ConfigError): stratified(strata, weights)


@pytest.mark.parametrize("strata", [[[1]], [[0], [1]], [[1, 1], [1]], [[0, 0], [0]], [[0.5], [0.5, 0.5]]])
def test_strata_of_few_items(strata):
    e = sound(stratified(strata, [1 / len(strata)] * len(strata)), 0, 1)
    assert e.low < e.high and e.n_items == sum(map(len, strata))


@pytest.mark.parametrize("values, weights", [([], []), ([1], [0]), ([1], [NAN]), ([NAN], [1]), ([1], [1, 2]),
                                             ([2], [1])])
def test_ratios_that_are_none_are_refused(values, weights):
    with pytest.raises(ConfigError): ratio(values, weights)


@pytest.mark.parametrize("values, weights", [([1], [3]), ([0, 0], [1, 9]), ([1, 1], [1, 9]), ([0.5, 0.5], [2, 2])])
def test_ratios_of_few_items(values, weights):
    e = sound(ratio(values, weights), 0, 1)
    assert e.low < e.high


@pytest.mark.parametrize("parts", [[[1, 2]], [[0, 1], [0, 1]], [[1, 1], [1, 1]], [[0, 1], [1, 1]]])
def test_corpus_figures_of_few_items(parts):
    sound(bootstrap_corpus(parts, rate, rng(), range=(0, 1), n_resamples=200), 0, 1)


@pytest.mark.parametrize("parts", [[], [[]], [1, 2], [[1, NAN]], [["a", 1]]])
def test_corpus_figures_of_nothing_are_refused(parts):
    with pytest.raises(ConfigError): bootstrap_corpus(parts, rate, rng())


def test_a_figure_that_some_draws_have_not_is_refused():
    def figure(sums): return sums[0] / sums[1] if sums[1] else NAN
    with pytest.raises(ConfigError, match="draws"): bootstrap_corpus([[1, 1], [0, 0], [0, 0]], figure, rng())
    with pytest.raises(ConfigError, match="figure of all"): bootstrap_corpus([[0, 0], [0, 0]], figure, rng())


@pytest.mark.parametrize("function", [lambda x, r: mean_bca(x, r, n_resamples=10), lambda x, r: mean_bca(x, 7),
                                      lambda x, r: iqm([x], None), lambda x, r: bootstrap_corpus([x], rate, "seed")])
def test_a_generator_and_enough_draws_are_needed(function):
    with pytest.raises(ConfigError): function([1, 0], rng())


@pytest.mark.parametrize("k, exposure", [(-1, 1), (1.5, 1), (NAN, 1), (INF, 1), ("a", 1), (1, 0), (1, -2), (1, NAN),
                                         (1, INF)])
def test_rates_that_are_none_are_refused(k, exposure):
    with pytest.raises(ConfigError): event_rate(k, exposure)


def test_rates_by_the_poisson_law():
    for k in (0, 1, 5, 300):
        e = sound(event_rate(k, 2.5, 0.9), 0, INF)
        assert np.isclose(stats.poisson.cdf(k, 2.5 * e.high), 0.05) and (k or e.low == 0)
        if k: assert np.isclose(stats.poisson.sf(k - 1, 2.5 * e.low), 0.05)


@pytest.mark.parametrize("values, q", [([], 0.5), ([NAN], 0.5), ([1], 0), ([1], 1), ([1], NAN), ([[1]], 0.5),
                                       ([-1], 0.5)])
def test_quantiles_that_are_none_are_refused(values, q):
    with pytest.raises(ConfigError): quantile(values, q, range=(0, INF))


@pytest.mark.parametrize("values", [[1], [1, 2], [3, 3, 3], list(range(50))])
def test_quantiles_of_few_values(values):
    for q in (0.01, 0.5, 0.99): sound(quantile(values, q, range=(0, INF)), 0, INF)


@pytest.mark.parametrize("function", DIFFERENCES, ids=lambda f: f.__name__)
def test_differences_of_any_counts(function):
    for n1, n2 in ((1, 1), (1, 30), (2, 3), (40, 40)):
        for k1 in {0, 1, n1 // 2, n1}:
            for k2 in {0, 1, n2 // 2, n2}:
                e = sound(function(k1, n1, k2, n2), -1, 1)
                other = function(k2, n2, k1, n1)
                assert e.low < e.high
                near = 1e-4 if function is bayes_independent else 1e-6
                assert np.allclose((e.low, e.value, e.high), (-other.high, -other.value, -other.low), atol=near)


@pytest.mark.parametrize("function", DIFFERENCES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("given", [(0, 0, 1, 2), (3, 2, 1, 2), (1, 2, NAN, 2), (1, 2, 1, 2, 95)])
def test_differences_that_are_none_are_refused(function, given):
    with pytest.raises(ConfigError): function(*given)


@pytest.mark.parametrize("function", DIFFERENCES, ids=lambda f: f.__name__)
def test_groups_that_share_items_are_refused_with_the_reason(function):
    a, b = [f"q{i}" for i in range(9)], [f"r{i}" for i in range(7)]
    assert function(5, 9, 3, 7, items=a, reference_items=b) == function(5, 9, 3, 7)
    with pytest.raises(ConfigError, match=r"2 items were asked of both, such as 'q0', 'q1'.*paired_difference"):
        function(5, 9, 3, 7, items=a, reference_items=[*a[:2], *b[2:]])
    with pytest.raises(ConfigError, match="one group only"): function(5, 9, 3, 7, items=a)
    with pytest.raises(ConfigError, match="ids for"): function(5, 9, 3, 7, items=a, reference_items=b[:3])


@pytest.mark.parametrize("given", [(1.5, 0), (NAN, 0), (0.5, 0.4, 0, 3), (-0.1, 0.5)])
def test_effect_sizes_that_are_none_are_refused(given):
    with pytest.raises(ConfigError): cohen_h(*given)


@pytest.mark.parametrize("given", [(NAN, 1), (1, NAN), (1, -1), (1, INF), (2, 1, 0.95, (0, 1)), (1, 1, 2)])
def test_standard_errors_that_are_none_are_refused(given):
    with pytest.raises(ConfigError): from_standard_error(*given)


@pytest.mark.parametrize("prior", [(0, 1), (-1, 1), (NAN, 1), (1, INF)])
def test_priors_are_positive(prior):
    with pytest.raises(ConfigError): bayes_proportion(1, 2, prior=prior)
    with pytest.raises(ConfigError): bayes_independent(1, 2, 1, 2, prior=prior)


@pytest.mark.parametrize("x", [[[1]], [[1, 2]], [[1, 1], [2, 2]], [[0, 1], [1, 0]]])
def test_tasks_with_few_runs(x):
    sound(iqm(x, rng(), (0, 9), n_resamples=200), 0, 9)
    sound(probability_of_improvement(x, [[1]] * len(x), rng(), n_resamples=200), 0, 1)


@pytest.mark.parametrize("x", [[], [[]], [1, 2], [[NAN, 1]], np.empty((0, 3))])
def test_tasks_without_runs_are_refused(x):
    with pytest.raises(ConfigError): iqm(x, rng())
    with pytest.raises(ConfigError): probability_of_improvement(x, x, rng())


def test_same_seed_same_bytes_and_the_global_state_is_untouched():
    x, parts = rng(5).random(30), np.c_[rng(6).random(30), np.ones(30)]
    calls = (lambda r: mean_bca(x, r, n_resamples=300), lambda r: bootstrap_corpus(parts, rate, r),
             lambda r: iqm(x.reshape(10, 3), r), lambda r: probability_of_improvement(x.reshape(10, 3), parts[:10], r))
    random.seed(1)
    np.random.seed(1)
    before = (random.getstate(), np.random.get_state()[1].tobytes())
    for call in calls:
        assert to_json(call(rng(7))) == to_json(call(rng(7)))
        assert to_json(call(rng(7))) != to_json(call(rng(8)))
    assert before == (random.getstate(), np.random.get_state()[1].tobytes())


@pytest.mark.parametrize("given, said", [
    ((-1,), "number, 0 at least."), ((2.5, 1, 100), "number, 1 at least and 100 at most."),
    ((1e13,), "number, 0 at least and 1,000,000,000,000 at most."), ((math.nan, 1), "number, 1 at least."),
])
def test_a_whole_number_is_asked_for_in_the_range_that_it_has(given, said):
    value, *limits = given
    with pytest.raises(ConfigError) as e: whole(value, "n", *limits)
    assert str(e.value).endswith(said)
