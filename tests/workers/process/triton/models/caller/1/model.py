"""Asks other models as it is asked to, and answers with JSON of what they said."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import triton_python_backend_utils as pb_utils

START = pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START
END = pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END


def asking(model, how, **fields):
    tensor = pb_utils.Tensor("how", np.array([how.encode()], np.object_))
    return pb_utils.InferenceRequest(model_name=model, inputs=[tensor], **{"requested_output_names": ["told", "number"], **fields})


def plain(response):
    if response.has_error():
        return {"error": response.error().message(), "code": response.error().code().name}
    outputs = {tensor.name(): [str(one) for one in tensor.as_numpy().reshape(-1).tolist()] for tensor in response.output_tensors()}
    return dict(sorted(outputs.items()))


class TritonPythonModel:
    async def execute(self, requests):
        answers = []
        for request in requests:
            how = pb_utils.get_input_tensor_by_name(request, "how").as_numpy()[0].decode()
            try:
                told = getattr(self, how)(request)
                if asyncio.iscoroutine(told):
                    told = await told
            except Exception as error:
                told = {"raised": type(error).__name__, "text": str(error)}
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("told", np.array([json.dumps(told).encode()], np.object_))]))
        return answers

    def once(self, request):
        return plain(asking("answers", "fine").exec())

    def some_outputs(self, request):
        return plain(asking("answers", "fine", requested_output_names=["number"]).exec())

    def version(self, request):
        return [plain(asking("answers", "fine", model_version=version).exec()) for version in (1, 2)]

    def failed(self, request):
        return plain(asking("answers", "error:NOT_FOUND").exec())

    def raised(self, request):
        return plain(asking("answers", "raised").exec())["error"].split(",")[0]

    def unknown(self, request):
        return plain(asking("nobody", "fine").exec())

    def wrong_input(self, request):
        tensor = pb_utils.Tensor("how", np.zeros((1, 1), np.float32))
        wrong = pb_utils.InferenceRequest(model_name="answers", inputs=[tensor], requested_output_names=["told"])
        return plain(wrong.exec())

    def wrong_name(self, request):
        tensor = pb_utils.Tensor("who", np.array([[b"fine"]], np.object_))
        wrong = pb_utils.InferenceRequest(model_name="answers", inputs=[tensor], requested_output_names=["told"])
        return plain(wrong.exec())

    def wrong_output(self, request):
        return plain(asking("answers", "fine", requested_output_names=["nothing"]).exec())

    async def wrong_output_async(self, request):
        return plain(await asking("answers", "fine", requested_output_names=["nothing"]).async_exec())

    def many_of_a_wrong_output(self, request):
        wrong = asking("decoupled", "some:2", requested_output_names=["nothing"])
        return [plain(response) for response in wrong.exec(decoupled=True)]

    def without_a_sequence(self, request):
        tensor = pb_utils.Tensor("x", np.array([[1]], np.int32))
        wrong = pb_utils.InferenceRequest(model_name="sequence", inputs=[tensor], requested_output_names=["sum"])
        return plain(wrong.exec())

    def told(self, request):
        """What the other model sees of the request."""
        what = pb_utils.Tensor("what", np.array([b"request"], np.object_))
        made = pb_utils.InferenceRequest(
            request_id="inner",
            model_name="functions",
            inputs=[what],
            requested_output_names=["told"],
            timeout=5_000_000,
            parameters={"a": 1, "b": "x", "c": True},
        )
        return json.loads(pb_utils.get_output_tensor_by_name(made.exec(), "told").as_numpy()[0])

    async def beside_each_other(self, request):
        responses = await asyncio.gather(*(asking("answers", how).async_exec() for how in ("fine", "sent_late", "error")))
        return [plain(response) for response in responses]

    def from_threads(self, request):
        with ThreadPoolExecutor(4) as threads:
            return [plain(response) for response in threads.map(lambda how: asking("answers", how).exec(), ["fine", "sent_late"] * 4)]

    def many(self, request):
        return [plain(response) for response in asking("decoupled", "some:3").exec(decoupled=True)]

    def many_with_flag(self, request):
        return [plain(response) for response in asking("decoupled", "last_with_flag").exec(decoupled=True)]

    def many_failed(self, request):
        return [plain(response) for response in asking("decoupled", "failed").exec(decoupled=True)]

    async def many_async(self, request):
        return [plain(response) for response in await asking("decoupled", "some:2").async_exec(decoupled=True)]

    def many_as_one(self, request):
        return plain(asking("decoupled", "some:2").exec())

    async def many_as_one_async(self, request):
        return plain(await asking("decoupled", "some:2").async_exec())

    def one_as_many(self, request):
        return [plain(response) for response in asking("answers", "fine").exec(decoupled=True)]

    def endless(self, request):
        """Cancelled after some responses."""
        responses = asking("decoupled", "until_cancelled").exec(decoupled=True)
        first = [plain(next(responses)) for _ in range(3)]
        responses.cancel()
        return first

    def itself(self, request):
        return plain(asking("caller", "once", requested_output_names=["told"]).exec())

    def around(self, request):
        """A model that asks this one."""
        return plain(asking("around", "fine", requested_output_names=["told"]).exec())

    def sequence(self, request):
        told = []
        for index, flags in enumerate((START, 0, END)):
            tensor = pb_utils.Tensor("x", np.array([[index + 1]], np.int32))
            made = pb_utils.InferenceRequest(
                model_name="sequence", inputs=[tensor], requested_output_names=["sum"], correlation_id=77, flags=flags
            )
            told.append(plain(made.exec()))
        return told

    def ready(self, request):
        return [pb_utils.is_model_ready(*model) for model in (("answers",), ("answers", "1"), ("answers", "2"), ("nobody",))]

    def loads(self, request):
        before = pb_utils.is_model_ready("extra")
        pb_utils.load_model(model_name="extra")
        during = [pb_utils.is_model_ready("extra"), plain(asking("extra", "fine", requested_output_names=["told"]).exec())]
        pb_utils.unload_model("extra")
        return [before, *during]

    def loads_with_configuration(self, request):
        config = {
            "backend": "python",
            "input": [{"name": "how", "data_type": "TYPE_STRING", "dims": [1]}],
            "output": [{"name": "told", "data_type": "TYPE_STRING", "dims": [1]}],
            "parameters": {"greeting": {"string_value": "Good day"}},
        }
        pb_utils.load_model("extra", json.dumps(config))
        told = plain(asking("extra", "fine", requested_output_names=["told"]).exec())
        pb_utils.unload_model("extra")
        return told

    def loads_nobody(self, request):
        try:
            pb_utils.load_model("nobody")
        except pb_utils.TritonModelException as error:
            return str(error).split(":")[0]

    def unloads_nobody(self, request):
        try:
            pb_utils.unload_model("nobody")
        except pb_utils.TritonModelException as error:
            return str(error).split(":")[0]
