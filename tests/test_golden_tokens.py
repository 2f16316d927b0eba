"""Token ids of whole prompts: what the project makes, what the vendor's format is by hand, what is pinned.

The texts below are written from the chat format that Qwen publishes, not with its template; they are cut at special
tokens, whose ids are written down too, and encoded piece by piece with the bare `tokenizers` library.
`tests/data/golden_tokens.json` holds the result. Where a prompt changes on purpose, change the text here, and
`python -m pytest tests/test_golden_tokens.py` with QWEN_EVAL_PIN=1 writes the file anew from the texts made by hand.
"""
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from qwen_eval.datasets.declared import Benchmark, Variant
from qwen_eval.errors import ConfigError
from qwen_eval.models import Model
from qwen_eval.protocols import protocol
from qwen_eval.records import Item
from qwen_eval.requests import build_requests, encode_chat

PINNED = Path(__file__).parent / "data/golden_tokens.json"
GREEDY, THINKING = protocol("greedy"), protocol("qwen3_thinking")
MODEL = Model(id="golden", thinking="switch", context_tok=40960)
BENCH = Benchmark(id="golden", title="Golden", task_type="generate", rows="none", sources=(), split="test",
                  shot_split="train", metric="acc", variants={}, default_variant={})
COT = Variant(prompt="gsm8k-cot", mode="generate", chat=True, score="numeric", metric="exact_match")
PLAIN = Variant(prompt="gsm8k-fewshot", mode="generate", chat=False, score="numeric", metric="exact_match", n_shot=2)
LETTER = Variant(prompt="mc-letter", mode="generate", chat=True, score="letter", metric="acc", labels_beside=True)
LABEL = Variant(prompt="mc-label", mode="labels", chat=False, score="label", metric="acc")
CHAT_LABEL = replace(LETTER, mode="labels", labels_beside=False)

SUM = Item(id="golden/sum", question="Wie viel sind 17 + 25? 一共多少？", target="42")
POOL = [Item(id="golden/apples", question="Two apples and 3 more?", target="5",
             extra={"solution": "2 + 3 = <<2+3=5>>5 apples.\n#### 5"}),
        Item(id="golden/pears", question="Nine pears, 4 are eaten?", target="5",
             extra={"solution": "9 - 4 = <<9-4=5>>5 pears.\n#### 5"})]
RIVER = Item(id="golden/river", question="Which is a river?", target=0,
             choices=("the Elbe", "Straße", "一条路", "none"))

# -- the format, by hand -----------------------------------------------------------------------------------------------

SPECIAL = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}
CALLS = {"<tool_call>": 151657, "</tool_call>": 151658}
THOUGHT = {"<tool_response>": 151665, "</tool_response>": 151666, "<think>": 151667, "</think>": 151668}
IDS = {"qwen1_5": SPECIAL, "qwen2_5": SPECIAL | CALLS, "qwen3": SPECIAL | CALLS | THOUGHT}
DEFAULT = {"qwen1_5": "You are a helpful assistant", "qwen3": None,
           "qwen2_5": "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."}
TASK = "Work through this step by step, then give the final answer as a plain number within \\boxed{}."
ASK = f"{SUM.question}\n\n{TASK}"
ANSWERS = ("2 + 3 = 5 apples.\nThe answer is \\boxed{5}.", "9 - 4 = 5 pears.\nThe answer is \\boxed{5}.")
BEFORE = "Take the train." # the answer of an earlier turn, and what was thought before it
WHY = "The train is faster."
HISTORY = [{"role": "user", "content": "Train or bus?"},
           {"role": "assistant", "content": BEFORE, "reasoning_content": WHY}, {"role": "user", "content": "Why?"}]
INLINE = [HISTORY[0], {"role": "assistant", "content": f"<think>\n{WHY}\n</think>\n\n{BEFORE}"}, HISTORY[2]]
WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Weather of a city, in °C",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}
CLOCK = {"type": "function", "function": {
    "name": "clock", "description": "What time is it?", "parameters": {"type": "object", "properties": {}}}}
LOOP = [{"role": "user", "content": "Weather in Köln and 北京?"},
        {"role": "assistant", "content": None, "reasoning_content": "Two calls.", "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Köln"}'}},
            {"id": "b", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "北京"}}}]},
        {"role": "tool", "tool_call_id": "a", "content": "4 °C"},
        {"role": "tool", "tool_call_id": "b", "content": "-2"}]
