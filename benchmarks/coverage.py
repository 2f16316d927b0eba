"""How often intervals hold the truth and tests err, all simulations of tests/simulations, the naive method beside.

    python benchmarks/coverage.py [ROOM ...] [--full] [--workers 2] [--out results.json]
    python benchmarks/coverage.py --show results.json

Prints the compact table of the README and can write all rows; `--show` prints that of a file. `--full` takes two to
twenty-five times the repetitions, by room, and holds them to the bounds with no errors of chance where fewer have two.
Each room has seeds of its own, so the rows do not depend on the workers.
"""
import argparse
import importlib
import json
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = sorted(p.stem for p in (ROOT / "tests/simulations").glob("*.py") if p.stem != "__init__")


def measured(room, full):
    "The rows of one room, with the seconds they took."
    sys.path.insert(0, str(ROOT / "tests"))
    from simulations import kept
    start, rows = time.perf_counter(), importlib.import_module(f"simulations.{room}").rows(full)
    seconds = round(time.perf_counter() - start, 1)
    return {"room": room, "seconds": seconds, "rows": [r | {"room": room, "kept": kept(r)} for r in rows]}


def spread(values, form=".3f"): # "0.951", or the lowest and the highest: "0.938 to 0.962"
    known = [v for v in values if v is not None]
    if not known: return ""
    ends = [format(v, form) for v in (min(known), max(known))]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def accepted(bounds): # "at least 0.915 to 0.935", "at least 0.940, at most 0.970", "" where nothing was promised
    if not bounds: return ""
    low, high = zip(*bounds, strict=True)
    least = [f"at least {spread(low)}"] if max(low) > 0 else []
    return ", ".join(least + ([f"at most {spread(high)}"] if not least or min(high) < 1 else []))


def repetitions(found): # 0 is an exact enumeration
    return "exact" if not any(r["repetitions"] for r in found) else spread([r["repetitions"] for r in found], ",")


def compact(rows):
    "A line for each question, method and naive method of a room; figures are the lowest and highest of its settings."
    groups = {}
    for r in rows: groups.setdefault((r["room"], r["what"], r["method"], r["naive_method"]), []).append(r)
    for (room, what, method, naive), found in groups.items():
        promised = [r for r in found if r["bound"]]
        yield {"room": room, "what": what, "method": method, "settings": len(found),
               "accepted": accepted([r["bound"] for r in promised]), "measured": spread([r["measured"] for r in found]),
               "naive method": naive or "", "naive": spread([r["naive"] for r in found]),
               "repetitions": repetitions(found),
               "kept": f"{sum(r['kept'] for r in promised)} of {len(promised)}" if promised else ""}


def markdown(rows):
    lines = list(compact(rows))
    for line in (list(lines[0]), ["---"] * len(lines[0]), *(x.values() for x in lines)):
        print("| " + " | ".join(map(str, line)) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rooms", nargs="*", metavar="ROOM", help=f"of {', '.join(ROOMS)}; all by default")
    parser.add_argument("--full", action="store_true", help="two to twenty-five times the repetitions, by room")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="a JSON file for the rows, written as each room ends")
    parser.add_argument("--show", type=Path, help="only print the table of this file")
    args = parser.parse_args()
    if odd := [r for r in args.rooms if r not in ROOMS]: parser.error(f"{odd[0]} is unknown: {', '.join(ROOMS)}")
    if args.show: return markdown(json.loads(args.show.read_text(encoding="utf-8"))["rows"])
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"} # of the workers, which start anew
    done = {}
    with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool:
        jobs = [pool.submit(measured, room, args.full) for room in args.rooms or ROOMS]
        for job in as_completed(jobs):
            found = job.result()
            done[found["room"]] = found
            print(f"{found['room']}: {len(found['rows'])} rows, {found['seconds']} s", file=sys.stderr, flush=True)
            if args.out: save(args.out, done, args.full)
    rows = [r for room in sorted(done) for r in done[room]["rows"]]
    markdown(rows)
    raise SystemExit(0 if all(r["kept"] for r in rows) else "bounds missed: see the last column")


def save(path, done, full):
    import numpy
    import scipy
    rooms = sorted(done)
    found = {"full": full, "machine": platform.machine(), "python": platform.python_version(),
             "numpy": numpy.__version__, "scipy": scipy.__version__, "load": round(os.getloadavg()[0], 1),
             "seconds": {room: done[room]["seconds"] for room in rooms},
             "rows": [r for room in rooms for r in done[room]["rows"]]}
    path.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__": main()
