"""TorchServe's `ts.utils`: functions that handlers import."""
