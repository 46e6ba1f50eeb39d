"""Answers as it is asked to: a model with one response to a request."""

import sys
import threading

import numpy as np
import triton_python_backend_utils as pb_utils


def response(text="fine", number=7):
    told = pb_utils.Tensor("told", np.array([text.encode()], np.object_))
    return pb_utils.InferenceResponse([told, pb_utils.Tensor("number", np.array([number], np.int32))])


class TritonPythonModel:
    def execute(self, requests):
        how = pb_utils.get_input_tensor_by_name(requests[0], "how").as_numpy()[0].decode()
        name, _, argument = how.partition(":")
        self.argument = argument
        return getattr(self, name)(requests)

    def fine(self, requests):
        return [response() for _ in requests]

    def error(self, requests):
        code = getattr(pb_utils.TritonError, self.argument) if self.argument else pb_utils.TritonError.INTERNAL
        return [pb_utils.InferenceResponse(error=pb_utils.TritonError("it went wrong", code)) for _ in requests]

    def error_beside_outputs(self, requests):
        tensors = response().output_tensors()
        return [pb_utils.InferenceResponse(tensors, pb_utils.TritonError("it went wrong")) for _ in requests]

    def raised(self, requests):
        raise ValueError("too loud")

    def raised_inside(self, requests):
        def deeper():
            raise KeyError("nobody")

        deeper()

    def raised_of_triton(self, requests):
        raise pb_utils.TritonModelException("said by the model")

    def exit(self, requests):
        sys.exit(3)

    def nothing(self, requests):
        pass

    def too_few(self, requests):
        return []

    def too_many(self, requests):
        return [response()] * (len(requests) + 1)

    def no_list(self, requests):
        return tuple(response() for _ in requests)

    def no_response(self, requests):
        return ["text"] * len(requests)

    def undeclared_output(self, requests):
        return [pb_utils.InferenceResponse([*response().output_tensors(), pb_utils.Tensor("more", np.zeros(1))]) for _ in requests]

    def missing_output(self, requests):
        return [pb_utils.InferenceResponse(response().output_tensors()[:1]) for _ in requests]

    def no_output(self, requests):
        return [pb_utils.InferenceResponse([]) for _ in requests]

    def other_datatype(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("number", np.array([1.5], np.float64))]) for _ in requests]

    def other_shape(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("number", np.arange(6, dtype=np.int32).reshape(2, 3))]) for _ in requests]

    # by a sender

    def sent(self, requests):
        for request in requests:
            request.get_response_sender().send(response("sent"), pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def sent_and_none(self, requests):
        self.sent(requests)
        return [None] * len(requests)

    def sent_in_two_steps(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            sender.send(response("sent"))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def sent_error(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError("sent error")), pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def sent_late(self, requests):
        def later(senders):
            for sender in senders:
                sender.send(response("late"), pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

        senders = [request.get_response_sender() for request in requests]
        threading.Timer(0.05, later, (senders,)).start()
        return [None] * len(requests)

    def sent_and_raised(self, requests):
        self.sent(requests)
        raise ValueError("after the answer")

    def sent_and_returned(self, requests):
        self.sent(requests)
        return self.fine(requests)

    def told_by_sender(self, requests):
        """What the sender says of a step that it does not take."""
        final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        steps = {
            "twice": lambda sender: (sender.send(response()), sender.send(response())),
            "final first": lambda sender: sender.send(flags=final),
            "after the last": lambda sender: (sender.send(response(), final), sender.send(response(), final)),
            "final twice": lambda sender: (sender.send(response(), final), sender.send(flags=final)),
            "nothing": lambda sender: sender.send(),
            "flag": lambda sender: sender.send(response(), 3),
        }
        answers = []
        for request in requests:
            sender = request.get_response_sender()
            try:
                steps[self.argument](sender)
                print("nothing was raised", flush=True)
            except Exception as error:
                self.said = f"{type(error).__name__}: {error}"
            answers.append(None if self.argument in ("twice", "after the last", "final twice") else response(self.said))
        return answers

    def said_before(self, requests):
        return [response(self.said) for _ in requests]
