"""Counts plays and their seconds, and exports both."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        def metric(name, description, kind, **options):
            family = pb_utils.MetricFamily(name=name, description=description, kind=kind)
            self.families.append(family)
            return family.Metric(labels={"model": args["model_name"], "version": "1"}, **options)

        self.families = []
        self.plays = metric("studio_plays", "Number of plays", pb_utils.MetricFamily.COUNTER)
        self.longest = metric("studio_longest_seconds", "The longest play", pb_utils.MetricFamily.GAUGE)
        self.total = 0.0

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        seconds = float(pb_utils.get_input_tensor_by_name(request, "SECONDS").as_numpy()[0])
        self.plays.increment(1)
        self.longest.set(max(self.longest.value(), seconds))
        self.total += seconds
        return pb_utils.InferenceResponse([pb_utils.Tensor("TOTAL", np.array([self.total], np.float32))])
