"""A benchmark of one's own, from a section of the settings or from Python: loaded, asked, scored, remembered."""
import csv
import gzip
import json
from pathlib import Path

import pytest

from qwen_eval import benchmark, benchmarks, custom_benchmark, evaluate, register_benchmark, rescore, score_outputs
from qwen_eval.datasets import all as catalogue
from qwen_eval.datasets.base import load
from qwen_eval.datasets.custom import KINDS
from qwen_eval.diffs import diff_runs
from qwen_eval.engines.base import ReplayEngine
from qwen_eval.errors import ConfigError, IntegrityError, QwenEvalError, UnknownNameError
from qwen_eval.goldcheck import gold_answers, gold_check
from qwen_eval.preview import preview
from qwen_eval.runner import run_study
from qwen_eval.runs import items_of
from qwen_eval.scorers.exact import short_answer
from qwen_eval.settings import read_settings, settings
from qwen_eval.verification import verify_run

ROWS = {
    "choice": [{"question": "Which has eight legs?", "choices": ["a bee", "a spider"], "answer": "B"},
               {"question": "Which hums?", "choices": ["a bee", "an owl", "a fish"], "answer": "A"},
               {"question": "Which swims?", "choices": ["a bee", "an owl", "a fish"], "answer": "C"}],
    "number": [{"question": "Legs of 2 bees?", "answer": 12}, {"question": "Of 1,000?", "answer": "6,000"}],
    "expression": [{"question": "Expand (x+1)^2.", "answer": "x^2+2x+1"},
                   {"question": "Half?", "answer": "\\frac{1}{2}"}],
    "code": [{"question": "Double a number.", "tests": ["assert double(2) == 4"], "entry_point": "double",
              "answer": "def double(x): return 2 * x"},
             {"question": "def triple(x):\n", "tests": "def check(f):\n    assert f(2) == 6", "entry_point": "triple",
              "answer": "    return 3 * x"}],
    "exact": [{"question": "What hoots?", "answer": ["owls", "an owl"]}, {"question": "What hums?", "answer": "bees"}],
    "free": [{"question": "Say what owls do.", "answer": "They hoot at night."},
             {"question": "Say hello.", "answer": ["Hello!", "Good day."]}],
}


