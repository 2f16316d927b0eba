"""Models on the same items: edge inputs, refusals, other implementations, randomness."""
import math
import random

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as of_statsmodels

from qwen_eval.errors import ConfigError
from qwen_eval.records import Estimate, from_json, to_json
from qwen_eval.stats.bayes import bayes_paired
from qwen_eval.stats.bootstrap import paired_bootstrap
from qwen_eval.stats.discordant import MCNEMAR, bonett_price, mcnemar, mcnemar_p, tango
from qwen_eval.stats.paired import paired_difference, paired_t
from qwen_eval.stats.paired_tests import cochran_q, sign_flip

NAN, INF = math.nan, math.inf
DIFFERENCES = (bonett_price, tango, bayes_paired)


def rng(seed=0): return np.random.default_rng(seed)


def flips(a, b, **how): return sign_flip(a, b, rng(), n_resamples=500, **how)


def boot(a, b, **how): return paired_bootstrap(a, b, rng(), n_resamples=200, **how)


OF_VALUES = (paired_t, flips, boot)


def sound(e, low, high):
    "A value within its interval, the interval within the range, everything said."
    assert low <= e.low <= e.value <= e.high <= high, e
    assert all(type(x) is float for x in (e.value, e.low, e.high)), e
    assert e.method and e.how and e.estimand and "nan" not in e.sentence, e
    numbers = [x for x in (e.se, e.df, e.p_value, *e.detail.values()) if x is not None]
    assert all(math.isfinite(x) for x in numbers) and (e.p_value is None or 0 <= e.p_value <= 1), e
    assert from_json(to_json(e), Estimate) == e
    return e


