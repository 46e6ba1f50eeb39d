"""Reads the YAML files of models (MLflow's MLmodel, TorchServe's model-config.yaml), with limits on size."""

from __future__ import annotations

from typing import Any, Final

from backline.backends.runtime import import_runtime, one_line
from backline.engine.document_limits import MAX_NESTING, check_size
from backline_client.values.errors import InvalidArgument

#: The maximum number of values in a document. Aliases count as if expanded, because nested aliases multiply.
_MAX_VALUES: Final = 50_000
#: The maximum length of a number in characters, because PyYAML parses base-60 numbers in quadratic time.
_MAX_NUMBER: Final = 100
_NUMBERS: Final = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def read_yaml(content: bytes, source: str, *, what: str, extra: str) -> Any:
    """Returns the value of a YAML document, as yaml.safe_load does. Errors refer to the document as `source`.

    `what` and `extra` are used in the error if PyYAML is missing: see import_runtime. Raises InvalidArgument
    for malformed YAML, and for too many bytes, levels or values (with aliases expanded).
    """
    yaml = import_runtime("yaml", what=what, extra=extra)
    check_size(content, source)
    try:
        loader = yaml.SafeLoader(content)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _Measure(yaml, source).of(node, 0)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise InvalidArgument(f"{source}: the document is nested too deeply") from None
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise InvalidArgument(f"{source} cannot be read: {one_line(error)}") from None


class _Measure:
    """A counter of a document's values, which runs before the values are constructed."""

    def __init__(self, yaml: Any, source: str) -> None:
        self._yaml = yaml
        self._source = source
        #: The number of values in each node, by the node's id; None while the node is being counted.
        self._sizes: dict[int, int | None] = {}

    def of(self, node: Any, depth: int) -> int:
        if depth > MAX_NESTING:
            raise InvalidArgument(
                f"{self._source}: the document is nested too deeply; at most {MAX_NESTING} levels are read"
            )
        if isinstance(node, self._yaml.ScalarNode):
            if node.tag in _NUMBERS and len(node.value) > _MAX_NUMBER:
                raise InvalidArgument(
                    f"{self._source}: the document has a number of more than {_MAX_NUMBER} characters"
                )
            return 1
        key = id(node)
        if key in self._sizes:
            size = self._sizes[key]
            if size is None:
                raise InvalidArgument(f"{self._source}: the document has an alias that contains itself")
            return size
        self._sizes[key] = None
        mapping = isinstance(node, self._yaml.MappingNode)
        children = (child for pair in node.value for child in pair) if mapping else iter(node.value)
        size = 1
        for child in children:
            size += self.of(child, depth + 1)
            if size > _MAX_VALUES:
                raise InvalidArgument(
                    f"{self._source}: the document has more than {_MAX_VALUES:,} values, with each alias"
                    " counted as a copy of what it refers to"
                )
        self._sizes[key] = size
        return size
