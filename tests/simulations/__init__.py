"""Coverage and error rates of statistical methods, one module a room: `rows(full)` gives the table."""
