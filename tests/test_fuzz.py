# ruff: noqa: E501 (a kind of nasty text is one line of the table)
"""Nasty output: ten thousand fuzzed completions through every extractor, every scorer and the store."""
import random
import time
from dataclasses import replace

import pytest

import qwen_eval.scorers.code as code_room
from qwen_eval.datasets.all import benchmarks
from qwen_eval.datasets.base import load
from qwen_eval.datasets.declared import Variant
from qwen_eval.extract import extractors, parse_number, strip_thinking
from qwen_eval.judges.base import judges
from qwen_eval.prompts import LETTERS
from qwen_eval.records import Completion, Continuation, Item, Score, from_json, to_json
from qwen_eval.sandbox import Outcome
from qwen_eval.scorers.text import ScoreOptions, batch_scorers, score_items, scorers
from qwen_eval.store import RunWriter, by_key, read_completions

MIB = 1 << 20
ITEMS = {
    "text": Item(id="text", question="def f(): pass", target="Add two numbers ."),
    "number": Item(id="number", question="How many?", target="18"),
    "choice": Item(id="choice", question="Which?", choices=("one", "the two", "Three (3)", "none\nof them"), target=2,
                   extra={"mc1": [2, 0], "mc2_true": [2, 3]}),
    "program": Item(id="program", question='import math\n\n\ndef f(x):\n    """Doc."""\n', target="    return x\n",
                    extra={"entry_point": "f", "test": "def check(f):\n    assert f(1) == 1\n"}),
}
APIS = [{"name": n, "relevant": n == "f_for_x"} for n in ("f_for_x", "tell_time_for_x")]
ALL_KINDS = { # every kind of instruction on one text
    "keywords:existence": {"keywords": ["answer"]}, "keywords:frequency": {"keyword": "x", "frequency": 9, "relation": "at least"},
    "keywords:forbidden_words": {"forbidden_words": ["so"]}, "keywords:letter_frequency": {"letter": "#", "let_frequency": 4, "let_relation": "less than"},
    "language:response_language": {"language": "sw"}, "length_constraints:number_sentences": {"num_sentences": 3, "relation": "at least"},
    "length_constraints:number_paragraphs": {"num_paragraphs": 2}, "length_constraints:number_words": {"num_words": 9, "relation": "less than"},
    "length_constraints:nth_paragraph_first_word": {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "so"},
    "detectable_content:number_placeholders": {"num_placeholders": 999_999}, "detectable_content:postscript": {"postscript_marker": "P.P.S"},
    "detectable_format:number_bullet_lists": {"num_bullets": 3}, "detectable_format:constrained_response": {},
    "detectable_format:number_highlighted_sections": {"num_highlights": 999_999}, "detectable_format:multiple_sections": {"section_spliter": "Day", "num_sections": 2},
    "detectable_format:json_format": {}, "detectable_format:title": {}, "combination:two_responses": {}, "combination:repeat_prompt": {"prompt_to_repeat": "So?"},
    "startend:end_checker": {"end_phrase": "Bye."}, "startend:quotation": {}, "punctuation:no_comma": {},
    "change_case:capital_word_frequency": {"capital_frequency": 3, "capital_relation": "at least"}, "change_case:english_capital": {}, "change_case:english_lowercase": {},
}
SCORER_ITEMS = { # scorers that no choice fits
    "numeric": ITEMS["number"], "bleu4-smoothed": ITEMS["text"],
    **dict.fromkeys(("api-set", "api-calls"), Item(id="query", question="What time is it?", target=["f_for_x"], extra={"apis": APIS})),
    "ifeval": Item(id="instructions", question="So?", target=[*ALL_KINDS], extra={"kwargs": [*ALL_KINDS.values()]}),
}
BATCH_ITEMS = {**dict.fromkeys(("oracle", "oracle-0.2"), load(benchmarks().get("humaneval_plus"), "specimen").items[0]),
               "math": Item(id="expression", question="What?", target="\\frac{1}{2}"),
               "bfcl-turns": load(benchmarks().get("bfcl_multi_turn"), "specimen").items[0]}
ODD = ("\0", "\x01\x1b[31m\x07", "\u202e\u202d\u2066", "\ud800", "\udfff\ud83d", "\u200b\u200d\ufeff", "😀👨‍👩‍👧", "é\u0301\u0301\u0301", "\r", "\r\n",
       "\u2028\u2029\x85\x0b\x0c", "ﷺ", "\U0010ffff", "İı", "ſ", "١٢٣", "𝟙𝟚", "½⅔", "\t", "\xa0", "−1", "$", "\\")
