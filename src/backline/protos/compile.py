"""`python -m backline.protos.compile` compiles the .proto files into descriptors.binpb, using
grpcio-tools.
"""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent
SOURCES = (
    "model_config.proto",
    "inference.proto",
    "health.proto",
    "reflection.proto",
    "prediction_log.proto",
    "model_server_config.proto",
    "external_scaler.proto",
)


def compile_descriptors(output: Path) -> None:
    """Writes the FileDescriptorSet of all sources to `output`. Raises RuntimeError if one is invalid."""
    from grpc_tools import protoc

    root = HERE.parent.parent
    arguments = [
        f"-I{root}",
        f"--descriptor_set_out={output}",
        *(f"backline/protos/{name}" for name in SOURCES),
    ]
    if protoc.main(["protoc", *arguments]) != 0:
        raise RuntimeError(f"the protobuf compiler rejected a file in {HERE}")


if __name__ == "__main__":
    compile_descriptors(HERE / "descriptors.binpb")
