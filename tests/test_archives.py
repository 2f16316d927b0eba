"Runs verified, sent and received: what a kill leaves, what somebody did, bytes that changed, archives made to harm."
import hashlib
import io
import json
import os
import random
import re
import shutil
import struct
import tarfile
import threading
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from qwen_eval import archives
from qwen_eval.archives import export_run, import_run
from qwen_eval.engines.base import FakeEngine
from qwen_eval.errors import ConfigError, EngineError, IntegrityError, QwenEvalError, UnknownNameError
from qwen_eval.evaluation import evaluate, rescore
from qwen_eval.models import Model
from qwen_eval.records import Completion, to_json
from qwen_eval.runs import Run, list_runs
from qwen_eval.scores import write_scores
from qwen_eval.store import RunWriter, read_completions, run_id
from qwen_eval.verification import FILES, SEAL, content_hash, seal_text, verify_run, writer_of

ROOT = Path(__file__).resolve().parent.parent
TOY = Model(id="toy", context_tok=8192)
DIED = Completion(item_id="", finish_reason="error", error="no")


def ran(root, benchmark="gsm8k", say="It is 720.", **how):
    answer = say if callable(say) else lambda r: say
    how = {"source": "specimen", "answer_tok": 32, **how}
    return evaluate(TOY, benchmark, engine=FakeEngine(answer), runs=root, progress=False, **how)


def listed(folder):
    "Everything about a folder that a reader could change."
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"")
            for p in [Path(folder), *Path(folder).rglob("*")]}


def of(found, check): return [(f["status"], f["said"]) for f in found["findings"] if f["check"] == check]


# ---------------------------------------------------------------- verification
@pytest.mark.parametrize("benchmark", ["gsm8k", "arc_challenge", "hellaswag", "humaneval"])
def test_a_whole_run_is_ok_and_stays_untouched(tmp_path, benchmark):
    run = ran(tmp_path, benchmark, **({"n_shot": 0} if benchmark == "hellaswag" else {}))
    before = listed(tmp_path)
    found = verify_run(run.path, deep=True)
    assert (found["status"], found.broken, found["writer"]) == ("ok", [], "") and found["run_id"] == run.id
    assert listed(tmp_path) == before and of(found, "rescored")[0][0] == "ok"
    assert verify_run(run.id, root=tmp_path) == verify_run(run.id[-8:], root=tmp_path, deep=True) | {
        "findings": [f for f in found["findings"] if f["check"] != "rescored"]}
    with pytest.raises(UnknownNameError): verify_run("nobody", root=tmp_path)


@pytest.mark.parametrize("path", sorted((ROOT / "data/demo").glob("*--*")), ids=lambda p: p.name)
def test_the_demonstration_results_hold_together(path):
    assert not verify_run(path).broken


def edit(name, change):
    def do(path):
        m = json.loads((path / FILES[0]).read_text())
        change(m)
        (path / FILES[0]).write_text(json.dumps(m))
    do.__name__ = name
    return do


def lines(name, change):
    def do(path): (path / FILES[1]).write_bytes(b"".join(change((path / FILES[1]).read_bytes().splitlines(True))))
    do.__name__ = name
    return do


def table(name, change):
    def do(path): write_scores(path, change(Run(path).scores))
    do.__name__ = name
    return do


def one_more(item_id, epoch=0, **how): return to_json(Completion(item_id=item_id, epoch=epoch, **how)) + b"\n"


