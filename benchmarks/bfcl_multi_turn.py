"""Our conversations with tools against the leaderboard's own, with the same answers: what is shown, and the verdicts.

    python -m venv /path/to/bfcl && /path/to/bfcl/bin/pip install --no-deps bfcl-eval==2026.3.23
    /path/to/bfcl/bin/pip install tree_sitter==0.21.3 tree-sitter-java==0.21.0 tree-sitter-javascript==0.21.4 \\
        tenacity filelock tqdm python-dotenv setuptools numpy==1.26.4 pandas mpmath openai overrides requests
    python benchmarks/bfcl_multi_turn.py --python /path/to/bfcl/bin/python --out results.json

QWEN_EVAL_DATA names the folder with bfcl_v4.jsonl.gz; without it the rows come from PyPI. A script of answers takes
the place of the model: the authors' own calls of all 800 items (native and prompted; every fifth in the other two
forms), and scripts made from them by changes of calls, names, values, order, steps and turns. The package's
`inference_multi_turn_prompting` plays each with its own handlers and judges it with `eval_runner`, in a process of
the other interpreter; ours plays it with `next_request` and the scorer, in the sandbox, from the same package in this
environment. Compared are every message that is said to the model (of tool calls the results, since the leaderboard's
local handlers write templates of their own), the tools, and the verdicts.
"""
import argparse
import contextlib
import importlib
import io
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

from bfcl_mutations import ODD, _one_flag, ask_other, digest

FORMS = {"native": "hermes-calls", "native-llama": "llama-calls", "prompted": "prompted-calls",
         "prompted-tools": "prompted-calls"}


# The official side, in its own environment: standard library and bfcl_eval alone.

def official(cases, verdicts):
    "Play and judge the cases of a file (JSON lines) with the installed package, and write what it said."
    os.environ["BFCL_PROJECT_ROOT"] = tempfile.mkdtemp()
    try: importlib.import_module("bfcl_eval.constants.model_config")
    except ImportError as e: table = _one_flag(str(e))
    else: table = "the package's own"
    from bfcl_eval.constants.enums import ModelStyle
    from bfcl_eval.constants.type_mappings import GORILLA_TO_OPENAPI
    from bfcl_eval.model_handler.utils import convert_to_tool
    from bfcl_eval.utils import load_dataset_entry, load_ground_truth_entry
    known, found, tools = {}, [], {}
    for n, line in enumerate(Path(cases).read_text().splitlines()):
        case = json.loads(line)
        category = case["id"].rpartition("_")[0]
        if category not in known:
            rows, gold = load_dataset_entry(category), load_ground_truth_entry(category)
            known[category] = {r["id"]: (json.dumps(r), g["ground_truth"]) for r, g in zip(rows, gold, strict=True)}
        row, gold = known[category][case["id"]]
        if case["id"] not in tools:
            r = json.loads(row)
            added = [f for fs in r.get("missed_function", {}).values() for f in fs]
            tools[case["id"]] = [digest(convert_to_tool(fs, GORILLA_TO_OPENAPI, ModelStyle.OPENAI_COMPLETIONS))
                                 for fs in (r["function"], added)]
        with contextlib.redirect_stdout(io.StringIO()): found.append(_play(case, json.loads(row), gold, n))
    Path(verdicts).write_text(json.dumps({"table": table, "found": found, "tools": tools}))


def _handlers():
    from bfcl_eval.model_handler.api_inference.openai_completion import OpenAICompletionsHandler
    from bfcl_eval.model_handler.local_inference.base_oss_handler import OSSHandler
    from bfcl_eval.model_handler.local_inference.llama_3_1 import LlamaHandler_3_1
    from bfcl_eval.model_handler.local_inference.qwen_fc import QwenFCHandler
    return {"native": QwenFCHandler, "native-llama": LlamaHandler_3_1, "prompted-tools": OSSHandler,
            "prompted": OpenAICompletionsHandler}


