"""TorchServe's built-in handlers."""
