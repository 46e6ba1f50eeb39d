"""gRPC over HTTP/2: messages with a length before them, status in the trailers."""