HARM = [ # what was done; which check sees it, as what, in which words
    (edit("temperature", lambda m: m["fingerprint"]["protocol"]["sampling"].update(temperature=1.0)),
     "identity", "broken", "its fingerprint gives"),
    (edit("run_id", lambda m: m.update(run_id="toy--x")), "identity", "broken", "the manifest says toy--x"),
    (edit("no_model", lambda m: m["fingerprint"].pop("model")), "identity", "broken", "KeyError"),
    (edit("fingerprint_text", lambda m: m.update(fingerprint="x")), "identity", "broken", "cannot be read"),
    (edit("items", lambda m: m["items"].update(item_set_hash="0" * 64)), "items", "broken", "the manifest holds items"),
    (edit("format", lambda m: m.update(format=2)), "manifest", "broken", "format 1"),
    (edit("more_done", lambda m: m["stages"]["generate"].update(n_done=9)), "completions", "broken", "9 are counted"),
    (edit("less_done", lambda m: m["stages"]["generate"].update(n_done=1)), "completions", "warning", "4 answers, 1"),
    (edit("counts", lambda m: m["counts"].update(scored=1)), "scores", "warning", "rescore the run"),
    (edit("no_stages", lambda m: m.pop("stages")), "completions", "broken", "KeyError"),
    (lambda p: (p / FILES[0]).unlink(), "manifest", "broken", "cannot be read"),
    (lambda p: (p / FILES[0]).write_text("[1]"), "manifest", "broken", "it holds a list"),
    (lambda p: (p / FILES[0]).write_bytes(b"\xff\x00{"), "manifest", "broken", "cannot be read"),
    (lambda p: (p / FILES[1]).unlink(), "completions", "broken", "no file of them"),
    (lines("torn_tail", lambda x: [*x, b'{"item_id":"gs']), "completions", "warning", "14 bytes"),
    (lines("torn_middle", lambda x: [x[0], x[1][:20] + b"\n", *x[2:]]), "completions", "broken", "line 2"),
    (lines("zeros_middle", lambda x: [x[0], b"\0" * 64 + b"\n", *x[2:]]), "completions", "broken", "line 2"),
    (lines("lost", lambda x: x[:2]), "completions", "broken", "2 answers, but 4"),
    (lines("twice", lambda x: [*x, x[0]]), "completions", "broken", "1 lines answer again"),
    (lines("error_after", lambda x: [*x, one_more("gsm8k/test/0", finish_reason="error")]), "completions", "broken",
     "1 lines answer again"),
    (lines("stranger", lambda x: [*x, one_more("gsm8k/test/77")]), "completions", "broken", "never asked"),
    (lines("epoch", lambda x: [*x, one_more("gsm8k/test/0", 5)]), "completions", "broken", "never asked"),
    (lines("swapped", lambda x: [re.sub(rb'"n_prompt_tok":\d+', b'"n_prompt_tok":7', x[0]), *x[1:]]),
     "scores", "broken", "those of other completions"),
    (lines("orphan", lambda x: x[1:]), "scores", "broken", "1 scores have no completion"),
    (table("twice", lambda f: f.loc[[0, 0, 1, 2, 3]]), "scores", "broken", "twice"),
    (table("unscored", lambda f: f[:2]), "scores", "warning", "2 answers are not scored"),
    (lambda p: (p / FILES[2]).unlink(), "scores", "warning", "none yet"),
    (lambda p: (p / FILES[2]).write_bytes(b"PAR1 no"), "scores", "broken", "cannot be read"),
    (lambda p: (p / "notes.txt").write_text("x"), "files", "warning", "notes.txt (1 in all)"),
    (lambda p: (p / SEAL).write_text("x"), "seal", "broken", "no list of checksums"),
    (lambda p: (p / SEAL).write_text(seal_text(p).replace("0", "1")), "seal", "broken", "changed since"),
]


@pytest.mark.parametrize("do, check, status, words", HARM, ids=lambda x: getattr(x, "__name__", None))
def test_what_was_done_to_a_run_is_found(tmp_path, do, check, status, words):
    run = ran(tmp_path, say=lambda r: "It is 720.")
    do(run.path)
    before = listed(tmp_path)
    found = verify_run(run.path, deep=True)
    assert listed(tmp_path) == before
    assert any(s == status and words in said for s, said in of(found, check)), repr(found)
    assert found["status"] == status or found["status"] == "broken"
    assert repr(found) and "<table>" in found._repr_html_() and json.loads(to_json(dict(found)))


def test_a_file_that_lies_elsewhere_and_a_folder_of_another_name(tmp_path):
    run = ran(tmp_path / "runs")
    shutil.move(run.path / FILES[2], tmp_path / "s")
    (run.path / FILES[2]).symlink_to(tmp_path / "s")
    assert of(verify_run(run.path), "files")[0] == ("broken", "scores.parquet is a link to somewhere else")
    with pytest.raises(IntegrityError, match="is a link"): export_run(run.path, tmp_path)
    other = ran(tmp_path / "runs", seed=3).path.rename(tmp_path / "copy of it")
    assert of(verify_run(other), "identity")[0][0] == "warning" and verify_run(other)["status"] == "warning"


def test_engine_errors_and_later_answers_follow_the_rules(tmp_path):
    ran(tmp_path, say=lambda r: DIED if r.item_id.endswith("0") else "1")
    run = list_runs(tmp_path)[0]
    assert of(verify_run(run.path), "completions")[0] == ("warning", "1 engine errors; resuming asks again")
    ran(tmp_path) # resumed: the error stays in the file, an answer follows
    assert len(read_completions(run.path / FILES[1])[0]) == 5 and verify_run(run.path, deep=True)["status"] == "ok"


