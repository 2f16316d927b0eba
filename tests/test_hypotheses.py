"""What a study is to confirm: the grammar, what it expands to, and what it refuses."""
import pytest

from qwen_eval.errors import ConfigError
from qwen_eval.hypotheses import Way, parse_hypotheses

STUDY = {"models": ("small", "large", "org/odd@1.0"), "presets": ("balanced", "performance", "memory_optimized"),
         "benchmarks": ("gsm8k", "mmlu", "mt_bench")}
WAYS = {(m, b): Way("letter-gen", "generate", {"mt_bench": "judge_score"}.get(b, "acc"))
        for m in STUDY["models"] for b in STUDY["benchmarks"]}


def parsed(text, ways=None): return parse_hypotheses(text, **STUDY, ways=ways)


@pytest.mark.parametrize(("text", "kind", "margin", "pairs"), [
    ("large > small on gsm8k", "superior", None, [("large", "balanced", "small", "balanced")]),
    ("large!=small on gsm8k", "different", None, [("large", "balanced", "small", "balanced")]),
    ("balanced = performance within 0.02 on gsm8k", "equivalent", 0.02,
     [(m, "balanced", m, "performance") for m in STUDY["models"]]),
    ("small/performance >= small within .05 on gsm8k", "noninferior", 0.05,
     [("small", "performance", "small", "balanced")]),
    ("org/odd@1.0/performance > small on gsm8k", "superior", None,
     [("org/odd@1.0", "performance", "small", "balanced")]),
])
def test_what_a_line_stands_for(text, kind, margin, pairs):
    found = parsed(text)
    assert [(*h.a, *h.b) for h in found] == pairs
    assert {(h.kind, h.margin, h.metric, h.benchmark) for h in found} == {(kind, margin, None, "gsm8k")}


def test_benchmarks_metric_and_order():
    found = parsed("# first\nlarge > small on all metric label_acc; balanced != performance on mmlu, gsm8k\n\n")
    assert [h.benchmark for h in found[:3]] == list(STUDY["benchmarks"])
    assert {h.metric for h in found[:3]} == {"label_acc"}
    assert [(h.id, h.a[0], h.benchmark) for h in found[3:5]] == [("H2.1", "small", "mmlu"), ("H2.2", "small", "gsm8k")]
    assert len(found) == len({h.id for h in found}) == 3 + 3 * 2


def test_each_test_reads_as_itself_again():
    found = parsed("large > small on all; balanced = memory_optimized within 0.02 on mmlu metric acc; "
                   "org/odd@1.0 >= large within 0.125 on gsm8k; small/performance != large on gsm8k")
    again = parsed(";".join(h.text for h in found))
    assert [h.same for h in again] == [h.same for h in found]


@pytest.mark.parametrize(("text", "said"), [
    ("larg > small on gsm8k", "Unknown model or preset of the study 'larg'. Did you mean 'large'"),
    ("large/balancd > small on gsm8k", "Unknown preset of the study 'balancd'. Did you mean 'balanced'"),
    ("lrge/balanced > small on gsm8k", "Unknown model of the study 'lrge'. Did you mean 'large'"),
    ("large > small on gsm8", "Unknown benchmark of the study 'gsm8'. Did you mean 'gsm8k'"),
    ("large > small on gsm8k metric labl_acc", "Unknown metric 'labl_acc'. Did you mean 'label_acc'"),
    ("large > small", "names no benchmark"),
    ("large > small on gsm8k all", "'all' beside benchmarks"),
    ("large beats small on gsm8k", "no known form"),
    ("large < small on gsm8k", "turn it round: small > large"),
    ("large <= small within 0.1 on gsm8k", "turn it round: small >= large"),
    ("balanced = performance on gsm8k", "needs a margin"),
    ("balanced >= performance on gsm8k", "needs a margin"),
    ("balanced = performance within 0 on gsm8k", "out of range"),
    ("balanced = performance within -0.1 on gsm8k", "out of range"),
    ("balanced = performance within nan on gsm8k", "out of range"),
    ("balanced = performance within 2% on gsm8k", "no number"),
    ("large > small within 0.02 on gsm8k", "belongs to"),
    ("large > large on gsm8k", "both sides are large"),
    ("large > large/balanced on gsm8k", "both sides are large"),
    ("balanced = balanced within 0.1 on gsm8k", "both sides are balanced"),
    ("large > balanced on gsm8k", "a preset with a model"),
    ("large > small on gsm8k; small > large on gsm8k", "repeats H1"),
    ("large > small on gsm8k; large != small on all", "repeats H1"),
    ("balanced = performance within 0.02 on gsm8k; performance = balanced within 0.03 on gsm8k", "repeats H1.1"),
])
def test_what_is_refused(text, said):
    with pytest.raises(ConfigError) as e: parsed(text)
    assert said in str(e.value) and "hypothesis" in str(e.value)


def test_all_that_is_wrong_is_said_with_its_line():
    with pytest.raises(ConfigError) as e: parsed("larg > small on gsm8k\nlarge > small on mmlu\nbalanced = fast on all")
    assert "hypothesis 1, 'larg > small on gsm8k'" in str(e.value) and "hypothesis 3" in str(e.value)
    assert "hypothesis 2" not in str(e.value)


def test_two_tests_of_one_pair_that_are_not_the_same_one():
    assert len(parsed("large > small on gsm8k; large = small within 0.02 on gsm8k; "
                      "large >= small within 0.02 on gsm8k; "
                      "small >= large within 0.02 on gsm8k; large > small on gsm8k metric label_acc")) == 5


def test_letter_against_cloze_and_margins_beyond_the_metric():
    ways = WAYS | {("large", "mmlu"): Way("cloze", "continuations", "acc_norm")}
    with pytest.raises(ConfigError, match=r"mmlu asks large in the variant cloze .* different measurements"):
        parsed("large > small on all", ways)
    assert len(parsed("large > small on gsm8k mt_bench", ways)) == 2
    with pytest.raises(ConfigError, match="the margin 2 is out of range: acc of gsm8k lies between 0 and 1"):
        parsed("balanced = performance within 2 on gsm8k", WAYS)
    assert parsed("balanced = performance within 2 on mt_bench", WAYS)
    with pytest.raises(ConfigError, match="repeats H1"):
        parsed("large > small on gsm8k; large > small on gsm8k metric acc", WAYS)
