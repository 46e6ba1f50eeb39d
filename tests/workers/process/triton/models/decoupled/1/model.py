"""Answers as it is asked to: a model with any number of responses to a request."""

import threading
import time

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


def response(number, text="fine"):
    told = pb_utils.Tensor("told", np.array([text.encode()], np.object_))
    return pb_utils.InferenceResponse([told, pb_utils.Tensor("number", np.array([number], np.int32))])


def error(text="it went wrong", code=None):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, code or pb_utils.TritonError.INTERNAL))


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            how = pb_utils.get_input_tensor_by_name(request, "how").as_numpy()[0].decode()
            name, _, self.argument = how.partition(":")
            answer = getattr(self, name)(request.get_response_sender())
            if answer is not None:
                return answer
        return None

    def some(self, sender):
        for number in range(int(self.argument)):
            sender.send(response(number))
        sender.send(flags=FINAL)

    def last_with_flag(self, sender):
        sender.send(response(0))
        sender.send(response(1), FINAL)

    def by_keyword(self, sender):
        sender.send(response=response(0), flags=FINAL)

    def from_thread(self, sender):
        def answer():
            for number in range(3):
                time.sleep(0.01)
                sender.send(response(number, "thread"))
            sender.send(flags=FINAL)

        threading.Thread(target=answer).start()

    def returned(self, sender):
        sender.send(flags=FINAL)
        return [response(0)]

    def returned_before(self, sender):
        return [response(0)]

    def raised(self, sender):
        raise ValueError("too loud")

    def raised_after_some(self, sender):
        sender.send(response(0))
        raise ValueError("too loud")

    def failed(self, sender):
        sender.send(error(code=pb_utils.TritonError.NOT_FOUND), FINAL)

    def failed_in_two_steps(self, sender):
        sender.send(error())
        sender.send(flags=FINAL)

    def failed_in_between(self, sender):
        sender.send(response(0))
        sender.send(error("in between"))
        sender.send(response(1))
        sender.send(flags=FINAL)

    def empty(self, sender):
        sender.send(pb_utils.InferenceResponse([]))
        sender.send(flags=FINAL)

    def fewer_outputs(self, sender):
        sender.send(pb_utils.InferenceResponse(response(4).output_tensors()[1:]), FINAL)

    def until_cancelled(self, sender):
        def answer():
            number = 0
            while not sender.is_cancelled():
                sender.send(response(number))
                number += 1
            sender.send(flags=FINAL)
            self.said = f"cancelled after some: {number > 0}"

        threading.Thread(target=answer).start()

    def told_by_sender(self, sender):
        steps = {
            "after the last": lambda: (sender.send(flags=FINAL), sender.send(response(0))),
            "nothing": sender.send,
            "flag": lambda: sender.send(response(0), 2),
        }
        try:
            steps[self.argument]()
        except Exception as raised:
            self.said = f"{type(raised).__name__}: {raised}"
        if self.argument != "after the last":
            sender.send(response(0, self.said), FINAL)

    def said_before(self, sender):
        sender.send(response(0, self.said), FINAL)
