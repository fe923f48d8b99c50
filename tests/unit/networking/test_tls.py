"""Mutual TLS between nodes: who gets in, and certificates replaced while the node runs."""

from __future__ import annotations

import os
import shutil
import ssl
from pathlib import Path

import pytest
from ring_nodes import RecordingHandler, make_handle, make_server

from exo.lifecycle import ResourceInitializationError
from exo.networking.errors import PeerRefused
from exo.networking.grpc.tls import TlsFiles
from exo.networking.messages import Close

HERE = Path(__file__).parent / "certificates"


def files(name: str, authority: str = "ours", **options) -> TlsFiles:
    return TlsFiles(
        certificate=HERE / f"{name}.pem",
        key=HERE / f"{name}.key",
        authority=HERE / f"{authority}.pem",
        **options,
    )


@pytest.mark.parametrize("name", ["ours", "theirs", "a", "b", "stranger"])
def test_the_tests_own_certificates_are_valid_on_a_machine_whose_clock_is_years_behind(name: str):
    certificate = ssl.PEM_cert_to_DER_cert((HERE / f"{name}.pem").read_text())
    assert b"200101000000Z" in certificate  # not before 2020


async def refused(handle) -> BaseException:
    with pytest.raises(ResourceInitializationError) as caught:
        await handle.initialize()
    await handle.cleanup()
    assert caught.value.__cause__ is not None
    return caught.value.__cause__


async def test_two_nodes_of_one_authority_talk():
    a, b = RecordingHandler("a"), RecordingHandler("b")
    async with (
        make_server(b, tls=files("b")) as server,
        make_handle(a, server.port, tls=files("a")) as handle,
    ):
        await handle.send(Close(sequence_id="s", epoch="e"))
        await b.until(lambda: b.messages)
        assert await server.check_health()


async def test_a_certificate_of_another_authority_is_refused_by_both_sides():
    a, b = RecordingHandler("a"), RecordingHandler("b")
    async with make_server(b, tls=files("b")) as server:
        await refused(make_handle(a, server.port, tls=files("stranger", "ours")))
        await refused(make_handle(a, server.port, tls=files("a", "theirs")))
    assert b.offers == {}


async def test_plaintext_does_not_reach_a_server_with_tls():
    a, b = RecordingHandler("a"), RecordingHandler("b")
    async with make_server(b, tls=files("b")) as server:
        await refused(make_handle(a, server.port))
    assert b.offers == {}


async def test_where_identity_is_checked_a_certificate_serves_its_own_node_only():
    b = RecordingHandler("b")
    async with make_server(b, tls=files("b", check_identity=True)) as server:
        async with make_handle(RecordingHandler("a"), server.port, tls=files("a")):
            assert server.sessions.ids() == ["a"]
        error = await refused(make_handle(RecordingHandler("c"), server.port, tls=files("a")))
        assert isinstance(error, PeerRefused)
        assert "its certificate names ['a', 'exo-node'], not 'c'" in error.reason


async def test_where_identity_is_checked_the_server_must_be_who_it_says_too():
    handler = RecordingHandler("c")
    async with make_server(handler, tls=files("b")) as server:
        tls = files("a", check_identity=True)
        for node_id in (None, "c"):
            error = await refused(
                make_handle(RecordingHandler("a"), server.port, node_id=node_id, tls=tls)
            )
            assert "Hostname Verification Check failed" in str(error)
    async with make_server(RecordingHandler("b"), tls=files("b", check_identity=True)) as server:
        for node_id in (None, "b"):
            async with make_handle(
                RecordingHandler("a"), server.port, node_id=node_id, tls=tls
            ) as handle:
                assert handle.id() == "b"


def install(folder: Path, name: str, authority: str) -> None:
    for source, target in (
        (f"{name}.pem", "tls.crt"),
        (f"{name}.key", "tls.key"),
        (f"{authority}.pem", "ca.crt"),
    ):
        fresh = folder / f"{target}.new"
        shutil.copyfile(HERE / source, fresh)
        os.replace(fresh, folder / target)


async def test_new_certificates_count_without_a_restart(tmp_path):
    install(tmp_path, "b", "ours")
    mounted = TlsFiles(
        certificate=tmp_path / "tls.crt", key=tmp_path / "tls.key", authority=tmp_path / "ca.crt"
    )
    a, b = RecordingHandler("a"), RecordingHandler("b")
    async with make_server(b, tls=mounted) as server:
        old = make_handle(a, server.port, tls=files("a"))
        new = make_handle(a, server.port, tls=files("stranger", "theirs"))
        await old.initialize()
        install(tmp_path, "stranger", "theirs")
        assert old.is_connected()  # a connection outlives the change
        await old.cleanup()
        await new.initialize()
        await new.cleanup()
        await refused(make_handle(a, server.port, tls=files("a")))
        (tmp_path / "tls.crt").write_text("half wri")  # unusable files change nothing
        again = make_handle(a, server.port, tls=files("stranger", "theirs"))
        await again.initialize()
        await again.cleanup()


@pytest.mark.parametrize(
    ("content", "message"), [(None, "tls.key"), ("nonsense", "tls.key: not a PEM file")]
)
async def test_missing_or_broken_files_fail_the_start_by_name(tmp_path, content, message):
    install(tmp_path, "b", "ours")
    key = tmp_path / "tls.key"
    key.unlink()
    if content:
        key.write_text(content)
    mounted = TlsFiles(certificate=tmp_path / "tls.crt", key=key, authority=tmp_path / "ca.crt")
    server = make_server(RecordingHandler("b"), tls=mounted)
    with pytest.raises(ResourceInitializationError) as caught:
        await server.initialize()
    assert message in str(caught.value.__cause__)
    await server.cleanup()
