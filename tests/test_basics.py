"Settings, registry, fetched and written files, rows: what everything else stands on."
import os
import zipfile
from pathlib import Path

import pytest

from qwen_eval import fetch
from qwen_eval.errors import ConfigError, IntegrityError
from qwen_eval.fetch import sha256, wheel_member, write_atomic
from qwen_eval.registry import Registry
from qwen_eval.settings import PATH_KEYS, find_settings, read_settings
from qwen_eval.sources import PACKAGINGS, read_rows


# ---------------------------------------------------------------- settings
def test_relative_paths_start_where_they_were_written(tmp_path, monkeypatch):
    for key in PATH_KEYS: monkeypatch.delenv(f"QWEN_EVAL_{key.upper()}", raising=False)
    lab, shell = tmp_path / "lab", tmp_path / "shell"
    for folder in (lab, shell): folder.mkdir()
    (lab / "settings.ini").write_text("[paths]\ndata = d\nruns = r\n")
    monkeypatch.chdir(shell)
    monkeypatch.setenv("QWEN_EVAL_DATA", "mine")
    found = read_settings(lab / "settings.ini")
    assert (found.data, found.runs, found.cache) == (shell / "mine", lab / "r", lab / "data" / "cache")


@pytest.mark.parametrize(("text", "ours"), [
    ("[DEFAULT]\nlib_name = old\n", False), ("[DEFAULT]\nlib_name: old\n", False),
    ("# not nbdev's: no lib_name here\n[paths]\n", True)])
def test_only_the_key_makes_a_file_nbdevs(tmp_path, monkeypatch, text, ours):
    monkeypatch.delenv("QWEN_EVAL_SETTINGS", raising=False)
    (tmp_path / "settings.ini").write_text(text)
    assert (find_settings(tmp_path) == tmp_path / "settings.ini") == ours


def test_outside_a_lab_the_checkout_is_the_lab(tmp_path):
    assert find_settings(tmp_path) == Path(__file__).resolve().parents[1] / "settings.ini"


# ---------------------------------------------------------------- files
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_written_files_obey_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try: path = write_atomic(tmp_path / "a" / "x", "1")
    finally: os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask and os.listdir(path.parent) == ["x"]


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    "Takes members of a made wheel; counts the downloads in `n`."
    made, n = tmp_path / "w.whl", []
    with zipfile.ZipFile(made, "w") as z:
        for name in ("a/data.json", "b/data.json"): z.writestr(name, name)

    def download(requirement, folder):
        n.append(requirement)
        return made
    monkeypatch.setattr(fetch, "_pip_download", download)

    def take(member): return wheel_member("w", "1", sha256(made), member, tmp_path / "cache")
    take.n = n
    return take


def test_members_of_one_name_are_two_files(wheel):
    for _ in range(2): assert [wheel(f"{d}/data.json").read_text() for d in "ab"] == ["a/data.json", "b/data.json"]
    assert len(wheel.n) == 2


def test_a_member_changed_in_the_cache_is_noticed(wheel):
    path = wheel("a/data.json")
    path.write_text("a/dato.json")
    with pytest.raises(IntegrityError, match=r"expected sha256 .*, found"): wheel("a/data.json")
    path.unlink()
    assert wheel("a/data.json").read_text() == "a/data.json"


@pytest.mark.parametrize("member", ["c/data.json", "../data.json", "/etc/hostname"])
def test_a_member_that_is_none(wheel, member):
    with pytest.raises(ConfigError, match=member): wheel(member)


def test_what_pip_said_is_passed_on_without_colours(tmp_path, monkeypatch):
    for k, v in {"FORCE_COLOR": "1", "PIP_INDEX_URL": "http://127.0.0.1:9", "PIP_RETRIES": "0"}.items():
        monkeypatch.setenv(k, v)
    with pytest.raises(ConfigError) as e: fetch._pip_download("qwen-eval-no-such-thing==0.0.0", tmp_path)
    assert "(No matching distribution found for qwen-eval-no-such-thing==0.0.0)" in str(e.value)


def test_every_packaging_is_known_by_its_name():
    for p in (p for p in PACKAGINGS if p != ".parquet"): assert read_rows(f"x{p}", b"[]" if p == ".json" else b"") == []
    for name in ("x.gz", "x.jsonl.txt", "jsonl"):
        with pytest.raises(ConfigError, match="should end in one of"): read_rows(Path(name), b"")


# ---------------------------------------------------------------- names
def test_a_name_or_alias_that_is_taken_is_refused():
    table = Registry("thing")
    table.add("a", 1, aliases=("b",))
    for name, aliases in (("a", ()), ("b", ()), ("c", ("a",)), ("c", ("b",))):
        with pytest.raises(ConfigError, match="registered already"): table.add(name, 2, aliases)
    assert table.get("b") == 1 and table.names() == ["a"]
