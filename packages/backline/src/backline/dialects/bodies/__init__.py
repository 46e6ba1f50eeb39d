"""Bodies by media type, from and to tensors by name: `read_body` in `reader`, `write_body` in `writer`."""
