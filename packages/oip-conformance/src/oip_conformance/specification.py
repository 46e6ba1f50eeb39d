"""The sentences that rows rest on, with the repository, file, commit and line where they stand."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Document:
    """One file of a specification."""

    repository: str
    path: str
    commit: str

    def __call__(self, line: int, sentence: str) -> Citation:
        """A citation of this document: the line, and the sentence or the clause of it that a row rests on."""
        return Citation(self, line, sentence)


@dataclass(frozen=True, slots=True)
class Citation:
    """A place in a specification."""

    document: Document
    line: int
    sentence: str

    def __str__(self) -> str:
        document = self.document
        return f"{document.repository} {document.path}@{document.commit[:12]} line {self.line}"

    @property
    def url(self) -> str:
        document = self.document
        return f"https://github.com/{document.repository}/blob/{document.commit}/{document.path}#L{self.line}"


def _extension(name: str, commit: str) -> Document:
    return Document("triton-inference-server/server", f"docs/protocol/extension_{name}.md", commit)


_V2 = Document("kserve/kserve", "docs/predict-api/v2/required_api.md", "3dc5bfb4a5d809819876f34ef926aca590438257")
_GRPC = Document(
    "kserve/open-inference-protocol",
    "specification/protocol/inference_grpc.md",
    "7ef512b1f1715ac163091a14fb68990d2f7afa41",
)
_REST = Document(
    "kserve/open-inference-protocol",
    "specification/protocol/inference_rest.md",
    "011728e1fe18619e620e4df99f63678e2b6b7285",
)
_BINARY = _extension("binary_data", "6306a13d812a4028419186247f5b3f022f63c224")
_REPOSITORY = _extension("model_repository", "332bef3f7ee4499fbf52e066020e748d5bde98eb")
_GENERATE = _extension("generate", "8f5f51572a240b2532e18838d265a10dde097e7b")
_LOGGING = _extension("logging", "f180d73abc41e47cd153eb91f14f3e988df175f5")
_TRACE = _extension("trace", "2955fddf2252bdcf99b1006e9fe5cda19cf68021")
_SEQUENCE = _extension("sequence", "36998f0d1113a3cd03d5a1dc2c0fd9dd2a354965")
_CLASSIFICATION = _extension("classification", "5e42520c9d33757a9a582c0be0b989d01dabc572")
_CONFIGURATION = _extension("model_configuration", "896c1f4d74ab129f0f46a3963c973b8727942afb")
_STATISTICS = _extension("statistics", "c203d3783fc1fa77da47228e1d107f009cd0b104")
_SHARED_MEMORY = _extension("shared_memory", "c203d3783fc1fa77da47228e1d107f009cd0b104")

# Health, metadata and routes.
REQUIRED_APIS = _V2(24, "A compliant server must implement the health, metadata, and inference APIs described in this section.")
CASE = _V2(32, "All strings in all contexts are case-sensitive.")
VERSION_OPTIONAL = _V2(35, "The versions portion of the URL is shown as optional ...")
HEALTH_STATUS = _V2(62, "A 200 status code indicates true and a 4xx status code indicates false.")
HEALTH_BODY = _V2(63, "The HTTP response body should be empty.")
LIVE = _V2(68, "The \u201cserver live\u201d API indicates if the inference server is able to receive and respond to metadata and inference requests.")
READY = _V2(75, "The \u201cserver ready\u201d health API indicates if all the models are ready for inferencing.")
MODEL_READY = _V2(81, "The \u201cmodel ready\u201d health API indicates if a specific model is ready for inferencing.")
MODEL_READY_BODY = _REST(50, "The model ready endpoint returns the readiness probe response for the server along with the name of the model.")
SERVER_METADATA = _V2(97, "A successful server metadata request is indicated by a 200 HTTP status code.")
SERVER_NAME = _V2(108, "\u201cname\u201d : A descriptive name for the server.")
SERVER_VERSION = _V2(109, '"version" : The server version.')
SERVER_EXTENSIONS = _V2(110, "\u201cextensions\u201d : The extensions supported by the server.")
MODEL_METADATA = _V2(141, "A successful model metadata request is indicated by a 200 HTTP status code.")
MODEL_NAME = _V2(155, "\u201cname\u201d : The name of the model.")
MODEL_VERSIONS = _V2(156, '"versions" : The model versions that may be explicitly requested via the appropriate endpoint.')
MODEL_PLATFORM = _V2(160, "\u201cplatform\u201d : The framework/backend for the model.")
MODEL_INPUTS = _V2(162, "\u201cinputs\u201d : The inputs required by the model.")
MODEL_OUTPUTS = _V2(163, "\u201coutputs\u201d : The outputs produced by the model.")
TENSOR_METADATA = _V2(165, "Each model input and output tensors\u2019 metadata is described with a $metadata_tensor object.")
TENSOR_DATATYPE = _V2(176, '"datatype" : The data-type of the tensor elements as defined in Tensor Data Types.')
TENSOR_SHAPE = _V2(178, '"shape" : The shape of the tensor. Variable-size dimensions are specified as -1.')
METADATA_ERROR = _V2(183, "A failed model metadata request must be indicated by an HTTP error status (typically 400).")

# Inference.
REQUEST_OBJECT = _V2(207, "The inference request object, identified as $inference_request, is required in the HTTP body of the POST request.")
VERSION_POLICY = _V2(209, "If a version is not provided the server may choose a version based on its own policies or return an error.")
ID = _V2(221, '"id" : An identifier for this request. Optional, but if specified this identifier must be returned in the response.')
REQUEST_PARAMETERS = _V2(223, '"parameters" : An object containing zero or more parameters for this inference request expressed as key/value pairs.')
REQUEST_INPUTS = _V2(226, '"inputs" : The input tensors.')
OUTPUTS_OPTIONAL = _V2(230, "Optional, if not specified all outputs produced by the model will be returned using default $request_output settings.")
BATCH = _V2(236, "If the input is batched, the shape and data must represent the full shape and contents of the entire batch.")
INPUT_NAME = _V2(249, '"name" : The name of the input tensor.')
INPUT_SHAPE = _V2(250, "Each dimension must be an integer representable as an unsigned 64-bit integer value.")
INPUT_DATATYPE = _V2(252, '"datatype" : The data-type of the input tensor elements as defined in Tensor Data Types.')
INPUT_DATA = _V2(257, "\u201cdata\u201d: The contents of the tensor.")
SELECTED_OUTPUTS = _V2(262, "The $request_output JSON is used to request which output tensors should be returned from the model.")
INFER_OK = _V2(278, "A successful inference request is indicated by a 200 HTTP status code.")
RESPONSE_MODEL_NAME = _V2(291, '"model_name" : The name of the model used for inference.')
RESPONSE_MODEL_VERSION = _V2(292, '"model_version" : The specific model version used for inference.')
RESPONSE_ID = _V2(295, '"id" : The "id" identifier given in the request, if any.')
RESPONSE_OUTPUTS = _V2(299, '"outputs" : The output tensors.')
RESPONSE_SHAPE = _V2(305, "If the output is batched, the shape and data represents the full shape of the entire batch.")
INFER_ERROR = _V2(331, "A failed inference request must be indicated by an HTTP error status (typically 400).")
ERROR_OBJECT = _V2(332, "The HTTP body must contain the $inference_error_response object.")
UNKNOWN_PARAMETERS = _V2(409, "A server can implement server-specific parameters to provide non-standard capabilities.")
ROW_MAJOR = _V2(414, "Tensor data must be presented in row-major order of the tensor elements.")
NESTED = _V2(416, "Tensor elements may be presented in their nature multi-dimensional representation, or as a flattened one-dimensional representation.")
JSON_ARRAY = _V2(420, "Tensor data given explicitly is provided in a JSON array.")
COERCION = _V2(422, "The server can decide to coerce each element to the required type or return an error if an unexpected value is received.")
FP16_JSON = _V2(424, "Note that fp16 and bf16 are problematic to communicate explicitly ...")

# gRPC.
GRPC_REQUIRED = _GRPC(4, "A compliant server must implement the health, metadata, and inference APIs described in this section.")
GRPC_HEALTH = _GRPC(54, "For each of these endpoints errors are indicated by the google.rpc.Status returned for the request.")
GRPC_LIVE = _GRPC(66, "True if the inference server is live, false if not live.")
GRPC_READY = _GRPC(79, "True if the inference server is ready, false if not ready.")
GRPC_MODEL_READY = _GRPC(100, "True if the model is ready, false if not ready.")
GRPC_SERVER_METADATA = _GRPC(110, "The ServerMetadata API provides information about the server.")
GRPC_MODEL_METADATA = _GRPC(128, "The per-model metadata API provides information about a model.")
GRPC_METADATA_ERROR = _GRPC(128, "Errors are indicated by the google.rpc.Status returned for the request.")
GRPC_TENSOR_SHAPE = _GRPC(154, "The tensor shape. A variable-size dimension is represented by a -1 value.")
GRPC_INFER_ERROR = _GRPC(198, "Errors are indicated by the google.rpc.Status returned for the request.")
GRPC_VERSION = _GRPC(237, "The version of the model to use for inference. If not given the server will choose a version based on the model and internal policy.")
GRPC_ID = _GRPC(241, "Optional identifier for the request. If specified will be returned in the response.")
GRPC_OUTPUTS = _GRPC(251, "Optional, if not specified all outputs produced by the model will be returned.")
GRPC_RAW_ORDER = _GRPC(257, "To use the raw representation 'raw_input_contents' must be initialized with data for each tensor in the same order as 'inputs'.")
GRPC_RAW_SIZE = _GRPC(259, "For each tensor, the size of this content must match what is expected by the tensor's shape and data type.")
GRPC_FP16 = _GRPC(263, "Note that the FP16 data type must be represented as raw content as there is no specific data type for a 16-bit float type.")
GRPC_MIXED = _GRPC(267, "If this field is specified then InferInputTensor::contents must not be specified for any input tensor.")
GRPC_RESPONSE_NAME = _GRPC(295, "The name of the model used for inference.")
GRPC_RESPONSE_RAW = _GRPC(322, "If this field is specified then InferOutputTensor::contents must not be specified for any output tensor.")
GRPC_PARAMETERS = _GRPC(329, "The Parameters message describes a \u201cname\u201d/\u201dvalue\u201d pair ...")
GRPC_TYPED = _GRPC(370, 'An alternative to the "raw" representation is to use InferTensorContents to represent the tensor data in a format that matches the tensor\'s data type.')
GRPC_TYPED_SIZE = _GRPC(381, "The size must match what is expected by the tensor's shape.")

# Triton's extensions.
BINARY_ANNOUNCED = _BINARY(34, "Because this extension is supported, Triton reports \u201cbinary_tensor_data\u201d in the extensions field of its Server Metadata.")
BINARY_LAYOUT = _BINARY(39, "Tensor data represented as binary data is organized in little-endian byte order, row major, without stride or padding between elements.")
BINARY_DATATYPES = _BINARY(40, "All tensor data types are representable as binary data in the native size of the data type.")
BINARY_BOOL = _BINARY(42, "For BOOL type element true is a single byte with value 1 and false is a single byte with value 0.")
BINARY_BYTES = _BINARY(43, "For BYTES type an element is represented by a 4-byte unsigned integer giving the length followed by the actual bytes.")
BINARY_SIZE = _BINARY(53, '"binary_data_size" : int64 parameter indicating the size of the tensor binary data, in bytes.')
BINARY_OUTPUT = _BINARY(59, '"binary_data" : bool parameter that is true if the output should be returned as binary data and false (or not given) if the tensor should be returned as JSON.')
BINARY_ALL = _BINARY(67, '"binary_data_output" : bool parameter that is true if all outputs should be returned as binary data ...')
BINARY_OVERRIDES = _BINARY(69, 'If "binary_data" is specified on an output it overrides this setting.')
BINARY_ORDER = _BINARY(74, "... followed by the binary tensor data in the same order as the order of the input or output tensors are specified in the JSON.")
BINARY_HEADER = _BINARY(76, "If any binary data is present in the request or response the Inference-Header-Content-Length header must be provided to give the length of the JSON object ...")
RAW_REQUEST = _BINARY(162, "To send a raw binary request, the Inference-Header-Content-Length header must be provided with value 0 ...")
RAW_ONE_INPUT = _BINARY(157, "Only has 1 input")

INDEX = _REPOSITORY(56, "The index API returns information about every model available in a model repository, even if it is not currently loaded into Triton.")
INDEX_READY = _REPOSITORY(73, "If true return only models ready for inferencing.")
INDEX_OK = _REPOSITORY(75, "A successful index request is indicated by a 200 HTTP status code.")
INDEX_NAME = _REPOSITORY(92, "\u201cname\u201d : The name of the model.")
INDEX_STATE = _REPOSITORY(94, "\u201cstate\u201d : The state of the model.")
LOAD = _REPOSITORY(112, "The load API requests that a model be loaded into Triton, or reloaded if the model is already loaded.")
LOAD_FAILED = _REPOSITORY(117, "A failed load request must be indicated by an HTTP error status (typically 400).")
UNLOAD = _REPOSITORY(131, "The unload API requests that a model be unloaded from Triton.")
REPOSITORY_RPC = _REPOSITORY(153, "The model-repository extension requires the following API: ...")

GENERATE_ONE = _GENERATE(61, "/generate returns exactly 1 response JSON object with a Content-Type of application/json")
GENERATE_SSE = _GENERATE(63, "/generate_stream may return multiple responses based on the inference results, with a Content-Type of text/event-stream; charset=utf-8.")
GENERATE_DATA = _GENERATE(65, 'These responses will be sent as Server-Sent Events (SSE), where each response will be a "data" chunk in the HTTP response body.')
GENERATE_STREAM_ERROR = _GENERATE(68, "In the case of inference errors, responses will have an error JSON object.")
GENERATE_EARLY_ERROR = _GENERATE(76, "If the request fails before inference begins, then a JSON error will be returned with Content-Type of application/json ...")
GENERATE_EXTRA = _GENERATE(100, "Any additional properties in the request object are passed either as parameters or tensors based on model specification.")
GENERATE_NAME = _GENERATE(153, '"model_name" : The name of the model used for inference.')
GENERATE_OUTPUT = _GENERATE(155, '"text_output" : The output of the inference.')
GENERATE_FAILED = _GENERATE(170, "A failed generate request must be indicated by an HTTP error status (typically 400).")
GENERATE_URL_VERSION = _GENERATE(51, "POST v2/models/${MODEL_NAME}[/versions/${MODEL_VERSION}]/generate")

LOG_OK = _LOGGING(54, "A successful log setting request is indicated by a 200 HTTP status code.")
LOG_INFO = _LOGGING(74, '"log_info" : a $boolean parameter that controls whether the Triton server logs INFO level messages.')
LOG_ERROR = _LOGGING(92, "A failed log setting request will be indicated by an HTTP error status (typically 400).")
LOG_ONLY = _LOGGING(121, "When a $log_setting JSON is received (defined above), only the specified settings will be updated.")
LOG_RPC = _LOGGING(140, "For the logging extension, Triton implements the following API: ...")
TRACE_VALUES = _TRACE(70, "... the \u201cvalue\u201d is a $string representation of the setting value, or an array of $string for some settings.")
TRACE_ERROR = _TRACE(103, "A failed trace setting request will be indicated by an HTTP error status (typically 400).")
TRACE_ONLY = _TRACE(133, "... only the specified settings will be updated.")
TRACE_MODEL = _TRACE(45, "Optional model name can be provided to get or to set the trace settings for specific model.")
TRACE_RPC = _TRACE(143, "For the trace extension Triton implements the following API: ...")

SEQUENCE_ID = _SEQUENCE(46, "All inference requests that belong to the same sequence must use the same sequence ID.")
SEQUENCE_STRING = _SEQUENCE(45, '"sequence_id" : a string or uint64 value that identifies the sequence to which a request belongs.')
SEQUENCE_START = _SEQUENCE(50, '"sequence_start" : boolean value if set to true in a request indicates that the request is the first in a sequence.')
SEQUENCE_NEEDS_ID = _SEQUENCE(52, 'If set the "sequence_id" parameter must be set to a non-zero or non-empty string value.')
STREAM = _SEQUENCE(120, "... the GRPC API adds a streaming version of the inference API to allow a sequence of inference requests to be sent over the same GRPC stream.")
STREAM_ANY = _SEQUENCE(123, "This streaming API is not required to be used for requests that specify a sequence_id and may be used by requests that do not specify a sequence_id.")
STREAM_SAME = _SEQUENCE(125, "The ModelInferRequest is the same as for the ModelInfer API.")
STREAM_ERROR = _SEQUENCE(140, "The message describing the error. The empty message indicates the inference was successful without errors.")
STREAM_RESPONSE = _SEQUENCE(144, "Holds the results of the request.")

CLASSES = _CLASSIFICATION(41, "... but will instead be type BYTES with shape [ batch-size, <count> ] where each element returns the classification index and label as a single string.")
CLASS_ORDER = _CLASSIFICATION(47, "... Triton will determine the top-n classifications as the n highest-valued elements in the output tensor ...")
CLASS_FORMAT = _CLASSIFICATION(55, "The format of the returned string will be \u201c<value>:<index>[:<label>]\u201d ...")
CONFIG_JSON = _CONFIGURATION(64, "The contents of the response will be the JSON representation of the model's configuration ...")
CONFIG_ERROR = _CONFIGURATION(68, "A failed model configuration request must be indicated by an HTTP error status (typically 400).")
STATISTICS_ALL = _STATISTICS(44, "The specific model name portion of the URL is optional; if not provided Triton will return the statistics for all versions of all models.")
STATISTICS_MODEL = _STATISTICS(68, "Each $model_stat object gives the statistics for a specific model and version.")
LAST_INFERENCE = _STATISTICS(89, '"last_inference" : The timestamp of the last inference request made for this model, as milliseconds since the epoch.')
INFERENCE_COUNT = _STATISTICS(93, "Each inference in a batched request is counted as an individual inference.")
EXECUTION_COUNT = _STATISTICS(100, '"execution_count" : The cumulative count of the number of successful inference executions performed for the model.')
FAIL_COUNT = _STATISTICS(140, "\u201cfail\u201d : The count and cumulative duration for all failed inference requests.")
SHM_PARAMETERS = _SHARED_MEMORY(40, "The shared-memory extensions use a common set of parameters to indicate that an input or output tensor is communicated via shared memory.")
SHM_OFFSET = _SHARED_MEMORY(54, "The \u201cshared_memory_offset\u201d parameter is optional and defaults to zero.")
SHM_BOTH = _SHARED_MEMORY(55, "If only one of the two is given Triton will return an error.")
SHM_NO_DATA = _SHARED_MEMORY(71, "If the \u201cdata\u201d field is set Triton will return an error.")
SHM_NO_OUTPUT_DATA = _SHARED_MEMORY(72, "When these parameters are set for a requested output tensor the returned $response_output must not define the \u201cdata\u201d field.")
SHM_REGISTERED = _SHARED_MEMORY(75, "Shared memory regions must be created by the client and then registered with Triton before they can be referenced ...")
SHM_STATUS = _SHARED_MEMORY(102, "If REGION_NAME is not provided in the URL the response includes the status for all registered regions.")
SHM_REGISTER = _SHARED_MEMORY(151, "A successful register request is indicated by a 200 HTTP status code.")
SHM_REGISTER_FAILED = _SHARED_MEMORY(175, "A failed register request must be indicated by an HTTP error status (typically 400).")
SHM_UNREGISTER = _SHARED_MEMORY(192, "If REGION_NAME is provided in the URL the single region is unregistered.")
