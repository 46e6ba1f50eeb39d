"""TorchServe's `ts.metrics`: the metrics that handlers record."""
