"""Derived benchmarks and what is concluded from them, with models that are known to have memorised, or not."""
import json
import re
from fractions import Fraction

import pytest
from test_cli import ask, lab  # noqa: F401

from qwen_eval.contamination import KINDS, contamination, passes
from qwen_eval.datasets.all import benchmark, benchmarks
from qwen_eval.datasets.base import item_order, load
from qwen_eval.datasets.declared import Benchmark, Source, Variant, derivations
from qwen_eval.derived import free_of_order, item_text, rotated
from qwen_eval.engines.base import FakeEngine
from qwen_eval.errors import ConfigError, UnknownNameError
from qwen_eval.evaluation import evaluate, rescore
from qwen_eval.perturbed import Recipe, givens, perturbed, recipe
from qwen_eval.prompts import correct_letter, letter_order
from qwen_eval.records import Estimate, Item
from qwen_eval.settings import settings
from qwen_eval.verification import verify_run

needs_data = pytest.mark.skipif(settings().data is None, reason="needs the real items: set QWEN_EVAL_DATA")


def specimens(name): return load(benchmark(name), "specimen").items


def by_id(name): return {i.id: i for i in specimens(name)}


# --- derived benchmarks

@pytest.mark.parametrize("name", [b.id for b in benchmarks() if b.id in (
    "humaneval", "mbpp", "gsm8k", "arc_challenge", "hellaswag", "mmlu", "truthfulqa")])
def test_every_benchmark_can_be_cut_in_two(name):
    own, cut = by_id(name), specimens(f"{name}+continuation")
    for i in cut:
        text = " ".join(item_text(own[i.id]).split())
        assert text.startswith(f"{' '.join(i.question.split())} {i.target}") and len(i.target.split()) >= 8


def test_derived_sets_can_not_be_mistaken():
    for name in ("gsm8k+numbers", "gsm8k+numbers0", "mmlu+order0", "gsm8k+continuation"):
        own, new = load(benchmark(name.partition("+")[0]), "specimen"), load(benchmark(name), "specimen")
        assert "derived" in new.marks and "derived" not in own.marks and new.benchmark_id == name
        assert own.item_set_hash != new.item_set_hash and benchmark(name).version == "1+1" and name not in benchmarks()


def test_unknown_kinds_are_named():
    with pytest.raises(UnknownNameError, match="numbers"): benchmark("gsm8k+number")
    with pytest.raises(UnknownNameError): benchmark("gsm9k+numbers")
    with pytest.raises(ConfigError, match="letters"): benchmark("truthfulqa+order1")
    assert {*derivations.names()} == {n for names in KINDS.values() for n in names}


def test_derived_items_keep_their_places():
    "Whatever the seed, the first n of one set are the first n of the other: pairs are never of different items."
    for seed in range(5):
        for kinds in (("mmlu+order0", "mmlu+order1", "mmlu+order3"), ("gsm8k+numbers0", "gsm8k+numbers")):
            orders = [[i.id for i in item_order(load(benchmark(k), "specimen").items, k, seed)] for k in kinds]
            assert all(o == orders[0] for o in orders)


def test_a_derived_run_is_a_run(tmp_path, monkeypatch):
    "It is resumed, shown, scored again and verified by its own name."
    monkeypatch.setenv("QWEN_EVAL_RUNS", str(tmp_path))
    how = {"engine": FakeEngine("constant"), "source": "specimen", "runs": tmp_path, "progress": False}
    run = evaluate("qwen3_8b", "gsm8k+numbers", limit=1, **how)
    run = evaluate("qwen3_8b", "gsm8k+numbers", **how)
    assert how["engine"].n_requests == len(specimens("gsm8k+numbers")) and "gsm8k-numbers" in run.id
    assert "DERIVED" in repr(run) and set(run.items().question) == {i.question for i in specimens("gsm8k+numbers")}
    assert rescore(run, progress=False).estimate() == run.estimate()
    assert verify_run(run.path, deep=True)["status"] == "ok"


# --- orders

