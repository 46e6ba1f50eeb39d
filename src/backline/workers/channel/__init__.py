"""What the server and the program in a worker process share: frames, messages, shared memory."""
