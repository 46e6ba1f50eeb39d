"""Frames between server and workers survive any split by the socket."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backline.workers.channel.protocol import FrameSplitter, Kind, NumberList, frame

frames = st.lists(
    st.tuples(st.lists(st.integers(0, 2**63 - 1), max_size=20), st.binary(max_size=50)), max_size=8
)


@given(frames, st.data())
def test_frames_survive_any_split_of_their_bytes(
    sent: list[tuple[list[int], bytes]], data: st.DataObject
) -> None:
    stream = b"".join(
        frame(Kind.CANCEL, NumberList(numbers), [payload] if payload else ()) for numbers, payload in sent
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    reader = FrameSplitter()

    heard = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        heard += [(message.numbers, bytes(payload)) for _, message, payload in reader.feed(stream[start:end])]

    assert heard == sent