def test_rotations_move_the_right_option_to_every_letter():
    for item in specimens("mmlu"):
        n = len(item.choices)
        assert {correct_letter(rotated(item, k)) for k in range(n)} == {*"ABCDEFGHIJ"[:n]}
        for k in range(n):
            new = rotated(item, k)
            assert sorted(new.choices) == sorted(item.choices) and new.id == item.id
            assert new.choices[new.target] == item.choices[item.target]
            assert [new.choices[i] for i in letter_order(new)] == [*item.choices[k:], *item.choices[:k]]


def test_few_options_never_come_back_to_the_source():
    item = Item(id="x", question="?", choices=("yes", "no"), target=1)
    assert [correct_letter(rotated(item, k)) for k in range(4)] == ["B", "A", "A", "A"]


@needs_data
def test_most_real_items_are_free_of_order():
    assert all(map(free_of_order, load(benchmark("arc_challenge")).items))
    items = load(benchmark("mmlu")).items
    kept = [i for i in items if free_of_order(i)]
    assert 0.9 * len(items) < len(kept) < len(items)
    assert not any(re.search(r"(?i)\b(all|none|both|neither) of the above\b", c) for i in kept for c in i.choices)


# --- numbers

@needs_data
def test_real_numbers():
    "Every changed item of GSM8K: annotations worked again by other means, forms kept, target and question changed."
    whole, new = load(benchmark("gsm8k")), load(benchmark("gsm8k+numbers"))
    own = {i.id: i for i in whole.items}
    assert (len(whole), len(new), new.pool) == (1319, 302, whole.pool)
    for old, n in ((own[n.id], n) for n in new.items):
        changed = n.extra["changed"]
        assert n.target != old.target and n.question != old.question and n.target == str(Fraction(n.target))
        assert all(len(a.replace(",", "")) == len(b.replace(",", "")) for a, b in changed.items())
        assert [g.text for g in givens(n.question) or ()] == list(changed.values()) or givens(n.question) is None
        assert _worked_again(old, changed) == Fraction(n.target)


def _worked_again(item, changed):
    "The answer from the text of the solution, by replacing numbers in its annotations and evaluating them in turn."
    new = {Fraction(a.replace(",", "")): b.replace(",", "") for a, b in changed.items()}
    percent = {Fraction(a.replace(",", "")) / 100: f"({b.replace(',', '')}/100)" for a, b in changed.items()
               if re.search(rf"{re.escape(a)}%", item.question)}
    results, value = {}, None
    for said, result in re.findall(r"<<([^<>=]*)=([^<>]*)>>", item.extra["solution"]):
        known = {**percent, **new, **results}
        text = re.sub(r"\d*\.?\d+", lambda m, known=known: f"({known.get(Fraction(m[0]), m[0])})",
                      re.sub(r"[\s$,]", "", said))
        value = eval(re.sub(r"(\d*\.?\d+)", r"F('\1')", text), {"F": Fraction})
        results[Fraction(re.sub(r"[\s$,]", "", result))] = f"{value.numerator}/{value.denominator}"
    return value


@pytest.mark.parametrize("question, solution, target, why", [
    ("He has 3 pears, 5 figs and 4 nuts, in 3 bags.", "<<3+5=8>>", "8", "cannot be changed"), # 3 twice
    ("At 9:30 he has 5 figs.", "<<5*2=10>>", "10", "cannot be changed"),
    ("He has 40 figs and eats 10%.", "He keeps 90%. <<40*0.9=36>>", "36", "without one explanation"),
    ("He has 40 figs and 25 nuts.", "25 are nuts. <<40*2=80>>", "80", "without one explanation"),
    ("Twice 40 figs and 25 nuts.", "<<40*2=80>>", "80", "no step uses"),
    ("Means of 3, 5 and 4 pears.", "<<3+5+4=12>> <<12/3=4>>", "4", "used twice"),
    ("Twice 41 figs.", "<<41*2=83>>", "83", "not right as it stands"),
    ("Twice 41 figs.", "<<41*2=82>> so 164", "164", "not the answer"),
    ("Twice 41 figs.", "It is 82.", "82", "no annotated steps"),
    ("Twice 41 figs.", "<<41**2=1681>>", "1681", "not right as it stands"),
    ("Twice 41 figs, 7 more.", "<<41*2=82>> <<41+7=48>>", "48", "step that is not used"),
], ids=lambda x: x[:18] if isinstance(x, str) else None)
def test_items_whose_computation_is_not_explained_are_left_out(question, solution, target, why):
    found = recipe(Item(id="x", question=question, target=target, extra={"solution": solution}))
    assert isinstance(found, str) and why in found