def test_a_value_that_was_bettered_shows_when_scores_are_made_anew(tmp_path):
    run = ran(tmp_path)
    write_scores(run.path, run.scores.assign(value=1.0))
    assert verify_run(run.path)["status"] == "ok" # values alone say nothing
    assert "3 of 4 scores come out differently" in of(verify_run(run.path, deep=True), "rescored")[0][1]
    rescore(run, progress=False)
    assert verify_run(run.path, deep=True)["status"] == "ok"


def test_a_broken_off_run_has_no_broken_finding(tmp_path):
    def say(r):
        if r.item_id.endswith("0"): raise EngineError("gone")
        return "1"
    class Dies(FakeEngine):
        def run(self, requests):
            yield next(super().run(requests))
            raise EngineError("gone", retryable=True)
    with pytest.raises(EngineError):
        evaluate(TOY, "gsm8k", engine=Dies(lambda r: "1"), runs=tmp_path, progress=False, source="specimen")
    found = verify_run(list_runs(tmp_path)[0].path)
    assert found["status"] == "warning" and not found.broken


def test_a_run_that_is_written_is_a_snapshot(tmp_path):
    run = ran(tmp_path)
    with RunWriter(run.path):
        (run.path / FILES[1]).write_bytes(b"") # answers that the manifest knows of are not there yet
        found = verify_run(run.path)
        assert found["writer"] == f"process {os.getpid()} on {os.uname().nodename}" == writer_of(run.path)
        assert found["findings"][0]["check"] == "writer" and found["status"] == "warning"
        with pytest.raises(ConfigError, match=f"written by process {os.getpid()}"): export_run(run, tmp_path)
        with pytest.raises(ConfigError, match="written by"): export_run(run, tmp_path, without_texts=True)
    assert verify_run(run.path)["writer"] == "" and verify_run(run.path).broken
    assert not list(tmp_path.glob("*.tar.gz"))


def test_verifying_while_a_run_writes_never_calls_it_broken(tmp_path):
    done, seen, wrong = threading.Event(), [], []

    def look():
        try:
            while not done.is_set():
                for r in list_runs(tmp_path):
                    found = verify_run(r.path)
                    seen.append(found["writer"])
                    wrong.extend(found.broken)
        except BaseException as e: wrong.append(e)
    reader = threading.Thread(target=look)
    reader.start()
    try: evaluate(TOY, "gsm8k", engine=FakeEngine(lambda r: "18", delay_s=0.002), runs=tmp_path, progress=False,
                  source="specimen", temperature=0.5, epochs=60)
    finally:
        done.set()
        reader.join()
    assert not wrong and sum(map(bool, seen)) > 2


def test_odd_manifests_are_findings_and_no_crash(tmp_path):
    run, rng = ran(tmp_path), random.Random(1)
    whole = json.loads((run.path / FILES[0]).read_text())

    def places(x, at=()):
        for k, v in x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else ():
            yield (*at, k)
            yield from places(v, (*at, k))
    for at in rng.sample(list(places(whole)), 150):
        m = json.loads(json.dumps(whole))
        part = m
        for k in at[:-1]: part = part[k]
        odd = [None, [], {}, "x", -1, 1e308, True, ["\ud83d"], {"id": 3}]
        part[at[-1]] = rng.choice([x for x in odd if json.dumps(x) != json.dumps(part[at[-1]])])
        (run.path / FILES[0]).write_text(json.dumps(m))
        found = verify_run(run.path)
        if at[0] == "fingerprint": assert found.broken, at
        assert repr(found)


# ---------------------------------------------------------------- there and back
@pytest.fixture(scope="module")
def sent(tmp_path_factory):
    "(the run, its archive, the archive's bytes)"
    root = tmp_path_factory.mktemp("sender")
    run = ran(root / "runs", say=lambda r: f"Let me think about {r.item_id}. It is 720.")
    file = Path(export_run(run, root)["archive"])
    return run, file, file.read_bytes()


def received(folder, data, **how):
    file = folder / "mail.tar.gz"
    file.write_bytes(data)
    return import_run(file, folder / "store", **how)


def refused(folder, data, match=None, kind=IntegrityError, **how):
    "The message of a refusal that left nothing behind."
    with pytest.raises(kind, match=match) as e: received(folder, data, **how)
    assert os.listdir(folder / "store") == []
    assert "mail.tar.gz" in str(e.value)
    return str(e.value)


