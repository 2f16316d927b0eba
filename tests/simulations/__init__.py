"""Coverage and error rates of the statistics: each room gives `rows(full)`, a table of what was measured."""
