"""The document that stores labels, as an object in a bucket."""

from __future__ import annotations

from backline.lifecycle.labels.document import MOST_BYTES, Edition, Replaced
from backline.plugins.repositories.object_store.object_files import ObjectFiles, ObjectReplaced


class ObjectDocument:
    """The LabelDocument in the object `name` under a prefix, which is given as a URL such as
    s3://bucket/models. The object's ETag is the revision.
    """

    def __init__(self, location: str, name: str) -> None:
        """Raises InvalidArgument for an invalid URL."""
        self._files = ObjectFiles(location, "label store")
        self._name = name
        self._where = f"'{location.rstrip('/')}/{name}'"

    @property
    def where(self) -> str:
        return self._where

    def read(self) -> Edition:
        found = self._files.read(self._name, MOST_BYTES)
        return Edition(None, "") if found is None else Edition(*found)

    def replace(self, data: bytes, revision: str) -> str:
        try:
            return self._files.replace(self._name, data, revision)
        except ObjectReplaced:
            raise Replaced from None
