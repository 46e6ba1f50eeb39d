"""What runs in a worker process: the model, behind the channels to the server. It imports nothing of the server's side."""
