"""Reads a track, and counts the instances that read at the same time."""

import os
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.busy = Path(args["model_repository"]) / "busy"
        self.busy.mkdir(exist_ok=True)
        self.mine = self.busy / f"{os.getpid()}-{args['model_instance_name']}"

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        track = int(pb_utils.get_input_tensor_by_name(request, "TRACK").as_numpy()[0])
        self.mine.touch()
        time.sleep(0.01)
        together = len(list(self.busy.iterdir()))
        self.mine.unlink()
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("SECTORS", np.arange(track, track + 3, dtype=np.int32)),
                pb_utils.Tensor("TOGETHER", np.array([together], np.int32)),
            ]
        )
