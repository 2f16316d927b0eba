"""Every library notebook runs from top to bottom, in a fresh interpreter, offline."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = sorted(p for p in (ROOT / "nbs").glob("*.ipynb") if re.match(r"\d\d_|index", p.name))


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: p.stem)
def test_notebook_runs(path):
    code = "import sys; from nbdev.test import test_nb; sys.exit(0 if test_nb(sys.argv[1], verbose=True)[0] else 1)"
    env = {k: v for k, v in os.environ.items() if not k.startswith("QWEN_EVAL_")}
    env |= {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"}
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=path.parent, env=env, capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
