"""Scorers reproduce what other people published, chance scores chance, and no text is too long."""
import csv
import gzip
import json
import os
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from qwen_eval.datasets.all import benchmark
from qwen_eval.datasets.base import load
from qwen_eval.errors import ConfigError
from qwen_eval.extract import extractors, find_numbers, parse_number
from qwen_eval.prompts import letter_order
from qwen_eval.records import Completion, Continuation, Item
from qwen_eval.scorers.code import python_tests
from qwen_eval.scorers.text import ScoreOptions, score_items
from qwen_eval.scores import score_frame
from qwen_eval.weighing import weigh

DATA = os.environ.get("QWEN_EVAL_DATA")
PUBLISHED = Path(os.environ.get("QWEN_EVAL_PUBLISHED") or (Path(DATA).parent / "published" if DATA else "published"))


def published(name):
    if not (PUBLISHED / name).is_file(): pytest.skip(f"needs QWEN_EVAL_PUBLISHED: no {name} there")
    return gzip.open(PUBLISHED / name, "rt", encoding="utf-8")


def items_of(name):
    if not DATA: pytest.skip("needs QWEN_EVAL_DATA: the folder of benchmark files")
    return load(benchmark(name), source="file").items


def scored(pairs, name, variant, **options):
    _, chosen = benchmark(name).variant(variant)
    return list(score_items(pairs, chosen.score, chosen, ScoreOptions(**options)))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["completion", "instruct"])
def test_humaneval_statuses_equal_those_of_evalplus(variant):
    from qwen_eval.sandbox import available
    if not available(): pytest.skip("needs a sandbox: user namespaces or Landlock")
    with published("qwen2.5_coder_1.5b/humaneval/generated_eval_results.json.gz") as f: theirs = json.load(f)["eval"]
    with published("qwen2.5_coder_1.5b/humaneval/generated.jsonl.gz") as f: rows = [json.loads(line) for line in f]
    items, start = {i.id: i for i in items_of("humaneval")}, time.monotonic()
    pairs = [(items[r["task_id"]], Completion(item_id=r["task_id"], text=r["completion"])) for r in rows]
    ours = {s.item_id: s.value == 1 for s in scored(pairs, "humaneval", variant, n_workers=2)}
    assert time.monotonic() - start < 60
    assert ours == {key: tries[0]["base_status"] == "pass" for key, tries in theirs.items()}
    assert len(ours) == 164 and sum(ours.values()) == 72


def test_gsm8k_labels_equal_those_of_the_authors():
    with published("gsm8k_openai/solutions.jsonl.gz") as f: rows = [json.loads(line) for line in f]
    different = total = 0
    for model in ("6b_finetuning", "175b_finetuning"):
        items = [Item(id=r["question"], question=r["question"], target=r["ground_truth"].rpartition("A:")[2].strip())
                 for r in rows]
        pairs = [(i, Completion(item_id=i.id, text=r[model]["solution"])) for i, r in zip(items, rows, strict=True)]
        for variant in ("cot", "fewshot"):
            scores = scored(pairs, "gsm8k", variant)
            different += sum((s.value == 1) != r[model]["is_correct"] for s, r in zip(scores, rows, strict=True))
            total += len(scores)
    assert (different, total) == (0, 2 * 2638)


def test_gsm8k_gold_solutions_are_right_in_both_forms():
    items = items_of("gsm8k")
    scores = scored([(i, Completion(item_id=i.id, text=i.extra["solution"])) for i in items], "gsm8k", "fewshot")
    assert len(scores) == 1319
    assert all(s.metrics["exact_match_strict"] == s.metrics["exact_match_flexible"] == 1 for s in scores)


def test_letters_equal_those_that_the_authors_of_mmlu_pro_found():
    name = PUBLISHED / "mmlu_pro/Qwen1.5-7B-Chat_5shots.zip"
    if not name.is_file(): pytest.skip("needs QWEN_EVAL_PUBLISHED: no mmlu_pro there")
    with zipfile.ZipFile(name) as z: rows = json.loads(z.read(z.namelist()[0]))
    find = extractors.get("letter")
    said = [(find(r["generated_text"], Item(id=r["question_id"], question=r["question"], choices=tuple(r["options"]))),
             r["pred"])
            for r in rows]
    both = [ours == theirs for ours, theirs in said if ours and theirs]
    missed = [theirs for ours, theirs in said if theirs and not ours] # "(B) and (G)": they take the first, we none
    assert len(both) > 8900 and np.mean(both) > 0.985 and len(missed) < 230


def test_hellaswag_accuracy_equals_the_published_one():
    with published("hellaswag/Qwen2.5-1.5B_loglik.csv.gz") as f: means = np.array(list(csv.reader(f))[1:], float)
    items = items_of("hellaswag")
    ends = [tuple(Continuation(logprob=float(p), n_tok=1) for p in row) for row in means]
    pairs = [(i, Completion(item_id=i.id, continuations=e)) for i, e in zip(items, ends, strict=True)]
    frame = score_frame(scored(pairs, "hellaswag", "cloze"), {}, items)
    assert round(100 * weigh(frame, "acc_tok").value, 2) == 65.86


