"""Our scorer of calls against the leaderboard's own, on answers that are nearly right.

    python -m venv /path/to/bfcl && /path/to/bfcl/bin/pip install --no-deps bfcl-eval==2026.3.23
    /path/to/bfcl/bin/pip install tree_sitter==0.21.3 tree-sitter-java==0.21.0 tree-sitter-javascript==0.21.4 \\
        tenacity filelock tqdm python-dotenv setuptools numpy==1.26.4 pandas mpmath openai overrides requests
    python benchmarks/bfcl_mutations.py --python /path/to/bfcl/bin/python --out results.json

QWEN_EVAL_DATA names the folder with bfcl_v4.jsonl.gz; without it the rows come from PyPI. Right answers of the 13
categories of one turn are changed in types, values, arguments, order, nesting, letters and punctuation, written as tool
calls of Qwen, as those of Llama 3.1 or as a prompted list, and judged by both: ours in this process, the package's
`eval_runner` with its handlers in a process of the other interpreter. The tools and the system text that a model is
shown are compared too, for every item. The package's table of models asks, on import, for the clients of all vendors;
where these are missing, the one flag of it that the checker reads is put in its place, and the result says so.
"""
import argparse
import hashlib
import importlib
import json
import math
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

if "--judge" not in sys.argv: # the official side has its interpreter, not ours
    from qwen_eval.extract_calls import language_of
    from qwen_eval.goldcalls import literal
    from qwen_eval.goldcalls import written as as_text

READERS = {"native": "hermes-calls", "native-llama": "llama-calls", "prompted": "prompted-calls"}
FORMS = (*READERS,)
MODELS = {"native": "qwen3-8b-FC", "native-llama": "qwen3-8b-FC", "prompted": "qwen3-8b"} # dots become underscores: FC


# The official side, in its own environment: standard library and bfcl_eval alone.

def official(cases, verdicts):
    "Judge the cases of a file (JSON lines) with the installed package and write its verdicts."
    os.environ["BFCL_PROJECT_ROOT"] = tempfile.mkdtemp()
    try: importlib.import_module("bfcl_eval.constants.model_config")
    except ImportError as e: table = _one_flag(str(e))
    else: table = "the package's own"
    from bfcl_eval.constants.enums import Language, ReturnFormat
    from bfcl_eval.eval_checker import eval_runner
    from bfcl_eval.model_handler.local_inference.base_oss_handler import OSSHandler
    from bfcl_eval.model_handler.local_inference.llama_3_1 import LlamaHandler_3_1
    from bfcl_eval.model_handler.local_inference.qwen_fc import QwenFCHandler
    from bfcl_eval.utils import load_dataset_entry, load_ground_truth_entry
    kinds = {"native": QwenFCHandler, "native-llama": LlamaHandler_3_1, "prompted": type("P", (OSSHandler,), {})}
    handlers = {f: k("Qwen/Qwen3-8B", 0, MODELS[f], f != "prompted") for f, k in kinds.items()}
    known, found = {}, []
    for line in Path(cases).read_text().splitlines():
        case = json.loads(line)
        category = case["category"]
        if category not in known:
            rows = load_dataset_entry(category, include_prereq=False, include_language_specific_hint=False)
            gold = [None] * len(rows) if "relevance" in category else load_ground_truth_entry(category)
            known[category] = {r["id"]: (r, g and g["ground_truth"]) for r, g in zip(rows, gold, strict=True)}
        row, gold = known[category][case["id"]]
        language = "JAVASCRIPT" if "javascript" in category else "JAVA" if "java" in category else "PYTHON"
        row = json.loads(json.dumps(row)) # the runner takes rows apart
        args = (handlers[case["form"]], case["id"], case["text"])
        try:
            if "relevance" in category:
                made = eval_runner._evaluate_single_relevance_entry(*args, row, MODELS[case["form"]], category)
            else:
                made = eval_runner._evaluate_single_ast_entry(*args, gold, row, MODELS[case["form"]], category,
                                                              Language[language], ReturnFormat[language])
            found.append({"valid": bool(made["valid"]), "why": str(made.get("error_type", ""))})
        except Exception as e: found.append({"valid": None, "why": f"{type(e).__name__}: {e}"[:200]})
    prompts = {i: _official_prompts(c, i) for c in known for i in known[c]}
    Path(verdicts).write_text(json.dumps({"table": table, "verdicts": found, "prompts": prompts}))


