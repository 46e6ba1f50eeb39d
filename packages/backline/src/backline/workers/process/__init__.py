"""The server's side of worker processes. The program that runs in the processes is in `workers/child/`."""
