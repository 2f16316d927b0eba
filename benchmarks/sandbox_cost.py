"""What the sandbox costs: programs with their tests, confined and watched, against the same programs alone.

    python benchmarks/sandbox_cost.py --n 500 --workers 2 --out results.json

The programs are HumanEval's canonical solutions with the benchmark's tests, repeated until there are enough; nothing
that a model wrote runs outside the sandbox. Three ways, one after the other and in turns, on the same cores:
  sandbox   `Sandbox.run_many`: program and tests in two processes, namespaces or Landlock, limits, scratch folder
  alone     an interpreter of its own for each program with its tests (`python -S program.py`), nothing else
  forked    each program with its tests in a fork of one warm interpreter, nothing else: the least it could cost
The programs' own time is that of `forked`; `alone` is what they cost without a sandbox and without a warm interpreter.
Each way is measured by the clock and in CPU time (ours and that of all children), which other work on the machine
disturbs less.
"""
import argparse
import contextlib
import io
import json
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qwen_eval.datasets.all import benchmark
from qwen_eval.datasets.base import load
from qwen_eval.sandbox import Sandbox, available
from qwen_eval.scorers.code import CODE_LIMITS, with_tests


def programs(n):
    "(program, tests) of n canonical solutions."
    items = load(benchmark("humaneval")).items
    pairs = [with_tests(i.question + i.target, i) for i in items]
    return [pairs[i % len(pairs)] for i in range(n)]


def confined(pairs, workers):
    with Sandbox(n_workers=workers) as sandbox:
        list(sandbox.run_many(["pass"] * workers)) # launchers are started once, not for each program
        start = time.perf_counter()
        passed = sum(o.passed for _, o in sandbox.run_many(pairs, CODE_LIMITS))
        return time.perf_counter() - start, passed


def alone(pairs, workers):
    def run(pair):
        path = Path(folder) / f"{id(pair)}.py"
        path.write_text("\n".join(pair))
        return subprocess.run([sys.executable, "-S", path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                              check=False).returncode == 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        start = time.perf_counter()
        passed = sum(pool.map(run, [tuple(p) for p in pairs]))
        return time.perf_counter() - start, passed


def _fork_each(pairs, at, passed):
    while True:
        with at.get_lock(): i, at.value = at.value, at.value + 1
        if i >= len(pairs): return
        pid = os.fork()
        if not pid:
            code = 1
            with contextlib.suppress(BaseException):
                sys.stdout = sys.stderr = io.StringIO()
                exec(compile("\n".join(pairs[i]), "program.py", "exec"), {"__name__": "__main__"})
                code = 0
            os._exit(code)
        ok = os.waitpid(pid, 0)[1] == 0
        with passed.get_lock(): passed.value += ok


def forked(pairs, workers):
    context = multiprocessing.get_context("fork")
    at, passed = context.Value("i", 0), context.Value("i", 0)
    crew = [context.Process(target=_fork_each, args=(pairs, at, passed)) for _ in range(workers)]
    start = time.perf_counter()
    for p in crew: p.start()
    for p in crew: p.join()
    return time.perf_counter() - start, passed.value


def cpu_s():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--n", type=int, default=500)
    ask.add_argument("--workers", type=int, default=2)
    ask.add_argument("--rounds", type=int, default=3)
    ask.add_argument("--out", type=Path)
    options = ask.parse_args()
    pairs, ways = programs(options.n), {"forked": forked, "alone": alone, "sandbox": confined}
    found, burnt = {name: [] for name in ways}, {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            before = cpu_s()
            seconds, passed = way(pairs, options.workers)
            found[name].append(round(seconds, 3))
            burnt[name].append(round(cpu_s() - before, 3))
            print(f"{name:8} {seconds:7.2f} s, {passed} of {len(pairs)} passed", flush=True)
    best, cpu = ({name: min(times) for name, times in t.items()} for t in (found, burnt)) # other work only adds
    told = {"n": options.n, "workers": options.workers, "sandbox_kind": available()[0],
            "seconds": found, "cpu_seconds": burnt,
            "ratio_to_forked": {"clock": round(best["sandbox"] / best["forked"], 3),
                                "cpu": round(cpu["sandbox"] / cpu["forked"], 3)},
            "ratio_to_alone": {"clock": round(best["sandbox"] / best["alone"], 3),
                               "cpu": round(cpu["sandbox"] / cpu["alone"], 3)},
            "ms_per_program": {k: round(1000 * v * options.workers / options.n, 2) for k, v in best.items()},
            "python": platform.python_version(), "cores": os.cpu_count(), "load_before": os.getloadavg()[0]}
    print(json.dumps(told, indent=1))
    if options.out: options.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__": main()
