"""What lm-evaluation-harness 0.4.13 sends and how it judges, as hashes frozen from a run of the harness itself.

`benchmarks/parity_lm_eval.py` made them (`lm_eval_sha256...` in its results) and compares many more items; here it is
enough that ours have not moved. No text of a benchmark can be read out of a hash.
"""
import gzip
import hashlib
import importlib.util
import json
import random
from pathlib import Path

import pytest

from qwen_eval.datasets.all import benchmark, benchmarks
from qwen_eval.models import model
from qwen_eval.protocols import protocol
from qwen_eval.records import Completion, Item
from qwen_eval.scorers.text import score_items
from qwen_eval.settings import settings
from qwen_eval.shots import lm_eval_shots

ROOT = Path(__file__).parents[1]
FOUND = json.loads((ROOT / "benchmarks/results/parity_lm_eval_2026-11-28.json").read_bytes())


def script():
    spec = importlib.util.spec_from_file_location("parity_lm_eval", ROOT / "benchmarks/parity_lm_eval.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PARITY = script()


def data(*names):
    folder = settings().data
    if folder is None: pytest.skip("QWEN_EVAL_DATA is not set: no real items")
    missing = [n for n in names if not (folder / n).exists()]
    if missing: pytest.skip(f"{missing[0]} is not beside the real items")
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    "Benchmark -> items, as both sides read them; loaded once."
    return Kept(tmp_path_factory.mktemp("rows"))


class Kept(dict):
    def __init__(self, folder): self.folder = folder

    def __missing__(self, name):
        self[name] = PARITY.write_rows(name, self.folder)
        return self[name]


@pytest.mark.parametrize("part", PARITY.PARTS)
def test_request_texts_are_those_of_the_harness(part, sets):
    name, n_shot = PARITY.PARTS[part]
    data(f"{name}.jsonl.gz")
    items = random.Random(f"{FOUND['seed']} {name}").sample(sets[name].items, min(200, len(sets[name].items)))[:20]
    texts = [t for _, _, t in PARITY.our_texts(name, n_shot, items, sets, model("smollm2_135m"))]
    assert PARITY.text_hash(texts) == FOUND["parts"][part]["lm_eval_sha256_first_20"]
    assert PARITY.text_hash(texts[::-1]) != PARITY.text_hash(texts)


@pytest.mark.parametrize("source, n", [("outputs/smollm2_135m", 1319), ("published/gsm8k_openai", 5267)])
def test_verdicts_on_gsm8k_are_those_of_the_harness(source, n, sets):
    file = {"outputs/smollm2_135m": "gsm8k.jsonl.gz", "published/gsm8k_openai": "solutions.jsonl.gz"}[source]
    path = data("gsm8k.jsonl.gz", f"../{source}/{file}") / f"../{source}/{file}"
    items = sets["gsm8k"].items
    said = PARITY.read_completions("gsm8k", str(path), items)
    variant = benchmark("gsm8k").variants["lm-eval"]
    pairs = [(i, Completion(item_id=i.id, epoch=k, text=t)) for i in items for k, t in enumerate(said.get(i.id, ()))]
    scores = list(score_items(pairs, variant.score, variant))
    assert len(scores) == n
    for metric, found in FOUND["replayed"][f"gsm8k: {source}"]["metrics"].items():
        bits = "".join(str(int(s.metrics[metric])) for s in scores)
        assert hashlib.sha256(bits.encode()).hexdigest() == found["lm_eval_sha256"], metric


def test_every_result_is_within_the_limits_that_were_set():
    assert set(FOUND["parts"]) == set(PARITY.PARTS)
    for part, found in FOUND["parts"].items():
        n = min(200, {"humaneval": 164}.get(part, 200))
        assert found["items"] == n and found["texts_equal"] == found["ids_equal"] == found["texts"] >= n, part
        assert found["generation_equal"] in (True, None)
        if benchmark(PARITY.PARTS[part][0]).task_type != "choice": continue
        scores = found["scores"]
        assert scores["items"] == 200 and scores["largest_nats"] <= 0.05, part
        assert all(m["n"] == 200 and m["equal"] >= 199 for m in scores["metrics"].values()), part


def test_the_results_hold_no_text():
    def texts(x):
        if isinstance(x, dict): return [t for v in x.values() for t in texts(v)]
        return [t for v in x for t in texts(v)] if isinstance(x, list) else [x] if isinstance(x, str) else []
    assert max(map(len, texts(FOUND))) < 400


def test_each_benchmark_that_lm_eval_asks_has_its_variant():
    p = protocol("lm-eval")
    named = [b.id for b in benchmarks() if p.variant in b.variants]
    assert {n for n, _ in PARITY.PARTS.values()} <= set(named)
    budgets = {n: p.max_tok(benchmark(n).variants["lm-eval"].answer) for n in ("gsm8k", "mbpp", "humaneval")}
    assert budgets == {"gsm8k": 256, "mbpp": 256, "humaneval": 1024}
    assert not any(benchmark(n).variants["lm-eval"].chat for n in named)


def test_examples_follow_from_the_row_alone():
    "The draws of `random.Random(1234)`, one a document, as the harness makes them."
    pool = [Item(id=f"p/{i}", question=str(i)) for i in range(50)]
    items = [Item(id=f"t/{i}", question="?", row=i) for i in range(30)]
    for spare in (False, True):
        rng = random.Random(1234)
        expected = [tuple(rng.sample(pool, 5 + spare))[:5] for _ in items]
        shots = lm_eval_shots(pool, 5, spare)
        assert [shots(items[i]) for i in (29, 3, 0)] == [expected[i] for i in (29, 3, 0)]


def test_gzip_is_read_as_it_is(tmp_path):
    file = tmp_path / "said.jsonl.gz"
    file.write_bytes(gzip.compress(json.dumps({"id": 7, "completion": "so\nA: 3"}).encode()))
    said = PARITY.read_completions("gsm8k", str(file), [Item(id="gsm8k/test/7", question="?")])
    assert said == {"gsm8k/test/7": ["so\nA: 3", "so\n#### 3"]}
