"""Buckets: S3 and compatible stores, Google Cloud Storage, and Azure Blob Storage."""

from __future__ import annotations

from typing import Final

from backline.repository.plugin import RepositoryPlugin

PLUGINS: Final = (
    RepositoryPlugin(
        name="object-store",
        summary="buckets of S3 and compatible stores, Google Cloud Storage and Azure Blob Storage",
        target="backline.plugins.repositories.object_store.object_files:object_files",
        labels="backline.plugins.repositories.object_store.label_document:ObjectDocument",
        # "as" is Triton's scheme for Azure Blob Storage.
        schemes=("s3", "gs", "az", "as"),
        aliases={
            "gcs": "gs",
            "s3a": "s3",
            "azure": "az",
            "abfs": "az",
            "abfss": "az",
            "wasb": "az",
            "wasbs": "az",
        },
        extra="cloud",
        page="docs/repositories.md",
    ),
)
