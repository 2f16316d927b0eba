# ruff: noqa: E501 (the answers to one instruction are one line of the table)
"IFEval: verdicts of the published checkers, sums over instructions, texts that would hang a careless pattern."
import math
import os
import random
import re
import time
from collections import Counter

import pytest

from qwen_eval import instructions
from qwen_eval.datasets.base import load, make_items
from qwen_eval.datasets.ifeval import INSTRUCTIONS, ifeval
from qwen_eval.engines.base import FakeEngine
from qwen_eval.errors import ConfigError, IntegrityError, UnknownNameError
from qwen_eval.evaluation import evaluate
from qwen_eval.instructions import checkers, follows, loosened, sentences, tokens
from qwen_eval.models import Model
from qwen_eval.records import Completion
from qwen_eval.scorers.text import score_items
from qwen_eval.scores import score_frame
from qwen_eval.stats.intervals import ratio
from qwen_eval.weighing import weigh

MIB = 1 << 20
VERDICTS = [ # those of lm-evaluation-harness 0.4.13, an answer each: followed strictly (s), only loosely (l), not at all (.)
    ("keywords:existence", {"keywords": ["rain", "sun"]}, "ss.sl.",
     ("Sunny after rain", "RAIN, SUN", "rain", "sunrain", "r*a*in sun", "")),
    ("keywords:frequency", {"keyword": "rain ", "frequency": 2, "relation": "at least"}, "ss.ls",
     ("rain Rain", "raining trains", "rain", "ra*in rain", "rain\nrain\n")),
    ("keywords:frequency", {"keyword": "rain", "frequency": 2, "relation": "less than"}, ".sls.",
     ("rain Rain", "rain", "rain\nrain", "sun", " ")),
    ("keywords:forbidden_words", {"forbidden_words": ["cry", "tears"]}, "s.ls.ss",
     ("no crying", "Cry!", "cry\nfine", "tears_of", "a-cry", "crý", "fine")),
    ("keywords:letter_frequency", {"letter": "Z", "let_frequency": 2, "let_relation": "less than"}, ".sls.",
     ("zZ", "z", "z\nz", "ok", "*z*z*")),
    ("keywords:letter_frequency", {"letter": "z", "let_frequency": 2, "let_relation": "at least"}, "s.s",
     ("Zebra fuZz", "zo", "z z")),
    ("language:response_language", {"language": "de"}, "s.sss",
     ("Der Himmel ist heute blau und die Sonne scheint.", "The sky is blue and the sun shines today.", "Sure, here it is for you, my friend:\nDer Himmel ist heute blau und die Sonne scheint warm.", "123 !!", "Himmel blau Sonne Wald Wiese")),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": "at least"}, "ss.ss.ss",
     ("One. Two. Three.", "One. Two, e.g. Three.", "Mr. A came. He left.", "1. One\n2. Two\n3. Three", "Oh! No? Yes.", "a. b. c.", "It is 3.5 km... So far. Well", "He lives in the U.S. He is old. So am I.")),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, ".sl.s",
     ("One. Two.", "One", "One.\nTwo.", "He said \"No.\" and left.", "At 5 p.m. we left")),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "ss...s.s",
     ("a***b", "***a***b***", "a***b***c", "a\n\nb", "a\n***\n***\nb", "a *** b\n***", "*** ***", "Sure\na***b")),
    ("length_constraints:number_words", {"num_words": 4, "relation": "at least"}, "ssss.s",
     ("one two three four", "don't stop it", "a-b c_d e", "1.5 + 2 = 3.5", "one two three", "eins zwei drei vier\nfünf")),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "s.l.s",
     ("one two", "one two three", "Sure:\none two", "don't go", "日本 語")),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "So"}, "sss.l.sl.s",
     ("a\n\nso b", "a\n\n'So, b", "a\n\n\"So\" b", "a\n\nsoon", "a\n\nso\n\nb", "a\n\n\n\nso", "a\n\n\nso b", "a\n\n**So** b", "a", "a\n\nso's b")),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "s..s.s",
     ("[a] [b]", "[a [b]", "[[a]] [", "[] []", "[a\n] [b]", "[a]b]\n[c]")),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "ss..s",
     ("a\nP.P.S b", "a\np. p. s", "P.S. b", "PPS", "x P.P.\nS")),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "ss.s.",
     ("a\nP.S. b", "a p. s. b", "P.S b", "P.P.S. b", "ps.")),
    ("detectable_content:postscript", {"postscript_marker": " NB: "}, "s.s",
     ("nb: x", "NB x", "a\n NB:")),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "ss.ss.ssss",
     ("* a\n* b", "- a\n  - b", "* a\n** b", "*\n- b", "*a\n\n\n*b", "* a", "a * b\n* c\n-", "---\n* a", "\t* a\n\r* b", "- a\n- b\nBye")),
    ("detectable_format:constrained_response", {}, "s.s.l.",
     ("My answer is yes.", "So my answer is no.", "My answer is maybe. Or not.", "My answer is Yes.", "My *answer* is no.", "yes")),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "ss...s..",
     ("*a* *b*", "**a** **b**", "*a*b*", "* a\n* b", "****", "***a*** *b*", "*a\nb* *c*", "** ** *a*")),
    ("detectable_format:multiple_sections", {"section_spliter": " Day ", "num_sections": 2}, "ss...s.",
     ("Day 1\na\nDay 2\nb", "Day1 Day2", "day 1 day 2", "Day one Day two", "Monday 1 Day 12", "Day\n1 Day\t2", "Day  1 Day  2")),
    ("detectable_format:json_format", {}, "sssl.lss.",
     ("{\"a\": 1}", "```json\n[1]\n```", "```\n\"a\"\n```", "Here:\n[1]", "{'a': 1}", "[1]\nBye", "NaN", "```json{\"a\": 1}```", "{")),
    ("detectable_format:title", {}, "s...s.s.sl",
     ("<<A>>", "<< >>", "<<a\nb>>", "<A>", "a <<b>> c", "<<<>>>", "<<<a>>", "<<>>>", "<< < >>", "<*<A>>")),
    ("combination:two_responses", {}, "ss......s",
     ("a******b", "******a******b******", "a******a", "a******a ", "a***b", "a************b", "a******b******c", "******", "a*******b")),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Why is it so? "}, "ss.l.l",
     ("Why is it so? Because.", "why IS it so?", "> Why is it so?", "Sure:\nWhy is it so?", "Why  is it so?", "*Why* is it so?")),
    ("startend:end_checker", {"end_phrase": "The end. "}, "sss.ll.",
     ("x. the END.", "x. The end.\"", "The end. \n", "The end", "The end.\nBye", "**The end.**", "The end.\"'")),
    ("startend:quotation", {}, "ss....lls",
     ("\"a\"", " \"a\" ", "\"", "\"a", "'a'", "\"a\".", "Sure:\n\"a\"", "*\"a\"*", "\"\"")),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, "ssss..ss.s",
     ("NASA and ESA", "I am A", "NASA's X-15", "DON'T", "Nasa ESA", "A-B", "NASA\nESA", "*NASA* ESA", "U.S. 15", "(OK!) \"NO\"")),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "less than"}, "..lss",
     ("NASA and ESA", "CANNOT", "NASA\nESA", "GOT'CHA", "none")),
    ("change_case:english_capital", {}, "s...l.",
     ("THE SKY IS BLUE AND THE SUN SHINES TODAY", "The sky", "DER HIMMEL IST BLAU UND DIE SONNE SCHEINT", "123", "Sure, here:\nTHE SKY IS BLUE AND THE SUN SHINES TODAY", "THE SKY IS BLUE; 12 SUNS ß")),
    ("change_case:english_lowercase", {}, "s...l.",
     ("the sky is blue and the sun shines today", "The sky", "der himmel ist blau und die sonne scheint", "...", "Sure, here:\nthe sky is blue and the sun shines today", "the sky is blue ʼA")),
    ("punctuation:no_comma", {}, "s.sl.s",
     ("a b", "a, b", "a，b", "Sure, here:\na b", "1,000", "a;b")),
]
NEEDS_PUNKT = ("length_constraints:number_sentences", "change_case:capital_word_frequency")


