"""The front door: cheap to import, and every public name is what it says."""
import subprocess
import sys
from importlib.util import find_spec

import pytest

import qwen_eval

HEAVY = ("numpy", "pandas", "pydantic", "torch", "vllm", "transformers", "datasets", "matplotlib", "scipy", "msgspec")


def test_import_loads_nothing_heavy():
    code = f"import sys, qwen_eval; print([m for m in {HEAVY} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize("name", sorted(qwen_eval._LAZY))
def test_public_names(name):
    assert find_spec(f"qwen_eval.{name}") is None, "a module of that name would hide the public name"
    assert callable(getattr(qwen_eval, name)) and getattr(qwen_eval, name).__name__ == name


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'evaluat'"): qwen_eval.evaluat  # noqa: B018


def test_section_keys_are_those_of_the_records():
    from dataclasses import fields

    from qwen_eval.datasets.custom import Own
    from qwen_eval.models import Model
    from qwen_eval.presets import Preset
    from qwen_eval.protocols import Protocol
    from qwen_eval.settings import SECTION_KEYS
    from qwen_eval.studies import Study
    for kind, record in {"model": Model, "preset": Preset, "protocol": Protocol, "benchmark": Own,
                         "study": Study}.items():
        assert set(SECTION_KEYS[kind]) - {"like"} == {f.name for f in fields(record)} - {"id", "temperatures"}, kind
