"""Plain values: datatypes, tensors, signatures, devices, requests and responses."""
