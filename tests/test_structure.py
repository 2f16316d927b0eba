"""The house itself: generated files match their notebooks, imports go downward, budgets hold."""
import ast
import filecmp
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
LIBRARY = [p for p in NOTEBOOKS if re.match(r"\d\d_", p.name) and p.parent.name == "nbs"]
MODULES = sorted(p for p in (ROOT / "qwen_eval").rglob("*.py") if p.name != "_modidx.py")
HEAVY = {"torch", "vllm", "transformers", "datasets", "fastapi", "ray"}
HEAVY_LATER = HEAVY | {"pandas", "matplotlib", "seaborn", "scipy", "statsmodels", "pyarrow", "duckdb", "pydantic"}


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def source(cell):
    return "".join(cell["source"])


def module_of(path):
    found = [re.match(r"#\|\s*default_exp\s+(\S+)", source(c)) for c in cells(path) if c["cell_type"] == "code"]
    return next((m.group(1) for m in found if m), None)


def numbers():
    "Dotted module -> number of its notebook."
    return {f"qwen_eval.{module_of(p)}".removesuffix(".__init__"): int(p.name[:2]) for p in LIBRARY if module_of(p)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    "A copy of the project in which everything was exported, cleaned and the README made again."
    copy = tmp_path_factory.mktemp("export")
    for name in ("nbs", ".ci"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for name in ("pyproject.toml", "settings.ini", "README.md"): shutil.copy(ROOT / name, copy / name)
    subprocess.run(["git", "init", "-q"], cwd=copy, check=True)
    for cmd in ("from nbdev.doclinks import nbdev_export; nbdev_export()",
                "from nbdev.clean import nbdev_clean; nbdev_clean(fname='nbs')"):
        subprocess.run([sys.executable, "-c", cmd], cwd=copy, check=True, capture_output=True, text=True)
    return copy


def test_export_leaves_no_difference(exported):
    made = {p.relative_to(exported / "qwen_eval") for p in (exported / "qwen_eval").rglob("*.py")}
    here = {p.relative_to(ROOT / "qwen_eval") for p in (ROOT / "qwen_eval").rglob("*.py")}
    assert here - made == set(), "modules without a living notebook"
    assert made - here == set(), "modules not exported; run `make export`"
    old, new = ROOT / "qwen_eval", exported / "qwen_eval"
    differing = [str(p) for p in made if not filecmp.cmp(new / p, old / p, shallow=False)]
    assert not differing, "edited by hand or not exported; run `make export`"


def test_clean_leaves_no_difference(exported):
    dirty = [p.name for p in NOTEBOOKS if (exported / p.relative_to(ROOT)).read_bytes() != p.read_bytes()]
    assert not dirty, "run `make export`"


def test_readme_is_generated():
    check = [sys.executable, str(ROOT / ".ci/readme.py"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def imports(path, top_only=False):
    "Imported dotted names of a module, relative ones resolved against the package."
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_only else ast.walk(tree)
    package = ["qwen_eval", *path.relative_to(ROOT / "qwen_eval").parent.parts]
    for node in nodes:
        if isinstance(node, ast.Import): yield from (a.name for a in node.names)
        if isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, [base, node.module]))
            yield base
            yield from (f"{base}.{a.name}" for a in node.names) # a module, or a name in one


def module_id(path):
    return str(path.relative_to(ROOT / "qwen_eval"))


@pytest.mark.parametrize("path", [p for p in MODULES if p.name != "__init__.py"], ids=module_id)
def test_imports_go_downward(path):
    order = numbers()
    me = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for name in imports(path):
        if not name.startswith("qwen_eval"): continue
        target = name if name in order else name.rsplit(".", 1)[0]
        if target in order and target != "qwen_eval":
            assert order[target] < order[me], f"{me} ({order[me]}) imports {target} ({order[target]})"


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_heavy_libraries_are_imported_where_they_are_used(path):
    number = numbers().get(".".join(path.relative_to(ROOT).with_suffix("").parts), 0)
    banned = HEAVY_LATER | ({"numpy"} if number < 40 or number >= 90 else set())
    top = {name.split(".")[0] for name in imports(path, top_only=True)}
    assert not top & banned
    assert not top & {"nbdev", "fastcore"}


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: p.stem)
def test_notebook_budgets(path):
    code = [source(c) for c in cells(path) if c["cell_type"] == "code"]
    exports = [s for s in code if re.match(r"#\|\s*export", s)]
    assert len(cells(path)) <= 60 and path.stat().st_size <= 200_000
    assert sum(len(s.splitlines()) for s in exports) <= 350
    for s in exports:
        tree = ast.parse(s)
        whole = any(isinstance(node, ast.ClassDef) for node in tree.body)  # state lives in a class, kept in one cell
        assert len(s.splitlines()) <= (140 if whole else 45), s.splitlines()[1]
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef): assert node.end_lineno - node.body[0].lineno < 30, node.name
    assert module_of(path), "no default_exp"
    prose = [source(c) for c in cells(path) if c["cell_type"] == "markdown"]
    assert any(s.startswith("# ") and "\n> " in s for s in prose), "no title with a subtitle"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_stored_outputs(path):
    for cell in cells(path):
        for out in cell.get("outputs", []):
            text = "".join(out.get("text", [])) + "".join(out.get("data", {}).get("text/plain", []))
            assert text.count("\n") <= 20, f"{path.name}: a stored output is longer than 20 lines"
            assert out.get("output_type") != "error", f"{path.name}: a stored traceback"
            assert not re.search(r"/(root|home|tmp|work)/[\w.]", json.dumps(out)), f"{path.name}: a path of a machine"


@pytest.mark.parametrize("path", sorted((ROOT / "nbs/templates").glob("*.ipynb")), ids=lambda p: p.stem)
def test_templates_have_parameters(path):
    assert any("parameters" in c["metadata"].get("tags", []) for c in cells(path))
