"""Coverage and error rates by simulation: each room has `rows(full=False)`, with the naive method beside.

A row: `what`, `setting`, `method`, `measured`, `naive_method`, `naive`, `nominal`, `bound` (lowest and highest accepted
value, or None where nothing was promised), `errors` (Monte-Carlo errors by which the bound may be missed), `se` (one
such error) and `repetitions` (0: by exact enumeration).
"""


def settled(rows, full): # the same rows
    "A bound may be missed by two Monte-Carlo errors where studies are few; with those of `full` it has to hold."
    return [r if full or not r["repetitions"] else r | {"errors": max(r["errors"], 2)} for r in rows]


def kept(row): # False where a bound is missed by more than chance allows
    if row["bound"] is None: return True
    low, high = row["bound"]
    apart = row["errors"] * row["se"]
    return bool(low - apart <= row["measured"] <= high + apart)