@pytest.fixture(scope="session")
def punkt():
    try: sentences("A.")
    except ConfigError as e: pytest.skip(f"needs a package index, once: {e}")


@pytest.fixture(scope="module")
def items():
    if not os.environ.get("QWEN_EVAL_DATA"): pytest.skip("needs QWEN_EVAL_DATA: the folder of benchmark files")
    return load(ifeval, source="file").items


@pytest.mark.parametrize("kind, given, verdicts, answers", VERDICTS, ids=[f"{n} {v[0]}" for n, v in enumerate(VERDICTS)])
def test_verdicts_are_those_of_the_published_checkers(kind, given, verdicts, answers, punkt):
    found = ["s" if follows(t, kind, given) else "l" if any(follows(x, kind, given) for x in loosened(t)) else "." for t in answers]
    assert "".join(found) == verdicts


def test_the_table_holds_every_kind_with_both_verdicts():
    seen = {}
    for kind, _, verdicts, _ in VERDICTS: seen.setdefault(kind, set()).update(verdicts)
    assert seen.keys() == INSTRUCTIONS.keys() == set(checkers.names())
    assert all({"s", "."} <= v for v in seen.values()), {k for k, v in seen.items() if not {"s", "."} <= v}


def test_signs_are_counted_that_the_published_checker_cannot(items):
    asked = [(i.target, i.extra["kwargs"]) for i in items]
    odd = [g for kinds, given in asked for k, g in zip(kinds, given, strict=True) if k == "keywords:letter_frequency" and not g["letter"].isalpha()]
    assert sorted(g["letter"] for g in odd) == ["!", "#"]
    for g in odd:
        enough = g["letter"] * g["let_frequency"]
        assert follows(enough, "keywords:letter_frequency", g) and not follows(enough[1:] + "abc", "keywords:letter_frequency", g)


