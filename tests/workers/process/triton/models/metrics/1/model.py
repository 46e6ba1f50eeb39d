"""Keeps metrics and writes to the log, as it is asked to."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.families = {}
        self.kept = []
        pb_utils.Logger.log_info("the model is there")

    def execute(self, requests):
        answers = []
        for request in requests:
            how = pb_utils.get_input_tensor_by_name(request, "how").as_numpy()[0].decode()
            try:
                told = getattr(self, how)()
            except Exception as error:
                told = {"raised": type(error).__name__, "text": "" if isinstance(error, TypeError) else str(error)}
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("told", np.array([json.dumps(told).encode()], np.object_))]))
        return answers

    def _family(self, name, kind):
        if name not in self.families:
            self.families[name] = pb_utils.MetricFamily(name=name, description=f"What is told of {name}", kind=kind)
        return self.families[name]

    def _metric(self, name, kind, **options):
        metric = self._family(name, kind).Metric(**options)
        self.kept.append(metric)
        return metric

    def _counter(self, **options):
        return self._metric("requests_seen", pb_utils.MetricFamily.COUNTER, **{"labels": {"colour": "red"}, **options})

    def _histogram(self, **options):
        return self._metric("length_seen", pb_utils.MetricFamily.HISTOGRAM, **{"labels": {"colour": "red"}, **options})

    def counter(self):
        metric = self._counter(labels={"colour": "blue", "size": "5"})
        metric.increment(2)
        metric.increment(0.5)
        return metric.value()

    def counter_with_total(self):
        self._metric("words_total", pb_utils.MetricFamily.COUNTER).increment(3)

    def counter_below(self):
        self._counter().increment(-1)

    def counter_set(self):
        self._counter().set(1)

    def counter_observed(self):
        self._counter().observe(1)

    def counter_with_buckets(self):
        self._counter(buckets=[1])

    def labels_of_numbers(self):
        self._counter(labels={"colour": 5})

    def gauge(self):
        metric = self._metric("queue_seen", pb_utils.MetricFamily.GAUGE, labels={"colour": "blue"})
        metric.set(7)
        metric.increment(-2.5)
        return metric.value()

    def same_labels(self):
        first, second = (self._metric("same_seen", pb_utils.MetricFamily.GAUGE, labels={"colour": "blue"}) for _ in range(2))
        first.set(3)
        second.increment(1)
        return [first.value(), second.value()]

    def histogram(self):
        metric = self._histogram(labels={"colour": "blue"}, buckets=[0.1, 1.0, 2.5, 5, 10])
        for value in (0.05, 1, 1.5, 3, 100):
            metric.observe(value)

    def histogram_value(self):
        return self._histogram(buckets=[1]).value()

    def histogram_set(self):
        self._histogram(buckets=[1]).set(1)

    def histogram_incremented(self):
        self._histogram(buckets=[1]).increment(1)

    def histogram_without_buckets(self):
        self._histogram()

    def histogram_of_disorder(self):
        self._histogram(buckets=[2, 1])

    def other_kind(self):
        self._family("kind_seen", pb_utils.MetricFamily.COUNTER)
        pb_utils.MetricFamily(name="kind_seen", description="", kind=pb_utils.MetricFamily.GAUGE)

    def odd_name(self):
        self._family("odd name", pb_utils.MetricFamily.COUNTER)

    def logged(self):
        pb_utils.Logger.log_info("told as info")
        pb_utils.Logger.log_warn("told as warning")
        pb_utils.Logger.log_error("told as error")
        pb_utils.Logger.log_verbose("told as verbose")
        pb_utils.Logger.log("told as it is")
        pb_utils.Logger.log("told at a level", pb_utils.Logger.ERROR)

    def logged_number(self):
        pb_utils.Logger.log_info(5)