@pytest.mark.parametrize("benchmark", ["gsm8k", "arc_challenge"])
def test_there_and_back_is_the_same_run(tmp_path, benchmark):
    run = ran(tmp_path / "a", benchmark)
    out = export_run(run.id[-8:], tmp_path, root=tmp_path / "a")
    assert Path(out["archive"]).name == f"{run.id}.tar.gz" and out["warnings"] == []
    assert out["sha256"] == hashlib.sha256(Path(out["archive"]).read_bytes()).hexdigest()
    got = import_run(out["archive"], tmp_path / "b")
    assert (got["done"], got["content_hash"]) == ("imported", out["content_hash"]) and repr(got) and repr(out)
    for n in FILES: assert (tmp_path / "b" / run.id / n).read_bytes() == (run.path / n).read_bytes()
    again = Run(tmp_path / "b" / run.id)
    assert repr(again) == repr(run) and verify_run(again.path, deep=True)["status"] == "ok"
    assert import_run(out["archive"], tmp_path / "b")["done"] == "there already"
    back = export_run(again, tmp_path / "again.tar.gz")
    assert back["sha256"] == out["sha256"] # from an imported folder too


def test_the_same_run_gives_the_same_bytes(sent, tmp_path):
    run, _, data = sent
    copy = shutil.copytree(run.path, tmp_path / run.id)
    for f in copy.iterdir():
        os.utime(f, (5, 5))
        f.chmod(0o600)
    (copy / ".lock").unlink()
    out = export_run(copy, tmp_path)
    assert Path(out["archive"]).read_bytes() == data
    with tarfile.open(out["archive"]) as t:
        assert [m.name for m in t] == [f"{run.id}/{n}" for n in (SEAL, *FILES)]
        assert {(m.mode, m.mtime, m.uid, m.gid, m.uname, m.gname, m.type) for m in t} == {
            (0o644, 0, 0, 0, "", "", tarfile.REGTYPE)}
        sums = t.extractfile(f"{run.id}/{SEAL}").read().decode()
    assert sums == seal_text(run.path)


