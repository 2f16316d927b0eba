"""Tables of items, runs and estimates: fixed columns and types, agreement with the runs, SQL over Parquet files."""
import json
import math
import runpy
import time
from pathlib import Path

import pandas as pd
import pytest

from qwen_eval import tables
from qwen_eval.engines.base import FakeEngine
from qwen_eval.errors import ConfigError, IntegrityError
from qwen_eval.evaluation import evaluate
from qwen_eval.models import Model
from qwen_eval.runs import Run, list_runs
from qwen_eval.scores import read_scores, write_scores
from qwen_eval.store import run_id, update_manifest
from qwen_eval.tables import COLUMNS, estimate_table, item_table, query, run_table
from qwen_eval.weighing import weigh

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "data/demo"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    "Three runs of two benchmarks, one with parts and several metrics, one with epochs."
    home = tmp_path_factory.mktemp("runs")
    same = {"source": "specimen", "runs": home, "progress": False}
    evaluate(Model(id="first"), "bfcl", engine=FakeEngine("constant"), variant="prompted", **same)
    evaluate(Model(id="first"), "gsm8k", engine=FakeEngine(lambda r: f"#### {18 + r.epoch}"), epochs=2,
             temperature=0.7, **same)
    evaluate(Model(id="chance"), "arc_challenge", engine=FakeEngine("random"), **same)
    return home


MADE = {"items": item_table, "runs": run_table, "estimates": estimate_table}
KINDS = {"text": "str", "whole": "Int64", "real": "float64", "flag": "bool"}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_and_types_are_those_that_are_written_down(store, name):
    runs = list_runs(store)
    for some in (runs, runs[:1], list_runs(DEMO)[:3], []):
        table = MADE[name](some)
        told = {c: KINDS[said.partition("; ")[0]] for c, said in COLUMNS[name].items()}
        assert list(table)[:len(told)] == list(told)
        assert {c: str(table[c].dtype) for c in told} == told
        assert all(str(table[c].dtype) == "float64" for c in set(table) - set(told)) # metrics
        assert all(isinstance(x, str) for c, kind in told.items() if kind == "str" for x in table[c])
    assert all(said.partition("; ")[2] for said in COLUMNS[name].values())


def test_items_are_those_of_the_runs(store):
    runs, table = list_runs(store), item_table(list_runs(store))
    assert len(table) == sum(len(r.scores) for r in runs) and table.groupby("run_id").ngroups == 3
    for r in runs:
        mine = table[table.run_id == r.id].reset_index(drop=True)
        for c in ("item_id", "epoch", "value", "status", "n_output_tok"):
            assert mine[c].tolist() == r.scores[c].tolist()
    assert item_table([Run(runs[0].path, 2)]).order.max() == 1 # in view only


def test_estimates_are_those_of_the_runs(store):
    runs = [*list_runs(store), *list_runs(DEMO)[:6]]
    table = estimate_table(runs)
    for r in runs:
        mine = table[(table.run_id == r.id) & (table.part == "overall")].set_index("metric")
        assert set(mine.index) == set(r.estimates())
        for metric, e in r.estimates().items():
            row = mine.loc[metric]
            for k in ("value", "low", "high", "level"):
                assert math.isclose(row[k], getattr(e, k), abs_tol=1e-12) or (row[k] != row[k] and e.value != e.value)
            assert (row.method, row.n_items, row.n_epochs) == (e.method, e.n_items, e.n_epochs)
            assert {s: row[s] for s in e.counts} == e.counts


def test_parts_are_what_the_same_metric_says_of_them_alone(store):
    [run] = [r for r in list_runs(store) if "bfcl" in r.id]
    parts = estimate_table([run], parts=("stratum",))
    assert set(parts.name) == set(run.scores.stratum) and set(parts.metric) == {"acc"} # averages of parts have none
    for row in parts.itertuples():
        e = weigh(run.scores[run.scores.stratum == row.name], "acc")
        assert (row.value, row.low, row.high, row.n_items) == (e.value, e.low, e.high, e.n_items)
    whole = estimate_table([run], parts=("overall",)).set_index("metric").loc["acc"]
    assert math.isclose((parts.value * parts.n_items).sum(), whole.value * whole.n_items)


