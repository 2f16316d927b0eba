"""Tables and facts on terminals of all widths: no row is broken by the terminal, and nothing is cut without a sign."""
import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_eval.layout import Facts, column_widths, fact_lines, line_width, table_lines, wrapped
from qwen_eval.terminal import CATALOGUES, brief, text_table

ROOT = Path(__file__).resolve().parent.parent
RUN = "smollm2_135m--arc_challenge--memory_optimized--ea354fe6"


@pytest.mark.parametrize("width", [1, 2, 7, 12, 30, 80])
def test_wrapped_lines_fit_and_lose_nothing(width):
    for text in (RUN, f"of {RUN}, and a few words more", "x" * 100, "", "a - b", "/a/long/path.of/some_thing--else"):
        lines = wrapped(text, width)
        assert lines and all(len(line) <= width for line in lines)
        assert "".join("".join(lines).split()) == "".join(text.split())
    assert wrapped(RUN, None) == [RUN]


def test_parts_of_names_stay_whole():
    assert wrapped(RUN, 30) == ["smollm2_135m--arc_challenge--", "memory_optimized--ea354fe6"]


def test_numbers_are_never_broken_and_rows_become_words_where_nothing_else_helps():
    heads, row = ["run", "value", "low", "note"], [RUN, "0.123456", "-0.123", "a word or two that say why"]
    numbers = [False, True, True, False]
    assert column_widths(heads, [row], numbers, None) == [len(RUN), 8, 6, 26]
    for width in range(40, 120):
        head, [lines] = table_lines(heads, [row], numbers, width)
        assert all(len(line) <= width for line in [*head, *lines]), width
        assert sum("0.123456" in line for line in lines) == 1
        assert (head == []) == (column_widths(heads, [row], numbers, width) is None)
    assert table_lines(heads, [row], numbers, 36) == ([], [[
        "smollm2_135m--arc_challenge--memory_", "optimized--ea354fe6", "  value 0.123456; low -0.123; note a",
        "  word or two that say why", ""]])


def test_short_rows_stay_on_a_line_each():
    assert text_table([{"a": 1}, {"a": 22}], {"a": "n"}, width=80) == " n\n 1\n22"


@pytest.mark.parametrize("kind", CATALOGUES)
@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_catalogues_fit(kind, width):
    text = text_table(brief(kind), CATALOGUES[kind], width=width)
    assert max(map(len, text.split("\n"))) <= width
    squeezed = "".join(text.split())
    assert all(r["id"].rpartition("_")[2] in squeezed for r in brief(kind))


def test_facts_go_on_below_their_beginning():
    assert fact_lines([("a", "one two three"), ("bb", 2)], 2, 14) == " a  one two\n    three\nbb  2"


def test_a_file_has_no_width():
    with open(os.devnull) as f: assert line_width(f) is None
    assert repr(Facts(note="word " * 60)).count("\n") == 0


def on_a_terminal(width, *commands):
    "What commands print on a terminal of that width, one after the other."
    code = ("import sys\nfrom qwen_eval.cli import app\n"
            f"for words in {[list(c) for c in commands]!r}:\n"
            "    try: app(words)\n"
            "    except SystemExit as e: print(f'status {e.code}', flush=True)\n")
    ours, theirs = pty.openpty()
    env = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "COLUMNS": str(width),
        "TERM": "xterm"}
    child = subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stdin=theirs, stderr=subprocess.PIPE, env=env)
    os.close(theirs)
    said = b""
    while True:
        if not select.select([ours], [], [], 60)[0]: break
        try: block = os.read(ours, 65536)
        except OSError: break # the other end is closed
        if not block: break
        said += block
    errors = child.communicate(timeout=20)[1].decode()
    os.close(ours)
    return re.sub(r"\x1b\[\d*m", "", said.decode()).replace("\r\n", "\n"), errors


@pytest.mark.parametrize("width", [80, 100])
def test_commands_fit_a_terminal(width, tmp_path, monkeypatch):
    "Published runs, which nothing has to be asked for."
    (tmp_path / "settings.ini").write_text(f"[paths]\nruns = {ROOT / 'data/demo'}\ncache = cache\nreports = reports\n"
                                           "[study.one]\nmodels = smollm2_135m\nbenchmarks = gsm8k, arc_challenge\n")
    monkeypatch.setenv("QWEN_EVAL_SETTINGS", str(tmp_path / "settings.ini"))
    commands = [("runs", "list"), ("benchmarks", "list"), ("models", "list"), ("presets", "list"),
                ("protocols", "list"), ("benchmarks", "verify", "gsm8k", "mmlu"), ("runs", "show", "63d47f40"),
                ("diff", "63d47f40", "055ae182"), ("study", "list")]
    said, errors = on_a_terminal(width, *commands)
    assert said.count("status 0") + said.count("status 1") == len(commands) and "Traceback" not in errors, said + errors
    wide = [line for line in said.split("\n") if len(line) > width]
    assert not wide, wide
    squeezed = "".join(said.split())
    assert "63d47f40" in squeezed and "memory_optimized" in squeezed