@pytest.fixture
def lab(tmp_path, monkeypatch):
    "A lab with every kind of benchmark in its settings, the data beside them, and no data of ours."
    sections = "".join(f"[benchmark.my_{k}]\nkind = {k}\npath = data/{k}.jsonl\n" for k in ROWS)
    (tmp_path / "settings.ini").write_text(
        f"[paths]\nruns = runs\ncache = cache\nreports = reports\n[engine]\nengine = fake\n{sections}")
    (tmp_path / "data").mkdir()
    for kind, rows in ROWS.items(): write(tmp_path / "data" / f"{kind}.jsonl", rows)
    monkeypatch.delenv("QWEN_EVAL_DATA", raising=False)
    monkeypatch.setenv("QWEN_EVAL_SETTINGS", str(tmp_path / "settings.ini"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(catalogue, "_catalogue", copied(catalogue._catalogue))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def copied(registry):
    from qwen_eval.registry import Registry
    found = Registry(registry.kind)
    for b in registry: found.add(b.id, b)
    return found


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def declare(lab, text, round=[0]):  # noqa: B006
    "Another section; the settings are read again when a variable of ours changes."
    import os
    round[0] += 1
    with open(lab / "settings.ini", "a") as f: f.write(text)
    os.environ["QWEN_EVAL_TEST_ROUND"] = str(round[0])


@pytest.fixture(autouse=True)
def own_round(monkeypatch): monkeypatch.setenv("QWEN_EVAL_TEST_ROUND", "0")


def gold(b, items, variant=None):
    v = b.variant(variant)[1]
    return [c for i in items if (c := gold_answers.get(v.score)(i, v)) is not None]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_asked_scored_and_scored_again(lab, kind):
    b = benchmark(f"my_{kind}")
    found = load(b)
    assert found.source == f"file:{kind}.jsonl" and found.verified == "unverified" and not found.marks
    for name in list(b.variants)[:1 if kind == "expression" else None]: # its scorer takes seconds to start
        items = [i for i in found.items if i.target is not None]
        run = evaluate("smollm2_135m", b.id, variant=name, engine=ReplayEngine(gold(b, found.items, name)),
                       answer_tok=64, progress=False)
        scored = run.scores[run.scores.item_id.isin([i.id for i in items])]
        if set(scored.status) == {"not_scored"}: pytest.skip(f"no sandbox here: {scored.detail.iloc[0][:80]}")
        assert list(scored.value) == [1] * len(items), scored[["item_id", "answer", "detail"]].to_string()
        assert run.manifest["benchmark"]["own"] and run.manifest["items"]["item_set_hash"] == found.item_set_hash
        again = rescore(run.id, progress=False)
        assert again.scores.drop(columns="order").equals(run.scores.drop(columns="order"))
        assert verify_run(run.id)["status"] != "broken"


def test_an_answer_without_a_reference_needs_a_scorer_that_wants_none(lab):
    write(lab / "open.jsonl", [{"question": "Say hello."}])
    with pytest.raises(IntegrityError, match=r"row 1 .*answer is missing, and the scorer 'token-f1' compares"):
        load(custom_benchmark("open", "open.jsonl", "free"))
    judged = custom_benchmark("open", "open.jsonl", "free", score="by-hand")
    assert gold_check(judged, load(judged).items).note == "no gold known for the scorer 'by-hand'"


def test_python_and_settings_say_the_same(lab):
    mine = custom_benchmark("my_choice", "data/choice.jsonl", "choice")
    assert mine == benchmark("my_choice") and mine.sources[0].path == str(lab / "data/choice.jsonl")
    with open(lab / "sheet.csv", "w", newline="") as f:
        w = csv.writer(f)
        w.writerow(["nr", "ask", "a", "b", "c", "right", "topic", "hint"])
        for n, r in enumerate(ROWS["choice"]):
            w.writerow([n, r["question"], *(r["choices"] + [""])[:3], r["answer"], "zoo", "think"])
    sheet = custom_benchmark("sheet", "sheet.csv", "choice", n_shot=0, task="One letter.", fields={
        "id": "nr", "question": "Hint: {hint}. {ask}", "choices": ["a", "b", "c"], "target": "right",
        "stratum": "topic", "extra": ["hint"]})
    items = load(sheet).items
    assert [(i.id, i.target, i.choices, i.stratum, i.extra) for i in items] == [
        (str(n), ord(r["answer"]) - 65, tuple(r["choices"]), "zoo", {"hint": "think"})
        for n, r in enumerate(ROWS["choice"])]
    assert items[0].question == "Hint: think. Which has eight legs?"
    shown = preview("smollm2_135m", sheet, tokenizer=byte_tokenizer(), item="0")
    assert "One letter." in shown.text and "Reply with the letter" not in shown.text


def byte_tokenizer():
    from qwen_eval.requests import ByteTokenizer
    return ByteTokenizer()


@pytest.mark.parametrize("packaging", ["jsonl", "jsonl.gz", "json", "csv", "parquet"])
def test_the_same_rows_in_any_packaging_are_the_same_items(lab, packaging):
    rows, path = ROWS["choice"], lab / f"same.{packaging}"
    if packaging == "jsonl.gz": path.write_bytes(gzip.compress(b"".join(json.dumps(r).encode() + b"\n" for r in rows)))
    elif packaging == "json": path.write_text(json.dumps(rows))
    elif packaging == "csv":
        with open(path, "w", newline="", encoding="utf-8-sig") as f:
            w = csv.DictWriter(f, rows[0])
            w.writeheader()
            w.writerows({**r, "choices": json.dumps(r["choices"])} for r in rows)
    elif packaging == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq
        pq.write_table(pa.Table.from_pylist(rows), path)
    else: write(path, rows)
    mine = custom_benchmark("my_choice", path, "choice")
    assert load(mine).item_set_hash == load(benchmark("my_choice")).item_set_hash


BAD = """question,a,b,key,id
Good?,yes,no,A,1
,yes,no,A,2
Which?,yes,yes,A,3
Which?,yes,no,C,4
Which?,yes,no,,5
Which?,yes,,A,6
Which?,yes,no,A,1
Short,yes
Long?,yes,no,A,8,9
"""


def test_every_bad_row_is_named_by_row_and_line(lab):
    (lab / "bad.csv").write_bytes(BAD.encode() + b"na\xefve?,yes,no,A,9\n" + b'"open,yes,no,A,10\n')
    with pytest.raises(IntegrityError) as e: load(custom_benchmark("bad", "bad.csv", "choice",
                                                                   {"choices": "a,b", "answer": "key"}))
    said = str(e.value)
    assert "10 rows cannot be used" in said and "\n" not in said
    for part in ("row 2 (line 3): the question is empty", "row 3 (line 4): choice 'yes' is there twice",
                 "row 4 (line 5): answer 'C' is, as letter, none of", "row 5 (line 6): answer ''",
                 "row 6 (line 7): it has 1 choices", "row 7 (line 8): id '1' is that of row 1 already",
                 "row 8 (line 9): it has 2 cells, the header 5", "row 9 (line 10): it has 6 cells, the header 5",
                 "row 10 (line 11): byte 3 of it, 0xef, is not UTF-8", "row 11 (line 12): it is no row of CSV"):
        assert part in said, part
    write(lab / "many.jsonl", [{"question": "?", "answer": None}] * 25)
    with pytest.raises(IntegrityError, match=r"25 rows cannot be used: row 1 .*row 10 .*; and 15 more\. "):
        load(custom_benchmark("many", "many.jsonl", "exact"))
    (lab / "lines.jsonl").write_text('{"question": "a", "answer": 1}\n{"question": \n[1]\n'
                                     '{"questoin": "b", "answer": "c"}\n')
    with pytest.raises(IntegrityError, match=r"row 2 \(line 2\): it is no JSON object.*row 3 .*array.*row 4 .*"
                                             r"'question' is missing; .* Did you mean 'questoin'\?"):
        load(custom_benchmark("lines", "lines.jsonl", "exact"))


@pytest.mark.parametrize(("key", "answers", "targets"), [
    ("auto", ["A", "c)", "(B)"], [0, 2, 1]), ("auto", [0, 2, 1], [0, 2, 1]), ("auto", ["1", "3", "2"], [0, 2, 1]),
    ("auto", ["red", "blue ", "green"], [0, 2, 1]), ("number", [1, 2, 1], [0, 1, 0]), ("index", [1, 2, 1], [1, 2, 1]),
    ("auto", [1, 2, 1], "can be read as index and as number"), ("auto", ["A", "B", "D"], "row 3 .*'D' is, as letter"),
    ("text", ["A", "red", "red"], "row 1 .*'A' is, as text"), ("auto", ["0", "1", "x"], "'x' is, as index"),
])
def test_what_the_answer_of_a_choice_means(lab, key, answers, targets):
    rows = [{"question": f"{n}?", "choices": ["red", "green", "blue"], "answer": a} for n, a in enumerate(answers)]
    mine = custom_benchmark("keys", write(lab / "keys.jsonl", rows), "choice", answer_key=key)
    if isinstance(targets, list): assert [i.target for i in load(mine).items] == targets
    else:
        with pytest.raises((ConfigError, IntegrityError), match=targets): load(mine)


@pytest.mark.parametrize(("change", "message"), [
    ({"fields": {"question": "questoin"}}, "Unknown column of .*choice.jsonl 'questoin'. Did you mean 'question'"),
    ({"fields": {"qestion": "question"}}, "Unknown field of x 'qestion'. Did you mean 'question'"),
    ({"fields": {"choices": "a,b"}}, "Unknown column of .* 'a'. Known: answer, choices, question"),
    ({"kind": "choise"}, "Unknown kind in .benchmark.x. 'choise'. Did you mean 'choice'"),
    ({"kind": "number"}, "answer 'B' is no number"), ({"kind": "code"}, "Unknown column of .* 'tests'"),
    ({"answer_key": "index"}, "answer 'B' is, as index, none of the choices"),
    ({"metrik": "acc"}, "Unknown key in .*'metrik'.*'metric'"),
    ({"n_shot": "many"}, "Expected `int"), ({"like": "gsm8"}, "Did you mean 'gsm8k'"),
    ({"path": "nowhere.csv"}, "nowhere.csv, named as the path of x, is no file"),
    ({"path": "settings.ini"}, "is no file of rows"), ({"shots": "frist"}, "Did you mean 'first'"),
])
def test_declarations_that_cannot_work(lab, change, message):
    with pytest.raises(QwenEvalError, match=message):
        load(custom_benchmark(**{"id": "x", "path": "data/choice.jsonl", "kind": "choice"} | change))


@pytest.mark.parametrize(("key", "kind"), [("prompt", "prompt"), ("extract", "extractor"), ("score", "scorer"),
                                           ("metric", "metric")])
def test_a_wrong_function_is_said_before_anything_is_asked(lab, key, kind):
    mine = custom_benchmark("x", "data/exact.jsonl", "exact", **{key: "exakt-text"})
    with pytest.raises(UnknownNameError, match=f"Unknown {kind} 'exakt-text'.*benchmark x"):
        evaluate("smollm2_135m", mine, engine="fake", progress=False)
    assert not list(lab.glob("runs/*/*"))


def test_sections_are_checked_like_all_others(lab):
    for text, message in (("[benchmark.x]\nkind = exact\npth = a.csv\n", "Did you mean 'path'"),
                          ("[benchmrk.x]\nkind = exact\n", "Did you mean 'benchmark.x'"),
                          ("[benchmark.a b]\nkind = exact\n", "cannot name a benchmark")):
        (lab / "other.ini").write_text(text)
        with pytest.raises(QwenEvalError, match=message): read_settings(lab / "other.ini")
    for text, message in (("[benchmark.x]\npath = a.csv\n", "says no kind"),
                          ("[benchmark.y]\nkind = exact\n", "no rows"),
                          ("[benchmark.gsm8k]\nkind = exact\npath = a.csv\n", "registered already"),
                          ("[benchmark.z]\nlike = gsm8\n", "Did you mean 'gsm8k'")):
        before = (lab / "settings.ini").read_text()
        declare(lab, text)
        with pytest.raises(QwenEvalError, match=message): benchmarks()
        (lab / "settings.ini").write_text(before)
    declare(lab, "")
    assert "my_choice" in benchmarks() and len(benchmarks().names()) == len({*benchmarks().names()})


def test_like_asks_the_same_data_in_another_way(lab, monkeypatch):
    declare(lab, "[benchmark.short]\nlike = gsm8k\nn_shot = 2\nvariant = fewshot\n"
                 "[benchmark.mine]\nlike = gsm8k\npath = data/number.jsonl\nquestion = question\n"
                 "task = Say a number.\n")
    short, ours = load(benchmark("short"), "specimen"), load(benchmark("gsm8k"), "specimen")
    assert short.item_set_hash == ours.item_set_hash and short.verified == "verified" and short.marks == ("specimen",)
    assert benchmark("short").variant()[1].n_shot == 2
    mine = load(benchmark("mine"))
    assert [i.target for i in mine.items] == ["12", "6,000"]
    assert benchmark("mine").variants["cot"].task == "Say a number."
    assert gold_check(benchmark("mine"), mine.items).ok


def test_examples_come_from_their_split(lab):
    rows = [{**r, "split": s} for r, s in zip(ROWS["exact"] * 2, ("test", "test", "train", "train"), strict=True)]
    rows[2]["question"], rows[3]["question"] = "What buzzes?", "What barks?"
    write(lab / "split.jsonl", rows)
    mine = custom_benchmark("split", "split.jsonl", "exact", shot_split="train", n_shot=2)
    assert len(load(mine).items) == 2 == len(load(mine).pool)
    shown = preview("smollm2_135m", mine, tokenizer=byte_tokenizer())
    assert "What buzzes?" in shown.text and "What barks?" in shown.text and shown.text.count("Question:") == 3


def test_a_changed_file_says_what_differs_and_a_raised_version_accepts_it(lab):
    first = load(benchmark("my_exact")).item_set_hash
    rows = [{**ROWS["exact"][0], "answer": "no"}, ROWS["exact"][1], {"question": "New?", "answer": "yes"}]
    write(lab / "data/exact.jsonl", rows)
    said = r"1 item changed \(my_exact/test/0\); 1 item new \(my_exact/test/2\).*version"
    with pytest.raises(IntegrityError, match=said):
        load(benchmark("my_exact"))
    text = (lab / "settings.ini").read_text().replace("[benchmark.my_exact]\n", "[benchmark.my_exact]\nversion = 2\n")
    (lab / "settings.ini").write_text(text)
    declare(lab, "")
    assert load(benchmark("my_exact")).item_set_hash != first
    write(lab / "data/exact.jsonl", [rows[1], rows[0], rows[2]])
    with pytest.raises(IntegrityError): load(benchmark("my_exact"))


def test_runs_of_another_version_are_other_runs(lab):
    mine = custom_benchmark("v", "data/choice.jsonl", "choice")
    newer = custom_benchmark("v", "data/choice.jsonl", "choice", version="2")
    how = {"engine": "fake", "answer_tok": 8, "progress": False}
    a, b = evaluate("smollm2_135m", mine, **how), evaluate("smollm2_135m", newer, **how)
    assert a.id != b.id and evaluate("smollm2_135m", mine, **how).id == a.id


def test_what_is_declared_in_python_can_be_rescored_in_another_process(lab):
    mine = custom_benchmark("python_only", "data/choice.jsonl", "choice")
    found = load(mine).items
    run = evaluate("smollm2_135m", mine, engine=ReplayEngine(gold(mine, found)), answer_tok=8, progress=False)
    other = evaluate("smollm2_135m", mine, engine="fake", answer_tok=8, progress=False)
    assert "python_only" not in benchmarks()
    for again in (rescore(run.id, progress=False), rescore(run.id, benchmark=mine)):
        assert again.scores.value.mean() == 1
    assert items_of(run.manifest).items == found and set(run.items().question) == {i.question for i in found}
    assert diff_runs(other.id, run.id)["counts"]
    (lab / "data/choice.jsonl").rename(lab / "moved.jsonl")
    with pytest.raises(IntegrityError, match="cannot be found"): rescore(run.id)
    moved = custom_benchmark("python_only", "moved.jsonl", "choice")
    assert rescore(run.id, benchmark=moved, progress=False).scores.value.mean() == 1


def test_registered_ones_have_a_name_for_the_process(lab):
    mine = register_benchmark(custom_benchmark("mine", "data/choice.jsonl", "choice"))
    assert benchmark("mine") == mine and register_benchmark(mine, "again").id == "again"
    for taken in ("mine", "gsm8k", "my_choice"):
        with pytest.raises(ConfigError, match="registered already"): register_benchmark(mine, taken)


def test_studies_and_scoring_of_outputs_know_it(lab):
    declare(lab, "[study.small]\nmodels = smollm2_135m\nbenchmarks = my_choice, my_exact\nanswer_tok = 16\n")
    done = run_study("small", notebooks=False)
    assert not done.failures and {r["benchmark"] for r in done.rows} == {"my_choice", "my_exact"}
    items = load(benchmark("my_choice")).items
    write(lab / "out.jsonl", [{"id": i.id, "completion": "ABC"[i.target]} for i in items])
    scored = score_outputs(lab / "out.jsonl", "my_choice")
    assert scored["estimate"]["value"] == 1 and scored["benchmark"] == "my_choice"


@pytest.mark.slow
def test_a_study_with_notebooks_finds_it_in_their_processes(lab):
    declare(lab, "[study.small]\nmodels = smollm2_135m\nbenchmarks = my_choice\nanswer_tok = 16\n")
    done = run_study("small")
    assert not done.failures and list((lab / "reports").rglob("*.ipynb"))


needs_data = pytest.mark.skipif(settings().data is None, reason="QWEN_EVAL_DATA names no folder of real benchmarks")


@needs_data
@pytest.mark.parametrize(("id", "n"), [("gsm8k", 1319), ("arc_challenge", 1172), ("truthfulqa", 817), ("mmlu", 2000),
                                       ("hellaswag", 2000)])
def test_gold_answers_of_real_data_score_1_and_wrong_ones_chance(id, n):
    b = benchmark(id)
    items = load(b, "file").items[:n]
    for name in b.variants:
        found = gold_check(b, items, name)
        assert found.ok and found.n_right == found.n_gold == n, str(found)


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("id", ["humaneval", "mbpp", "math500"])
def test_gold_programs_and_expressions_of_real_data(id):
    b = benchmark(id)
    found = gold_check(b, load(b, "file").items)
    if found.note: pytest.skip(found.note)
    assert found.n_right == found.n_gold == found.n_items and found.shuffled <= 0.02, (str(found), found.failed[:5])


def test_the_example_of_the_readme_is_one(lab):
    (lab / "zoo.csv").write_text("question,a,b,c,right,topic\nWhich has eight legs?,a bee,a spider,,B,bodies\n"
                                 "Which hums?,an owl,a fish,a bee,C,sounds\n")
    declare(lab, "[benchmark.zoo]\nkind = choice\npath = zoo.csv\nchoices = a, b, c\nanswer = right\nstratum = topic\n")
    assert [i.stratum for i in load(benchmark("zoo")).items] == ["bodies", "sounds"]
    assert Path(benchmark("zoo").sources[0].path).is_absolute()


@pytest.mark.parametrize("text, answer", [
    ("The answer is not clear. Final answer: Rome", "Rome"), ("Answer: The answer is Rome.", "Rome."),
    ("The result was odd.\n**Answer:** Rome", "Rome"), ("The answer is Rome, not the result of a poll.",
                                                       "Rome, not the result of a poll.")])
def test_the_last_announcement_counts(text, answer): assert short_answer(text, None) == answer


def test_another_file_or_declaration_of_the_same_name_is_another_first_load(lab):
    rows = [{**r, "topic": f"t{n}"} for n, r in enumerate(ROWS["choice"])]
    one, two = write(lab / "one.jsonl", rows), write(lab / "two.jsonl", rows[1:])
    plain = custom_benchmark("zoo", one, "choice")
    assert len(load(plain)) == 3 and len(load(custom_benchmark("zoo", two, "choice"))) == 2
    assert load(custom_benchmark("zoo", one, "choice", {"stratum": "topic"})).items[1].stratum == "t1"
    write(one, rows[:2])
    for b in (plain, custom_benchmark("zoo", one, "choice", {"stratum": "topic"})):
        with pytest.raises(IntegrityError, match=r"1 item gone \(zoo/test/2\)"): load(b)
