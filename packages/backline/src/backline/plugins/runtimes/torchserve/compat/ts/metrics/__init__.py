"""TorchServe's `ts.metrics`, with which handlers record metrics."""
