"""Epochs: pass@k and pass^k, shares of variance, and how a run with repeats or clusters is weighed."""
import math
from itertools import combinations

import numpy as np
import pytest

from qwen_eval.datasets.all import benchmark
from qwen_eval.datasets.base import load
from qwen_eval.engines.base import FakeEngine
from qwen_eval.errors import ConfigError, UnknownNameError
from qwen_eval.evaluation import evaluate
from qwen_eval.models import Model
from qwen_eval.records import Estimate, Item, Score, from_json, to_json
from qwen_eval.runs import Run
from qwen_eval.scores import score_frame
from qwen_eval.stats.clustered import clustered_mean
from qwen_eval.stats.epochs import (
    chance_of_all,
    chance_of_any,
    epochs_gain,
    pass_at_k,
    pass_from_counts,
    pass_hat_k,
    variance_split,
)
from qwen_eval.weighing import weigh

RIGHT = (np.random.default_rng(2).random((12, 5)) < np.linspace(0.05, 0.95, 12)[:, None]).astype(float)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_chances_are_those_of_every_choice_of_k(k):
    "By counting: all ways to take k of five answers."
    n, c = np.full(12, 5), RIGHT.sum(axis=1)
    picks = [RIGHT[:, list(pick)] for pick in combinations(range(5), k)]
    assert np.allclose(chance_of_any(n, c, k), np.mean([p.max(axis=1) for p in picks], axis=0))
    assert np.allclose(chance_of_all(n, c, k), np.mean([p.min(axis=1) for p in picks], axis=0))
    assert np.isclose(pass_at_k(RIGHT, k).value, np.mean([p.max(axis=1) for p in picks]))
    assert np.isclose(pass_hat_k(RIGHT, k).value, np.mean([p.min(axis=1) for p in picks]))


def test_chances_stay_exact_for_many_answers():
    assert math.isclose(chance_of_any(100_000, 3, 50_000), 1 - 0.125, rel_tol=1e-4)
    assert chance_of_any(1000, 990, 11) == 1 and chance_of_all(1000, 1000, 1000) == 1


EDGES = { # answers, k -> pass@k and pass^k, or a part of the message
    "none": ([], 1, "at least 1"),
    "no epochs": (np.ones((3, 0)), 1, "at least one"),
    "one answer": ([[1]], 1, (1, 1)),
    "one item": ([[1, 0, 0]], 2, (2 / 3, 0)),
    "two items": ([[1, 0], [0, 0]], 2, (0.5, 0)),
    "one epoch": ([1, 0, 1], 1, (2 / 3, 2 / 3)),
    "all right": (np.ones((6, 4)), 3, (1, 1)),
    "all wrong": (np.zeros((6, 4)), 3, (0, 0)),
    "ties": ([[1, 0], [0, 1], [1, 0]], 1, (0.5, 0.5)),
    "k > n": (np.ones((6, 4)), 5, "k=5 of 4"),
    "k of none": (np.ones((6, 4)), 0, "whole number"),
    "half a k": (np.ones((6, 4)), 1.5, "whole number"),
    "NaN": ([[1, math.nan]], 1, "not finite"),
    "shared credit": ([[1, 0.5]], 1, "right"),
    "out of range": ([[1, 2]], 1, "possible is 0 to 1"),
}


@pytest.mark.parametrize("name", EDGES)
def test_edges_of_passing(name):
    answers, k, wanted = EDGES[name]
    for method, value in zip((pass_at_k, pass_hat_k), wanted if isinstance(wanted, tuple) else (0, 0), strict=True):
        if isinstance(wanted, str):
            with pytest.raises(ConfigError, match=wanted): method(answers, k)
            continue
        e = method(answers, k)
        assert np.isclose(e.value, value) and 0 <= e.low <= e.value <= e.high <= 1 and e.low < e.high
        assert from_json(to_json(e), Estimate) == e and e.how and e.sentence


