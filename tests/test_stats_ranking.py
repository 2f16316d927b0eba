"""Set of the best, ranks, Friedman, Bradley-Terry: right answers at the edges, and an error where there is none."""
import numpy as np
import pytest

from qwen_eval.errors import ConfigError
from qwen_eval.stats.ladder import bradley_terry
from qwen_eval.stats.ranking import best_set, friedman, nemenyi_q, rank_intervals

NAN = float("nan")
REFUSED = {
    "no items": ([[], []], "ab"), "one item": ([[1], [0]], "ab"), "one model": ([[1, 0]], "a"),
    "NaN": ([[1, NAN], [0, 1]], "ab"), "unlike items": ([[1, 0, 1], [1, 0]], "ab"), "names twice": ([[1, 0]] * 2, "aa"),
    "names missing": ([[1, 0]] * 3, "ab"), "text": ([["x", "y"]] * 2, "ab"), "one axis": ([1, 0], "ab"),
}


def rng(): return np.random.default_rng(5)


@pytest.mark.parametrize("values, names", REFUSED.values(), ids=REFUSED)
def test_refused(values, names):
    with pytest.raises(ConfigError): best_set(values, names, rng())
    with pytest.raises(ConfigError): friedman(values, names)


@pytest.mark.parametrize("name", [name for name in REFUSED if name != "one item"])
def test_rank_intervals_refuses(name):
    with pytest.raises(ConfigError): rank_intervals(*REFUSED[name])


def test_one_item_says_nothing_of_ranks():
    assert rank_intervals([[1], [0]], "ab").high == (2, 2)


ANSWERED = {
    "two items": [[1, 0], [0, 0]], "all right": [[1] * 8] * 3, "all wrong": [[0] * 8] * 3,
    "all right and all wrong": [[1] * 30, [0] * 30], "ties": [[1, 0, 1, 0], [0, 1, 0, 1]],
    "real": np.random.default_rng(0).uniform(size=(4, 12)), "real, a constant apart": [[0.1, 0.2], [0.3, 0.4]],
    "more models than items": np.random.default_rng(1).integers(0, 2, size=(9, 3)), "epochs": np.ones((3, 5, 2)),
}


@pytest.mark.parametrize("method", ["hsu", "bootstrap"])
@pytest.mark.parametrize("values", ANSWERED.values(), ids=ANSWERED)
def test_the_set_of_the_best_holds_the_first(values, method):
    names = [f"m{k}" for k in range(len(values))]
    found = best_set(values, names, rng(), method=method, n_draws=500)
    means = np.array(found.means)
    assert {names[k] for k in np.flatnonzero(means == means.max())} <= set(found.best)
    assert np.isfinite([found.ahead, found.at_most, found.p_values]).all() and min(found.p_values) > 0
    assert len(found.rows()) == len(names) and found.sentence.startswith("Not excluded as best")


def test_clear_cases():
    apart = best_set([[1] * 30, [0] * 30], "ab", rng())
    assert apart.best == ("a",) and apart.at_most[1] == 0
    assert best_set([[1, 0], [0, 0]], "ab", rng()).best == ("a", "b") # two items exclude nobody
    assert best_set([[1] * 8] * 3, "abc", rng()).best == ("a", "b", "c")
    assert best_set([[1] * 30, [0] * 30], "ab", rng(), higher_is_better=False).best == ("b",)


@pytest.mark.parametrize("method", ["hsu", "bootstrap"])
def test_same_seed_same_bytes_and_no_global_state(method):
    x = np.random.default_rng(2).integers(0, 2, size=(6, 80))
    before = np.random.get_state()[1].copy()
    first, second = (best_set(x, "abcdef", rng(), method=method, n_draws=300) for _ in range(2))
    assert first == second and (np.random.get_state()[1] == before).all()


