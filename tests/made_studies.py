"""Studies whose scores are made up: real manifests of a fake engine, values of our choice."""
from dataclasses import replace

import numpy as np
import pandas as pd

from qwen_eval.evaluation import evaluate
from qwen_eval.runs import Run
from qwen_eval.scores import write_scores
from qwen_eval.store import update_manifest
from qwen_eval.studies import Study, plan


def with_scores(run, values, column="value", status="scored", clusters=None, **columns):
    "The run with items of given values, shape (n_items,) or (n_items, n_epochs), in place of its specimens."
    values = np.asarray(values, float)
    values = values[:, None] if values.ndim == 1 else values
    n, k = values.shape
    row = run.scores.iloc[0].to_dict()
    frame = pd.DataFrame({**{c: [v] * (n * k) for c, v in row.items()}, "order": np.repeat(np.arange(n), k),
                          "item_id": np.repeat([f"q{i:05d}" for i in range(n)], k), "epoch": np.tile(np.arange(k), n),
                          "status": status, "finish_reason": "stop", "detail": "", "value": values.ravel(),
                          column: values.ravel(), "cluster": "" if clusters is None else np.repeat(clusters, k),
                          **{c: np.repeat(v, k) for c, v in columns.items()}})
    write_scores(run.path, frame)
    stages = {**run.manifest["stages"], "generate": {**run.manifest["stages"]["generate"], "n_items": n}}
    update_manifest(run.path, stages=stages, epochs=k, marks=[])
    return Run(run.path)


def made_study(runs, values, n=400, **fields):
    "A plan whose runs are stored with these values: (model, preset, benchmark) -> values; others are not stored."
    models, presets, benchmarks = (tuple(dict.fromkeys(key[i] for key in values)) for i in range(3))
    known = {"id": "made", "models": models, "presets": presets, "benchmarks": benchmarks, "engine": "fake",
             "limit": 3, "answer_tok": 32, "allow_specimens": True, **fields}
    p = plan(Study(**known), runs=runs)
    for r in p.runs:
        found = values.get((r.model, r.preset, r.benchmark))
        if found is None: continue
        run = evaluate(r.model, r.benchmark, r.preset, engine="fake", limit=3, answer_tok=32, allow_specimens=True,
                       runs=runs, progress=False)
        with_scores(run, found, column=run.metric if run.metric in run.scores else "value")
    return replace(p, runs=tuple(replace(r, plan=replace(r.plan, limit=n)) for r in p.runs))
