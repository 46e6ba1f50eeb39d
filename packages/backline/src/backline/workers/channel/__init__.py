"""The protocol between the server and a worker process: frames, messages and shared memory."""
