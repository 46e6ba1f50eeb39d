"""The server's side of worker processes. The program that runs in these is `workers/child/`."""