def _one_flag(why):
    from types import ModuleType, SimpleNamespace
    module = ModuleType("bfcl_eval.constants.model_config")
    module.MODEL_CONFIG_MAPPING = {m: SimpleNamespace(underscore_to_dot=f != "prompted") for f, m in MODELS.items()}
    sys.modules[module.__name__] = module
    return f"underscore_to_dot alone ({why})"


def _official_prompts(category, id, rows={}): # noqa: B006 - a cache
    from bfcl_eval.constants.enums import ModelStyle
    from bfcl_eval.constants.type_mappings import GORILLA_TO_OPENAPI
    from bfcl_eval.model_handler.utils import convert_to_tool, system_prompt_pre_processing_chat_model
    from bfcl_eval.utils import load_dataset_entry
    if category not in rows: rows[category] = {r["id"]: r for r in load_dataset_entry(category)}
    row = rows[category][id]
    try: tools = digest(convert_to_tool(row["function"], GORILLA_TO_OPENAPI, ModelStyle.OPENAI_COMPLETIONS))
    except KeyError as e: tools = f"none: {e}"
    turns = system_prompt_pre_processing_chat_model(row["question"][0], row["function"], id)
    return tools, digest([[t["role"], t["content"]] for t in turns])


def digest(made): return hashlib.sha256(json.dumps(made).encode()).hexdigest()[:16]


# Right answers, written down

def right_calls(rng, gold, leave_out=0.5):
    "Calls that are right: one of the right values for each argument, or none where it may be left out."
    def given(v): return not ("" in v and rng.random() < leave_out) and v != [""]
    return [{name: {k: _choice(rng, v) for k, v in args.items() if given(v)} for name, args in call.items()}
            for call in gold]


def _choice(rng, values):
    value = rng.choice([v for v in values if v != ""] or [""])
    if isinstance(value, dict):
        if not all(isinstance(v, list) for v in value.values()): return value
        return {k: _choice(rng, v) for k, v in value.items() if "" not in v or (v != [""] and rng.random() < 0.5)}
    if isinstance(value, list): return [_choice(rng, [v]) if isinstance(v, dict) else v for v in value]
    return value


def as_literals(calls, functions, language, quoted):
    "Calls whose values are literals of the language, as text; strings with quotes or without."
    described = {f["name"]: f["parameters"]["properties"] for f in functions}
    def text(name, key, value):
        d = described.get(name, {}).get(key, {})
        made = literal(value, language, d.get("type", ""), d.get("items", {}).get("type", ""))
        return made[1:-1] if not quoted and made[:1] == '"' == made[-1:] else made
    return [{n: {k: text(n, k, v) for k, v in args.items()} for n, args in c.items()} for c in calls]


def written(calls, item, form):
    "Calls as the text of an answer."
    language = language_of(item.stratum)
    if language != "python": calls = as_literals(calls, item.extra["functions"], language, form == "prompted")
    return as_text(calls, READERS[form], language)


# Nearly right answers

ODD = ("é", "ß", "Ｏ", "\u00a0", "\u200b", "İ", "😀", "１", "’", "\u0301", "ﬁ", "\t", "\n", "\\", '"', "'",
       "-", "_", ".", " ")
VALUES = (None, True, False, 0, 1, -1, 1.0, 0.5, -0.0, 10 ** 25, math.inf, "", "x", "true", "1", [], {}, [1], [""],
          {"a": 1}, [[1, 2]], [{"a": 1}], (1, 2), "null")
TYPED = ("new int[]{1, 2}", "new ArrayList<>()", "new HashMap<>()", "{}", "[]", "3L", "3n", "2.5f", "null",
         "[[1, 2], [3]]", "{a: [1, 2], b: {c: 1}}", "new String[]{\"a\", \"b\"}", "'x'", "new Array(1, 2)", "(int) 3",
         "a.b()", "1_000")