def test_percentages_follow():
    item = Item(id="x", question="Of 400 figs he eats 25%. How many?", target="100",
                extra={"solution": "<<400*.25=100>>"})
    assert isinstance(recipe(item), Recipe)
    new = perturbed(item)
    n, p = map(int, re.findall(r"\d+", new.question))
    assert Fraction(new.target) == Fraction(n * p, 100) and n % 100 == 0 and p <= 100


# --- models that are known

def known(policy, name, tmp_path, **kw):
    return contamination("qwen3_8b", name, engine=FakeEngine(policy), source="specimen", runs=tmp_path,
                         progress=False, **kw)


def memoriser(request):
    "Knows every text and every published answer by heart, whatever is asked."
    if "assistant" not in request.prompt: return f" {by_id('gsm8k+continuation')[request.item_id].target} And more."
    return f"\\boxed{{{by_id('gsm8k')[request.item_id].target}}}"


def solver(request):
    "Has seen nothing and solves everything."
    if "assistant" not in request.prompt: return " something else entirely"
    old, asked = by_id("gsm8k")[request.item_id], re.findall(r"\d+", request.prompt.partition("Work through")[0])
    numbers = tuple(map(Fraction, asked[-len(recipe(old).given):]))
    return f"\\boxed{{{recipe(old).work(numbers)[-1]}}}"


def test_a_memoriser_shows(tmp_path):
    found = known(memoriser, "gsm8k", tmp_path)
    assert found["kinds"]["continuation"]["rate"]["value"] == 1 == found["kinds"]["numbers"]["published"]["value"]
    assert found["kinds"]["numbers"]["changed"]["value"] == 0 and found["kinds"]["numbers"]["drop"]["value"] == 1
    assert {(f["kind"], f["flag"]) for f in found["flags"]} == {("continuation", "verbatim"), ("numbers", "ceiling")}
    assert len(found["kinds"]["continuation"]["items"]) == 4 and "order" in found["left_out"]


def test_a_solver_does_not(tmp_path):
    found = known(solver, "gsm8k", tmp_path)
    assert found["kinds"]["continuation"]["rate"]["value"] == 0 == found["kinds"]["numbers"]["drop"]["value"]
    assert found["kinds"]["numbers"]["changed"]["value"] == 1 and not found["kinds"]["continuation"]["items"]
    assert ("continuation", "verbatim") not in {(f["kind"], f["flag"]) for f in found["flags"]}


def test_a_letter_habit_shows(tmp_path):
    "Always the letter that is right in the source's order: everything there, nothing elsewhere."
    def habit(request):
        return correct_letter(rotated(by_id("mmlu")[request.item_id], 0)) if "assistant" in request.prompt else ""
    found = known(habit, "mmlu", tmp_path, kinds=["order"])["kinds"]["order"]
    assert [e["value"] for e in found["orders"]] == [1, 0, 0, 0] and found["drop"]["value"] == 1
    assert found["consistency"]["value"] == 0 == found["worst"]["value"] == found["every_order"]["value"]


