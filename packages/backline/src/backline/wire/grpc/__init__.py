"""gRPC over HTTP/2: length-prefixed messages, with the status in the trailers."""