def test_a_higher_level_never_excludes_more():
    x = np.random.default_rng(3).uniform(size=(7, 60)) + np.linspace(0, 0.2, 7)[:, None]
    sizes = [len(best_set(x, "abcdefg", rng(), level=level, range=(0, 2)).best) for level in (0.5, 0.8, 0.95, 0.999)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


@pytest.mark.parametrize("values", ANSWERED.values(), ids=ANSWERED)
def test_ranks_are_ranks(values):
    k = len(values)
    found = rank_intervals(values, [f"m{i}" for i in range(k)])
    assert all(1 <= a <= r <= b <= k for a, r, b in zip(found.low, found.ranks, found.high, strict=True))
    assert np.isclose(sum(found.ranks), k * (k + 1) / 2)


def test_ranks_of_models_that_are_worlds_apart():
    x = np.repeat(np.array([[0.0] * 200, [1] * 100 + [0] * 100, [1] * 200]), 1, axis=0)
    found = rank_intervals(x, "abc")
    assert (found.low, found.high) == ((3, 2, 1), (3, 2, 1))


def test_friedman_at_the_edges():
    tied = friedman([[1, 1, 1], [1, 1, 1]], "ab")
    assert tied.p_chi2 == 1 and tied.chi2 == 0 and tied.p_f == 1
    same = friedman([[1, 2, 9], [2, 3, 11], [3, 5, 12]], "abc")
    assert np.isclose(same.p_f, 1 / 36) and same.mean_ranks == (3, 2, 1)
    low = friedman([[1, 2, 9], [2, 3, 11], [3, 5, 12]], "abc", higher_is_better=False)
    assert low.mean_ranks == (1, 2, 3)
    for k in (1, 0, 2.5, NAN):
        with pytest.raises(ConfigError): nemenyi_q(k)
    with pytest.raises(ConfigError): nemenyi_q(3, 95)


GAMES = {
    "nothing played": [[0, 0], [0, 0]], "one never lost": [[0, 3], [0, 0]],
    "two islands": [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]], "NaN": [[0, NAN], [1, 0]],
    "negative": [[0, -1], [1, 0]], "not square": [[0, 1]], "one model": [[0]],
    "one-way street": [[0, 2, 1], [2, 0, 1], [0, 0, 0]],
}


@pytest.mark.parametrize("wins", GAMES.values(), ids=GAMES)
def test_bradley_terry_refuses(wins):
    with pytest.raises(ConfigError): bradley_terry(wins, [f"m{k}" for k in range(len(wins))])


def test_bradley_terry_names_the_groups():
    with pytest.raises(ConfigError, match=r"\{m0, m1\} and \{m2, m3\}: no game joins"):
        bradley_terry(GAMES["two islands"], ["m0", "m1", "m2", "m3"])
    with pytest.raises(ConfigError, match="never lost"): bradley_terry(GAMES["one-way street"], "abc")


def test_bradley_terry_of_two_is_a_proportion():
    found = bradley_terry([[0, 30], [10, 0]], "ab").difference("a", "b")
    assert np.isclose(found.value, np.log(3)) and np.isclose(found.se, np.sqrt(1 / 30 + 1 / 10))
    assert np.isclose(found.detail["chance"], 0.75) and found.low < found.value < found.high
    with pytest.raises(ConfigError): bradley_terry([[0, 3], [1, 0]], "ab").difference("a", "c")
    same = bradley_terry([[0, 3], [1, 0]], "ab").difference("a", "a")
    assert (same.value, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_ties_change_strengths_as_stated():
    wins, ties = [[0, 9, 4], [3, 0, 6], [4, 2, 0]], np.array([[0, 5, 2], [5, 0, 1], [2, 1, 0]])
    none, half, davidson = (bradley_terry(wins, "abc", t, tie_rule=r) for t, r in
                            ((None, "half"), (ties, "half"), (ties, "davidson")))
    assert none.tie_rule == "none" and half.n_ties == davidson.n_ties == 8
    assert np.allclose(half.strengths, bradley_terry(np.array(wins) + ties / 2, "abc").strengths)
    assert davidson.nu > 0 and "half a win" in half.sentence and "Davidson" in davidson.sentence
    with pytest.raises(ConfigError, match="symmetric"): bradley_terry(wins, "abc", np.array(wins))


def test_davidson_against_a_general_optimiser():
    from scipy.optimize import minimize
    wins = np.array([[0, 9, 4.0], [3, 0, 6], [4, 2, 0]])
    ties = np.array([[0, 5, 2.0], [5, 0, 1], [2, 1, 0]])
    i, j = np.triu_indices(3, 1)

    def minus(t):
        s = np.r_[0, t[:2]]
        logits = np.stack([s[i], s[j], (s[i] + s[j]) / 2 + t[2]], axis=1)
        p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return -(np.stack([wins[i, j], wins[j, i], ties[i, j]], axis=1) * p).sum()

    best = minimize(minus, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 9999})
    found = bradley_terry(wins, "abc", ties, tie_rule="davidson", reference="a")
    assert np.allclose([*found.strengths[1:], np.log(found.nu)], best.x, atol=1e-5)
