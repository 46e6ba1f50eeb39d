"""TorchServe's `ts.handler_utils`: timing, and intermediate responses."""
