"""The modules of TorchServe that handlers import, such as `ts.torch_handler`, `ts.context` and `ts.metrics`,
for workers without TorchServe.

Names, arguments and results are the same as in TorchServe 0.12.
"""

__version__ = "0.12.0"
