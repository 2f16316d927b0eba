"""The command line: fast, quiet where it should be, pure JSON, statuses that scripts can rely on."""
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qwen_eval.cli import app
from qwen_eval.settings import read_settings

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"numpy", "pandas", "pydantic", "torch", "vllm", "transformers", "datasets", "matplotlib", "seaborn", "scipy",
         "rich", "msgspec", "papermill", "jinja2"}
MAIN = "import sys; sys.argv[0] = 'qwen-eval'; from qwen_eval.cli import main; main()"


@pytest.fixture
def lab(tmp_path, monkeypatch):
    "A lab of its own: fake engine, own runs, no data."
    (tmp_path / "settings.ini").write_text(
        "[paths]\nruns = runs\ncache = cache\nreports = reports\n"
        f"specimens = {ROOT / 'data/specimens'}\n"
        "[engine]\nengine = fake\n"
        "[study.small]\nmodels = smollm2_135m\nbenchmarks = gsm8k\nlimit = 2\nanswer_tok = 16\n"
        "allow_specimens = true\n")
    monkeypatch.delenv("QWEN_EVAL_DATA", raising=False)
    monkeypatch.setenv("QWEN_EVAL_SETTINGS", str(tmp_path / "settings.ini"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def ask(*words, status=0):
    done = CliRunner().invoke(app, list(words))
    if done.exception and not isinstance(done.exception, SystemExit): raise done.exception
    assert done.exit_code == status, done.output
    return done


def environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}


def test_help_loads_nothing_heavy():
    code = ("import sys; from qwen_eval.cli import app\n"
            "try: app(['--help'])\n"
            "except SystemExit: print(*{m.split('.')[0] for m in sys.modules}, file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert "study" in done.stdout and not HEAVY & set(done.stderr.split())


def commands(group=None, words=()):
    import typer
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"): yield from commands(command, (*words, name))
        else: yield (*words, name)


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_every_command_has_help_with_an_example(words):
    said = ask(*words, "--help").stdout
    assert re.search(rf"^  qwen-eval {' '.join(words)}", said, re.MULTILINE) and "\x1b" not in said


def test_version(): assert re.fullmatch(r"qwen-eval \d+\.\d+\.\d+\S*\n", ask("--version").stdout)


@pytest.mark.parametrize("kind", ["models", "presets", "protocols", "benchmarks"])
def test_catalogues(kind, lab):
    listed = json.loads(ask(kind, "list", "--json").stdout)
    assert len({x["id"] for x in listed}) == len(listed) >= 4
    assert json.loads(ask(kind, "show", listed[0]["id"], "--json").stdout) == listed[0]
    text = ask(kind, "list").stdout
    assert all(x["id"] in text for x in listed) and "\x1b" not in text
    assert f"id: {listed[0]['id']}" in ask(kind, "show", listed[0]["id"]).stdout
    wrong = ask(kind, "show", "no_such_thing", status=2)
    assert "no_such_thing" in wrong.stderr and "Traceback" not in wrong.stderr and not wrong.stdout


def test_models_say_their_hub_id():
    found = {m["id"]: m["hub_id"] for m in json.loads(ask("models", "list", "--json").stdout)}
    assert found["qwen3_8b"] == "Qwen/Qwen3-8B" and found["qwen_8b"] == "Qwen/Qwen1.5-7B-Chat"


def test_wrong_words_are_status_2():
    assert "No such command" in ask("modles", status=2).stderr
    assert "Missing" in ask("run", "smollm2_135m", status=2).stderr


def test_a_space_after_the_comma_is_explained(lab):
    done = ask("run", "smollm2_135m", "--benchmarks", "gsm8k,", "arc_challenge", status=2)
    assert "--benchmarks gsm8k,arc_challenge" in done.stderr


def test_fit_answers_by_status_too():
    small = json.loads(ask("fit", "smollm2_135m", "--json").stdout)
    assert small["fits"] is True and small["weights_gib"] < 1
    assert "qwen2.5_14b" in CliRunner().invoke(app, ["fit", "qwen2.5_14b"]).stdout


def test_sandbox_says_which():
    done = CliRunner().invoke(app, ["sandbox", "--json"])
    said = json.loads(done.stdout)
    assert (said["in_use"] is None) == (done.exit_code == 1) and set(said["available"]) <= set(said["kinds"])


def test_run_list_show_rescore(lab):
    words = ("run", "smollm2_135m", "--benchmarks", "gsm8k,arc_challenge", "--limit", "2", "--answer-tok", "16")
    refused = ask(*words, status=2)
    assert "gsm8k" in refused.stderr and "QWEN_EVAL_DATA" in refused.stderr
    [a, b] = json.loads(ask(*words, "--allow-specimens", "--json").stdout)
    assert a["n_items"] == b["n_items"] == 2 and "specimen" in a["marks"]
    assert [r["run_id"] for r in json.loads(ask("runs", "list", "--json").stdout)] == sorted([a["run_id"], b["run_id"]])
    shown = json.loads(ask("runs", "show", a["run_id"].split("--")[-1], "--json").stdout)
    assert shown["manifest"]["run_id"] == a["run_id"] and shown["manifest"]["effective"]["max_tok"] == 16
    assert json.loads(ask("rescore", a["run_id"], "--json").stdout)["value"] == a["value"]
    said = ask("runs", "show", a["run_id"], "--items", "2").stdout
    assert said.count("gsm8k/test/") == 2 and said.count("  asked   ") == 2
    assert len(json.loads(ask("runs", "show", a["run_id"], "--items", "1", "--json").stdout)["items"]) == 1
    assert "0 of 2 scores are not what they were" in ask("rescore", a["run_id"]).stdout
    assert "2 runs: 2 hold together, 0 broken" in ask("runs", "verify").stdout
    assert "hand-written specimen" in ask(*words, "--allow-specimens").stdout
    assert "Did you mean" in ask("rescore", a["run_id"][:-1], status=2).stderr


def test_score_outputs(lab):
    data = ROOT / "data/specimens/gsm8k.jsonl"
    rows = [r for r in map(json.loads, data.read_text().splitlines()) if r.get("split", "test") == "test"]
    made = [{"question": r["question"], "completion": r["answer"]} for r in rows]
    (lab / "made.jsonl").write_text("".join(json.dumps(m) + "\n" for m in made))
    words = ("score", str(lab / "made.jsonl"), "--benchmark", "gsm8k", "--data", str(data))
    said = json.loads(ask(*words, "--json").stdout)
    assert said["estimate"]["value"] == 1 and said["counts"]["scored"] == len(rows)
    assert {"id", "value", "status"} <= set(said["items"][0])
    assert "gsm8k" in ask(*words).stdout
    assert "QWEN_EVAL_DATA" in ask(*words[:4], status=2).stderr
    said = json.loads(ask(*words[:4], "--allow-specimens", "--json").stdout) # what the message advises
    assert said["estimate"]["value"] == 1 and "specimen" in said["marks"]


def test_runs_that_differ_in_what_they_were_told_look_different(lab):
    words = ("run", "smollm2_135m", "--benchmarks", "gsm8k", "--limit", "2", "--answer-tok", "16", "--allow-specimens")
    own = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    for more in ((), ("--system", "Count slowly."), ("--chat-template", own)):
        [row] = json.loads(ask(*words, *more, "--json").stdout)
        assert row["run_id"].rpartition("--")[2] in ask(*words, *more).stdout # by these digits other commands find it
    text = ask("runs", "list").stdout
    assert "Count slowly." in text and "template" in text.splitlines()[0]
    [a, b] = [r["run_id"] for r in json.loads(ask("runs", "list", "--json").stdout)][:2]
    assert " points, 95% interval " in ask("diff", a, b).stdout
    assert json.loads(ask("diff", a, b, "--json").stdout)["difference"]["method"] == "bonett-price"


def test_a_reader_that_leaves_early_is_no_error(lab):
    code = "from qwen_eval.cli import main; main()"
    command = [sys.executable, "-c", code, "models", "list", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as p:
        p.stdout.close()
        assert p.stderr.read() == b"" and p.wait() == 141


def test_a_run_whose_scores_are_not_there_yet_is_shown(lab):
    ask("run", "smollm2_135m", "--benchmarks", "gsm8k", "--limit", "2", "--answer-tok", "16", "--allow-specimens")
    (run,) = (lab / "runs").glob("smollm2*")
    (run / "scores.parquet").unlink()
    assert "has no scores yet; resume it or rescore it" in ask("runs", "show", run.name).stdout
    ask("runs", "list")
    told = json.loads(ask("runs", "show", run.name, "--json").stdout)
    assert told["complete"] is False and told["value"] is None
    ask("rescore", run.name)
    assert "has no scores" not in ask("runs", "show", run.name).stdout


def test_study_commands(lab):
    assert [s["id"] for s in json.loads(ask("study", "list", "--json").stdout)] == ["small"]
    assert "small" in ask("study", "list").stdout
    assert "To do: 2 answers by 1 engine" in ask("study", "plan", "small").stdout
    assert json.loads(ask("study", "status", "small", "--json").stdout)[0]["state"] == "to do"
    assert "Did you mean 'small'" in ask("study", "plan", "smal", status=2).stderr


def test_interruption_says_how_to_go_on(lab, monkeypatch):
    def interrupted(*_, **__): raise KeyboardInterrupt
    monkeypatch.setattr("qwen_eval.studies.plan", interrupted)
    monkeypatch.setattr(sys, "argv", ["qwen-eval", "study", "plan", "small one"])
    said = ask("study", "plan", "small", status=130).stderr
    assert "qwen-eval study plan 'small one'" in said and "Traceback" not in said


def test_a_real_interrupt_ends_a_process_with_130(lab):
    slow = "import qwen_eval.studies as s, time\ns.plan = lambda name: (print('ready', flush=True), time.sleep(60))\n"
    p = subprocess.Popen([sys.executable, "-c", slow + MAIN, "study", "status", "small"], stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True, env=environment())
    assert p.stdout.readline() == "ready\n"
    time.sleep(0.2)
    p.send_signal(signal.SIGINT)
    said = p.communicate(timeout=20)[1]
    assert p.returncode == 130 and "Interrupted" in said and "Traceback" not in said
    assert "goes on" not in said # nothing was under way


def test_bugs_keep_their_traceback(lab, monkeypatch):
    def broken(*_, **__): raise RuntimeError("a bug")
    monkeypatch.setattr("qwen_eval.studies.plan", broken)
    assert isinstance(CliRunner().invoke(app, ["study", "plan", "small"]).exception, RuntimeError)


def test_runs_can_be_compared_checked_and_sent(lab):
    words = ("run", "smollm2_135m", "--benchmarks", "gsm8k", "--limit", "3", "--answer-tok", "16", "--allow-specimens")
    a, b = (json.loads(ask(*words, *more, "--json").stdout)[0]["run_id"] for more in ((), ("--preset", "performance")))
    found = json.loads(ask("diff", a, b, "--json").stdout)
    assert found["counts"] and "side by side" not in ask("diff", a, b, "--all", "--items", "1").stdout
    assert [f["status"] for f in json.loads(ask("runs", "verify", "--json").stdout)] == ["ok", "ok"]
    assert Path(json.loads(ask("runs", "export", a, "--json").stdout)["archive"]).parent == lab / "reports" / "archives"
    sent = json.loads(ask("runs", "export", a, "--to", str(lab), "--json").stdout)
    assert json.loads(ask("runs", "import", sent["archive"], "--json").stdout)["done"] == "there already"
    (lab / "runs" / b / "completions.jsonl").write_text("{\n{}\n")
    assert "BROKEN" in ask("runs", "verify", b, status=1).stdout


def keep_weights(lab):
    "The project's own cache, so that weights are fetched and converted once."
    cache = read_settings(ROOT / "settings.ini").cache
    cache.mkdir(parents=True, exist_ok=True)
    (lab / "cache").symlink_to(cache)


def test_a_prompt_is_shown_as_the_engine_gets_it(lab):
    keep_weights(lab)
    shown = json.loads(ask("prompt", "smollm2_135m", "gsm8k", "--item", "1", "--allow-specimens", "--json").stdout)
    assert shown["ids"] and shown["text"] and shown["position"] == 1
    assert "--- token ids" in ask("prompt", "smollm2_135m", "gsm8k", "--allow-specimens").stdout


def test_a_prompt_needs_no_torch(lab):
    keep_weights(lab)
    asked = ("prompt", "smollm2_135m", "gsm8k", "--allow-specimens")
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", MAIN, *asked], capture_output=True, text=True,
                          env=environment())
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert done.stdout == ask(*asked).stdout and "transformers" in loaded and "torch" not in loaded, done.stderr[-500:]
    assert "PyTorch" not in done.stderr


def test_the_doctor_says_what_is_there(lab):
    checks = {c["what"]: c["state"] for c in json.loads(ask("doctor", "--json").stdout)}
    assert {"vLLM", "sandbox", "hub", "data", "runs"} <= checks.keys()
    assert set(checks.values()) <= {"ok", "warning", "missing"}
