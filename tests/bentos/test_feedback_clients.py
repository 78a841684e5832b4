"""Who sent feedback: tokens by name, others by what names nobody."""

import asyncio
import json
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from bentos.captioner.capture import read_feedback
from bentos.captioner.clients import name_of
from bentos.captioner.tokens import NamedToken
from tests.bentos.serving import served

LOOPBACK = ("127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1")


@given(st.ip_addresses(), st.ip_addresses())
def test_a_client_without_a_token_is_four_digits_that_are_always_the_same(one, other) -> None:
    name = name_of(None, str(one))
    if one.is_loopback:
        assert name is None
        return
    assert name == name_of(None, str(one))
    assert len(name.removeprefix("address:")) == 4
    assert str(one) not in name
    if isinstance(one, IPv6Address) and isinstance(other, IPv6Address):
        sibling = IPv6Address(int(one) >> 64 << 64 | int(other) % 2**64)
        if not sibling.is_loopback and sibling.ipv4_mapped is one.ipv4_mapped is None:
            assert name_of(None, str(sibling)) == name


@given(st.ip_addresses(v=4))
def test_an_address_of_version_4_is_the_same_client_on_a_socket_of_version_6(address) -> None:
    assert name_of(None, f"::ffff:{address}") == name_of(None, str(address))


def test_digits_are_shared_by_thousands_of_addresses_and_tell_a_services_clients_apart() -> None:
    names = [name_of(None, str(IPv4Address(7919 * number))) for number in range(200_000)]
    assert len(set(names)) > 60_000  # of 65,536: each stands for 1/65,536 of all addresses
    assert len(set(names[:100])) >= 98


@pytest.mark.parametrize("host", [None, "", "testclient", *LOOPBACK])
def test_what_is_no_address_of_another_machine_has_no_name(host) -> None:
    assert name_of(None, host) is None


@pytest.mark.parametrize("host", ["10.0.0.7", None])
def test_a_token_is_known_by_its_name_wherever_it_comes_from(host) -> None:
    token = NamedToken(name="app", token=SecretStr("sesame"))
    assert name_of(token, host) == "token:app"


def test_the_service_keeps_with_feedback_who_sent_it(model, png, tmp_path) -> None:
    async def correct(host: str, **options: object) -> None:
        async with served(model, host=host, captures=tmp_path, **options) as service:
            service.client.headers["Authorization"] = "Bearer sesame"
            body = (await service.caption(png(1))).json()
            sent = {"request_id": body["request_id"], "caption": "a red circle"}
            assert (await service.client.post("/feedback", json=sent)).status_code == 201

    tokens = json.dumps([{"name": "app", "token": "sesame"}])
    for host, options in (
        ("203.0.113.9", {}),
        ("203.0.113.9", {"tokens_json": tokens}),
        ("127.0.0.1", {}),
    ):
        asyncio.run(correct(host, **options))
    clients = [one.client for labelled in read_feedback(tmp_path) for one in labelled.feedback]
    assert clients == [name_of(None, "203.0.113.9"), "token:app", None]
