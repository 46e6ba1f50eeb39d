"""What the suite's models compute: written by `oip-conformance --models`."""

import time

import numpy as np


class ModelFailure(Exception):
    """The failure that a model of the suite is asked for."""


_sums = {}


def compute(model, version, inputs, sequence_id=None, sequence_start=False):
    """The outputs of a request by name; texts are object arrays of bytes."""
    if model.startswith("identity_") or model == "spare":
        return {"OUTPUT": inputs["INPUT"]}
    if model == "sum":
        return {"SUM": inputs["LEFT"] + inputs["RIGHT"], "DIFFERENCE": inputs["LEFT"] - inputs["RIGHT"]}
    if model == "strings":
        joined = [a + b for a, b in zip(inputs["LEFT"], inputs["RIGHT"])]
        return {"JOINED": np.array(joined, dtype=object)}
    if model == "versioned":
        return {"OUTPUT": inputs["INPUT"] + np.int32(version)}
    if model == "sequence":
        before = 0 if sequence_start or sequence_id is None else _sums.get(sequence_id, 0)
        _sums[sequence_id] = before + int(inputs["INPUT"].ravel()[0])
        return {"OUTPUT": np.full(inputs["INPUT"].shape, _sums[sequence_id], np.int32)}
    if model == "slow":
        time.sleep(int(inputs["INPUT"].ravel()[0]) / 1000)
        return {"OUTPUT": inputs["INPUT"]}
    if model == "failing":
        raise ModelFailure("this model fails for every request")
    if model == "text":
        texts = [text.decode().upper().encode() for text in inputs["text_input"].ravel()]
        return {"text_output": np.array(texts, dtype=object)}
    raise ModelFailure(f"the suite has no model '{model}'")


def respond(inputs):
    """The responses of the model `repeat`, one after the other."""
    for value in inputs["INPUT"].ravel():
        time.sleep(int(inputs["DELAY"].ravel()[0]) / 1000)
        if value < 0:
            raise ModelFailure("an element is negative")
        yield {"OUTPUT": np.array([value], np.int32)}
