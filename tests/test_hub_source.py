"""The hub as a source, against a server on this machine that speaks its protocol and serves the specimens."""
import hashlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from local_hub import HubHandler, LocalHub, about, serving

from qwen_eval.datasets.all import benchmark
from qwen_eval.datasets.base import load
from qwen_eval.settings import settings as settings_in_force
from qwen_eval.sources import read_rows

ROOT = Path(__file__).parents[1]
IDS = ("humaneval", "gsm8k", "arc_challenge", "hellaswag", "codet5")


def sha1(data): return hashlib.sha1(data).hexdigest()


class Hub(LocalHub):
    "What the datasets library asks a hub for: commit and file list, the tree, paths, and files by HEAD and GET."
    def put(self, hub_id, config, splits):
        "A data set of Parquet files, one per split: `splits` maps names to rows."
        import pyarrow as pa
        import pyarrow.parquet
        files, listed = {}, []
        for split, table in splits.items():
            buffer = io.BytesIO()
            pa.parquet.write_table(pa.Table.from_pylist(table), buffer)
            files[f"data/{split}-00000-of-00001.parquet"] = buffer.getvalue()
            listed.append(f"  - split: {split}\n    path: data/{split}-*")
        head = f"---\nconfigs:\n- config_name: {config or 'default'}\n  data_files:\n" + "\n".join(listed) + "\n---\n"
        files["README.md"] = head.encode()
        commit = sha1(b"".join(files.values()))
        self.repos[hub_id] = commit, files
        return commit


class Handler(HubHandler):
    def handle_any(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        api = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?", path)
        file = re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        repo = self.server.repos.get((api or file)[1]) if api or file else None
        if repo is None: return self.reply(404, X_Error_Code="RepoNotFound")
        commit, files = repo
        if api and api[2] in (None, "revision"):
            return self.json(about(api[1], commit, files))
        entries = {f: {"type": "file", "path": f, "size": len(d), "oid": sha1(d)} for f, d in files.items()}
        entries["data"] = {"type": "directory", "path": "data", "size": 0, "oid": sha1(b"")}
        if api and api[2] == "paths-info":
            return self.json([entries[f] for f in json.loads(body)["paths"] if f in entries])
        if api:
            deep = "recursive=true" in self.path.lower()
            return self.json([e for f, e in entries.items() if deep or f.rpartition("/")[0] == (api[4] or "")])
        if file[3] not in files: return self.reply(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        data = files[file[3]]
        return self.reply(200, data, ETag=f'"{sha1(data)}"', X_Repo_Commit=commit)


@pytest.fixture(scope="module")
def hub():
    with serving(Hub(Handler)) as server: yield server


def ask(tmp_path, id, **env):
    "Load a benchmark from the hub in a fresh process (the libraries read their environment at import)."
    code = ("import sys\nfrom qwen_eval.errors import QwenEvalError\nfrom qwen_eval.datasets.all import benchmark\n"
            "from qwen_eval.datasets.base import load\n"
            "try: s = load(benchmark(sys.argv[1]), 'hub')\n"
            "except QwenEvalError as e: print(type(e).__name__, e); sys.exit(2)\n"
            "print(len(s), len(s.pool), s.source, s.verified, s.item_set_hash, ','.join(s.marks))")
    ours = ("hf_", "qwen_eval_", "http_proxy", "https_proxy", "all_proxy")
    plain = {k: v for k, v in os.environ.items() if not k.lower().startswith(ours)}
    env = {**plain, "HF_HOME": str(tmp_path / "hf"), "QWEN_EVAL_CACHE": str(tmp_path / "cache"), **env}
    return subprocess.run([sys.executable, "-c", code, id], cwd=ROOT, env=env, capture_output=True, text=True)


def publish(hub, id, change=lambda rows: rows):
    b = benchmark(id)
    source, splits = b.source("hub"), {}
    for row in change(read_rows(settings_in_force().specimens / f"{id}.jsonl")):
        splits.setdefault(row.pop("split", b.split), []).append(row)
    return hub.put(source.hub_id, source.config, splits)


@pytest.mark.parametrize("id", IDS)
def test_the_hub_gives_what_the_file_gives(hub, tmp_path, id):
    commit, specimens = publish(hub, id), load(benchmark(id), "specimen")
    done = ask(tmp_path, id, HF_ENDPOINT=hub.url)
    assert done.returncode == 0, done.stdout + done.stderr
    n, n_pool, source, *rest = done.stdout.split()
    assert (int(n), int(n_pool)) == (len(specimens.items), len(specimens.pool))
    assert source == f"hub:{benchmark(id).source('hub').hub_id}@{commit}" and specimens.item_set_hash in rest
    assert rest == ["unverified", specimens.item_set_hash, "unverified"] # no hash is known for the hub: it is marked
    stored = json.loads((tmp_path / "cache" / "item_sets.json").read_text())
    assert list(stored.values()) == [specimens.item_set_hash]


def test_later_loads_must_match_the_first(hub, tmp_path):
    publish(hub, "gsm8k")
    assert ask(tmp_path, "gsm8k", HF_ENDPOINT=hub.url).returncode == 0
    def edit(rows): return [{**rows[0], "question": rows[0]["question"] + " Why?"}, *rows[1:]]
    publish(hub, "gsm8k", edit)
    done = ask(tmp_path, "gsm8k", HF_ENDPOINT=hub.url)
    assert done.returncode == 2 and done.stdout.startswith("IntegrityError gsm8k:hub:openai/gsm8k: has changed since")
    assert "expected item-set hash" in done.stdout and "found" in done.stdout and "item_sets.json" in done.stdout


def test_offline_uses_the_cache_of_the_library(hub, tmp_path):
    publish(hub, "arc_challenge")
    first = ask(tmp_path, "arc_challenge", HF_ENDPOINT=hub.url)
    assert first.returncode == 0, first.stdout + first.stderr
    n = len(hub.asked)
    again = ask(tmp_path, "arc_challenge", HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stdout + again.stderr
    assert first.stdout.split()[-1] == again.stdout.split()[-1] and len(hub.asked) == n


def test_a_hub_without_the_data_set(hub, tmp_path):
    hub.repos.pop("openai/gsm8k", None)
    done = ask(tmp_path, "gsm8k", HF_ENDPOINT=hub.url)
    assert done.returncode == 2 and "answers, but not for openai/gsm8k: HTTP 404" in done.stdout


@pytest.mark.parametrize("kind", ["refused", "silent", "unknown name", "offline"])
def test_no_hub_costs_little_and_says_so(tmp_path, kind):
    silent = socket.socket()
    silent.bind(("127.0.0.1", 0)); silent.listen(1) # takes the connection and never answers
    env = {"refused": {"HF_ENDPOINT": "http://127.0.0.1:9"}, "offline": {"HF_HUB_OFFLINE": "1"},
           "silent": {"HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}"},
           "unknown name": {"HF_ENDPOINT": "http://hub.invalid"}}[kind]
    start = time.perf_counter()
    done = ask(tmp_path, "gsm8k", **env)
    seconds = time.perf_counter() - start
    silent.close()
    assert done.returncode == 2 and done.stdout.startswith("AbsentError No source has the items of gsm8k. hub: ")
    assert ("cannot be reached for openai/gsm8k" in done.stdout) == (kind != "offline")
    assert seconds < (5 if kind != "offline" else 10), seconds
