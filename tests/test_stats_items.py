"""Items, abilities and subsets: edge inputs give a right answer or say what is missing."""
import math
import random

import numpy as np
import pytest

from qwen_eval.errors import ConfigError
from qwen_eval.stats.ability import abilities, answers, information
from qwen_eval.stats.items import fit_items, item_analysis
from qwen_eval.stats.subsets import misfit, short_form

NAN = math.nan


def drawn(seed, n_models, n_items, slope_sd=0.4): # abilities, slopes, intercepts, answers
    rng = np.random.default_rng(seed)
    theta, a, b = rng.normal(size=n_models), np.exp(rng.normal(0, slope_sd, n_items)), rng.normal(0, 1.2, n_items)
    return theta, a, -a * b, (rng.random((n_models, n_items)) < 1 / (1 + np.exp(-a * (theta[:, None] - b)))) * 1.0


X = drawn(0, 20, 30)[3]
RNG = np.random.default_rng
REFUSED = [
    ("answers, one axis", lambda: answers([1, 0]), "shape"),
    ("answers, none", lambda: answers(np.empty((0, 0))), "at least 2 models"),
    ("answers, shares", lambda: answers([[0.5, 1], [1, 0]]), "neither"),
    ("answers, text", lambda: answers([["a"]]), "numbers"),
    ("answers, nothing asked", lambda: answers([[1, 0], [NAN, NAN]]), "no answer"),
    ("counting, one model", lambda: item_analysis([[1, 0]]), "at least 2 models"),
    ("counting, no items", lambda: item_analysis(np.empty((3, 0))), "items"),
    ("counting, not asked", lambda: item_analysis([[1, NAN], [0, NAN]]), "no model"),
    ("counting, level", lambda: item_analysis(X, level=0), "level"),
    ("fit, two models", lambda: fit_items(X[:2]), "at least 3 models"),
    ("fit, two items", lambda: fit_items(X[:, :2]), "at least 3 models and 3 items"),
    ("fit, all right", lambda: fit_items(np.ones((5, 9))), "answered differently"),
    ("fit, all wrong", lambda: fit_items(np.zeros((5, 9))), "answered differently"),
    ("fit, constant but two", lambda: fit_items(np.c_[np.ones((5, 9)), np.eye(5)[:, :2]]), "answered differently"),
    ("fit, model", lambda: fit_items(X, model="3pl"), "known"),
    ("fit, perfect steps", lambda: fit_items(np.tril(np.ones((9, 9)), -1), prior=False), "no finite answer"),
    ("ability, unknown items", lambda: abilities([[1, NAN]], [NAN, 1], [0, 0]), "known slope"),
    ("ability, sizes", lambda: abilities(X, [1.0], [0.0]), "slopes of shape"),
    ("ability, no slope", lambda: abilities([[1, 0]], [NAN, NAN], [0, 0]), "one item must count"),
    ("information, infinite", lambda: information([math.inf], [0.0]), "infinite"),
    ("information, nowhere", lambda: information([1.0], [0.0], []), "at least 1"),
    ("information, NaN", lambda: information([1.0], [0.0], [NAN]), "not finite"),
    ("misfit, other answers", lambda: misfit(X[:, :9], fit_items(X)), "belong|fitted from"),
    ("subset, k = n", lambda: short_form(X, 30, RNG(0)), "fewer than all"),
    ("subset, k > n", lambda: short_form(X, 31, RNG(0)), "fewer than all"),
    ("subset, one", lambda: short_form(X, 1, RNG(0)), "at least 2"),
    ("subset, a share", lambda: short_form(X, 0.5, RNG(0)), "at least 2"),
    ("subset, few models", lambda: short_form(X[:3], 5, RNG(0)), "at least 4 models"),
    ("subset, few for a fit", lambda: short_form(X[:7], 5, RNG(0), "information"), "at least 8 models"),
    ("subset, missing", lambda: short_form(np.where(np.eye(20, 30) > 0, NAN, X), 5, RNG(0)), "not finite"),
    ("subset, method", lambda: short_form(X, 5, RNG(0), "best"), "known"),
    ("subset, folds", lambda: short_form(X, 5, RNG(0), n_folds=1), "groups"),
]