def test_any_tar_unpacks_it_and_sha256sum_checks_it(sent, tmp_path):
    import subprocess
    run, file, _ = sent
    subprocess.run(["tar", "xzf", file], cwd=tmp_path, check=True)
    done = subprocess.run(["sha256sum", "-c", SEAL], cwd=tmp_path / run.id, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count(": OK") == 3


def test_without_texts_nothing_that_was_asked_or_written_is_sent(tmp_path):
    run = ran(tmp_path / "a", say="Secret 720.")
    out = export_run(run, tmp_path, without_texts=True)
    got = Run(import_run(out["archive"], tmp_path / "b")["folder"])
    everything = b"".join(f.read_bytes() for f in got.path.iterdir())
    assert b"Secret" not in everything and str(tmp_path).encode() not in everything and got.estimate() == run.estimate()
    assert not (got.path / FILES[1]).exists() and Path(out["archive"]).name == f"{run.id}--without-texts.tar.gz"
    assert of(verify_run(got.path), "completions")[0][0] == "ok"
    with pytest.raises(IntegrityError, match=r"completions\.jsonl is there only"):
        import_run(out["archive"], tmp_path / "a") # the full run is worth more


def test_a_run_that_goes_on_differently_is_refused_with_what_differs(sent, tmp_path):
    run, file, _ = sent
    mine = ran(tmp_path, say="It is 72.", limit=3)
    assert mine.id == run.id
    before = listed(mine.path)
    with pytest.raises(IntegrityError) as e: import_run(file, tmp_path)
    assert "3 answers there, 4 in the archive, 3 of the shared ones differ" in str(e.value)
    assert "manifest.json differs in" in str(e.value) and "Nothing was changed" in str(e.value)
    assert listed(mine.path) == before and os.listdir(tmp_path) == [run.id]
    (mine.path / FILES[0]).write_text("[")
    with pytest.raises(IntegrityError, match="cannot be read"): import_run(file, tmp_path)


def test_a_run_may_go_on_after_import_and_loses_its_seal(tmp_path):
    run = ran(tmp_path / "a", limit=2)
    got = import_run(export_run(run, tmp_path)["archive"], tmp_path / "b")
    ran(tmp_path / "b", limit=2) # nothing to do
    assert of(verify_run(got["folder"]), "seal")[0][0] == "ok"
    ran(tmp_path / "b")
    found = verify_run(got["folder"])
    assert found["status"] == "ok" and not of(found, "seal") and not (Path(got["folder"]) / SEAL).exists()


@pytest.mark.parametrize("do", [d for d, _, status, _ in HARM if status == "broken"])
def test_a_broken_run_is_not_exported(tmp_path, do):
    run = ran(tmp_path / "a")
    do(run.path)
    with pytest.raises(IntegrityError, match="not whole, so it is not exported"):
        export_run(run.path, tmp_path)
    assert os.listdir(tmp_path) == ["a"]


def test_what_a_kill_left_travels_as_it_is(tmp_path):
    run = ran(tmp_path / "a")
    with open(run.path / FILES[1], "ab") as f: f.write(b'{"item')
    out = export_run(run, tmp_path)
    got = import_run(out["archive"], tmp_path / "b")
    assert out["warnings"] == got["warnings"] and "6 bytes" in got["warnings"][0]
    assert content_hash(got["folder"]) == content_hash(run.path)


def test_an_export_is_whole_or_not_there(sent, tmp_path, monkeypatch):
    run, _, data = sent
    for name in ("file.txt", "old.tar.gz"): (tmp_path / name).write_bytes(b"something of mine")
    for name in ("file.txt", "old.tar.gz"):
        with pytest.raises(ConfigError, match="no archive of a run"): export_run(run, tmp_path / name)
    (tmp_path / "older.tar.gz").write_bytes(data[:300])
    assert export_run(run, tmp_path / "older.tar.gz")["n_bytes"] == len(data) # one of ours is replaced

    def full(*a): raise OSError(28, "No space left on device")
    monkeypatch.setattr(archives.os, "fsync", full)
    before = listed(tmp_path)
    with pytest.raises(OSError): export_run(run, tmp_path / "new.tar.gz")
    after = listed(tmp_path)
    assert {k: v for k, v in after.items() if k != "."} == {k: v for k, v in before.items() if k != "."}


def test_a_file_that_changes_while_it_is_packed_is_noticed(tmp_path, monkeypatch):
    run = ran(tmp_path / "a")
    sums = seal_text(run.path)
    monkeypatch.setattr(archives, "seal_text", lambda path: sums)
    with open(run.path / FILES[1], "ab") as f: f.write(b'{"item')
    with pytest.raises(IntegrityError, match=r"completions\.jsonl .* changed while it was packed"):
        export_run(run, tmp_path)
    assert os.listdir(tmp_path) == ["a"]


def test_a_failed_import_leaves_nothing(sent, tmp_path, monkeypatch):
    _, file, _ = sent

    def full(*a): raise OSError(28, "No space left on device")
    monkeypatch.setattr(archives.os, "fsync", full)
    with pytest.raises(OSError): import_run(file, tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_run_that_came_into_being_meanwhile_is_not_overwritten(sent, tmp_path, monkeypatch):
    run, file, _ = sent
    (tmp_path / run.id).mkdir()
    (tmp_path / run.id / "mine").write_text("x")
    monkeypatch.setattr(archives.os.path, "lexists", lambda p: False)
    with pytest.raises(IntegrityError, match="came into being meanwhile"): import_run(file, tmp_path)
    assert os.listdir(tmp_path / run.id) == ["mine"]


@pytest.mark.parametrize("there", ["file", "link", "empty"])
def test_whatever_stands_in_the_place_of_a_run_is_left_alone(sent, tmp_path, there):
    run, file, _ = sent
    place = tmp_path / run.id
    if there == "file": place.write_text("mine")
    elif there == "link": place.symlink_to(tmp_path / "nowhere")
    else: place.mkdir()
    with pytest.raises(IntegrityError, match="already, with other content"): import_run(file, tmp_path)
    assert os.listdir(tmp_path) == [run.id]


# ---------------------------------------------------------------- bytes that changed on the way
def test_every_flipped_byte_is_noticed(sent, tmp_path):
    _, _, data = sent
    rng, n = random.Random(0), len(data)
    head = range(archives._N_HEAD) # gzip header and comment
    tail = range(n - 24, n) # end of the packed data, and both sums
    body = sorted(rng.sample(range(archives._N_HEAD, n - 24), 200))
    named = 0
    for at in [*head, *body, *tail]:
        broken = bytearray(data)
        broken[at] ^= 1 << rng.randrange(8)
        said = refused(tmp_path, bytes(broken))
        named += "member" in said
        if at in head: assert "was not made by" in said or "not the one that was sealed" in said
        else: assert "member" in said or "after the last member" in said
    assert named > 180


@pytest.mark.parametrize("value", [0, 255])
def test_overwritten_stretches_are_noticed(sent, tmp_path, value):
    _, _, data = sent
    for at in range(0, len(data), 97):
        broken = data[:at] + bytes([value]) * 16 + data[at + 16:]
        if broken != data: refused(tmp_path, broken)


def test_truncated_and_prolonged_archives_are_noticed(sent, tmp_path):
    run, _, data = sent
    for n in [*range(120), *range(120, len(data), 61), *range(len(data) - 30, len(data))]:
        said = refused(tmp_path, data[:n])
        assert n < archives._N_HEAD or run.id in said or SEAL in said or "after the last member" in said
    for more in (b"\0", b"x", data, data[:8], bytes(70000)): refused(tmp_path, data + more, "after the last member")


def test_a_flip_in_each_kind_of_place_of_the_tar_is_noticed(sent, tmp_path):
    "The packing is sealed anew, so that only the tar file itself can tell."
    _, _, data = sent
    plain = zlib.decompress(data[archives._N_HEAD:], wbits=-15)
    rng, seen, n = random.Random(2), 0, len(plain)
    for at in [*range(0, 1024, 8), *sorted(rng.sample(range(1024, n), 120)), *range(n - 40, n)]:
        broken = bytearray(plain)
        broken[at] ^= 1 << rng.randrange(8)
        refused(tmp_path, sealed(bytes(broken)))
        seen += 1
    assert seen > 200


# ---------------------------------------------------------------- archives made to harm
def sealed(plain, crc=None, size=None):
    "Tar bytes, packed and sealed as an export does it, with sums of one's own where wanted."
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    crc, size = zlib.crc32(plain) if crc is None else crc, len(plain) if size is None else size
    packed = packer.compress(plain) + packer.flush() + struct.pack("<LL", crc, size)
    return archives._START + archives._COMMENT + hashlib.sha256(packed).hexdigest().encode() + b"\0" + packed


def member(name, data=b"", size=None, **how):
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data) if size is None else size, 0o644
    for k, v in how.items(): setattr(info, k, v)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)


