"""Every method against values that its source, or an independent computation, gives.

The cases lie in `tests/data/statistics/cases.json` and, with other numbers, `other_cases.json`; or in the file that
QWEN_EVAL_STAT_CASES names: the same topics and input names. `stat_answers/` holds, topic by topic, which public
function answers a case; a topic that no room answers fails.
"""
import importlib
import json
import math
import os
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
GIVEN = os.environ.get("QWEN_EVAL_STAT_CASES")
FILES = [Path(GIVEN)] if GIVEN else [HERE / "data/statistics" / name for name in ("cases.json", "other_cases.json")]
CASES = [case for file in FILES for case in json.loads(file.read_text(encoding="utf-8"))["cases"]]
ROOMS = sorted(p.stem for p in (HERE / "stat_answers").glob("*.py") if p.stem != "__init__")


def answers():
    "Topic -> function of the case and of `find`; one room for each topic."
    found = {}
    for room in ROOMS:
        given = importlib.import_module(f"stat_answers.{room}").ANSWERS
        assert not found.keys() & given.keys(), f"{room}: answered twice: {found.keys() & given.keys()}"
        found |= given
    return found


def find(name):
    "A file named in the inputs: beside the cases, else in the project's folder, else among the tests of scipy."
    import scipy
    base = Path(str(name).split(" ")[0]).name
    base = base if "." in base else f"{base}.csv"
    places = (FILES[0].parent, HERE / "data/statistics", Path(scipy.__file__).parent / "stats/tests/data/nist_anova")
    return next((p / base for p in places if (p / base).exists()), None)


def check(got, want, tolerance, path="answer"):
    "Numbers within the tolerance, all else equal; what the case gives must be there, more may be."
    if isinstance(want, dict):
        for k in want: check(got[k], want[k], tolerance, f"{path}[{k!r}]")
    elif isinstance(want, (list, tuple)):
        assert len(got) == len(want), path
        for i, (x, y) in enumerate(zip(got, want, strict=True)): check(x, y, tolerance, f"{path}[{i}]")
    elif isinstance(want, (int, float)) and not isinstance(want, bool):
        got = float(got)
        assert math.isfinite(got) and abs(got - want) <= tolerance, f"{path}: {got!r}, not {want!r}"
    else: assert got == want, f"{path}: {got!r}, not {want!r}"


def label(case): return f"{case['id']} | {case['source']}"[:120]


@pytest.mark.parametrize("case", CASES, ids=label)
def test_case(case):
    room = answers()
    assert case["topic"] in room, f"no room answers the topic {case['topic']!r}"
    print(f"{case['id']}: {case['source']} ({case['status']})")
    check(room[case["topic"]](case, find), case["expected"], case["tolerance"])


def test_the_cases_are_there():
    assert len(CASES) > 0 and len({c["id"] for c in CASES}) == len(CASES)