def changed(rng, value, language):
    "A value that is another, or the same in other words."
    if language != "python" and rng.random() < 0.4: return rng.choice(TYPED)
    way = rng.randrange(9)
    if isinstance(value, (list, tuple)) and value and way < 5:
        made = list(value)
        at = rng.randrange(len(made))
        if way == 0: made.reverse()
        elif way == 1: made.pop(at)
        elif way == 2: made.append(rng.choice(made))
        else: made[at] = changed(rng, made[at], language)
        return tuple(made) if way == 4 and rng.random() < 0.5 else made
    if isinstance(value, dict) and value and way < 6:
        key = rng.choice(list(value))
        rest = {k: v for k, v in value.items() if k != key}
        return ({**value, key: changed(rng, value[key], language)} if way < 3 else rest if way == 3 else
                {**value, "extra": 1} if way == 4 else {**rest, key.upper(): value[key]})
    if isinstance(value, bool): return rng.choice((not value, int(value), str(value), str(value).lower(), float(value)))
    if isinstance(value, (int, float)):
        whole = int(value) if math.isfinite(value) else 0
        return rng.choice((value + 1, -value, str(value), float(value), whole, [value], value + 1e-9, value * 1.0,
                           bool(value), f"{value}.0", value * 10 ** 6))
    if isinstance(value, str): return text_changed(rng, value)
    return rng.choice(VALUES)


def text_changed(rng, text):
    at = rng.randint(0, len(text))
    return rng.choice((text.upper(), text.lower(), text + rng.choice(ODD), text[:at] + rng.choice(ODD) + text[at:],
                       text[:at] + text[at + 1:], text.replace(" ", "_"), text.replace(" ", ""), f" {text} ",
                       f"'{text}'", text.title(), [text], {"value": text}, text.replace(",", ""), text.swapcase(),
                       rng.choice(VALUES)))


def mutated(rng, calls, item, others):
    "Calls with one change; names, arguments, values, order or number."
    calls = json.loads(json.dumps(calls))
    if not calls: return calls
    language, at, way = language_of(item.stratum), rng.randrange(len(calls)), rng.randrange(12)
    [(name, args)] = calls[at].items()
    key = rng.choice(list(args)) if args else None
    shown = [p for f in item.extra["functions"] if f["name"] == name for p in f["parameters"]["properties"]]
    if way < 5 and key: args[key] = changed(rng, args[key], language)
    elif way == 5 and key: args.pop(key)
    elif way == 6: args[rng.choice([*shown, "extra", "self"])] = rng.choice(VALUES)
    elif way == 7:
        calls[at] = {rng.choice((name.upper(), name.replace(".", "_"), name.replace("_", "."), f"{name}s",
                                 name.rpartition(".")[2], rng.choice(others))): args}
    elif way == 8: rng.shuffle(calls)
    elif way == 9: calls.insert(at, rng.choice(calls))
    elif way == 10: calls.pop(at)
    else: calls[at] = {name: dict(sorted(args.items(), key=lambda kv: rng.random()))}
    return calls


WORDS = ("I cannot do that with these functions.", "", "[]", "None", "Which city do you mean?", "()",
         "```json\n[]\n```")


def disturbed(rng, text):
    "The text with a change that knows nothing of calls."
    at, end = rng.randint(0, len(text)), rng.randint(0, len(text))
    return rng.choice((f"```\n{text}\n```", f"```python\n{text}\n```", f"Here it is: {text}", f"{text}\nDone.",
                       text[:at], text[:at] + text[at + 1:], text[:at] + rng.choice(ODD) + text[at:], f"`{text}`",
                       f"'{text}'",
                       f"\n {text} \n", text.replace("'", '"'), text[min(at, end):max(at, end)], rng.choice(WORDS),
                       text.replace('"', "'"), text.replace("True", "true"), text + text, text.replace("\n", " "),
                       text.replace(", ", "; "), text.strip("[]"), text.replace("=", "=-", 1),
                       text.replace("=", "=1+", 1)))


def answer_of(item, items, rng):
    "(form, text): an answer to an item, right, nearly right or beside the point."
    form = rng.choices(FORMS, (4, 2, 4))[0]
    gold = item.target
    if gold is None: gold = rng.choice([i for i in items if i.target]).target
    calls = right_calls(rng, gold)
    names = [f["name"] for i in rng.sample(items, 2) for f in i.extra["functions"]] or ["f"]
    for _ in range(rng.choices((0, 1, 2), (1, 8, 3))[0]): calls = mutated(rng, calls, item, names)
    try: text = written(calls, item, form)
    except (TypeError, ValueError): text = str(calls)
    return form, disturbed(rng, text) if rng.random() < 0.15 else text