def sums_of(files): return "".join(f"{hashlib.sha256(d).hexdigest()}  {n}\n" for n, d in files.items()).encode()


def files_of(run): return {n: (run.path / n).read_bytes() for n in FILES}


def whole(name, files, listing=None, end=bytes(1024)):
    listing = sums_of(files) if listing is None else listing
    return member(f"{name}/{SEAL}", listing) + b"".join(member(f"{name}/{n}", d) for n, d in files.items()) + end


def test_the_helper_makes_what_an_export_makes(sent):
    run, _, data = sent
    assert sealed(whole(run.id, files_of(run))) == data


@pytest.mark.parametrize("sums", [{"crc": 0}, {"size": 0}])
def test_the_sums_of_the_gzip_file_have_to_be_right(sent, tmp_path, sums):
    run, _, _ = sent
    refused(tmp_path, sealed(whole(run.id, files_of(run)), **sums), "last eight bytes")


LINKS = {"symlink": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "folder": tarfile.DIRTYPE, "fifo": tarfile.FIFOTYPE,
         "device": tarfile.CHRTYPE, "pax header": tarfile.XHDTYPE, "global pax header": tarfile.XGLTYPE,
         "GNU long name": tarfile.GNUTYPE_LONGNAME, "sparse": tarfile.GNUTYPE_SPARSE}


@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize("at", range(3))
def test_what_is_no_plain_file_is_refused_and_named(sent, tmp_path, kind, at):
    run, _, _ = sent
    files = files_of(run)
    parts = [member(f"{run.id}/{SEAL}", sums_of(files)), *(member(f"{run.id}/{n}", d) for n, d in files.items())]
    name = f"{run.id}/{(SEAL, *FILES)[at]}"
    odd = member(name, type=LINKS[kind], linkname="/etc/passwd" if "link" in kind else "")
    why = "header is not as" if kind == "sparse" else "no plain file" # tarfile takes a sparse file for a plain one
    said = refused(tmp_path, sealed(b"".join([*parts[:at], odd, *parts[at:], bytes(1024)])), why)
    assert name in said


NAMES = ["../../evil", "/etc/evil", "{run}/../evil", "{run}/./manifest.json", "{run}//manifest.json", "manifest.json",
         "other/manifest.json", "{run}/sub/manifest.json", "{run}/evil.py", "{run}/.lock", "{run}/manifest.json\n",
         "{run}/SHA256SUMS", "{run}\\manifest.json", "C:/manifest.json", "{run}/scores.parquet"]


