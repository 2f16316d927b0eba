"""Coverage and error rates by simulation: each room has `rows(full=False)`, with the naive method beside."""