def test_counts_and_clusters_of_passing():
    with pytest.raises(ConfigError, match="2 numbers of answers and 1"): pass_from_counts([3, 3], [1], 1)
    with pytest.raises(ConfigError, match="0 to n"): pass_from_counts([3, 3], [4, 1], 1)
    with pytest.raises(ConfigError, match="one cluster"): pass_at_k(RIGHT, 2, ["a"] * 12)
    pairs = pass_at_k(RIGHT, 2, np.arange(12) // 2)
    assert pairs.n_clusters == 6 and pairs.value == pass_at_k(RIGHT, 2).value and pairs.df < pass_at_k(RIGHT, 2).df


def test_more_tries_help_one_and_hurt_each():
    at, hat = ([m(RIGHT, k).value for k in range(1, 6)] for m in (pass_at_k, pass_hat_k))
    assert at == sorted(at) and hat == sorted(hat, reverse=True)


@pytest.mark.parametrize("values, axes, said", [
    ([[1, 0]], ("epochs",), "1 items"), ([[1], [0]], ("epochs",), "1 epochs"), ([], ("epochs",), "2 axes"),
    ([1, 0], ("epochs",), "2 axes"), (np.ones((3, 2)), (), "wanted: 1 axes"), (np.ones(3), (), "axes=()"),
    (np.ones((3, 2, 2)), ("epochs", "seeds"), "last"), (np.ones((3, 2, 2)), ("seeds", "seeds"), "one name for each"),
    ([[1, math.nan], [0, 1]], ("epochs",), "not finite")])
def test_what_a_split_of_variance_refuses(values, axes, said):
    with pytest.raises(ConfigError) as why: variance_split(values, axes)
    assert said in str(why.value)


def test_a_split_of_variance_finds_what_was_put_in():
    rng = np.random.default_rng(4)
    seeds = rng.normal(0, 2, (1, 40, 1))
    split = variance_split(rng.normal(0, 1, (300, 1, 1)) + seeds + rng.normal(0, 3, (300, 40, 2)), ("seeds", "epochs"))
    found = dict(zip(split.sources, split.components, strict=True))
    assert np.isclose(found["epochs"], 9, rtol=0.05) and np.isclose(found["items"], 1, rtol=0.3)
    assert np.isclose(found["seeds"], seeds.var(ddof=1), rtol=0.1) and abs(found["items:seeds"]) < 0.2
    assert split.of_mean[1] / sum(split.of_mean) > 0.9 # forty seeds are what is uncertain, not three hundred items
    assert "seeds" in split.sentence and len(split.rows()) == 4 and "source" in str(split)
    alike = variance_split(np.tile(np.arange(4.0)[:, None], 3), ("seeds",)) # items differ, nothing else does
    assert np.allclose(alike.components, (np.var(np.arange(4), ddof=1), 0, 0)) and "100 % items" in alike.sentence
    assert variance_split(np.ones((2, 2))).se == 0


@pytest.mark.parametrize("given", [(-1, 1, [1]), (0, 0, [1]), (1, 1, [0.5]), (1, 1, []), (math.nan, 1, [1]), (1, 1, 3)])
def test_what_a_gain_refuses(given):
    with pytest.raises(ConfigError): epochs_gain(*given)


def test_a_gain_has_its_limit():
    gain = epochs_gain(1, 3, [1, 3, math.inf])
    assert np.allclose(gain.variance, (4, 2, 1)) and np.allclose(gain.reduction, (0, 0.5, 0.75))
    assert "without end" in gain.sentence and "50 %" in epochs_gain(1, 3, [3]).sentence


# ---------------------------------------------------------------- runs
GOLD = {i.id: i.target for i in load(benchmark("gsm8k"), "specimen").items}


def table(values, clusters=None, **metrics):
    "Scores of items, shape (n_items, n_epochs); NaN is an engine error."
    values = np.asarray(values, float)
    items = [Item(id=f"q{i}", question="?", cluster=clusters[i] if clusters else "") for i in range(len(values))]
    return score_frame([Score(item_id=f"q{i}", epoch=k, value=v, status="engine_error" if math.isnan(v) else "scored",
                              metrics={m: x[i][k] for m, x in metrics.items()})
                        for (i, k), v in np.ndenumerate(values)], {}, items)


def test_a_run_with_epochs_is_weighed_over_items(tmp_path):
    def answer(request):
        return f"#### {GOLD[request.item_id]}" if (request.epoch + len(request.item_id)) % 3 else "#### -"
    run = evaluate(Model(id="toy", context_tok=8192), "gsm8k", engine=FakeEngine(answer), temperature=0.7, epochs=4,
                   source="specimen", answer_tok=32, progress=False, runs=tmp_path)
    assert isinstance(run, Run)
    values, _ = run.values("value")
    e, direct = run.estimate(), clustered_mean(values)
    assert (e.low, e.high, e.df, e.se, e.n_clusters) == (direct.low, direct.high, direct.df, direct.se, len(values))
    assert e.value == values.mean() and e.n_epochs == 4 and e.detail["icc"] == direct.detail["icc"]
    for k in (1, 2, 4): assert run.estimate(f"pass@{k}").value == pass_at_k(values, k).value
    assert run.estimate("pass^2").value == pass_hat_k(values, 2).value
    assert run.estimate("pass@2").metric == "pass@2" and sum(run.estimate("pass@2").counts.values()) == values.size
    with pytest.raises(ConfigError, match="needs 8 answers"): run.estimate("pass@8")
    with pytest.raises(ConfigError, match="whole number"): run.estimate("pass@0")
    for odd in ("pass@", "pass@x", "pass#2"):
        with pytest.raises(UnknownNameError): run.estimate(odd)


def test_a_run_with_clusters_is_weighed_over_them():
    values, clusters = [[1], [1], [0], [0], [1], [0]], ["a", "a", "b", "b", "", ""]
    e = weigh(table(values, clusters), "accuracy")
    direct = clustered_mean([1, 1, 0, 0, 1, 0], ["a", "a", "b", "b", "c", "d"])
    assert (e.low, e.high, e.n_clusters, e.n_items) == (direct.low, direct.high, 4, 6)
    alone = weigh(table(values), "accuracy")
    assert alone.method == "wilson" and alone.n_clusters is None and alone.high - alone.low < e.high - e.low
    assert weigh(table(values, list("abcdef")), "accuracy").method == "wilson" # a cluster each is none
    one = weigh(table(values, ["a"] * 6), "accuracy")
    assert one.n_clusters == 1 and one.method == "clopper-pearson (effective n)" and one.high - one.low > 0.9


def test_missing_answers_leave_the_mean_over_items():
    values = [[1, 1, 1, 1], [0, 1, 0, math.nan], [1, 0, 0, 1]]
    e = weigh(table(values), "accuracy", max_error_rate=0.1)
    assert np.isclose(e.value, np.mean([1, 1 / 3, 1 / 2])) and e.n_clusters == 3
    assert np.isclose(e.se, np.std([1, 1 / 3, 1 / 2], ddof=1) / 3 ** 0.5) and e.counts["engine_error"] == 1
    assert weigh(table(values), "pass@4", max_error_rate=0.1).n_items == 2 # one item has three answers
    with pytest.raises(ConfigError, match="engine errors"): weigh(table(values), "pass@2")
    with pytest.raises(ConfigError, match="right or wrong"): weigh(table(np.full((3, 2), 0.5)), "pass@2")


def test_bounded_and_suffixed_metrics_over_epochs():
    mc2 = np.random.default_rng(1).uniform(size=(5, 3))
    e = weigh(table(np.ones((5, 3)), mc2=mc2), "mc2")
    direct = clustered_mean(mc2, kind="bounded")
    assert np.isclose(e.value, mc2.mean()) and np.allclose((e.low, e.high), (direct.low, direct.high))
    plus = (mc2 > 0.5).astype(float)
    frame = table(np.ones((5, 3)), **{"pass@1_plus": plus})
    assert np.isclose(weigh(frame, "pass@3_plus").value, plus.max(axis=1).mean()) and weigh(frame, "pass@3").value == 1


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_perfect_score_of_few_items_is_no_certainty(value):
    e = weigh(table(np.full((8, 50), value)), "accuracy")
    assert e.value == value and e.high - e.low > 0.3 and "effective number" in e.how # eight items, not four hundred