@pytest.mark.parametrize("name", NAMES)
def test_a_member_that_lies_elsewhere_is_refused_and_named(sent, tmp_path, name):
    run, _, _ = sent
    files, name = files_of(run), name.format(run=run.id)
    parts = [member(f"{run.id}/{SEAL}", sums_of(files)), member(name, files[FILES[0]]),
             *(member(f"{run.id}/{n}", files[n]) for n in FILES[1:]), bytes(1024)]
    said = refused(tmp_path, sealed(b"".join(parts)), "should stand there|header is not")
    assert repr(name)[1:-1] in said or repr(os.path.normpath(name))[1:-1] in said
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["mail.tar.gz", "store"]


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/", "-", "~", "x" * 120, "toy--gsm8k--balanced--0", ".git"])
def test_a_folder_that_is_not_called_as_its_run_is_refused(sent, tmp_path, name):
    run, _, _ = sent
    refused(tmp_path, sealed(whole(name, files_of(run))))
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["mail.tar.gz", "store"]


@pytest.mark.parametrize("how", [{"mode": 0o755}, {"mtime": 1}, {"uid": 1000}, {"gid": 1}, {"uname": "root"},
                                 {"gname": "x"}, {"linkname": "x"}, {"type": tarfile.AREGTYPE},
                                 {"type": tarfile.CONTTYPE}])
def test_headers_are_those_of_an_export(sent, tmp_path, how):
    run, _, _ = sent
    files = files_of(run)
    first, *rest = files.items()
    plain = member(f"{run.id}/{SEAL}", sums_of(files)) + member(f"{run.id}/{first[0]}", first[1], **how)
    plain += b"".join(member(f"{run.id}/{n}", d) for n, d in rest) + bytes(1024)
    refused(tmp_path, sealed(plain), "manifest.json")


def test_sizes_beyond_what_is_allowed_are_refused_before_they_are_read(sent, tmp_path, monkeypatch):
    run, _, _ = sent
    files = files_of(run)
    begin = member(f"{run.id}/{SEAL}", sums_of(files))
    huge = begin + member(f"{run.id}/manifest.json", size=2**32)
    assert "4,294,967,296 bytes; 67,108,864 are allowed" in refused(tmp_path, sealed(huge), "manifest.json")
    begin += member(f"{run.id}/manifest.json", files[FILES[0]])
    refused(tmp_path, sealed(begin + member(f"{run.id}/completions.jsonl", size=8 * 2**30 - 1)), "completions.jsonl")
    refused(tmp_path, sealed(begin + member(f"{run.id}/completions.jsonl", size=2**21)), "unfinished")
    refused(tmp_path, sealed(whole(run.id, files)), "completions.jsonl", max_gib=1e-7)
    refused(tmp_path, sealed(member(f"{run.id}/{SEAL}", size=10**9)), SEAL)
    full = SimpleNamespace(disk_usage=lambda path: SimpleNamespace(free=5))
    monkeypatch.setattr(archives, "shutil", full)
    refused(tmp_path, sealed(whole(run.id, files)), "more than the disk has free", ConfigError)


def test_a_small_file_that_unpacks_to_a_huge_one_is_stopped(sent, tmp_path):
    run, _, _ = sent
    files = {**files_of(run), FILES[1]: bytes(2**27)}
    bomb = sealed(whole(run.id, files))
    assert len(bomb) < 2**18
    refused(tmp_path, bomb, "completions.jsonl.*134,217,728 bytes", max_gib=0.1)
    refused(tmp_path, sealed(whole(run.id, files_of(run), end=bytes(2**26))), "last member: something follows")


@pytest.mark.parametrize("data", [b"", b"x", bytes(4096), b"PK\3\4" + bytes(100)], ids=["empty", "x", "zeros", "zip"])
def test_what_is_no_archive_of_ours_is_refused(tmp_path, data): refused(tmp_path, data, "was not made by")


