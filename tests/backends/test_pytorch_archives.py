"""Damaged archives of PyTorch are refused with a reason, before PyTorch opens them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from backline.plugins.runtimes.pytorch.files import check_source
from backline_client.values.errors import InvalidArgument


def test_a_member_whose_name_is_not_utf_8_is_refused_with_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("é/code/__torch__.py", "")
    content = path.read_bytes()
    path.write_bytes(content.replace("é".encode(), b"\x87\x87", 1))  # in the member's own header only

    with pytest.raises(InvalidArgument, match=r"is a broken archive .*utf-8"):
        check_source(path)
