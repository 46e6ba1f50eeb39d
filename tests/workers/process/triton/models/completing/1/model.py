"""Completes its configuration as the parameter `how` says."""

import triton_python_backend_utils as pb_utils

X = {"name": "x", "data_type": "TYPE_FP32", "dims": [4]}
Y = {"name": "y", "data_type": "TYPE_FP32", "dims": [4]}


def without(tensor, name):
    return {key: value for key, value in tensor.items() if key != name}


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(auto_complete_model_config):
        config = auto_complete_model_config
        how = config.as_dict()["parameters"]["how"]["string_value"]
        steps = {
            "everything": lambda: (config.set_max_batch_size(4), config.set_dynamic_batching(), config.add_input(X), config.add_output(Y)),
            "everything of what is there": lambda: (config.set_max_batch_size(4), config.add_input(X), config.add_output(Y)),
            "smaller batch": lambda: config.set_max_batch_size(4),
            "dynamic batching": lambda: (
                config.add_input(X),
                config.add_output(Y),
                config.set_max_batch_size(8),
                config.set_dynamic_batching(),
            ),
            "dynamic batching of sequences": config.set_dynamic_batching,
            "decoupled": lambda: (config.add_input(X), config.add_output(Y), config.set_model_transaction_policy({"decoupled": True})),
            "not decoupled": lambda: config.set_model_transaction_policy({"decoupled": False}),
            "other policy": lambda: config.set_model_transaction_policy({"coupled": True}),
            "input without name": lambda: config.add_input(without(X, "name")),
            "input without datatype": lambda: config.add_input(without(X, "data_type")),
            "input without dims": lambda: config.add_input(without(X, "dims")),
            "input with more": lambda: config.add_input({**X, "is_shape_tensor": True}),
            "output without name": lambda: config.add_output(without(Y, "name")),
            "output without datatype": lambda: config.add_output(without(Y, "data_type")),
            "output without dims": lambda: config.add_output(without(Y, "dims")),
            "output with more": lambda: config.add_output({**Y, "optional": True}),
            "other datatype of input": lambda: config.add_input({**X, "data_type": "TYPE_INT8"}),
            "other dims of input": lambda: config.add_input({**X, "dims": [5]}),
            "other datatype of output": lambda: config.add_output({**Y, "data_type": "TYPE_INT8"}),
            "other dims of output": lambda: config.add_output({**Y, "dims": [5]}),
            "optional input": lambda: (config.add_input({**X, "optional": True}), config.add_output(Y)),
            "no longer optional": lambda: config.add_input({**X, "optional": False}),
            "unknown datatype": lambda: (config.add_input({**X, "data_type": "TYPE_FP33"}), config.add_output(Y)),
        }
        if how in steps:
            steps[how]()
        if how == "nothing returned":
            return None
        if how == "dict returned":
            return config.as_dict()
        if how == "raised":
            raise RuntimeError("no configuration today")
        if how == "read":
            inputs = config.as_dict()["input"]
            config.add_output({**Y, "data_type": inputs[0]["data_type"]})
        return config

    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", request.inputs()[0].as_numpy() * 2)]) for request in requests]