def test_foreign_archives_are_refused(sent, tmp_path):
    run, _, _ = sent
    for mode in ("w", "w:gz", "w:bz2", "w:xz"):
        with tarfile.open(fileobj=(buffer := io.BytesIO()), mode=mode) as t: t.add(run.path, run.id)
        refused(tmp_path, buffer.getvalue(), "was not made by")
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as z: z.write(run.path / FILES[0], f"{run.id}/{FILES[0]}")
    refused(tmp_path, buffer.getvalue(), "was not made by")
    refused(tmp_path, sealed(b""), "unfinished")
    refused(tmp_path, sealed(bytes(1024)), "header is damaged or missing")
    refused(tmp_path, sealed(b"x" * 5000), "header is damaged or missing")
    for missing in (tmp_path / "none.tar.gz", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"): import_run(missing, tmp_path / "store")


@pytest.mark.parametrize("listing", [b"", b"\xff\xfe", b"0" * 64 + b"  manifest.json", b"0" * 64 + b"  ../x\n",
                                     b"0" * 64 + b"  scores.parquet\n", (b"0" * 64 + b"  manifest.json\n") * 2,
                                     b"0" * 64 + b"  scores.parquet\n" + b"0" * 64 + b"  manifest.json\n"])
def test_a_list_of_checksums_that_is_none_is_refused(sent, tmp_path, listing):
    run, _, _ = sent
    refused(tmp_path, sealed(whole(run.id, files_of(run), listing)), SEAL)


def test_members_and_list_have_to_agree(sent, tmp_path):
    run, _, _ = sent
    files = files_of(run)
    other = {**files, FILES[1]: files[FILES[1]] + b"\n"}
    refused(tmp_path, sealed(whole(run.id, other, sums_of(files))), r"completions\.jsonl.*sha256")
    refused(tmp_path, sealed(whole(run.id, {n: files[n] for n in FILES[:2]}, sums_of(files))), r"scores\.parquet")
    refused(tmp_path, sealed(whole(run.id, files, sums_of({n: files[n] for n in FILES[:2]}))), "something follows")
    hidden = whole(run.id, files).replace(files[FILES[0]] + bytes(1), files[FILES[0]] + b"!", 1)
    refused(tmp_path, sealed(hidden), r"manifest\.json.*hidden behind it")
    refused(tmp_path, sealed(whole(run.id, files, end=bytes(512))), "unfinished")
    refused(tmp_path, sealed(whole(run.id, files, end=bytes(1023) + b"x")), "something follows")
    refused(tmp_path, sealed(whole(run.id, files) + member("../evil", b"x")), "something follows")


def test_a_run_that_does_not_hold_together_is_refused_though_its_sums_are_right(sent, tmp_path):
    run, _, _ = sent
    files = files_of(run)

    def with_manifest(change):
        m = json.loads(files[FILES[0]])
        change(m)
        return {**files, FILES[0]: json.dumps(m).encode()}
    hot = with_manifest(lambda m: m["fingerprint"]["protocol"]["sampling"].update(temperature=2.0))
    refused(tmp_path, sealed(whole(run.id, hot)), r"member 'manifest\.json': it is that of run")
    name = run_id(json.loads(hot[FILES[0]])["fingerprint"])
    refused(tmp_path, sealed(whole(name, hot)), "not whole: identity: the manifest says")
    refused(tmp_path, sealed(whole(run.id, with_manifest(lambda m: m.pop("fingerprint")))), "no fingerprint")
    refused(tmp_path, sealed(whole(run.id, {**files, FILES[0]: b"[]"})), "no fingerprint")
    said = refused_any(tmp_path, sealed(whole(run.id, {**files, FILES[0]: b"{"})))
    assert "manifest.json" in said
    refused(tmp_path, sealed(whole(run.id, {**files, FILES[1]: b"{}\n" + files[FILES[1]]})), "not whole: .*line 1")
    refused(tmp_path, sealed(whole(run.id, {**files, FILES[2]: b"PAR1"})), r"not whole: .*scores\.parquet")
    refused(tmp_path, sealed(whole(run.id, {n: files[n] for n in (FILES[0], FILES[2])})), "not whole: completions")


def refused_any(folder, data):
    with pytest.raises(IntegrityError) as e: received(folder, data)
    assert os.listdir(folder / "store") == []
    return str(e.value)


def test_random_bytes_behind_a_right_beginning_never_crash(sent, tmp_path):
    run, _, _ = sent
    rng = random.Random(7)
    begin = member(f"{run.id}/{SEAL}", sums_of(files_of(run)))
    for _ in range(100):
        noise = rng.randbytes(rng.randrange(2000))
        raw = archives._START + archives._COMMENT + b"0" * 64 + b"\0" + noise
        for data in (sealed(begin + noise), sealed(noise), raw):
            with pytest.raises(QwenEvalError): received(tmp_path, data)
    assert os.listdir(tmp_path / "store") == []


def test_names_too_long_for_an_archive_still_travel(tmp_path):
    long = Model(id="m" * 190, context_tok=8192)
    run = evaluate(long, "gsm8k", engine=FakeEngine(lambda r: "1"), source="specimen", runs=tmp_path / "a",
                   progress=False)
    got = import_run(export_run(run, tmp_path / "a.tar.gz")["archive"], tmp_path / "b")
    assert got["run_id"] == run.id == os.path.basename(got["folder"]) and len(run.id) > archives._MOST_NAME