WORDS = ("The answer is", "answer:", "(A)", "B.", "**C**", "D", "E", "A or B", "not A", "so", "therefore", "答案是", "#### ", "18", "-18.0", "1,800",
         "1/3", "1e9", "1e999", "9" * 70, "\\boxed{", "\\boxed{18}", "\\fbox{A}", "\\frac{1}{2}", "\\frac{", "\\text{", "}", "{", "$$", "<think>",
         "</think>", "<tool_call>", "```", "```python", "~~~", "def f(x):", "    return x", "class A:", "import os", "from x import *", "@f",
         '"""', "'''", ">>> f(1)", "... ", "f = lambda x: x", "if __name__ == '__main__':", "async def f(x):", "lambda:", "print(f(1))", "\n",
         "\n\n", " ", "the two", "Three (3)", "none of them", "<|im_end|>", "null", "NaN", "|---|", "* ", "> ", "```json")


def chaos(rng):
    return "".join(rng.choice(WORDS if rng.random() < 0.7 else ODD) + rng.choice(("", " ", "\n")) for _ in range(rng.randrange(80)))


def noise(rng):
    return "".join(chr(rng.choice((rng.randrange(0x80), rng.randrange(0x3000), rng.randrange(0xD800, 0xE000), rng.randrange(0x110000))))
                   for _ in range(rng.randrange(300)))


def repeated(part):
    return lambda rng: chaos(rng) + part * rng.randrange(1, 200) + chaos(rng)


def spliced(rng):
    "A good answer with something nasty in its middle."
    text = rng.choice(("First 3 + 15 = 18.\n#### 18", "So the answer is (C).", "```python\ndef f(x):\n    return x\n```\nDone: \\boxed{18}"))
    at = rng.randrange(len(text) + 1)
    return text[:at] + rng.choice((chaos, noise, lambda r: r.choice(ODD) * r.randrange(50)))(rng) + text[at:]


def program(rng):
    "Lines of code, some of them out of place."
    lines = [" " * rng.choice((0, 0, 4, 8, 3)) + rng.choice(WORDS) for _ in range(rng.randrange(40))]
    return rng.choice(("```python\n", "", "~~~~\n")) + rng.choice(("\n", "\r\n", "\r")).join(lines) + rng.choice(("\n```", ""))


