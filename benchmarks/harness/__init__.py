"""The measuring harness: peers, load generators, statistics and tables. Run it through the scripts beside this folder."""