def test_the_data_are_what_is_said_of_them(items):
    kinds = Counter(k for i in items for k in i.target)
    assert (len(items), len(kinds), kinds.total()) == (541, 25, 834) and kinds.keys() == INSTRUCTIONS.keys()
    assert max(len(i.target) for i in items) == 3 and all(len(i.target) == len(i.extra["kwargs"]) for i in items)
    assert items[0].id == "1000"


def test_what_is_searched_in_linear_time_is_what_the_patterns_find():
    rng = random.Random(0)
    def text(letters): return "".join(rng.choice(letters) for _ in range(rng.randrange(30)))
    for _ in range(20_000):
        t = text("[]ab\n\r ")
        n = len(re.findall(r"\[.*?\]", t))
        assert checkers.get("detectable_content:number_placeholders")(t, n)
        assert not checkers.get("detectable_content:number_placeholders")(t, n + 1)
        t = text("<<>>a \n")
        titles = re.findall(r"<<[^\n]+>>", t)
        assert checkers.get("detectable_format:title")(t) == any(x.lstrip("<").rstrip(">").strip() for x in titles), repr(t)
        t = text("**- a\n\t\r\u2028\u00a0")
        n = len(re.findall(r"^\s*\*[^\*].*$", t, re.M)) + len(re.findall(r"^\s*-.*$", t, re.M))
        assert checkers.get("detectable_format:number_bullet_lists")(t, n), repr(t)
        t = text("pPs.. \na")
        for marker, pattern in (("P.P.S", r"\s*p\.\s?p\.\s?s.*$"), ("P.S.", r"\s*p\.\s?s\..*$"), ("PS", r"\s*ps.*$")):
            assert checkers.get("detectable_content:postscript")(t, marker) == bool(re.findall(pattern, t.lower(), re.M))