THEN = [*LOOP, {"role": "assistant", "content": "4 and -2.", "reasoning_content": "Read them."},
        {"role": "user", "content": "Thanks. And the time?"}]

TOOLS = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{"type": "function", "function": {"name": "get_weather", "description": "Weather of a city, in °C", "parameters": \
{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}
{"type": "function", "function": {"name": "clock", "description": "What time is it?", "parameters": \
{"type": "object", "properties": {}}}}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""
CALLED = """<tool_call>
{"name": "get_weather", "arguments": {"city": "Köln"}}
</tool_call>
<tool_call>
{"name": "get_weather", "arguments": {"city": "北京"}}
</tool_call>"""
RETURNED = """<tool_response>
4 °C
</tool_response>
<tool_response>
-2
</tool_response>"""


def turn(role, text): return f"<|im_start|>{role}\n{text}<|im_end|>\n"


def system(name, own=None, tools=""):
    text = "\n\n".join(filter(None, (own or DEFAULT[name], tools)))
    return turn("system", text) if text else ""


def answer(name, thinking=False, prefill=""):
    empty = "<think>\n\n</think>\n\n" if name == "qwen3" and not thinking else ""
    return f"<|im_start|>assistant\n{empty}{prefill}"


def thought(name, why): return f"<think>\n{why}\n</think>\n\n" if name == "qwen3" else ""


def shot_turns():
    shown = zip(POOL, ANSWERS, strict=True)
    return "".join(turn("user", f"{s.question}\n\n{TASK}") + turn("assistant", a) for s, a in shown)


# -- cases: what the project makes | the same by hand ------------------------------------------------------------------

def asked(variant, item=SUM, protocol=GREEDY, **kw):
    return lambda t: next(build_requests([item], POOL, BENCH, variant, MODEL, t, protocol, **kw)).prompt_ids


def talked(messages, **kw): return lambda t: encode_chat(t, messages, **kw)[1]


BOTH = [WEATHER, CLOCK]
ONE_TURN = "\n\n".join([TASK, *(f"{s.question}\nAnswer: {a}" for s, a in zip(POOL, ANSWERS, strict=True)),
                        f"{SUM.question}\nAnswer:"])
FIRST = turn("user", "Train or bus?")
OPTIONS = "Which is a river?\nA. none\nB. the Elbe\nC. Straße\nD. 一条路"
CASES = {
    "no system": (asked(COT), lambda n: system(n) + turn("user", ASK) + answer(n)),
    "own system": (asked(COT, system="Antworte knapp. 简短。"),
                   lambda n: system(n, "Antworte knapp. 简短。") + turn("user", ASK) + answer(n)),
    "thinking": (asked(COT, protocol=THINKING), lambda n: system(n) + turn("user", ASK) + answer(n, True)),
    "few-shot, one turn": (asked(replace(COT, n_shot=2)), lambda n: system(n) + turn("user", ONE_TURN) + answer(n)),
    "few-shot, turns": (asked(replace(COT, n_shot=2, shot_turns=True)),
                        lambda n: system(n) + shot_turns() + turn("user", ASK) + answer(n)),
    "few-shot, plain": (asked(PLAIN), lambda n: (
        "Question: Two apples and 3 more?\nAnswer: 2 + 3 = <<2+3=5>>5 apples.\n#### 5\n\n"
        "Question: Nine pears, 4 are eaten?\nAnswer: 9 - 4 = <<9-4=5>>5 pears.\n#### 5\n\n"
        f"Question: {SUM.question}\nAnswer:")),
    "letter": (asked(LETTER, RIVER), lambda n: system(n) + turn(
        "user", f"{OPTIONS}\n\nReply with the letter of the correct option only.") + answer(n)),
    "history": (talked(HISTORY), lambda n: (
        system(n) + FIRST + turn("assistant", BEFORE) + turn("user", "Why?") + answer(n))),
    "history, thinking": (talked(HISTORY, thinking=True), lambda n: (
        system(n) + FIRST + turn("assistant", BEFORE) + turn("user", "Why?") + answer(n, True))),
    "history, thought in the text": (talked(INLINE), lambda n: ( # older models know no thinking: text like any other
        system(n) + FIRST + turn("assistant", BEFORE if n == "qwen3" else f"<think>\n{WHY}\n</think>\n\n{BEFORE}")
        + turn("user", "Why?") + answer(n))),
    "prefill": (talked(HISTORY[:1], prefill="The answer is \\boxed{"), lambda n: (
        system(n) + FIRST + answer(n, prefill="The answer is \\boxed{"))),
    "prefill, thinking": (talked(HISTORY[:1], thinking=True, prefill="<think>\nFirst,"), lambda n: (
        system(n) + FIRST + answer(n, True, "<think>\nFirst,"))),
}
TOOL_CASES = { # Qwen1.5 knows no tools
    "tools": (talked(LOOP[:1], tools=BOTH),
              lambda n: system(n, tools=TOOLS) + turn("user", LOOP[0]["content"]) + answer(n)),
    "tools, own system, thinking": (
        talked([{"role": "system", "content": "Be brief."}, *LOOP[:1]], tools=BOTH, thinking=True),
        lambda n: system(n, "Be brief.", TOOLS) + turn("user", LOOP[0]["content"]) + answer(n, True)),
    "tool results": (talked(LOOP, tools=BOTH), lambda n: (
        system(n, tools=TOOLS) + turn("user", LOOP[0]["content"])
        + turn("assistant", thought(n, "Two calls.") + CALLED) + turn("user", RETURNED) + answer(n))),
    "tool results, prefill": (talked(LOOP, tools=BOTH, prefill="It is"), lambda n: (
        system(n, tools=TOOLS) + turn("user", LOOP[0]["content"])
        + turn("assistant", thought(n, "Two calls.") + CALLED) + turn("user", RETURNED) + answer(n, prefill="It is"))),
    "tool results in the history": (talked(THEN, tools=BOTH), lambda n: (
        system(n, tools=TOOLS) + turn("user", LOOP[0]["content"]) + turn("assistant", CALLED) + turn("user", RETURNED)
        + turn("assistant", "4 and -2.") + turn("user", "Thanks. And the time?") + answer(n))),
}
ALL = [(name, case) for name in IDS for case in CASES | (TOOL_CASES if name != "qwen1_5" else {})]


@pytest.fixture(scope="session")
def by_hand(npm_tokenizers):
    """A function from a tokenizer's name and a text to ids, cut at the special tokens written above."""
    from tokenizers import Tokenizer
    bare = {name: Tokenizer.from_file(str(folder / "tokenizer.json")) for name, folder in npm_tokenizers.items()}

    def ids(name, text):
        out, known = [], IDS[name]
        for part in re.split("|".join(f"({re.escape(s)})" for s in known), text):
            if part in known: out.append(known[part])
            elif part: out += (piece := bare[name].encode(part, add_special_tokens=False).ids)
            assert not part or part in known or max(piece) < 151643, f"a special token inside {part!r}"
        return out
    return ids


@pytest.fixture(scope="session")
def pinned(by_hand):
    if os.environ.get("QWEN_EVAL_PIN"):
        made = {n: {c: by_hand(n, (CASES | TOOL_CASES)[c][1](n)) for m, c in ALL if m == n} for n in IDS}
        lines = json.dumps(made, separators=(",", ":")).replace('"', '\n"').replace('\n":', '":') # a line for each case
        PINNED.write_text(lines + "\n", encoding="utf-8")
    return json.loads(PINNED.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name, case", ALL, ids=[f"{n}: {c}" for n, c in ALL])
def test_the_ids_are_the_vendor_s(qwen, by_hand, pinned, name, case):
    make, text = (CASES | TOOL_CASES)[case]
    made, hand = list(make(qwen[name])), by_hand(name, text(name))
    assert qwen[name].decode(made) == text(name) # a difference is easier to read in words
    assert made == hand
    assert hand == pinned[name][case], "the text made by hand is not the pinned one; see the top of this file"


def test_nothing_else_is_pinned(pinned):
    assert {(n, c) for n, cases in pinned.items() for c in cases} == set(ALL)


@pytest.mark.parametrize("name, end", [("qwen1_5", [151644, 77091, 198]), ("qwen2_5", [151644, 77091, 198]),
                                       ("qwen3", [151644, 77091, 198, 151667, 271, 151668, 271])])
def test_the_first_label_position(qwen, name, end):
    """The letter is read behind these ids: a newline, or Qwen3's empty think block; and it is the bare letter there."""
    for variant in (LETTER, CHAT_LABEL):
        r = next(build_requests([RIVER], (), BENCH, variant, MODEL, qwen[name], GREEDY))
        assert list(r.prompt_ids[-len(end):]) == end
        assert r.label_ids == (32, 33, 34, 35) # A B C D
    r = next(build_requests([RIVER], (), BENCH, LABEL, MODEL, qwen[name], GREEDY))
    assert r.prompt.endswith("Answer:") and r.label_ids == (362, 425, 356, 422) # the same behind a space
    text, ids = encode_chat(qwen[name], [{"role": "user", "content": OPTIONS}], prefill="Answer:")
    assert text.endswith("Answer:") and list(ids[-2 - len(end):-2]) == end and list(ids[-2:]) == [16141, 25]


def test_what_a_template_does_not_show_is_refused(qwen):
    calls = [LOOP[0], LOOP[1], {"role": "user", "content": "And?"}]
    for messages, tools, what in ((LOOP[:1], BOTH, "tools"), (calls, (), "tool calls"), (LOOP, BOTH, "tools and the")):
        with pytest.raises(ConfigError, match=f"leaves the {what}"): encode_chat(qwen["qwen1_5"], messages, tools=tools)


@pytest.mark.parametrize("arguments", ['{"city": ', "[" * 10_000, "5", ""])
def test_arguments_that_are_no_object_stay_as_they_were_written(qwen, arguments):
    call = {"type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    turns = [LOOP[0], {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "no"}]
    written = f'<tool_call>\n{{"name": "get_weather", "arguments": {arguments}}}\n</tool_call>'
    assert written in encode_chat(qwen["qwen3"], turns, tools=BOTH)[0]


@pytest.mark.parametrize("messages, kw, message", [
    (HISTORY[:2], {}, "last turn is the assistant's"), ([], {}, "refuses"),
    (HISTORY, {"thinking": True, "prefill": "The"}, "leaves no room to think")])
def test_turns_that_ask_nothing_are_refused(qwen, messages, kw, message):
    with pytest.raises(ConfigError, match=message): encode_chat(qwen["qwen3"], messages, **kw)


# -- one beginning of sequence -----------------------------------------------------------------------------------------

LLAMA = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


@pytest.fixture(scope="module")
def llama():
    """A token per byte and Llama's special tokens; template and post-processor both write the first of them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    t = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    t.add_special_tokens(LLAMA)
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), decoders.ByteLevel()
    t.post_processor = processors.TemplateProcessing(single=f"{LLAMA[0]} $A", special_tokens=[(LLAMA[0], 256)])
    tok = PreTrainedTokenizerFast(tokenizer_object=t, bos_token=LLAMA[0], eos_token=LLAMA[3])
    tok.chat_template = (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
        "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}")
    return tok


def spelled(t, *parts):
    return [i for p in parts for i in ([p] if isinstance(p, int) else t(p, add_special_tokens=False)["input_ids"])]


def test_a_beginning_that_template_and_tokenizer_both_write_is_there_once(llama):
    text, ids = encode_chat(llama, [{"role": "user", "content": "Hi"}], prefill="So")
    assert llama(text)["input_ids"][:2] == [256, 256] # the trap
    assert list(ids) == spelled(llama, 256, 257, "user", 258, "\n\nHi", 259, 257, "assistant", 258, "\n\nSo")
    again = encode_chat(llama, [{"role": "system", "content": "Be brief."}, *HISTORY])[1]
    assert again[0] == 256 and again.count(256) == 1


@pytest.mark.parametrize("variant", [
    COT, replace(COT, n_shot=2), replace(COT, n_shot=2, shot_turns=True), PLAIN, LETTER, CHAT_LABEL,
    replace(LABEL, prompt="arc-cloze", mode="continuations")])
def test_every_prompt_begins_once(llama, variant):
    base = RIVER if variant.prompt[:2] in ("mc", "ar") else SUM
    items = [replace(base, id=f"golden/{i}", question=f"{base.question} {i}") for i in range(10)]
    for r in build_requests(items, POOL, BENCH, variant, MODEL, llama, GREEDY):
        assert r.prompt_ids[0] == 256 and r.prompt_ids.count(256) == 1
        assert r.prompt.startswith(LLAMA[0]) and r.prompt.count(LLAMA[0]) == 1
        assert not any(256 in c for c in (r.label_ids, *r.continuation_ids))