def answers(items, n, seed):
    "Yield (item, form, text); every category as often as any other."
    rng, parts = random.Random(seed), {}
    for i in items: parts.setdefault(i.stratum, []).append(i)
    for _ in range(n):
        item = rng.choice(parts[rng.choice(sorted(parts))])
        yield item, *answer_of(item, items, rng)


# Both, side by side

def ours(item, form, text):
    from qwen_eval.datasets.all import benchmark
    from qwen_eval.records import Completion
    from qwen_eval.scorers.bfcl import bfcl_scorer
    return bfcl_scorer(item, Completion(item_id=item.id, text=text), benchmark("bfcl").variants[form])


def our_prompts(item):
    from qwen_eval.bfcl_prompts import bfcl_native, bfcl_prompted
    turns = [[t["role"], t["content"]] for t in bfcl_prompted(item).turns]
    return [digest(list(bfcl_native(item).tools)), digest(turns)]


def ask_other(script, rows, python):
    "Verdicts of a script's own `--judge` under the interpreter that holds bfcl-eval."
    with tempfile.TemporaryDirectory() as d:
        asked, said = Path(d) / "cases.jsonl", Path(d) / "verdicts.json"
        asked.write_text("".join(json.dumps(row) + "\n" for row in rows))
        done = subprocess.run([python, script, "--judge", str(asked), str(said)], capture_output=True, text=True,
                              env={**os.environ, "PYTHONPATH": ""})
        if done.returncode: raise SystemExit(f"{python} did not judge:\n{done.stderr[-3000:]}")
        return json.loads(said.read_text())


def judge(cases, python):
    rows = ({"id": i.id, "category": i.stratum, "form": f, "text": t} for i, f, t in cases)
    return ask_other(__file__, rows, python)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", help="interpreter of the environment that holds bfcl-eval==2026.3.23")
    parser.add_argument("--n", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where to write the result (JSON)")
    parser.add_argument("--show", type=int, default=10, help="disagreements to print")
    parser.add_argument("--judge", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.judge: return official(*options.judge)
    if not options.python: parser.error("--python is needed: the interpreter that has bfcl-eval")
    from qwen_eval.datasets.all import benchmark
    from qwen_eval.datasets.base import load
    from qwen_eval.store import environment
    item_set = load(benchmark("bfcl"))
    cases = list(answers(item_set.items, options.n, options.seed))
    scores, theirs = [ours(*c) for c in cases], judge(cases, options.python)
    pairs = [(c, s, v) for c, s, v in zip(cases, scores, theirs["verdicts"], strict=True)]
    differ = [p for p in pairs if bool(p[1].value) != bool(p[2]["valid"])]
    for (i, form, text), s, v in differ[:options.show]:
        print(f"--- {i.id} {form}: ours {s.value} ({s.detail}), theirs {v['valid']} ({v['why']})\n{text[:600]}")
    by = {f"{c} {f}": [sum(i.stratum == c and form == f for (i, form, _), _, _ in pairs),
                       sum(i.stratum == c and form == f and bool(v["valid"]) for (i, form, _), _, v in pairs)]
          for c in sorted({i.stratum for i in item_set.items}) for f in FORMS}
    wrong = {i.id: (our_prompts(i), theirs["prompts"][i.id]) for i in item_set.items if i.id in theirs["prompts"]
             and our_prompts(i) != theirs["prompts"][i.id]}
    found = {"n": len(pairs), "seed": options.seed, "item_set_hash": item_set.item_set_hash, "differ": len(differ),
             "right": sum(bool(v["valid"]) for _, _, v in pairs),
             "stopped": sum(v["valid"] is None for _, _, v in pairs),
             "differences": [{"id": c[0].id, "form": c[1], "ours": s.value, "theirs": v["valid"]}
                             for c, s, v in differ],
             "cases_and_right": by, "prompts": len(theirs["prompts"]), "prompts_differ": sorted(wrong),
             "prompts_stopped": sum(str(p[0]).startswith("none") for p in theirs["prompts"].values()),
             "models": theirs["table"], "environment": environment()}
    if options.out: options.out.write_text(json.dumps(found, indent=1) + "\n")
    shown = ("n", "differ", "right", "stopped", "prompts", "prompts_stopped", "models")
    print(json.dumps({k: found[k] for k in shown}),
          f"prompts that differ: {len(wrong)} {list(wrong.items())[:3]}")
    return int(bool(differ))


if __name__ == "__main__": sys.exit(main())
