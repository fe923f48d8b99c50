"""The committed protobuf code is what exo.proto gives."""

from __future__ import annotations

from exo.networking.grpc.wire.generate import stale


def test_the_generated_files_are_fresh():
    assert stale() == []
