"""The benchmark harness: peers, load generators, statistics and tables for the scripts in benchmarks/."""