def test_knowledge_is_consistent(tmp_path):
    def knows(request):
        order = next(k for k in range(4) if _shows(request, k))
        return correct_letter(rotated(by_id("mmlu")[request.item_id], order))
    def _shows(request, k):
        item = rotated(by_id("mmlu")[request.item_id], k)
        return f"A. {item.choices[letter_order(item)[0]]}\n" in request.prompt
    found = known(knows, "mmlu", tmp_path, kinds=["order"])
    assert found["kinds"]["order"]["consistency"]["value"] == 1 == found["kinds"]["order"]["every_order"]["value"]
    assert found["kinds"]["order"]["drop"]["value"] == 0 and {f["flag"] for f in found["flags"]} == {"ceiling"}


def test_silence_is_not_consistency(tmp_path):
    assert known("constant", "mmlu", tmp_path, kinds=["order"])["kinds"]["order"]["consistency"]["value"] == 0


def test_a_drop_is_flagged_where_many_items_show_it(tmp_path):
    rows = [{"question": f"A barge {k} carries 6 crates of 48 tins. How many tins? ".replace(f" {k} ", f" {'x' * k} "),
             "answer": "6*48=<<6*48=288>>288\n#### 288", "split": "test"} for k in range(1, 31)]
    file = tmp_path / "barges.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    barges = Benchmark(id="barges", title="Barges", task_type="math", rows="gsm8k", split="test", metric="exact_match",
                       sources=(Source(kind="file"),), default_variant={"base": "cot", "chat": "cot"},
                       variants={"cot": Variant(prompt="gsm8k-cot", mode="generate", chat=True, score="numeric",
                                                extract="boxed-or-last-number", metric="exact_match")})
    found = contamination("qwen3_8b", barges, kinds=["numbers"], engine=FakeEngine(lambda r: "\\boxed{288}"),
                          data_file=file, runs=tmp_path / "runs", progress=False)
    assert {f["flag"] for f in found["flags"]} == {"ceiling", "drop"} and found["kinds"]["numbers"]["drop"]["low"] > 0.8
    assert "FLAG drop" in repr(found) and "CUSTOM-DATA" in repr(found)


def test_headroom_is_by_the_interval():
    def e(low, high): return Estimate(value=0.9, low=low, high=high, method="wilson")
    assert passes(e(0.9, 0.951)) and not passes(e(0.9, 0.95)) and not passes(e(0.5, float("nan")))


def test_it_goes_on_where_it_stopped(tmp_path):
    answered = []
    def dies(request):
        answered.append(request.item_id)
        if len(answered) == 3: raise KeyboardInterrupt
        return solver(request)
    with pytest.raises(KeyboardInterrupt): known(dies, "gsm8k", tmp_path)
    count = FakeEngine(solver)
    found = contamination("qwen3_8b", "gsm8k", engine=count, source="specimen", runs=tmp_path, progress=False)
    assert count.n_requests < 8 and found == known(lambda r: 1 / 0, "gsm8k", tmp_path)


def test_limit_is_a_prefix(tmp_path):
    found = known(solver, "gsm8k", tmp_path, limit=1)
    assert found["kinds"]["numbers"]["drop"]["n_items"] == 1 and found["kinds"]["numbers"]["n_qualify"] == 2


@pytest.mark.parametrize("kinds, error", [(["orders"], UnknownNameError), (["order"], ConfigError)])
def test_kinds_that_cannot_be(tmp_path, kinds, error):
    with pytest.raises(error): known("constant", "gsm8k", tmp_path, kinds=kinds)
    assert not any(tmp_path.iterdir())


# --- the command

def test_command(lab):  # noqa: F811
    found = json.loads(ask("contamination", "smollm2_135m", "gsm8k", "--allow-specimens", "--json").stdout)
    assert found["marks"] == ["fake-engine", "specimen"] and set(found["kinds"]) == {"continuation", "numbers"}
    said = ask("contamination", "smollm2_135m", "arc_challenge", "--allow-specimens", "--kinds", "order").stdout
    assert "consistency" in said and "FAKE-ENGINE" in said
    bad = ask("contamination", "smollm2_135m", "gsm8k", "--kinds", "order", "--allow-specimens", status=2)
    assert bad.stderr.count("\n") == 1 and "letters" in bad.stderr
