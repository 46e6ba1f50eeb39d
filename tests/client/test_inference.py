"""The same calls over HTTP, gRPC, Unix sockets and in the process."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from backline_client.client import Client, InferResult, connect, connect_async
from backline_client.client.errors import BacklineError, InvalidArgument, NotFound, Unavailable
from support.server import ServerProcess

X = np.arange(32, dtype=np.float32).reshape(2, 16)


def test_an_array_is_sent_and_named_arrays_are_returned(client: Client) -> None:
    result = client["add1"](X)
    assert list(result) == ["OUTPUT0"]
    np.testing.assert_array_equal(result["OUTPUT0"], X + 1)
    np.testing.assert_array_equal(result.OUTPUT0, X + 1)
    assert (result.model_name, result.model_version) == ("add1", "1")


@pytest.mark.parametrize("how", ["named", "mapping"])
def test_inputs_can_be_named(client: Client, how: str) -> None:
    result = client["add1"](INPUT0=X) if how == "named" else client["add1"]({"INPUT0": X})
    np.testing.assert_array_equal(result["OUTPUT0"], X + 1)


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        ("BOOL", np.array([[True, False]])),
        ("UINT8", np.array([[0, 255]], np.uint8)),
        ("UINT16", np.array([[0, 2**16 - 1]], np.uint16)),
        ("UINT32", np.array([[0, 2**32 - 1]], np.uint32)),
        ("UINT64", np.array([[0, 2**64 - 1]], np.uint64)),
        ("INT8", np.array([[-128, 127]], np.int8)),
        ("INT16", np.array([[-(2**15), 2**15 - 1]], np.int16)),
        ("INT32", np.array([[-(2**31), 2**31 - 1]], np.int32)),
        ("INT64", np.array([[-(2**63), 2**63 - 1]], np.int64)),
        ("FP16", np.array([[1.5, -np.inf]], np.float16)),
        ("FP32", np.array([[1.1, np.finfo(np.float32).max]], np.float32)),
        ("FP64", np.array([[1.1, 1e300]], np.float64)),
    ],
)
def test_every_datatype_makes_the_round_trip(client: Client, datatype: str, value: np.ndarray) -> None:
    answer = client[f"same_{datatype.lower()}"](value)["OUTPUT0"]
    assert answer.dtype == value.dtype
    np.testing.assert_array_equal(answer, value)


def test_bf16_takes_numbers_and_returns_fp32(client: Client) -> None:
    answer = client["same_bf16"]([[1.0, -2.5]])["OUTPUT0"]
    assert answer.dtype == np.float32
    assert answer.tolist() == [[1.0, -2.5]]


@pytest.mark.parametrize(
    "value", [3.5, np.float32(3.5), np.array(3.5, np.float32), np.array([3.5], np.float32)]
)
def test_a_scalar_can_be_a_number_or_an_array_of_one(client: Client, value: object) -> None:
    answer = client["scalar"](value)["OUTPUT0"]
    assert (answer.shape, float(answer)) == ((), 3.5)


@pytest.mark.parametrize("datatype", ["FP32", "BF16", "BOOL", "INT64", "BYTES"])
def test_a_tensor_without_elements_keeps_its_shape(client: Client, datatype: str) -> None:
    dtype = {"FP32": np.float32, "BF16": np.uint16, "BOOL": np.bool_, "INT64": np.int64, "BYTES": np.object_}[
        datatype
    ]
    assert client[f"same_{datatype.lower()}"](np.empty((3, 0), dtype))["OUTPUT0"].shape == (3, 0)


@pytest.mark.parametrize("value", [None, [1], b"x"])
def test_a_parameter_of_an_unsupported_type_is_refused(client: Client, value: object) -> None:
    with pytest.raises(InvalidArgument, match="parameter 'p' is"):
        client["add1"](X, parameters={"p": value})  # type: ignore[dict-item]


def test_parameters_of_the_protocol_mean_the_same_over_every_transport(client: Client) -> None:
    with pytest.raises(InvalidArgument, match="parameter 'priority' must be an unsigned integer"):
        client["add1"](X, parameters={"priority": -1})
    with pytest.raises(Unavailable, match="Request timeout expired after"):
        client["add1"](X, parameters={"timeout": 1})  # a microsecond: less than a turn of the event loop


def test_an_empty_name_is_refused(client: Client) -> None:
    with pytest.raises(InvalidArgument, match="name of a model is empty"):
        client[""]


def test_strings_are_sent_as_utf8_and_returned_as_bytes(client: Client) -> None:
    answer = client["same_bytes"]([["", "é"], ["日本", "x" * 3000]])["OUTPUT0"]
    assert answer.tolist() == [[b"", "é".encode()], ["日本".encode(), b"x" * 3000]]


def test_a_large_tensor_is_whole_and_aligned(client: Client) -> None:
    value = np.random.default_rng(1).random((4, 3, 224, 224), np.float32)
    answer = client["ident"](value)["OUTPUT0"]
    assert answer.flags.aligned
    np.testing.assert_array_equal(answer, value)


def test_an_empty_dimension_is_answered(client: Client) -> None:
    assert client["same_fp32"](np.zeros((1, 0), np.float32))["OUTPUT0"].shape == (1, 0)


def test_the_id_and_the_wanted_outputs_are_kept(client: Client) -> None:
    result = client["add1"](X, request_id="abc", outputs=["OUTPUT0"])
    assert result.id == "abc"
    assert list(result) == ["OUTPUT0"]


def test_an_output_that_does_not_exist_is_refused(client: Client) -> None:
    with pytest.raises(InvalidArgument, match="NOPE"):
        client["add1"](X, outputs=["NOPE"])


def test_a_version_can_be_chosen(client: Client) -> None:
    assert client.model("add1", version=1)(X).model_version == "1"
    assert client["add1"](X, version="1").model_version == "1"
    with pytest.raises(NotFound, match="add1"):
        client["add1"](X, version="9")


def test_an_unknown_model_is_not_found(client: Client) -> None:
    with pytest.raises(NotFound, match="'nope' is not found"):
        client["nope"](X)


def test_a_model_that_failed_to_load_is_unavailable(client: Client) -> None:
    with pytest.raises(Unavailable, match="broken"):
        client["broken"](X)


def test_metadata_has_inputs_and_outputs(client: Client) -> None:
    metadata = client["add1"].metadata()
    assert [(spec.name, spec.datatype.name, spec.shape) for spec in metadata.inputs] == [
        ("INPUT0", "FP32", (-1, 16))
    ]
    assert [(spec.name, spec.datatype.name, spec.shape) for spec in metadata.outputs] == [
        ("OUTPUT0", "FP32", (-1, 16))
    ]
    assert metadata.versions == ("1",)


def test_configuration_has_the_names_of_config_pbtxt(client: Client) -> None:
    config = client["add1"].config()
    assert config["name"] == "add1"
    assert config["input"][0]["data_type"] == "TYPE_FP32"
    assert isinstance(config["max_batch_size"], int)


def test_statistics_count_the_inferences(client: Client) -> None:
    def count() -> int:
        return int(client["plus2"].statistics()[0]["inference_count"])

    client["plus2"](X)
    before = count()
    client["plus2"](X)
    assert count() == before + len(X)


def test_the_index_has_states_and_reasons(client: Client) -> None:
    states = {entry.name: entry for entry in client.models()}
    assert states["add1"].state == "READY"
    assert states["broken"].state == "UNAVAILABLE"
    assert "model.onnx" in states["broken"].reason


def test_health_reports_live_and_ready(client: Client) -> None:
    assert client.live()
    assert not client.ready()  # one model is broken
    assert client["add1"].ready()
    assert not client["broken"].ready()


def test_the_error_of_wait_ready_says_why_the_server_is_not_ready(client: Client) -> None:
    with pytest.raises(BacklineError, match="broken 1 is UNAVAILABLE"):
        client.wait_ready(0.3)


def test_threads_share_a_client(client: Client) -> None:
    failures: list[object] = []

    def work(number: int) -> None:
        for step in range(20):
            value = np.full((1, 16), number * 100 + step, np.float32)
            if not np.array_equal(client["add1"](value)["OUTPUT0"], value + 1):
                failures.append((number, step))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_the_asyncio_client_runs_requests_concurrently(url: str) -> None:
    async def main() -> list[InferResult]:
        async with connect_async(url) as client:
            return await asyncio.gather(*(client["add1"](np.full((1, 16), n, np.float32)) for n in range(50)))

    for number, result in enumerate(asyncio.run(main())):
        assert result["OUTPUT0"][0, 0] == number + 1


def test_calls_of_a_closed_client_fail_with_a_reason(url: str) -> None:
    async def main() -> None:
        client = connect_async(url)
        await client["add1"](X)
        await client.close()
        await client["add1"](X)

    with pytest.raises(Unavailable, match="is closed"):
        asyncio.run(main())


def test_events_carry_nan_and_infinity(typed_server: ServerProcess) -> None:
    given = np.array([np.nan, np.inf, -np.inf, 1.5], np.float32)

    with connect(typed_server.url) as client:
        (part,) = client["same_fp32"].stream(given[None])

    np.testing.assert_array_equal(part["OUTPUT0"], given[None])