ENDLESS = {"brackets": "[" * MIB, "angles": "<" * MIB, "angles, closed": "<" * MIB + ">", "stars": "*" * MIB, "lines": "\n" * MIB,
           "blanks": " \n" * (MIB // 2), "tabs": "\t" * MIB, "half pairs": "\ud83d" * MIB, "deep": '{"a":' * 20_000, "deep list": "[" * 20_000,
           "dots": "." * MIB, "abbreviations": "a." * (MIB // 2), "commas": "A, " * (MIB // 3), "p": "p. " * (MIB // 3), "quotes": '"' * MIB,
           "addresses": "a" * MIB + "@" + "b" * 300, "links": "http://" * (MIB // 7), "accents": "\u0301" * MIB, "noughts": "\0" * MIB}


@pytest.mark.parametrize("name", ENDLESS)
def test_no_text_takes_for_ever(name, punkt):
    given = {k: g for k, g, _, _ in VERDICTS}
    begin = time.process_time()
    for kind in INSTRUCTIONS: assert follows(ENDLESS[name], kind, given[kind]) in (True, False)
    assert time.process_time() - begin < 15 # CPU seconds: a guard against a hang


def test_sentences_and_words_are_those_of_nltk(punkt):
    params = instructions._punkt()._params
    known = sum(flags > 0 for flags in params.ortho_context.values()) # words that were only looked up have none
    assert (len(params.abbrev_types), len(params.sent_starters), len(params.collocations), known) == (156, 39, 37, 20366)
    assert {"mr", "u.s", "p.m"} <= params.abbrev_types and "e.g" not in params.abbrev_types
    assert sentences("Mr. Lee paid $3.50. \"Why?\" he asked... Then No. 5 came, i.e. Bob.") == [
        "Mr. Lee paid $3.50.", '"Why?"', "he asked... Then No.", "5 came, i.e.", "Bob."]
    assert tokens("I CAN'T (really) say: GOTTA go.") == ["I", "CA", "N'T", "(", "really", ")", "say", ":", "GOT", "TA", "go", "."]


def test_another_model_of_sentences_is_refused(punkt, monkeypatch):
    known = instructions.source_registry()["ifeval"]["punkt"]
    monkeypatch.setattr(instructions, "source_registry", lambda: {"ifeval": {"punkt": {**known, "member_sha256": "0" * 64}}})
    instructions._punkt.cache_clear()
    with pytest.raises(IntegrityError, match=r"punkt_tab.zip is not the file"): sentences("A.")
    monkeypatch.setattr(instructions, "wheel_member", lambda *a: (_ for _ in ()).throw(ConfigError("no index")))
    with pytest.raises(ConfigError, match="no index"): follows("A.", NEEDS_PUNKT[0], {"num_sentences": 1, "relation": "at least"})
    assert follows("a b", "punctuation:no_comma", {}) # the other kinds need none
    monkeypatch.undo()
    instructions._punkt.cache_clear()


def test_a_language_is_the_same_every_time():
    assert len({instructions.language("Hola chat") for _ in range(20)}) == 1


def scored(items, texts):
    v = ifeval.variants["chat"]
    given = {(i.id, 0): Completion(item_id=i.id, text=t) for i, t in zip(items, texts, strict=True)}
    return score_frame(score_items([(i, given[i.id, 0]) for i in items], v.score, v), given, items)


def test_each_instruction_counts_the_same(punkt):
    items = load(ifeval, "specimen").items
    frame = scored(items, ["My answer is no."] * len(items))
    kept = [[follows("My answer is no.", k, g) for k, g in zip(i.target, i.extra["kwargs"], strict=True)] for i in items]
    flat = [x for item in kept for x in item]
    e = weigh(frame, "inst_strict")
    assert math.isclose(e.value, sum(flat) / len(flat)) and (e.method, e.n_items) == ("wilson (ratio)", len(items))
    shares = [sum(x) / len(x) for x in kept]
    assert not math.isclose(e.value, sum(shares) / len(shares)) # a mean of shares is another number
    same = ratio(shares, [len(x) for x in kept])
    assert (e.low, e.high) == (same.low, same.high)
    assert weigh(frame, "prompt_strict").value == sum(map(all, kept)) / len(kept) and weigh(frame, "prompt_strict").method == "wilson"
    assert weigh(frame, "inst_loose").value >= e.value


def test_nothing_written_follows_nothing_and_a_refusal_is_an_answer():
    items = load(ifeval, "specimen").items[:2]
    frame = scored(items, [" \n", "I cannot."])
    assert list(frame.status) == ["no_answer", "scored"] and list(frame.inst_strict) == [0, 2 / 3]
    thought = scored(items[:1], ["<think>, , ,</think>A puddle and boots and rain and rain and rain and rain and rain and rain"])
    assert thought.value[0] == 1


def test_a_run_from_specimens_to_four_estimates(tmp_path, punkt):
    run = evaluate(Model(id="toy", context_tok=8192), "ifeval", engine=FakeEngine(lambda r: "My answer is yes."), source="specimen",
                   runs=tmp_path, answer_tok=64, progress=False)
    found = run.estimates()
    assert next(iter(found)) == "prompt_strict" and {"prompt_loose", "inst_strict", "inst_loose"} <= found.keys()
    assert 0 < found["prompt_strict"].value < found["inst_strict"].value < 1


def test_rows_that_cannot_be_checked_are_refused():
    row = {"prompt": "Say.", "key": 1, "instruction_id_list": ["detectable_format:title"], "kwargs": [{}]}
    def made(**change): return make_items([{**row, **change}], ifeval, "x.jsonl")[0][0]
    assert made(kwargs=[{"num_words": None, "frequency": 0}]).extra == {"kwargs": [{}]} # as the hub fills them up
    for bad in ({"kwargs": []}, {"instruction_id_list": []}, {"instruction_id_list": ["title"]}, {"prompt": ""},
                {"instruction_id_list": ["keywords:existence"]}, {"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": ["("]}]},
                {"instruction_id_list": ["length_constraints:number_words"], "kwargs": [{"num_words": 3, "relation": "about"}]}):
        with pytest.raises(IntegrityError, match="row 1"): made(**bad)
    with pytest.raises(UnknownNameError): follows("a", "title", {})