@pytest.mark.parametrize("name", ["arc_challenge", "hellaswag"])
def test_constant_likelihood_scores_the_mean_of_one_over_k(name):
    items = items_of(name)
    same = Continuation(logprob=0.0, n_tok=3)
    pairs = [(i, Completion(item_id=i.id, continuations=(same,) * len(i.choices))) for i in items]
    flat = score_frame(scored(pairs, name, "cloze"), {}, items)
    chance = np.mean([1 / len(i.choices) for i in items])
    for metric in ("acc", "acc_norm", "acc_bytes", "acc_tok"):
        assert np.isclose(weigh(flat, metric).value, chance)


def test_constant_labels_score_the_mean_of_one_over_k():
    items = items_of("arc_challenge")
    pairs = [(i, Completion(item_id=i.id, label_logprobs=(-1.5,) * len(i.choices))) for i in items]
    values = [s.value for s in scored(pairs, "arc_challenge", "label")]
    assert np.isclose(np.mean(values), np.mean([1 / len(i.choices) for i in items]))


@pytest.mark.parametrize("letter", "ABCD")
def test_always_one_letter_scores_chance(letter):
    items = items_of("arc_challenge")
    chance = np.mean([1 / len(i.choices) for i in items])
    items = [i for i in items if len(i.choices) > ord(letter) - 65]
    logprobs = {i.id: tuple(-float(chr(65 + k) != letter) for k in range(len(i.choices))) for i in items}
    said = [(i, Completion(item_id=i.id, text=f"The answer is {letter}.")) for i in items]
    likely = [(i, Completion(item_id=i.id, label_logprobs=logprobs[i.id])) for i in items]
    for pairs, variant in ((said, "letter"), (likely, "label")):
        assert abs(np.mean([s.value for s in scored(pairs, "arc_challenge", variant)]) - chance) < 0.02


def test_every_number_found_can_be_read():
    rng = np.random.default_rng(5)
    for text in ("".join(rng.choice(list("01234.,,// -e^$½¾x{}"), 12)) for _ in range(20_000)):
        assert all(parse_number(n) is not None for n in find_numbers(text)), text


SAYINGS = ("{0}", "({0})", "**{0}**", "{0}. {1}", "Answer: {0}", "The answer is {0}.",
           "The correct answer is **{0}. {1}**",
           "\\boxed{{{0}}}", "{0}) {1}\n\nBecause A is wrong.",
           "Let me think. A plant is not B, so the answer is ({0}).",
           "The answer is ({0}). A planet is no star, so (A) is wrong.",
           "{0}\n\nHeat rises, therefore B is not correct.",
           "<think>{1}? The answer is A.</think>\n\n{0}", "{1}")


def test_the_right_letter_and_the_right_words_score_one():
    items = items_of("arc_challenge")
    letters = {i.id: "ABCDE"[letter_order(i).index(i.target)] for i in items}
    for say in SAYINGS:
        pairs = [(i, Completion(item_id=i.id, text=say.format(letters[i.id], i.choices[i.target]))) for i in items]
        wrong = [(s.item_id, s.answer) for s in scored(pairs, "arc_challenge", "letter") if s.value != 1]
        assert len(wrong) <= (3 if say == "{1}" else 0), (say, wrong[:5]) # options that read the same


LOOPS = ("The answer is ", "A. ", "((((", "1,234,", "9", "x 10^", "\\frac{1", "\\boxed{", " ", "\t\n", "answer",
         "A or ", "<think>", "</think>", "-$", "1/", "#### ", "$\\text{", "答案", "B) ",
         "1,00,", "1½", "so A is ",
         "```python\n", "```", "~~~~", "`", "def f(x):\n", "    return 1\n", "def f(x):\n    return (\n", '"""',
         "import x\n", "@x\n", "x = [", "class A:\n    def f(self):\n        return 1\n")


@pytest.mark.slow
@pytest.mark.parametrize("loop", LOOPS)
def test_a_megabyte_of_anything_is_read_in_seconds(loop):
    text = loop * (1_000_000 // len(loop))
    item = Item(id="x", question='def f(x):\n    """Doc."""\n', choices=("one", "two", "three"), target=0,
                extra={"entry_point": "f"})
    for name in extractors.names():
        start = time.process_time()
        extractors.get(name)(text, item)
        assert time.process_time() - start < 10, (name, time.process_time() - start)


def test_no_sandbox_leaves_programs_unscored(monkeypatch):
    import qwen_eval.scorers.code as module
    from qwen_eval.errors import SandboxError

    def nowhere(**_): raise SandboxError("nothing confines a program here")
    monkeypatch.setattr(module, "Sandbox", nowhere)
    item = Item(id="x", question="def f(x):\n", extra={"entry_point": "f", "test": "def check(f): pass"})
    pairs = [(item, Completion(item_id="x", epoch=k, text=t)) for k, t in enumerate(("    return 1", "No."))]
    _, variant = benchmark("humaneval").variant("instruct")
    scores = sorted(python_tests(pairs, variant, ScoreOptions()), key=lambda s: s.epoch)
    assert [s.status for s in scores] == ["not_scored"] * 2 and all("no sandbox (" in s.detail for s in scores)


@pytest.mark.parametrize("text", ["I cannot.", "```python\ndef f(x): return x\n```"])
def test_an_item_without_the_name_of_its_function_is_refused(text):
    item = Item(id="mine/1", question="Write f", extra={"test": "assert f(1) == 1"})
    _, variant = benchmark("humaneval").variant("instruct")
    pairs = [(item, Completion(item_id=item.id, text=text))]
    with pytest.raises(ConfigError, match=r"mine/1.*extra\['entry_point'\]"):
        list(python_tests(pairs, variant, ScoreOptions(allow_unsafe_code=True)))