@pytest.mark.parametrize("call,said", [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_what_cannot_be_answered_says_what_is_missing(call, said):
    with pytest.raises(ConfigError, match=said): call()


@pytest.mark.parametrize("kind", ["tiny", "one differs", "steps", "coins", "opposed", "gaps", "one strong"])
@pytest.mark.parametrize("model", ["2pl", "rasch"])
def test_fits_of_odd_answers_are_finite(kind, model):
    x = {"tiny": np.eye(3), "one differs": np.vstack([np.zeros((8, 6)), np.ones(6)]),
         "steps": np.tril(np.ones((9, 9)), -1)[:, :8], "coins": (RNG(1).random((12, 25)) < 0.5) * 1.0,
         "opposed": np.c_[X, 1 - X], "gaps": np.where(RNG(2).random(X.shape) < 0.4, NAN, X),
         "one strong": np.vstack([X, np.ones(30)])}[kind]
    if kind == "one differs" or (model == "rasch" and kind in ("tiny", "opposed")):
        with pytest.raises(ConfigError, match="no finite answer"): fit_items(x, model=model) # slopes without end, or 0
        return
    fit = fit_items(x, model=model)
    for name in ("slope", "slope_se", "intercept", "difficulty", "difficulty_se"):
        found = getattr(fit, name)
        assert np.isfinite(found[fit.used]).all() and np.isnan(found[~fit.used]).all(), name
    constant = [len(np.unique(c[~np.isnan(c)])) < 2 for c in x.T]
    assert np.array_equal(~fit.used, constant) and f"{sum(constant)} items" in fit.sentence
    assert np.isfinite(fit.ability).all() and (fit.ability_se > 0).all() and math.isfinite(fit.loglik)
    assert "nan" not in fit.sentence and len(fit.items()) == x.shape[1] and str(fit)
    stray = misfit(x, fit)
    assert np.isfinite(stray.outfit_z[fit.used]).all() and stray.sentence and isinstance(stray.rows(), list)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_counting_where_all_answer_alike(value):
    found = item_analysis(np.full((4, 3), value))
    assert (found.share == value).all() and (found.high - found.low > 0.2).all() and found.reliability is None
    assert np.isnan(found.discrimination).all()
    assert f"{3 * int(value)} are answered right by all, {3 - 3 * int(value)} by none" in found.sentence
    assert len(found.rows()) == 2 and len(found.items()) == 3


def test_a_fit_is_the_maximum_it_claims_to_be():
    "No small move of one item raises the marginal likelihood (without a prior)."
    x = drawn(3, 400, 6)[3]
    fit = fit_items(x, prior=False)
    grid = np.linspace(-8, 8, 2001)
    def loglik(a, d):
        p = 1 / (1 + np.exp(-(np.multiply.outer(grid, a) + d)))
        mass = np.exp(np.log(p) @ x.T + np.log1p(-p) @ (1 - x.T) - grid[:, None] ** 2 / 2) / np.sqrt(2 * np.pi)
        return np.log(mass.sum(0) * (grid[1] - grid[0])).sum()
    best = loglik(fit.slope, fit.intercept)
    assert abs(best - fit.loglik) < 1e-4
    for j in range(6):
        for step in (-0.05, 0.05):
            assert loglik(fit.slope + step * (np.arange(6) == j), fit.intercept) < best
            assert loglik(fit.slope, fit.intercept + step * (np.arange(6) == j)) < best
    for scale in (0.98, 1.02): assert loglik(fit.slope * scale, fit.intercept) < best


def test_priors_say_nothing_of_the_scale():
    "The same items twice are the same fit: the prior must not win over 30 models because items are many."
    _, a, _, x = drawn(5, 30, 3000)
    fit = fit_items(x)
    used = fit.used
    theta = drawn(5, 30, 3000)[0]
    assert abs(np.median(fit.slope[used] / a[used]) / theta.std() - 1) < 0.15
    assert abs(np.mean(fit.ability ** 2 + fit.ability_se ** 2) - 1) < 1e-3 and abs(fit.ability.mean()) < 1e-3


def test_items_that_work_against_the_rest_do_not_stop_a_fit():
    for seed in range(3):
        x = drawn(seed, 60, 300)[3]
        bad = np.argsort(np.abs(x.mean(0) - 0.6))[:3]
        x[:, bad] = 1 - x[:, bad]
        fit = fit_items(x)
        assert fit.n_steps < 100 and (fit.slope[bad] < np.nanmedian(fit.slope)).all()
        assert (item_analysis(x).discrimination[bad] < 0).all()


def test_items_do_not_depend_on_the_order_of_models_or_items():
    fit, models, items = fit_items(X), RNG(4).permutation(20), RNG(5).permutation(30)
    other = fit_items(X[models][:, items])
    assert np.allclose(other.slope, fit.slope[items], atol=1e-4, equal_nan=True)
    assert np.allclose(other.ability, fit.ability[models], atol=1e-4)


def test_abilities_of_the_fitted_models_are_those_of_the_fit():
    fit = fit_items(X)
    found = abilities(X, fit.slope, fit.intercept)
    assert np.allclose(found.ability, fit.ability, atol=1e-6) and np.allclose(found.se, fit.ability_se, atol=1e-6)


@pytest.mark.parametrize("method", ["random", "stratified", "information"])
def test_subsets_are_the_same_bytes_for_the_same_seed(method):
    before, plain = np.random.get_state()[1].tobytes(), random.getstate()
    one, two, other = (short_form(X, 8, RNG(s), method) for s in (1, 1, 2))
    assert one.errors.tobytes() == two.errors.tobytes() and one.items.tobytes() == two.items.tobytes()
    assert one.error == two.error and other.random_error != one.random_error
    assert len({*one.items.tolist()}) == 8 and 0 <= one.error.low <= one.error.value <= one.error.high <= 1
    assert np.random.get_state()[1].tobytes() == before and random.getstate() == plain


def test_strata_follow_difficulty():
    easy_to_hard = np.tile(np.r_[np.ones(20), np.zeros(20)], (6, 1))
    easy_to_hard[0, :20:2], easy_to_hard[1, 20::2] = 0, 1 # models differ
    for seed in range(10): # one item of each half of the order of difficulty
        half = easy_to_hard.mean(0)[short_form(easy_to_hard, 2, RNG(seed)).items]
        assert half.max() >= 5 / 6 and half.min() <= 1 / 6
