"""The process lane, on the server's side: instances in processes of their own. What runs in such a process is in `workers/child/`."""
