"""Simulations of coverage and error rates; each room has `rows(full=False)`, a list of dictionaries with the naive method beside."""