def _play(case, row, gold, n):
    from bfcl_eval.eval_checker import eval_runner
    from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_utils as utils
    os.environ.setdefault("OPENAI_API_KEY", "none")
    texts, heard = iter(case["texts"]), []

    def query(inference_data):
        heard[:] = json.loads(json.dumps(inference_data["message"]))
        message = SimpleNamespace(content=next(texts, "Done."))
        usage = SimpleNamespace(prompt_tokens=0, completion_tokens=0)
        return SimpleNamespace(choices=[SimpleNamespace(text=message.content, message=message)], usage=usage), 0.0

    def remember(inference_data, said): # the vendor's object cannot be written down
        inference_data["message"].append({"role": "assistant", "content": said["model_responses"]})
        return inference_data

    name, out = f"m{n}x", {}
    handler = _handlers()[case["form"]](name, 0, name, case["form"].startswith("native"))
    handler._query_prompting = query
    if case["form"] == "prompted": handler._add_assistant_message_prompting = remember
    try:
        result, _ = handler.inference_multi_turn_prompting(row, False, True)
        out = {"turns": result, "heard": heard}
        made = eval_runner._evaluate_single_multi_turn_entry(handler, case["id"], result, gold, row, name,
                                                             case["id"].rpartition("_")[0])
        out |= {"valid": bool(made["valid"]), "why": str(made.get("error", {}).get("error_type", ""))}
    except Exception as e: out |= {"valid": None, "why": f"{type(e).__name__}: {e}"[:300]}
    for key in [k for k in vars(utils) if k.startswith(f"m{n}x_")]: del vars(utils)[key]
    return out


# Scripts

SAID = ("Done.", "", "[]", "I need more to do that.", "None", "So far, so good: that is it.")
NAMES = ("print", "cd_", "GorillaFileSystem.cd", "len", "exit", "self.cd", "json.dumps", "ls.pwd", "Add", "undefined",
         "rm", "copy")
VALUES = (None, True, 0, -1, 2.5, "", "x", [], [1, "a"], {"a": 1}, "cd(tea)", "é😀", "'", '"', "\\", "a\nb",
          10 ** 20, "ls()")


def mutated(rng, turns, names):
    "A conversation, as turns of calls, with one change."
    turns = json.loads(json.dumps(turns))
    full = [n for n, t in enumerate(turns) if t]
    if not full: return turns
    t = turns[rng.choice(full)]
    at, way = rng.randrange(len(t)), rng.randrange(15)
    name, args = t[at]
    key = rng.choice(list(args)) if args else None
    if way == 0: t.pop(at)
    elif way == 1: t.insert(rng.randint(0, len(t)), [name, dict(args)])
    elif way == 2: rng.shuffle(t)
    elif way == 3: turns[rng.randrange(len(turns))].append(t.pop(at))
    elif way == 4: t.clear()
    elif way in (5, 6) and key: args[key] = changed(rng, args[key])
    elif way == 7 and key: args.pop(key)
    elif way == 8 and key: args[f"{key}_"] = args.pop(key)
    elif way == 9: args[rng.choice(("x", "self", "path", "a"))] = rng.choice(VALUES)
    elif way == 10: t[at][0] = rng.choice(NAMES)
    elif way == 11: t[at] = [rng.choice(names), args if rng.random() < 0.5 else {}]
    elif way in (12, 13): turns[rng.randrange(len(turns))].insert(0, [rng.choice(names), {}])
    else: args[key or "a"] = {"pwd": {}} if rng.random() < 0.5 else {"add": {"a": 1, "b": 2}}
    return turns


def changed(rng, value):
    if isinstance(value, bool): return rng.choice((not value, int(value), str(value)))
    if isinstance(value, (int, float)):
        return rng.choice((value + 1, -value, float(value), str(value), [value], int(value)))
    if isinstance(value, list) and value:
        return rng.choice((value[::-1], value[1:], [*value, value[0]], [changed(rng, value[0]), *value[1:]],
                           str(value)))
    if isinstance(value, str):
        return rng.choice((value.upper(), f"{value} ", value + rng.choice(ODD), value[:-1], f"./{value}", [value],
                           value.title(), value + " cd(x)"))
    return rng.choice(VALUES)


