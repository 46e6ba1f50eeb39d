"""TorchServe's modules that handlers import, for workers without TorchServe: `ts.torch_handler`,
`ts.context`, `ts.metrics`.

Names, arguments and results are those of TorchServe 0.12.
"""

__version__ = "0.12.0"
