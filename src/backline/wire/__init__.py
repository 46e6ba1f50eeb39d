"""Sockets, TLS, HTTP/1.1, HTTP/2 and gRPC framing, with their limits. Knows nothing of models, tensors or JSON."""