def script(rng, turns, spell):
    "Answers: the calls of a turn at once, one by one, or anyhow; then something without a call."
    texts = []
    for calls in turns:
        parts, left = [], list(calls)
        while left:
            k = len(left) if (way := rng.random()) < 0.5 else 1 if way < 0.9 else rng.randint(1, len(left))
            parts.append(left[:k])
            left = left[k:]
        if parts and rng.random() < 0.02: parts = [rng.choice(parts)] * rng.choice((20, 21, 22))
        texts += [disturbed(rng, spell(p)) if rng.random() < 0.03 else spell(p) for p in parts]
        if rng.random() > 0.02: texts.append(rng.choice(SAID))
    return texts


def disturbed(rng, text):
    at = rng.randint(0, len(text))
    return rng.choice((text[:at], f"Here: {text}", f"```python\n{text}\n```", f"`{text}`", text.replace("'", '"'),
                       f"{text}\n", text[:at] + rng.choice(ODD) + text[at:], text * 2, text.replace("\n", "")))


def right_scripts(items):
    "Every item in two forms, every fifth also in the two others."
    return [(i, f) for f in ("native", "prompted") for i in items] + [
        (i, f) for f in ("native-llama", "prompted-tools") for i in items[::5]]


def cases_of(items, n, seed):
    "(item, form, texts): right ones first; then n that are changed."
    from qwen_eval.bfcl_tools import _given, _spelt, right_answers
    from qwen_eval.bfcl_turns import function_docs
    for i, form in right_scripts(items): yield i, form, right_answers(i, FORMS[form])
    rng = random.Random(seed)
    for _ in range(n):
        item, form = rng.choice(items), rng.choice([*FORMS])
        docs = [f for c in item.extra["classes"] for f in function_docs(c)]
        params = {f["name"]: [*f["parameters"]["properties"]] for f in docs}
        turns = [[[*_given(c, params)] for c in calls] for calls in item.target]
        for _ in range(rng.choices((0, 1, 2), (2, 8, 3))[0]): turns = mutated(rng, turns, [*params])
        yield item, form, script(rng, turns, lambda calls, form=form: _spelt(calls, FORMS[form]))


# Ours

def ours(item, form, texts):
    "(turns of raw answers, what was said to the model last, the conversation) with a script in the model's place."
    from qwen_eval.conversations import next_request, whole
    from qwen_eval.datasets.all import benchmark
    from qwen_eval.models import model
    from qwen_eval.protocols import protocol
    from qwen_eval.records import Completion
    from qwen_eval.requests import build_requests
    b, m, p = benchmark("bfcl_multi_turn"), model("qwen3_8b"), protocol("greedy")
    [asked], answers, rest, tools = build_requests([item], (), b, b.variants[form], m, None, p), [], iter(texts), None
    while asked is not None:
        heard, tools = asked.messages, asked.tools
        answers.append(Completion(item_id=item.id, text=next(rest, "Done.")))
        asked = next_request(item, asked, answers, b.variants[form], m, None, p)
    return heard, tools, whole(answers)


def comparable(messages, form):
    "What is said to a model, as far as both sides write it."
    if form.startswith("prompted"): return [*messages]
    from qwen_eval.bfcl_prompts import bfcl_texts
    more = bfcl_texts()["more"] # as tools, not as text before it
    return [[m["role"], more if m["content"].endswith(more) else m["content"]] for m in messages
            if m["role"] != "assistant"]


def judge(cases, python):
    return ask_other(__file__, ({"id": i.id, "form": f, "texts": t} for i, f, t in cases), python)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", help="interpreter of the environment that holds bfcl-eval==2026.3.23")
    parser.add_argument("--n", type=int, default=3000, help="changed scripts, besides the right ones")
    parser.add_argument("--items", type=int, help="items only, evenly over the file")
    parser.add_argument("--limit-s", type=float, default=1e9, help="seconds after which no further script is begun")
    parser.add_argument("--no-right", action="store_true", help="changed scripts alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where to write the result (JSON)")
    parser.add_argument("--show", type=int, default=10, help="disagreements to print")
    parser.add_argument("--judge", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.judge: return official(*options.judge)
    if not options.python: parser.error("--python is needed: the interpreter that has bfcl-eval")
    found = compare(options)
    if options.out: options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({k: v for k, v in found.items() if k not in ("differences", "environment", "cases_and_right")}))
    return int(bool(found["differ"]))


