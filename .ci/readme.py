"""README.md from nbs/index.ipynb (with --check: exit 1 where the two differ)."""
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
NOTE = "<!-- Generated from nbs/index.ipynb by `make readme`; edit the notebook. -->\n\n"


def render() -> str:
    notebook = nbformat.read(ROOT / "nbs/index.ipynb", as_version=4)
    notebook.cells = [c for c in notebook.cells if not c.source.startswith("#| hide")]
    config = Config({"NbConvertBase": {"display_data_priority": ["text/markdown", "text/plain"]}})
    text, _ = MarkdownExporter(config=config).from_notebook_node(notebook)
    text = re.sub(r"```\w*\n#\| echo: false\n.*?```\n", "", text, flags=re.DOTALL)
    text = re.sub(r"\]\(\.\./", "](", text)  # the notebook lies one folder below the README
    text = re.sub(r"\]\((?!https?:|#|nbs/|reports/|locks/|data/|benchmarks/)([\w.]+\.ipynb)\)", r"](nbs/\1)", text)
    return NOTE + re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def main() -> int:
    target, text = ROOT / "README.md", render()
    if "--check" in sys.argv:
        if target.read_text(encoding="utf-8") == text: return 0
        print("README.md differs from nbs/index.ipynb; run `make readme`.", file=sys.stderr)
        return 1
    target.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
