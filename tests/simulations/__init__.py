"""Coverage and error rates of the statistics by simulation, room by room: `rows(full)` gives the rows of the table."""
