# ruff: noqa: E501 (a nasty text is one line of the table)
"""Free-form answers: code-to-text, similarity against published figures, surface rules, quality of stored runs."""
import ast
import contextlib
import gzip
import importlib.metadata
import json
import math
import os
import random
import re
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from qwen_eval.datasets.all import benchmark
from qwen_eval.datasets.base import load
from qwen_eval.datasets.codet5 import codet5_row, without_docstring
from qwen_eval.engines.base import FakeEngine
from qwen_eval.errors import ConfigError
from qwen_eval.evaluation import evaluate
from qwen_eval.extract import extractors
from qwen_eval.quality import measures, quality, run_quality
from qwen_eval.records import Completion, to_json
from qwen_eval.scorers.text import score_items, scorers
from qwen_eval.settings import settings
from qwen_eval.similarity import corpus_figure, embed, encoder_folder, rouge_l, semantic, similarities, smoothed_bleu4
from qwen_eval.stats.bootstrap import bootstrap_corpus
from qwen_eval.surface import loops, refusals, repetition

CHAT = benchmark("codet5").variants["chat"]


def published(*parts):
    "A file of published outputs beside the folder of benchmarks."
    if settings().data is None: pytest.skip("needs QWEN_EVAL_DATA: published outputs lie beside that folder")
    path = settings().data.parent.joinpath("published", "text_metrics", *parts)
    if not path.is_file(): pytest.skip(f"needs {'/'.join(parts)} among the published outputs")
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def encoder():
    try: return encoder_folder()
    except ConfigError as e: pytest.skip(f"needs the sentence encoder of PyPI: {e}")


# -- code-to-text ---------------------------------------------------------------------------------------------------

def functions_of(path):
    "Source and tree of every function of a file, alone."
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            alone = "".join(lines[node.lineno - 1:node.end_lineno])[node.col_offset:]
            with contextlib.suppress(SyntaxError): # lines less indented than their function, as in a long string
                yield alone, ast.parse(alone)


def test_what_ast_can_read_loses_its_docstring_and_nothing_else():
    "The functions of some of Python's own modules, against ast."
    n, with_doc = 0, 0
    for name in ("argparse", "inspect", "tarfile", "turtle"):
        path = Path(os.__file__).parent / f"{name}.py"
        if not path.is_file(): continue
        for source, tree in functions_of(path):
            body, n = tree.body[0].body, n + 1
            if ast.get_docstring(tree.body[0], clean=False) is not None: body[:1], with_doc = [], with_doc + 1
            shown = without_docstring(source) + ("" if body else " pass")
            tree.body[0].body = body or [ast.Pass()]
            assert ast.dump(ast.parse(shown)) == ast.dump(tree), source
    assert n > 400 and with_doc > 100


PYTHON_2 = [ # docstring, function
    ("Print it.", 'def f(x):\n    """Print it."""\n    print x'),
    ("Raise it.", "def f(x, mode=0644):\n    ur'''Raise it.'''\n    raise E, `x`"),
    ("Run it.", 'def f(self, (a, b)):\n    "Run it."\n    exec "x = 1" in {}\n    return a <> b'),
    ("Catch it.", "def f(x):\n    # first\n\n    'Catch ' \\\n    'it.'\n    try: pass\n    except E, e: print>>x, e"),
    ("Long one.", 'def f(x=u"def g(): \\"\\"\\"no\\"\\"\\""): \'Long one.\'; return 0777L'),
]


