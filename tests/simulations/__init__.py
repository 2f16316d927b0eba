"""Coverage and error rates of the statistics, by simulation: a module for each room, each with `rows`."""