@pytest.mark.parametrize("function", DIFFERENCES, ids=lambda f: f.__name__)
def test_differences_of_any_counts(function):
    for n in (1, 2, 3, 50):
        for b in {0, 1, n // 2, n}:
            for c in {0, 1, n // 2, n}:
                if b + c > n: continue
                e, other = sound(function(b, c, n), -1, 1), function(c, b, n)
                assert e.low < e.high and e.counts == {"b": b, "c": c} and e.scale == "points"
                assert np.allclose((e.low, e.value, e.high), (-other.high, -other.value, -other.low), atol=1e-6)


@pytest.mark.parametrize("function", DIFFERENCES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("given", [(0, 0, 0), (2, 2, 3), (-1, 0, 3), (NAN, 0, 3), (1.5, 0, 3), ("a", 0, 3), (1, 1, INF),
                                   (1, 1, 3, 95), (None, 1, 3)])
def test_counts_that_cannot_be_are_refused(function, given):
    with pytest.raises(ConfigError): function(*given)


@pytest.mark.parametrize("method", MCNEMAR)
def test_mcnemar_of_any_counts(method):
    for b in (0, 1, 2, 9, 400):
        for c in (0, 1, 3, 9, 350):
            e, other = sound(mcnemar(b, c, method), 0, 1), mcnemar(c, b, method)
            assert np.allclose((e.p_value, e.low, e.high), (other.p_value, 1 - other.high, 1 - other.low))
            if method == "exact": assert np.isclose(e.p_value, stats.binomtest(b, b + c).pvalue if b + c else 1)
            if method == "chi2" and b + c:
                assert np.isclose(e.p_value, of_statsmodels([[0, b], [c, 0]], exact=False, correction=False).pvalue)


def test_mid_p_lies_between_its_neighbours():
    for b in range(12):
        for c in range(b):
            p = {m: mcnemar(b, c, m).p_value for m in MCNEMAR}
            assert p["mid-p"] < p["exact"] and p["mid-p"] <= p["chi2-corrected"] + 0.02
    assert np.isclose(mcnemar(6, 1).p_value, 2 * (1 / 128 + 7 / 256)) # by hand


def test_many_at_once_are_the_same():
    b, c = rng().integers(0, 60, (2, 4, 5))
    for method in MCNEMAR:
        one = [mcnemar(int(x), int(y), method).p_value for x, y in zip(b.ravel(), c.ravel(), strict=True)]
        assert np.allclose(mcnemar_p(b, c, method).ravel(), one)


@pytest.mark.parametrize("given", [(-1, 0), (NAN, 0), (1.5, 0), ("a", 0), (1, 2, "fisher"), (1, 2, "exact", 1)])
def test_mcnemar_refuses(given):
    with pytest.raises(ConfigError): mcnemar(*given)


@pytest.mark.parametrize("function", OF_VALUES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("a, b", [([1], [0]), ([0.2], [0.2]), ([1, 1], [0, 0]), ([0, 1], [1, 0]), ([1] * 9, [1] * 9),
                                  ([1] * 30, [0] * 30), ([0.3] * 5, [0.1 + 0.2] * 5), ([0, 1, 1], [0, 1, 0]),
                                  (np.r_[np.ones(3), np.zeros(60)], np.zeros(63))])
def test_few_or_equal_values(function, a, b):
    e = sound(function(a, b), -1, 1)
    assert np.isclose(e.value, np.mean(a) - np.mean(b)) and e.scale == "points" and e.low < e.high
    assert function(b, a).value == -e.value


@pytest.mark.parametrize("function", OF_VALUES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("a, b", [([], []), ([1], []), ([1, 0], [1]), ([NAN, 1], [1, 1]), ([1], [2]), ([[1]], [[0]]),
                                  (["a"], [1]), ([1], [INF])])
def test_values_that_are_no_pairs_are_refused(function, a, b):
    with pytest.raises(ConfigError): function(a, b)


@pytest.mark.parametrize("function", OF_VALUES, ids=lambda f: f.__name__)
def test_other_ranges_are_no_percentages(function):
    e = function([8, 9, 7], [7, 9, 5], range=(1, 10))
    assert sound(e, -9, 9).scale == "number" and "points" not in e.sentence


def test_signs_and_t_agree_on_many_items():
    a, b = rng(3).normal(0.4, 0.1, 300), rng(4).normal(0.38, 0.1, 300)
    t, s = paired_t(a, b, (-2, 2)), sign_flip(a, b, rng(), (-2, 2))
    assert np.isclose(t.p_value, stats.ttest_rel(a, b).pvalue) and np.isclose(t.p_value, s.p_value, atol=0.02)
    assert np.allclose((t.low, t.high), (s.low, s.high), atol=2e-3)


def test_sign_flips_refuse_too_few_draws():
    with pytest.raises(ConfigError): sign_flip([1], [0], rng(), n_resamples=10)
    with pytest.raises(ConfigError): sign_flip([1], [0], 7)


def test_runs_are_compared_with_test_counts_and_error():
    a, b = (np.repeat(kinds, (12, 2, 20, 16)) for kinds in ([1.0, 0, 1, 0], [0.0, 1, 1, 0]))
    e = sound(paired_difference(a, b, range(50), range(50), metric="gain"), -1, 1)
    assert (e.counts, e.scale, e.method, e.metric) == ({"b": 12, "c": 2}, "points", "bonett-price", "gain")
    assert np.isclose(e.p_value, mcnemar(12, 2).p_value) and "McNemar" in e.sentence and "p = 0.007" in e.sentence
    assert np.isclose(e.se, (a - b).std(ddof=1) / 50**0.5)
    assert np.isclose(e.detail["correlation"], np.corrcoef(a, b)[0, 1])
    a, b = [0.5, 1, 0, 0.25], [0, 1, 0, 0.5]
    shared = paired_difference(a, b, range(4), range(4))
    assert shared.method == "paired t" and np.isclose(shared.p_value, stats.ttest_rel(a, b).pvalue)


@pytest.mark.parametrize("a, b, i, j, how", [
    ([1], [1], ["x"], ["y"], {}), ([1, 0], [1], ["x", "y"], ["x"], {}), ([1, 0], [1, 0], ["x", "x"], ["x", "x"], {}),
    ([1], [1], ["x"], ["x"], {"kind": "corpus"}), ([1], [1], ["x"], ["x"], {"level": 95}), ([1], [1], [], ["x"], {}),
    ([1, NAN], [1, 1], "xy", "xy", {}), ([2.5], [0.5], ["x"], ["x"], {"kind": "bounded"})])
def test_runs_that_are_no_pair_are_refused(a, b, i, j, how):
    with pytest.raises(ConfigError): paired_difference(a, b, i, j, **how)


def test_no_pair_judged_is_said():
    for a, b, i in (([], [], []), ([NAN], [1], ["x"])):
        e = paired_difference(a, b, i, i)
        assert e.method == "none" and "not estimated" in str(e) and e.p_value is None


@pytest.mark.parametrize("values", [np.ones((1, 4)), np.ones((2, 0)), np.ones(3), [[1, NAN], [0, 1]],
                                    [[0.5, 1], [0, 1]], [[2, 1], [0, 1]], []])
def test_cochrans_q_refuses(values):
    with pytest.raises(ConfigError): cochran_q(values)


@pytest.mark.parametrize("values", [np.ones((2, 1)), np.zeros((3, 5)), np.eye(3), [[1, 0], [0, 0]]])
def test_cochrans_q_of_few_items(values):
    q = cochran_q(values, level=0.9)
    assert q.statistic >= 0 and 0 <= q.p_value <= 1 and q.df == len(values) - 1 and len(q.rows()) == len(values)
    assert "nan" not in q.sentence and "nan" not in str(q) and q.estimates[0].level == 0.9
    if q.n_telling == 0: assert (q.statistic, q.p_value) == (0, 1)


def test_names_belong_to_models():
    with pytest.raises(ConfigError): cochran_q(np.eye(2), ["one"])
    assert "qwen" in str(cochran_q(np.eye(2), ["qwen", "llama"]))


@pytest.mark.parametrize("prior", [0, -1, NAN, INF])
def test_priors_are_positive(prior):
    with pytest.raises(ConfigError): bayes_paired(1, 0, 2, prior=prior)


def test_same_seed_same_bytes_and_the_global_state_is_untouched():
    a, b = rng(5).random((2, 30))
    calls = (lambda r: sign_flip(a, b, r, n_resamples=500), lambda r: paired_bootstrap(a, b, r, n_resamples=500))
    random.seed(1)
    np.random.seed(1)
    before = (random.getstate(), np.random.get_state()[1].tobytes())
    for call in calls:
        assert to_json(call(rng(7))) == to_json(call(rng(7)))
        assert to_json(call(rng(7))) != to_json(call(rng(8)))
    assert before == (random.getstate(), np.random.get_state()[1].tobytes())