@pytest.mark.parametrize("said,code", PYTHON_2)
def test_python_2(said, code):
    with pytest.raises(SyntaxError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ast.parse(code)
    shown = without_docstring(code)
    plain = re.sub(r"\W+", "", said).lower()
    assert plain not in re.sub(r"\W+", "", shown).lower() and shown.startswith("def f(") and "# first" not in shown
    assert code.rstrip().endswith(shown.splitlines()[-1].strip()[-10:])


def test_no_specimen_shows_its_target():
    s = load(benchmark("codet5"), "specimen")
    assert s.verified == "verified" and (len(s.items), len(s.pool)) == (8, 4)
    for i in s.items + s.pool:
        assert re.sub(r"\W+", "", i.target).lower() not in re.sub(r"\W+", "", i.question).lower()
        assert "def " in i.question and "#" not in i.question


def test_a_target_is_made_as_the_authors_make_it():
    row = {"code": "def f(): pass", "docstring_tokens": ["Split", "a\nline", "", "  in  two", "."]}
    assert codet5_row(row, "x").target == "Split aline in two ." # line breaks go, blanks become one
    with pytest.raises(Exception, match="docstring_tokens"): codet5_row({**row, "docstring_tokens": ["", "\n"]}, "x")


def test_gold_scores_one_and_another_function_little():
    items = load(benchmark("codet5"), "specimen").items
    def mean(texts):
        pairs = [(i, Completion(item_id=i.id, text=t)) for i, t in zip(items, texts, strict=True)]
        return np.mean([s.value for s in score_items(pairs, CHAT.score, CHAT)])
    assert mean([i.target for i in items]) == 1
    assert mean([items[k - 1].target for k in range(len(items))]) < 0.1
    assert mean([""] * len(items)) == 0


# -- published figures ----------------------------------------------------------------------------------------------

def test_code_x_glue_example():
    "The example of the evaluator's own README, in percent."
    said, wanted = ([line.split("\t")[1] for line in published("codexglue", "code-to-text", f"{name}.txt").splitlines()]
                    for name in ("predictions", "reference"))
    assert abs(100 * smoothed_bleu4(said, wanted).mean() - 9.554726113590661) < 1e-9
    assert abs(100 * smoothed_bleu4(said[:-1], wanted[:-1]).mean() - 9.554726113590661) > 0.1


def test_the_tokens_are_those_of_the_evaluator():
    "The NIST steps of the evaluator one after the other, on the pieces that it makes first."
    steps = ((r"([\{-\~\[-\` -\&\(-\+\:-\@\/])", r" \1 "), (r"([^0-9])([\.,])", r"\1 \2 "), (r"([\.,])([^0-9])", r" \1 \2"), (r"([0-9])(-)", r"\1 \2 "))
    from qwen_eval.similarity import _PIECE
    rng = random.Random(0)
    for _ in range(3000):
        text = "".join(rng.choice("ab Z09.,-_&;lt'\"{}[]()<>/:é中İ\t\n#$ ") for _ in range(rng.randrange(30)))
        theirs = " " + " ".join(re.findall(r"[\w]+|[^\s\w]", text.strip().lower())).lower() + " "
        for pattern, plain in steps: theirs = re.sub(pattern, plain, theirs)
        assert _PIECE.findall(text.lower()) == theirs.split(), text


def test_rouge_against_rouge_155():
    "ROUGE-1.5.5 on the library's test data: two pairs, and the mean of a thousand with stemming (its tests' figures)."
    said, wanted = (published("rouge", f"{name}.txt").splitlines() for name in ("prediction", "target"))
    assert np.allclose(rouge_l(said, wanted), [0.51163, 0.50000], atol=5e-6)
    said, wanted = (published("rouge", f"{name}_large.txt").splitlines() for name in ("prediction", "target"))
    ours = rouge_l(said, wanted, stem=True)
    assert len(ours) == 1000 and abs(ours.mean() - 0.40275) < 0.002
    from rouge_score.rouge_scorer import RougeScorer
    theirs = RougeScorer(["rougeL"], use_stemmer=True)
    assert np.allclose(ours[:200], [theirs.score(r, a)["rougeL"].fmeasure for a, r in zip(said[:200], wanted[:200], strict=True)], atol=1e-12)
    low, high = np.quantile([ours[np.random.default_rng(s).integers(0, 1000, 1000)].mean() for s in range(500)], (0.025, 0.975))
    assert abs(low - 0.39157) < 0.002 and abs(high - 0.41383) < 0.002


def test_sacrebleu_prints_what_its_page_says():
    "The example of sacrebleu's own README, as the installed package carries it: two references, which we join per item."
    page = importlib.metadata.metadata("sacrebleu").get_payload()
    if not page: pytest.skip("the installed sacrebleu carries no page")
    example = page.split("In [1]: from sacrebleu.metrics", 1)[1].split("In [2]", 1)[0].partition("\n")[2]
    names = {}
    exec(re.sub(r"(?m)^\s*\.\.\.: ?", "", example), names)
    from sacrebleu.metrics import BLEU, CHRF
    for metric, name, wanted in ((BLEU(), "bleu", "48.53"), (CHRF(), "chrf", "59.73")):
        assert f"{metric.corpus_score(names['sys'], names['refs']).score:.2f}" == wanted and wanted in page
        for refs in names["refs"]: # one reference each, as ours
            ours, signature = corpus_figure(name, names["sys"], refs)
            assert math.isclose(100 * ours, metric.corpus_score(names["sys"], [refs]).score)
            assert signature == str(metric.get_signature()) and "nrefs:1" in signature


# -- similarity -----------------------------------------------------------------------------------------------------

PAIRS = [("Add the counts of two dictionaries.", "Sum up how often each key occurs in both mappings.", "Open the window, please."),
         ("Tell whether a year has a 29th of February.", "Check if the given year is a leap year.", "Read pairs from a text file."),
         ("The cat slept on the sofa all day.", "All day long, the kitten was asleep on the couch.", "Interest rates rose by a quarter point.")]


def test_a_paraphrase_is_closer_than_something_else(encoder):
    one, near, far = zip(*PAIRS, strict=True)
    assert (semantic(near, one) > semantic(far, one) + 0.15).all() and (semantic(one, one) == 1).all()
    assert np.allclose(semantic(near, one), semantic(one, near))


def test_identical_texts_score_one_and_nothing_scores_zero(encoder):
    texts = ["Add two numbers.", "a", "中文。", "x_y", "İ"]
    for name in similarities.names():
        same, none = similarities.get(name)(texts, texts), similarities.get(name)([""] * 5, texts)
        assert np.allclose(same, 1) or name == "rouge_l", name # the library's words are Latin letters and digits
        assert (none < 0.5).all() and ((none == 0).all() or name == "bleu4"), name
        with pytest.raises(ConfigError): similarities.get(name)(texts, texts[:2])
    assert rouge_l(["中文。"], ["中文。"])[0] == 0


def test_equal_texts_are_encoded_once(encoder, monkeypatch):
    import qwen_eval.similarity as room
    tokens, _ = room._load_encoder()
    seen = []
    def counting(texts, **how):
        seen.extend(texts)
        return tokens(texts, **how)
    monkeypatch.setitem(room._encoder, "tokens", counting)
    assert embed(["a", "b", "a", " a "] * 50).shape == (200, 384) and sorted(seen) == ["a", "b"]


NASTY = {"half pairs": "\ud83d" * 300_000, "nulls": "\0" * 1_000_000, "one line": "x" * 1_000_000, "spaces": " " * 1_000_000,
         "quotes": '"""' * 300_000, "fences": "```\n" * 250_000, "prose": "the sum of x. " * 70_000, "marks": "e" + "\u0301" * 500_000,
         "sorry": "I'm sorry, " * 90_000, "cjk": "我不能" * 300_000, "labels": "Summary: " * 100_000, "digits": "1.2,3-4" * 140_000,
         "escapes": "\\" * 1_000_000, "noise": "".join(map(chr, random.Random(0).choices(range(0x110000), k=100_000)))}


@pytest.mark.parametrize("size", [30_000, pytest.param(1 << 20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NASTY)
def test_a_megabyte_takes_seconds(name, size):
    text, begin = NASTY[name][:size], time.process_time()
    found = quality([text, text[:100]], ["Add two numbers.", text], [m for m in measures.names() if measures.get(m).needs != "engine" and m != "semantic"],
                    rng=np.random.default_rng(0))
    for row in found.to_dict("records"):
        low, high = measures.get(row["metric"]).range
        assert low <= row["value"] <= high, row
    item = load(benchmark("codet5"), "specimen").items[0]
    said = extractors.get("summary")(text, item)
    assert said is None or (len(said) <= 5000 and "\n" not in said)
    to_json(scorers.get("bleu4-smoothed")(item, Completion(item_id=item.id, text=text), CHAT))
    assert time.process_time() - begin < 30


def test_nasty_texts_have_embeddings(encoder):
    vectors = embed([*(t[:100_000] for t in NASTY.values()), "", "\ud83d\x00 \u202e"])
    assert vectors.shape == (len(NASTY) + 2, 384) and np.isfinite(vectors).all()
    assert (np.abs(semantic(["\ud83d", "\0", ""], ["a", "b", ""])) <= 1).all()


def test_code_that_is_no_code():
    begin = time.process_time()
    for text in [*NASTY.values(), "def f(" * 90_000, "def f():\n" + '    """' * 90_001, "def f(): " + "'" * 500_001, "#" * 500_000, "def f():\n" + "#\n" * 90_000]:
        text = text[:200_000]
        assert isinstance(without_docstring(text, "Add two numbers ."), str)
    assert time.process_time() - begin < 60


# -- surface --------------------------------------------------------------------------------------------------------

def test_code_and_prose_are_no_loops_and_no_refusals():
    "What the repository itself says, in prose and in code."
    root = Path(__file__).parents[1]
    texts = [p.read_text(encoding="utf-8") for p in [*root.glob("qwen_eval/**/*.py"), root / "CONTRIBUTING.md", root / "LICENSE"]]
    assert len(texts) > 50 and not loops(texts).any() and not refusals(texts).any() and repetition(texts).max() < 0.5


def test_real_answers_of_a_small_model():
    "SmolLM2's answers to GSM8K: many loops where it was cut off, few elsewhere, and hardly a refusal."
    if settings().data is None: pytest.skip("needs QWEN_EVAL_DATA: real answers lie beside that folder")
    path = settings().data.parent / "outputs" / "smollm2_135m" / "gsm8k.jsonl.gz"
    if not path.is_file(): pytest.skip("needs the outputs of smollm2_135m")
    texts = [json.loads(line)["completion"] for line in gzip.decompress(path.read_bytes()).splitlines()]
    found = loops(texts)
    assert len(texts) == 1319 and 50 < found.sum() < 338 and refusals(texts).sum() <= 3
    assert repetition([t for t, is_loop in zip(texts, found, strict=True) if is_loop]).mean() > 0.6


# -- quality --------------------------------------------------------------------------------------------------------

def test_the_bootstrap_covers():
    "How often a 95 % interval of a ratio of sums holds the true ratio."
    rng, hits, n = np.random.default_rng(0), 0, 300
    for _ in range(n):
        sizes = rng.integers(4, 12, 60)
        parts = np.stack([rng.binomial(sizes, 0.6), sizes], axis=1)
        e = bootstrap_corpus(parts, lambda s: s[0] / s[1], rng, n_resamples=300)
        hits += e.low <= 0.6 <= e.high
    assert 0.90 < hits / n < 0.98


def test_a_corpus_figure_with_its_interval_is_that_of_sacrebleu():
    rng = random.Random(1)
    words = ["add", "two", "numbers", "and", "return", "the", "sum", "of", "them", "all"]
    wanted = [" ".join(rng.choices(words, k=9)) for _ in range(60)]
    said = [" ".join(w if rng.random() < 0.7 else "x" for w in r.split()) for r in wanted]
    rows = quality(said, wanted, ["corpus_bleu", "corpus_chrf"], rng=np.random.default_rng(0)).set_index("metric")
    from sacrebleu.metrics import BLEU, CHRF
    for name, theirs in (("corpus_bleu", BLEU()), ("corpus_chrf", CHRF())):
        row = rows.loc[name]
        assert math.isclose(100 * row.value, theirs.corpus_score(said, [wanted]).score)
        assert row.low < row.value < row.high and row.method == "bootstrap (percentile)"
    again = quality(said, wanted, ["corpus_bleu"], rng=np.random.default_rng(0)).iloc[0]
    assert (again.low, again.high) == (rows.low["corpus_bleu"], rows.high["corpus_bleu"])


def test_quality_of_a_run_leaves_engine_errors_out(tmp_path):
    def answer(r):
        if r.item_id.endswith("/1"): return Completion(item_id=r.item_id, finish_reason="error", error="lost")
        return "Here is the docstring:\n```python\n\"\"\"Add two numbers.\"\"\"\n```"
    run = evaluate("smollm2_135m", "codet5", engine=FakeEngine(answer), source="specimen", runs=tmp_path, progress=False)
    found = run_quality(run, ["words", "rouge_l", "truncated"])
    assert found.attrs == {"run_id": run.id, "seed": 0, "n_answers": 7, "n_left_out": 1} and (found.n_items == 7).all()
    rows = found.set_index("metric")
    said = [i.target for i in load(benchmark("codet5"), "specimen").items if not i.id.endswith("/1")]
    assert math.isclose(rows.value["rouge_l"], rouge_l(["Add two numbers."] * 7, said).mean()) # what was extracted
    assert rows.value["words"] == 8 # of the whole answer


def test_the_command(tmp_path, capsys):
    from typer.testing import CliRunner

    from qwen_eval.cli import app
    run = evaluate("smollm2_135m", "codet5", engine=FakeEngine(lambda r: "Add."), source="specimen", runs=tmp_path, progress=False)
    done = CliRunner().invoke(app, ["quality", str(run.path), "--metrics", "words,chrf", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert [m["metric"] for m in found["measures"]] == ["words", "chrf"] and found["n_answers"] == 8
    assert found["measures"][0]["high"] is None # no upper end where all are alike and nothing bounds them
    text = CliRunner().invoke(app, ["quality", str(run.path), "--metrics", "refusal"]).output
    assert run.id in text and "Refused" in text
    wrong = CliRunner().invoke(app, ["quality", str(run.path), "--metrics", "blue"])
    assert wrong.exit_code == 2 and "bleu" in wrong.output


def test_a_run_without_written_answers_is_refused_and_what_was_not_asked_is_left_out(tmp_path):
    how = {"source": "specimen", "runs": tmp_path, "progress": False}
    with pytest.raises(ConfigError, match=r"no written answers: .*'continuations'.*'generate'"):
        run_quality(evaluate("smollm2_135m", "truthfulqa", engine=FakeEngine(), variant="cloze", **how))
    run = evaluate("smollm2_135m", "codet5", engine=FakeEngine(lambda r: "Add."), **how)
    run.scores.loc[2, "detail"] = "not asked: a prompt of 9000 tokens leaves no room"
    run.scores.loc[3, "detail"] = "turn 2: not asked: a prompt of 9000 tokens leaves no room"
    found = run_quality(run, ["words", "empty"])
    assert found.attrs["n_answers"] == 6 and found.attrs["n_left_out"] == 2 and (found.n_items == 6).all()


def test_an_unknown_measure_is_told_all_that_are_known():
    with pytest.raises(KeyError) as e: quality(["a"], metrics=["nonsense"], rng=np.random.default_rng(0))
    assert all(name in str(e.value) for name in measures.names())
    with pytest.raises(KeyError) as e: quality(["a"], metrics=["zzzz"], rng=np.random.default_rng(0))
    assert str(e.value).count("Known: ") == 1
