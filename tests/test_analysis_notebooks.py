"""The analyses run by papermill on the demonstration results and on other stores; what is made up says so."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_eval.runs import list_runs

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "nbs/analysis"
SIMULATED, PUBLISHED = ROOT / "data/demo/simulated", ROOT / "data/demo/published"
NOTEBOOKS = {
    "02_leaderboard": ["simulated_leaderboard", "simulated_leaderboard_profile"],
    "03_scaling_8b_vs_14b": ["simulated_scaling_differences", "simulated_scaling_sizes",
                             "simulated_scaling_latency_gsm8k", "simulated_scaling_memory_gsm8k", "scaling_published"],
    "04_presets": ["presets_differences", "presets_front", "presets_throughput", "simulated_presets_differences_aa",
                   "simulated_presets_front_aa"],
    "05_power": ["power_curves"],
    "06_items": ["items_gsm8k", "items_information_gsm8k", "items_disagreements_gsm8k"],
    "07_trends": ["simulated_trend"],
}


def cells(path): return json.loads(Path(path).read_text(encoding="utf-8"))["cells"]


def source(cell): return "".join(cell["source"])


def said(path): # printed texts of an executed notebook
    outputs = [o for c in cells(path) for o in c.get("outputs", ())]
    return "\n".join("".join(o.get("text", [])) + "".join(o.get("data", {}).get("text/plain", [])) for o in outputs)


def execute(name, out, **parameters):
    "Run a notebook by papermill, as a user does, in its own folder and without data of benchmarks."
    code = ("import json, sys; import papermill\n"
            "papermill.execute_notebook(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), progress_bar=False,\n"
            "                           kernel_name='python3', cwd=sys.argv[4])")
    env = {k: v for k, v in os.environ.items() if not k.startswith("QWEN_EVAL_")}
    made = out / f"{name}.ipynb"
    asked = {"figures": str(out / "figures"), **parameters}
    return subprocess.run([sys.executable, "-c", code, str(FOLDER / f"{name}.ipynb"), str(made), json.dumps(asked),
                           str(FOLDER)], env=env | {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"}, capture_output=True,
                          text=True, timeout=300), made


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs_on_the_demonstration_results(name, tmp_path):
    done, made = execute(name, tmp_path)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    files = {p.name for p in (tmp_path / "figures").iterdir()}
    assert files == {f"{n}.{k}" for n in NOTEBOOKS[name] for k in ("pdf", "svg", "png", "json")}
    ids = {r.id: r for folder in (SIMULATED, PUBLISHED, ROOT / "data/demo") for r in list_runs(folder)}
    for n in NOTEBOOKS[name]:
        side = json.loads((tmp_path / f"figures/{n}.json").read_text(encoding="utf-8"))
        behind = [ids[i] for i in side["run_ids"]]
        fake = any("fake-engine" in r.manifest["marks"] for r in behind)
        assert behind and side["data"] and fake == n.startswith("simulated_") == side["alt"].startswith("SIMULATED")
        assert (b'id="simulated"' in (tmp_path / f"figures/{n}.svg").read_bytes()) == fake
        assert b"/Type3" not in (tmp_path / f"figures/{n}.pdf").read_bytes()
    assert said(made) == said(FOLDER / f"{name}.ipynb"), "stored outputs are of another version: run the notebook"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_is_small_has_parameters_and_says_what_is_made_up(name):
    path = FOLDER / f"{name}.ipynb"
    [tagged] = [c for c in cells(path) if "parameters" in c["metadata"].get("tags", ())]
    code = [source(c) for c in cells(path) if c["cell_type"] == "code"]
    assert path.stat().st_size <= 200_000 and all(k in source(tagged) for k in ("runs = ", "figures = ", "venue = "))
    assert "ConfigError(" not in source(tagged) and not any("#| export" in c for c in code)
    prose = "".join(source(c) for c in cells(path) if c["cell_type"] == "markdown")
    title, made_up = prose.partition("\n")[0], any(n.startswith("simulated") for n in NOTEBOOKS[name])
    assert ("SIMULATED" in title) == made_up and "What not to conclude" in prose
    assert sum(bool(o.get("data", {}).get("image/png")) for c in cells(path) for o in c.get("outputs", ())
               ) == len(NOTEBOOKS[name])
    for c in code: # a second library would begin here
        for body in re.split(r"(?m)^(?=def )", c)[1:]: assert len(re.split(r"\n(?=\S)", body)[0].splitlines()) <= 12


OTHERS = {
    "one model": ("02_leaderboard", {"runs": "data/demo"}, "Missing: ranks need three models"),
    "one size": ("03_scaling_8b_vs_14b", {"runs": "data/demo", "published": ""}, "Missing: two models of one family"),
    "too short": ("07_trends", {"runs": str(PUBLISHED)}, "Missing: 21 runs or more of one model"),
    "no pair": ("05_power", {"runs": "data/demo"}, "Missing: two runs of different models"),
    "few models": ("06_items", {"runs": "data/demo"}, "Missing: three models or more"),
    "nothing": ("04_presets", {"runs": "nowhere"}, "holds no complete run"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_says_what_a_store_lacks(case, tmp_path):
    name, parameters, missing = OTHERS[case]
    done, made = execute(name, tmp_path, **parameters)
    assert missing in said(made) + done.stderr
    assert (done.returncode == 0) == (case in ("one model", "one size")), done.stderr[-2000:]


def test_runs_on_simulated_items_of_a_benchmark_with_parts(tmp_path):
    done, made = execute("06_items", tmp_path, runs="data/demo/simulated", benchmark="mmlu")
    assert done.returncode == 0, done.stderr[-2000:]
    side = json.loads((tmp_path / "figures/simulated_items_disagreements_mmlu.json").read_text(encoding="utf-8"))
    whole = side["data"][0]
    assert whole["both"] + whole["only_a"] + whole["only_b"] + whole["neither"] == 285
    assert "SIMULATED" in said(made)