def test_clusters_are_parts_where_they_are_asked_for(tmp_path, store):
    run = list_runs(store)[0]
    frame = run.scores.assign(cluster=["one", "one", "two", *[""] * (len(run.scores) - 3)])
    copy = tmp_path / run.id
    update_manifest(copy, **run.manifest)
    write_scores(copy, frame)
    table = estimate_table([Run(copy)], parts=("cluster",))
    assert set(table.name) == {"one"} and set(table.n_items) == {2}
    assert "cluster" not in set(estimate_table([Run(copy)]).part)


def test_what_cannot_be_estimated_says_why(tmp_path):
    run = evaluate(Model(id="m"), "gsm8k", engine=FakeEngine(lambda r: "18"), source="specimen", runs=tmp_path,
                   progress=False)
    write_scores(run.path, run.scores.assign(status=["engine_error", *["scored"] * (len(run.scores) - 1)]))
    row = estimate_table([Run(run.path)]).iloc[0]
    assert math.isnan(row.value) and row.engine_error == 1 and "engine error" in row.note
    assert not math.isnan(estimate_table([Run(run.path)], max_error_rate=1).value.iloc[0])


# ---------------------------------------------------------------- SQL
def test_the_three_views_hold_the_three_tables(store):
    for name, make in MADE.items():
        asked, made = query(f"select * from {name}", store), make(list_runs(store))
        key = ["run_id", *{"items": ["item_id", "epoch"], "runs": [], "estimates": ["part", "name", "metric"]}[name]]
        assert sorted(asked.columns) == sorted(made.columns)
        a, b = (t.sort_values(key, ignore_index=True)[list(COLUMNS[name])] for t in (asked, made))
        for c, said in COLUMNS[name].items():
            x, y = (t[c].fillna("") if said.startswith("text") else t[c].astype(float) for t in (a, b))
            assert x.equals(y) or (x - y).abs().max() < 1e-12, (name, c)


def test_values_come_in_as_parameters(store):
    evil = "first' or '1' = '1"
    ask = "select count(*) as n from items where model = "
    assert query(f"{ask}?", store, [evil]).n[0] == 0
    n = query(f"{ask}$who", store, {"who": "first"}).n[0]
    assert n == sum(len(r.scores) for r in list_runs(store) if "first" in r.id) > 0
    assert query("select distinct run_id from items where list_contains(?, run_id)", store,
                 [[list_runs(store)[0].id]]).run_id.tolist() == [list_runs(store)[0].id]
    for odd in ([], ["a", "b"]):
        with pytest.raises(ConfigError, match=r"(?i)parameter"): query(f"{ask}?", store, odd)


def test_runs_may_be_given_and_folders_may_be_called_anything(tmp_path, store):
    runs = list_runs(store)
    assert query("select count(distinct run_id) as n from items", runs[:2]).n[0] == 2
    for name in ("it's", "a[1]*", "b?c"):
        copy = tmp_path / name / runs[0].id
        update_manifest(copy, **runs[0].manifest)
        write_scores(copy, runs[0].scores)
    for name in ("it's", "a[1]*", "b?c"):
        assert query("select count(*) as n from items", tmp_path / name).n[0] == len(runs[0].scores)


@pytest.mark.parametrize("sql, said", [("select nothing from items", "nothing"), ("selct", "selct"),
                                       ("select * from scored", "scored"), ("select value + model from runs", "model")])
def test_a_wrong_query_names_what_there_is(store, sql, said):
    with pytest.raises(ConfigError) as e: query(sql, store)
    assert said in str(e.value)
    for name, columns in COLUMNS.items(): assert f"{name}: {', '.join(columns)}" in str(e.value)
    assert "exact_match" in str(e.value) # metrics of the runs


def test_nothing_to_ask(tmp_path):
    with pytest.raises(ConfigError, match="no scored runs"): query("select 1", tmp_path)
    with pytest.raises(ConfigError, match="no scored runs"): query("select 1", [])