def compare(options):
    from qwen_eval.bfcl_prompts import as_tools
    from qwen_eval.bfcl_turns import bfcl_turns_native, with_functions
    from qwen_eval.datasets.all import benchmark
    from qwen_eval.datasets.base import load
    from qwen_eval.scorers.text import ScoreOptions, batch_scorers
    from qwen_eval.store import environment
    b, item_set = benchmark("bfcl_multi_turn"), load(benchmark("bfcl_multi_turn"))
    items = item_set.items[::max(len(item_set) // options.items, 1)] if options.items else item_set.items
    n_right, cases = len(right_scripts(items)), list(cases_of(items, options.n, options.seed))
    if options.no_right: n_right, cases = 0, cases[n_right:]
    begin = time.perf_counter()
    def play(case): return ours(*case) if time.perf_counter() - begin < options.limit_s else None
    with ThreadPoolExecutor(os.cpu_count()) as pool: played = [p for p in pool.map(play, cases) if p]
    cases = cases[:len(played)]
    loop_s, begin, scores = time.perf_counter() - begin, time.perf_counter(), {}
    for form in FORMS: # a case is an epoch of its item
        pairs = [(c[0], _epoch(p[2], n)) for n, (c, p) in enumerate(zip(cases, played, strict=True)) if c[1] == form]
        scores |= {s.epoch: s for s in batch_scorers.get("bfcl-turns")(pairs, b.variants[form], ScoreOptions())}
    score_s, theirs = time.perf_counter() - begin, judge(cases, options.python)
    differences, right, gold = [], Counter(), []
    for n, ((item, form, texts), (heard, _, talk), t) in enumerate(zip(cases, played, theirs["found"], strict=True)):
        right[f"{item.stratum} {form}", bool(t["valid"])] += 1
        same = {"verdict": bool(scores[n].value) == bool(t["valid"]) and scores[n].status != "not_scored",
                "answers": sum(map(len, t.get("turns", ()))) == len(talk.turns) + 1,
                "messages": comparable(heard, form) == comparable(_renamed(t.get("heard", ()), n), form)}
        if n < n_right and not scores[n].value: gold.append([item.id, form, scores[n].detail])
        if all(same.values()): continue
        differences.append({"id": item.id, "form": form, "what": [k for k, v in same.items() if not v], "case": n,
                            "ours": [scores[n].value, scores[n].detail], "theirs": [t["valid"], t["why"]]})
        if len(differences) <= options.show:
            print("---", differences[-1], *texts, "OURS", *heard[-3:], "THEIRS", *t.get("heard", ())[-3:], sep="\n")
    tools = [i.id for i in items if i.id in theirs["tools"] and theirs["tools"][i.id] != [
        digest(list(bfcl_turns_native(i).tools)),
        digest([x for fs in with_functions(i).extra["later"].values() for x in as_tools(fs)])]]
    return {"n": len(cases), "right_scripts": n_right, "right_scripts_wrong": gold, "seed": options.seed,
            "item_set_hash": item_set.item_set_hash, "differ": len(differences), "differences": differences,
            "stopped": sum(t["valid"] is None for t in theirs["found"]),
            "right": sum(bool(t["valid"]) for t in theirs["found"]), "tools_differ": tools,
            "steps": sum(len(p[2].turns) + 1 for p in played), "loop_s": round(loop_s, 1), "score_s": round(score_s, 1),
            "cases_and_right": {k: [right[k, True] + right[k, False], right[k, True]]
                                for k in sorted({k for k, _ in right})},
            "models": theirs["table"], "environment": environment()}


def _renamed(messages, n):
    "A name of a function within a text is answered with the name of a variable, and that holds the model's."
    return json.loads(json.dumps(messages).replace(f"m{n}x_multi_turn", "model_multi_turn"))


def _epoch(completion, n):
    from dataclasses import replace
    return replace(completion, epoch=n)


if __name__ == "__main__": sys.exit(main())
