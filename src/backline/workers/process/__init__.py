"""Instances in worker processes: the server's side. The program that runs in them is `workers/child/`."""