SMALL = (chaos, noise, spliced, program, *map(repeated, (*ODD[:8], "```\n", "<think>", "</think>", "\\boxed{", "\\boxed{1}", "(A) ", "{[", "9", "((")))
DEEP = 10_000
LARGE = { # what a megabyte can be; each is made once
    "deep JSON": lambda rng: '{"a": [' * DEEP + "1" + "]}" * DEEP,
    "deep JSON, open": lambda rng: '```json\n' + '{"a": ' * DEEP,
    "deep brackets": lambda rng: "```python\ndef f(x):\n    return " + "(" * DEEP + "x" + ")" * DEEP + "\n```",
    "deep blocks": lambda rng: "def f(x):\n" + "".join(" " * i + "if x:\n" for i in range(1, 1200)),
    "deep signs": lambda rng: "def f(x):\n    return " + "-" * 99_000 + "x",
    "deep powers": lambda rng: "def f(x):\n    return " + "x**" * 30_000 + "x",
    "long sum": lambda rng: "def f(x):\n    return " + "x + " * 20_000 + "x",
    "long chain": lambda rng: "def f(x):\n    return x" + ".a" * 40_000,
    "deep functions": lambda rng: "".join(" " * i + "def f(x):\n" for i in range(99)) + " " * 99 + "return 1",
    "many elifs": lambda rng: "def f(x):\n    if x: pass\n" + "    elif x: pass\n" * 5_000,
    "many digits": lambda rng: "#### " + "7" * DEEP + " \\boxed{" + "8" * DEEP + "}",
    "digits only": lambda rng: "9" * MIB,
    "many numbers": lambda rng: "12 " * (MIB // 3),
    "commas": lambda rng: "1,234," * (MIB // 6),
    "fractions": lambda rng: "\\frac{1}{" * (MIB // 9),
    "many boxes": lambda rng: "\\boxed{" * (MIB // 7),
    "closed boxes": lambda rng: "\\boxed{1}" * (MIB // 9),
    "many fences": lambda rng: "```\n" * (MIB // 4),
    "many programs": lambda rng: "```python\ndef f(x):\n    return x\n" * (MIB // 40),
    "definitions": lambda rng: "def f(x):\n    return (\n" * (MIB // 24),
    "fences on a line": lambda rng: "```python " * (MIB // 10),
    "back ticks": lambda rng: "`" * MIB,
    "open thoughts": lambda rng: "<think>" * (MIB // 7),
    "thoughts": lambda rng: "<think>A</think>" * (MIB // 16),
    "closed thoughts": lambda rng: "</think>" * (MIB // 8),
    "quotes": lambda rng: '"' * MIB,
    "quoted": lambda rng: "> ```\n" * (MIB // 6),
    "prompts": lambda rng: "```\n" + ">>> f(1)\n" * (MIB // 9),
    "letters": lambda rng: "(A) " * (MIB // 4),
    "answers": lambda rng: "The answer is " * (MIB // 14),
    "denials": lambda rng: "(A) is not " * (MIB // 11),
    "backtracking": lambda rng: "a" * (MIB // 2) + "!" + "answer " * (MIB // 14),
    "stars": lambda rng: "*" * MIB, "spaces": lambda rng: " " * MIB, "tabs": lambda rng: "\t" * MIB, "lines": lambda rng: "\n" * MIB,
    "returns": lambda rng: "\r" * MIB, "indented": lambda rng: "    x\n" * (MIB // 6), "wide blanks": lambda rng: "\u3000" * MIB,
    "zero width": lambda rng: "\u200b" * MIB, "marks": lambda rng: "e" + "\u0301" * MIB, "right to left": lambda rng: "\u202e" * MIB,
    "half pairs": lambda rng: "\ud83d" * MIB, "nulls": lambda rng: "\0" * MIB, "emoji": lambda rng: "😀" * MIB,
    "vulgar": lambda rng: "1½" * (MIB // 2), "ligatures": lambda rng: "ﷺ" * MIB, "one line": lambda rng: "x" * MIB,
    "noise": lambda rng: "".join(chr(rng.randrange(0x110000)) for _ in range(MIB // 4)),
    "chaos": lambda rng: "".join(rng.choice(WORDS) + rng.choice((" ", "\n")) for _ in range(MIB // 12)),
    "imports": lambda rng: "import x\n" * (MIB // 9), "assignments": lambda rng: "x = [" * (MIB // 5),
    "decorators": lambda rng: "@x\n" * (MIB // 3), "semicolons": lambda rng: "def f(x): return x\n" + "x;" * 49_000,
    "names": lambda rng: "def f(x):\n    return x\n" + "".join(f"a{i} = a{i + 1}\n" for i in range(5_000)),
}
SLOWEST_S = 30.0 # CPU seconds for one megabyte: a guard against a hang, no benchmark


def variant(extract):
    return Variant(prompt="code-instruct", mode="generate", chat=True, score="numeric", metric="acc", extract=extract, answer="code")


class Nobody:
    "A sandbox in which nothing runs."
    def __init__(self, **_): pass
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def run(self, program, limits): return Outcome(status="failed", detail="not run")

    def run_many(self, programs, limits):
        for i, (program, tests) in enumerate(programs):
            assert isinstance(program, str) and tests
            yield i, self.run(program, limits)


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch):
    monkeypatch.setattr(code_room, "Sandbox", Nobody)


def item_for(extractor):
    return ITEMS[{"letter": "choice", "code": "program", "gsm8k-strict": "number", "last-number": "number",
                  "boxed-or-last-number": "number"}.get(extractor, "text")]


def fitting(scorer):
    "An item and a variant that the scorer is for: of the table above, else a specimen of a benchmark that names it."
    metric = "mc2" if scorer == "truthfulqa" else "acc"
    if scorer in SCORER_ITEMS: return SCORER_ITEMS[scorer], replace(variant("last-number" if scorer == "numeric" else "whole"), metric=metric)
    found = ((load(b, "specimen").items[0], v) for b in benchmarks() for v in b.variants.values() if v.score == scorer)
    return next(found, (ITEMS["text"], variant("whole")))


FITTING = {name: fitting(name) for name in scorers.names()} # ours, before other tests add theirs
EXTRACTORS, BATCHES = extractors.names(), batch_scorers.names()


def judged(c):
    "The opinion of every scorer of single completions."
    for name, (item, v) in FITTING.items():
        n = len(item.choices) or 4
        said = replace(c, item_id="x", label_logprobs=(-1.0, None, float("nan"), -2.0, *[-1.0] * n)[:n],
                       continuations=(Continuation(logprob=-1.0, n_tok=1),) * n)
        if name == "judged": # the text is what the judge says
            item = replace(item, extra={**item.extra, "judgments": {0: dict.fromkeys(judges.get(v.judge).wants(item, said), c)}})
        yield from score_items([(item, said)], name, v)


def completion(text):
    reason = "stop" if len(text) > 10_000 else ("stop", "length", "error")[len(text) % 3]
    return Completion(item_id="x", text=text, finish_reason=reason, error=text[:300])


def check_scores(scores, n):
    scores = list(scores)
    assert len(scores) == n
    assert all(isinstance(s, Score) and (0 <= s.value <= 10 or s.value != s.value) and len(s.detail) <= 2_000 for s in scores)
    for s in scores: to_json(s)


def check_batches(texts):
    "What is scored in processes gets all texts at once, as in a run; each has its limit there."
    for name in BATCHES:
        item, v = BATCH_ITEMS.get(name, ITEMS["program"]), variant("prompted-calls" if name == "bfcl-turns" else "code")
        check_scores(score_items([(item, completion(t)) for t in texts], name, v, ScoreOptions()), len(texts))


def read(text):
    "Run a text through everything; the CPU seconds that the slowest room took."
    slowest = (0.0, "")
    for name in EXTRACTORS:
        start, item = time.process_time(), item_for(name)
        found = extractors.get(name)(text, item)
        slowest = max(slowest, (time.process_time() - start, name))
        assert found is None or isinstance(found, str)
        if item.id == "number" and found is not None: assert parse_number(found) is not None, found
        if item.id == "choice": assert found is None or found in LETTERS[:4]
    start = time.process_time()
    scores = list(judged(completion(text)))
    slowest = max(slowest, (time.process_time() - start, "scorers"))
    check_scores(scores, len(FITTING))
    assert len(strip_thinking(text)) <= len(text)
    return slowest


def texts(n, seed):
    rng = random.Random(seed)
    return [rng.choice(SMALL)(rng) for _ in range(n)]


def check_store(path, texts):
    "What is written comes back: the same text, half surrogates as U+FFFD, one record for each key."
    some = [Completion(item_id=f"x/{i}\n{t[:20]}", text=t, thinking=t[:100], error=t[-50:], label_logprobs=(float("-inf"), None, 0.5),
                       finish_reason=("stop", "length", "error")[i % 3]) for i, t in enumerate(texts)]
    with RunWriter(path) as writer:
        for c in some: writer.append(c)
        stored = dict(writer.stored)
    records, n_bytes = read_completions(path / "completions.jsonl")
    data = (path / "completions.jsonl").read_bytes()
    assert n_bytes == len(data) and data.count(b"\n") == len(some) == len(records)
    for c, kept in zip(some, records, strict=True):
        assert kept.text == c.text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") and kept.finish_reason == c.finish_reason
        assert kept.label_logprobs == c.label_logprobs and from_json(to_json(kept), Completion) == kept
        if not any(0xD800 <= ord(x) < 0xE000 for x in c.text): assert kept.text == c.text
    assert by_key(records) == stored
    with RunWriter(path) as writer: assert writer.stored == stored
    with open(path / "completions.jsonl", "ab") as f: f.write(data[:len(data) // 3].rpartition(b"\n")[2] or b"{") # torn
    with RunWriter(path) as writer: assert writer.stored == stored


def test_five_hundred_of_everything(tmp_path):
    some = texts(500, 1)
    slowest = max((*read(t), ascii(t[:80])) for t in some)
    assert slowest[0] < SLOWEST_S, slowest
    check_batches(some)
    check_store(tmp_path, some)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
def test_a_thousand_of_everything(seed, tmp_path):
    some = texts(1_000, seed)
    slowest = max((*read(t), ascii(t[:80])) for t in some)
    assert slowest[0] < SLOWEST_S, slowest
    check_batches(some)
    check_store(tmp_path, some)


FAST = ("deep JSON", "deep brackets", "deep signs", "deep powers", "many digits", "half pairs", "long chain", "deep blocks")


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in LARGE])
def test_a_megabyte(name, tmp_path):
    text = LARGE[name](random.Random(0))
    for whole in (text, f"<think>{text}</think>18 (C)", f"```python\ndef f(x):\n    return x\n```\n{text[:90_000]}"):
        slowest = read(whole)
        assert slowest[0] < SLOWEST_S, slowest
    check_batches([text])
    check_store(tmp_path, [text, text[::-1]])