def test_a_damaged_file_is_named(tmp_path, store):
    run = list_runs(store)[0]
    copy = tmp_path / run.id
    update_manifest(copy, **run.manifest)
    (copy / "scores.parquet").write_bytes((run.path / "scores.parquet").read_bytes()[:-20])
    for name in COLUMNS:
        with pytest.raises(IntegrityError, match=f"{run.id}.*cannot be read"): query(f"select * from {name}", tmp_path)


def test_statistics_are_made_once_for_each_state_of_a_run(tmp_path, store, monkeypatch):
    run, made = list_runs(store)[0], []
    copy = tmp_path / run.id
    update_manifest(copy, **run.manifest)
    write_scores(copy, run.scores)
    honest = tables._run_row
    monkeypatch.setattr(tables, "_run_row", lambda *a: made.append(1) or honest(*a))
    before = query("select value from runs", tmp_path).value[0]
    assert query("select value from runs", tmp_path).value[0] == before and len(made) == 1
    query("select count(*) from items", tmp_path)
    assert len(made) == 1 # the items need none
    write_scores(copy, run.scores.assign(value=1.0, acc=1.0))
    assert query("select value from runs", tmp_path).value[0] == 1.0 != before and len(made) == 2


def test_a_file_replaced_while_it_is_read_is_read_again(tmp_path, store, monkeypatch):
    run, calls = list_runs(store)[0], []
    copy = tmp_path / run.id
    update_manifest(copy, **run.manifest)
    whole = (run.path / "scores.parquet").read_bytes()
    (copy / "scores.parquet").write_bytes(whole[:100])
    honest = tables._asked

    def writes(*a):
        calls.append(1)
        try: return honest(*a)
        finally:
            if len(calls) == 1: (copy / "scores.parquet").write_bytes(whole)
    monkeypatch.setattr(tables, "_asked", writes)
    assert query("select count(*) as n from items", tmp_path).n[0] == len(run.scores) and len(calls) == 2


def test_twins_are_told_apart(tmp_path, store):
    run = list_runs(store)[0]
    twin = {**run.manifest["fingerprint"], "twin": True}
    update_manifest(tmp_path / run_id(twin), **{**run.manifest, "fingerprint": twin})
    write_scores(tmp_path / run_id(twin), run.scores)
    asked = query("select twin, count(*) as n from items group by all", [run, *list_runs(tmp_path)])
    assert dict(zip(asked.twin, asked.n, strict=True)) == {True: len(run.scores), False: len(run.scores)}


def test_many_stored_items_are_asked_fast(tmp_path):
    "A tenth of what benchmarks/table_speed.py asks, in the whole second that it allows for all of it."
    bench = runpy.run_path(str(ROOT / "benchmarks/table_speed.py"))
    bench["write"](tmp_path, 20, 5_000)
    assert read_scores(tmp_path / "made--0000").columns.tolist()[:4] == ["order", "item_id", "epoch", "status"]
    for sql, params in bench["QUESTIONS"].values():
        assert len(query(sql, tmp_path, params))
        begin = time.process_time()
        assert len(query(sql, tmp_path, params))
        assert time.process_time() - begin < bench["BOUND_S"]
    frames = pd.concat(f.scores.assign(model=f.manifest["fingerprint"]["model"]["id"]) for f in list_runs(tmp_path))
    expected = frames[frames.stratum == "part 3"].groupby("model").value.agg(["size", "mean"])
    found = query(*[bench["QUESTIONS"]["items: filter and count"][0], tmp_path, ["part 3"]]).set_index("model")
    assert found.n.to_dict() == expected["size"].to_dict()
    assert (found["mean"] - expected["mean"]).abs().max() < 1e-12


def test_the_written_store_is_one_of_ours(tmp_path):
    runpy.run_path(str(ROOT / "benchmarks/table_speed.py"))["write"](tmp_path, 1, 10)
    [run] = list_runs(tmp_path)
    assert run.complete and run.estimate().n_items == 10
    assert json.loads((run.path / "manifest.json").read_text())["fingerprint"]["model"]["id"] == "model 0"
