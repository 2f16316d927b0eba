"""Every library notebook, guide and analysis runs from top to bottom, in a fresh interpreter, offline."""
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = sorted(p for p in (ROOT / "nbs").glob("*.ipynb") if re.match(r"\d\d_|index", p.name))
GUIDES = sorted((ROOT / "nbs/guides").glob("*.ipynb"))
# Those with parameters are executed by test_analysis_notebooks.py.
ANALYSES = sorted(p for p in (ROOT / "nbs/analysis").glob("*.ipynb") if '"parameters"' not in p.read_text("utf-8"))


@pytest.mark.parametrize("path", LIBRARY + GUIDES + ANALYSES, ids=lambda p: p.stem)
def test_notebook_runs(path):
    code = "import sys; from nbdev.test import test_nb; sys.exit(0 if test_nb(sys.argv[1], verbose=True)[0] else 1)"
    env = {k: v for k, v in os.environ.items() if not k.startswith("QWEN_EVAL_")}
    env |= {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"}
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=path.parent, env=env, capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


@pytest.mark.parametrize("path", GUIDES, ids=lambda p: p.stem)
def test_guide_names_what_exists(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    prose = "".join("".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "markdown")
    named = re.findall(r"\[`(\w+)`\]\(\.\./\d\d_([\w.]+)\.ipynb\)", prose)
    assert named, "a guide links functions as [`name`](../NN_room.ipynb)"
    odd = [(name, room) for name, room in named if not hasattr(importlib.import_module(f"qwen_eval.{room}"), name)]
    assert not odd
    assert all((path.parent / link).exists() for link in re.findall(r"\]\((\.\./[\w./]+)\)", prose))
    assert set(re.findall(r"\]\(#([\w-]+)\)", prose)) <= set(re.findall(r'<a id="([\w-]+)">', prose))
