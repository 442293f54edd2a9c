"""What is put together for registries, and what several images share of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.images import digest_of
from support.registries import (
    BASE,
    BLOB,
    BUSY,
    CHALLENGE,
    FOUND,
    FOUND_BLOB,
    GONE,
    LAYER,
    REALM,
    SCOPE,
    TOKENS,
    WHERE,
    ScriptedNetwork,
    described,
    network,
    read,
    token,
    unauthorized,
)
from support.streams import Notes, Script, answer, asked, real_time, refused, virtual_time

from imgproxy.config.registries_d import Section
from imgproxy.errors import ConfigurationError, DeniedError, Failure, InvalidError
from imgproxy.host.configuration import Configuration, Overrides
from imgproxy.specs.http import url as urls
from imgproxy.specs.http.credentials import Credentials
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci.reference import Reference, parse_reference
from imgproxy.transports.registry.failover import REJECTION_TIME
from imgproxy.transports.registry.network import Network
from imgproxy.transports.registry.options import NetworkOptions

if TYPE_CHECKING:
    from imgproxy.transports.registry.registry_image import RegistryImage

pytestmark = pytest.mark.usefixtures("nothing_configured")

MIRRORED = """
[[registry]]
prefix = "registry.test"
location = "real.test/up"
insecure = true
[[registry.mirror]]
location = "mirror.test/down"
[[registry.mirror]]
location = "real.test/cache"
"""
NAME = parse_reference("registry.test/os:1")
OWN = parse_reference("registry.test/acme/os:1")
DIGEST = digests.parse("sha256:" + "a" * 64)


def locations(registries: str = MIRRORED, **options: Any) -> list[Any]:  # noqa: ANN401  (see NetworkOptions)
    image = ScriptedNetwork(Script(), registries, **options).repository(NAME)
    assert image.name == "docker://registry.test/os:1"
    return image.failover.locations


def at(base: str, *steps: Any, tag: str = "1", **fields: Any) -> Any:  # noqa: ANN401  (see asked)
    return asked(f"https://{base}/manifests/{tag}", *steps, **fields)


# --- what options and configuration say ---------------------------------------------------------


def test_the_configuration_says_where_an_image_is() -> None:
    assert [(each.name, each._host.insecure) for each in locations()] == [
        ("mirror.test/down/os", False),
        ("real.test/cache/os", False),
        ("real.test/up/os", True),
    ]


@pytest.mark.parametrize("verify", [True, False])
def test_an_option_about_tls_is_for_every_endpoint(verify: bool) -> None:  # noqa: FBT001  (a parameter)
    assert [each._host.insecure for each in locations(tls_verify=verify)] == [not verify] * 3


def test_without_mirrors_the_primary_location_is_all() -> None:
    assert [each.name for each in locations(mirrors=False)] == ["real.test/up/os"]


@virtual_time
async def test_a_given_token_is_for_the_registry_that_the_name_leads_to() -> None:
    exchanges = [
        at("mirror.test/v2/down/os", GONE, authorization=None),
        at("real.test/v2/cache/os", GONE, authorization="Bearer t"),
        at("real.test/v2/up/os", FOUND, authorization="Bearer t"),
    ]
    async with network(*exchanges, registries=MIRRORED, registry_token="t") as (opened, _):
        await opened.repository(NAME).root()


@virtual_time
async def test_given_credentials_are_for_the_registry_that_the_name_leads_to() -> None:
    given = Credentials("u", "p", "", "--creds")
    challenge = unauthorized("Basic realm=x")
    exchanges = [
        at("mirror.test/v2/down/os", challenge, authorization=None),
        at("real.test/v2/cache/os", challenge, authorization=None),
        at("real.test/v2/cache/os", GONE, authorization=given.basic),
        at("real.test/v2/up/os", challenge, authorization=None),
        at("real.test/v2/up/os", FOUND, authorization=given.basic),
    ]
    async with network(*exchanges, registries=MIRRORED, credentials=given) as (opened, _):
        await opened.repository(NAME).root()


@pytest.mark.parametrize(("insecure", "user"), [("false", "u"), ("true", None)])
@real_time
async def test_credentials_of_another_port_are_not_for_a_place_without_tls(
    insecure: str, user: str | None
) -> None:
    table = f'[[registry]]\nlocation = "a.test:443"\ninsecure = {insecure}'
    auth = b'{"auths": {"a.test": {"auth": "dTpw"}}}'
    chosen = Overrides(registries=(table.encode(), "r.conf"), auth=(auth, "auth.json"))
    opened = Network(NetworkOptions(), Configuration(chosen, Notes()), Notes())
    (location,) = opened.repository(parse_reference("a.test:443/os:1")).failover.locations
    found = await location._authorization._find_credentials()  # type: ignore[union-attr]
    assert (found and found.username) == user


@virtual_time
async def test_the_retries_are_those_of_the_option() -> None:
    async with network(*[asked(WHERE, BUSY)] * 3, retries=2) as (opened, _):
        with pytest.raises(Failure):
            await opened.repository(OWN).root()


def test_what_is_blocked_is_denied_before_anything_is_asked() -> None:
    with pytest.raises(DeniedError, match=r"blocked by .* of registries\.conf"):
        locations('[[registry]]\nlocation = "registry.test"\nblocked = true\n')


@virtual_time
async def test_a_blocked_primary_location_is_named_and_not_asked() -> None:
    registries = (
        '[[registry]]\nlocation = "registry.test"\nblocked = true\n'
        '[[registry.mirror]]\nlocation = "mirror.test"\n'
    )
    async with network(at("mirror.test/v2/os", GONE), registries=registries) as (opened, script):
        with pytest.raises(Failure, match=r"\[registry.test/os\] .* is blocked by") as raised:
            await opened.repository(NAME).root()
        assert refused(raised.value) == (404, "MANIFEST_UNKNOWN", False)
        assert script.dialled == ["https://mirror.test"]


def test_a_broken_configuration_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match=r"registries\.conf"):
        locations("= 1")


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "all_proxy"])
@real_time
async def test_proxies_are_those_of_the_environment(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "socks4://proxy.test")
    opened = Network(NetworkOptions(), Configuration(Overrides(), Notes()), Notes())
    with pytest.raises(ConfigurationError, match=f"{variable} names a SOCKS proxy"):
        await opened.repository(NAME).root()


# --- what images share --------------------------------------------------------------------------


@virtual_time
async def test_images_of_one_repository_share_a_connection_and_a_token() -> None:
    exchanges = [
        asked(WHERE, unauthorized(CHALLENGE), authorization=None),
        asked(TOKENS, token("t1")),
        asked(WHERE, FOUND, authorization="Bearer t1"),
        asked(f"{BASE}/manifests/2", FOUND, authorization="Bearer t1"),
        asked(f"{BASE}/manifests/1", FOUND, authorization="Bearer t1"),
    ]
    async with network(*exchanges) as (opened, script):
        for tag in ("1", "2", "1"):
            await opened.repository(OWN._replace(tag=tag)).root()
        assert script.dialled == ["https://registry.test", "https://tokens.test"]


@virtual_time
async def test_repositories_of_one_registry_share_a_connection_and_no_token() -> None:
    other = f"{REALM}?service=registry.test&{SCOPE.replace('Fos', 'Fdb')}"
    exchanges = [
        asked(WHERE, unauthorized(CHALLENGE)),
        asked(TOKENS, token("t1")),
        asked(WHERE, FOUND, authorization="Bearer t1"),
        at("registry.test/v2/acme/db", unauthorized(CHALLENGE), authorization=None),
        asked(other, token("t2")),
        at("registry.test/v2/acme/db", FOUND, authorization="Bearer t2"),
    ]
    async with network(*exchanges) as (opened, script):
        await opened.repository(OWN).root()
        await opened.repository(OWN._replace(repository="acme/db")).root()
        assert len(script.dialled) == 2
        assert opened.servers == [("registry.test", "registry.test", False)]


@virtual_time
async def test_a_mirror_shares_no_given_token_with_the_image_of_its_own_name() -> None:
    """The token is for the registry that the name of an image leads to."""
    registries = (
        '[[registry]]\nlocation = "other.test"\n'
        '[[registry.mirror]]\nlocation = "registry.test/acme"\n'
    )
    exchanges = [
        asked(WHERE, FOUND, authorization="Bearer given"),
        asked(WHERE, FOUND, authorization=None),
    ]
    async with network(*exchanges, registries=registries, registry_token="given") as (opened, _):
        await opened.repository(OWN).root()
        await opened.repository(parse_reference("other.test/os:1")).root()


def test_a_registry_has_a_client_for_each_way_to_verify_it() -> None:
    registries = (
        '[[registry]]\nlocation = "registry.test/a"\ninsecure = true\n'
        '[[registry]]\nlocation = "registry.test/b"\n'
    )
    opened = ScriptedNetwork(Script(), registries)
    for repository in ("a/x", "a/y", "b/x", "c"):
        opened.repository(Reference("registry.test", repository, "1", None))
    assert opened.servers == [
        ("registry.test", "registry.test", True),
        ("registry.test", "registry.test", False),
    ]


@virtual_time
async def test_a_busy_location_is_asked_last_for_the_next_image_too() -> None:
    registries = (
        '[[registry]]\nlocation = "registry.test"\n[[registry.mirror]]\nlocation = "mirror.test"\n'
    )
    exchanges = [
        at("mirror.test/v2/acme/os", BUSY),
        asked(WHERE, FOUND),
        asked(f"{BASE}/manifests/2", FOUND),
    ]
    async with network(*exchanges, registries=registries) as (opened, _):
        await opened.repository(OWN).root()
        await opened.repository(OWN._replace(tag="2")).root()


@virtual_time
async def test_a_blob_that_was_wrong_is_not_asked_for_by_the_next_image() -> None:
    other = BLOB.replace("/acme/os/", "/acme/other/")
    again = [asked(url, FOUND_BLOB) for url in (BLOB, other, BLOB)]
    async with network(*again) as (made, _):

        async def fetch(name: str = "os") -> None:
            image = made.repository(parse_reference(f"registry.test/acme/{name}:1"))
            reader = await image.blob(described(LAYER))
            assert await read(reader) == LAYER
            assert not reader.reject(InvalidError("its bytes are wrong"))
            image.close()

        await fetch()
        with pytest.raises(InvalidError, match="its bytes are wrong"):
            await fetch()
        await fetch("other")
        await trio.sleep(REJECTION_TIME)
        await fetch()
        made.forget()
        assert not made._wrong_blobs


@virtual_time
async def test_a_manifest_that_was_wrong_is_asked_for_by_the_next_image() -> None:
    """A registry may have sent something else for a moment, a page that asks for a login say."""
    async with network(asked(WHERE, FOUND), asked(WHERE, FOUND)) as (made, _):
        for _ in range(2):
            image = made.repository(OWN)
            found = await image.root()
            assert not found.reject(InvalidError("not JSON"))
            image.close()


@virtual_time
async def test_connections_are_closed_with_the_network() -> None:
    async with network(asked(WHERE, FOUND)) as (opened, script):
        await opened.repository(OWN).root()
        (connection,) = script.streams
        assert not connection.closed
        opened.close()
        assert connection.closed
        opened.close()


@virtual_time
async def test_connections_are_closed_with_the_last_image_that_uses_the_registry() -> None:
    exchanges = [
        asked(WHERE, unauthorized(CHALLENGE)),
        asked(TOKENS, token("t1")),
        asked(WHERE, FOUND, authorization="Bearer t1"),
        asked(WHERE, FOUND, authorization="Bearer t1"),
    ]
    async with network(*exchanges) as (opened, script):
        one, two = opened.repository(OWN), opened.repository(OWN._replace(tag="2"))
        await one.root()
        one.close()
        one.close()
        assert not [each for each in script.streams if each.closed]
        two.close()
        assert [each.closed for each in script.streams] == [True, True]
        await opened.repository(OWN).root()  # by the token, which is kept
        assert script.dialled.count("https://registry.test") == 2


@virtual_time
async def test_a_registry_that_may_have_changed_is_probed_again() -> None:
    registries = '[[registry]]\nlocation = "registry.test"\ninsecure = true\n'
    plain = WHERE.replace("https:", "http:")
    exchanges = [asked(plain, FOUND), asked(plain, FOUND), asked(WHERE, FOUND)]
    unreachable: dict[str, float | Exception] = {"https:": ConnectionResetError(104, "reset")}
    async with network(*exchanges, registries=registries, unreachable=unreachable) as (
        opened,
        script,
    ):
        image = opened.repository(OWN)
        for _ in range(2):
            await image.root()
        image.close()
        script.unreachable.clear()
        await opened.repository(OWN).root()
        assert script.dialled == [
            "https://registry.test",
            "http://registry.test",
            "https://registry.test",
        ]


# --- URLs ---------------------------------------------------------------------------------------


@virtual_time
async def test_plain_urls_share_connections_whatever_they_are_for() -> None:
    contents = [bytes([n]) * 9 for n in range(3)]
    exchanges = [asked(f"https://cdn.test/{n}", answer(body=contents[n])) for n in range(3)]
    async with network(*exchanges) as (opened, script):
        for n, content in enumerate(contents):
            location = urls.parse(f"https://cdn.test/{n}")
            failover = opened.urls(f"layer {n}", [location])
            digest = digests.parse(digest_of(content))
            part = await failover.ask(n, lambda each, digest=digest: each.blob(digest))
            assert await read(part.response) == content
        assert script.dialled == ["https://cdn.test"]
        assert opened.servers == [("", "", False)]


# --- lookasides ---------------------------------------------------------------------------------

WEB = Section("https://lookaside.test/sigs", source="/r.yaml")
TAIL = f"https://lookaside.test/sigs/%s@sha256={'a' * 64}/signature-1"
MIRRORS = """
[[registry]]
location = "registry.test"
[[registry.mirror]]
location = "mirror.test/cache"
"""


def image_with_lookaside(opened: Network, monkeypatch: pytest.MonkeyPatch) -> RegistryImage:
    monkeypatch.setattr(opened.configuration, "signatures", lambda _: WEB)
    return opened.repository(OWN)


@virtual_time
async def test_a_lookaside_that_is_busy_does_not_put_the_mirror_behind_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exchanges = [
        asked("https://mirror.test/v2/", answer()),
        asked(TAIL % "cache/acme/os", BUSY),
        at("mirror.test/v2/cache/acme/os", FOUND),
    ]
    async with network(*exchanges, registries=MIRRORS) as (opened, _):
        image = image_with_lookaside(opened, monkeypatch)
        with pytest.raises(Failure) as raised:
            await image.signatures(DIGEST)[0].read()
        assert refused(raised.value) == (503, "UNAVAILABLE", True)
        await image.root()


@virtual_time
async def test_images_share_the_connection_to_their_lookaside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exchanges = [
        asked("https://registry.test/v2/", answer()),
        asked(TAIL % "acme/os", GONE),
    ] * 2
    async with network(*exchanges) as (opened, script):
        images = [image_with_lookaside(opened, monkeypatch) for _ in range(2)]
        for image in images:
            assert [await each.read() for each in image.signatures(DIGEST)] == [[], []]
        assert script.dialled == ["https://registry.test", "https://lookaside.test"]
        assert opened.servers[1] == ("lookaside.test", "lookaside.test", False)
        for image in images:
            assert not [each for each in script.streams if each.closed]
            image.close()
        assert [each.closed for each in script.streams] == [True, True]


@virtual_time
async def test_offline_no_lookaside_on_a_web_server_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with network(offline=True) as (opened, _):
        (place,) = image_with_lookaside(opened, monkeypatch).signatures(DIGEST)
        with pytest.raises(DeniedError, match="--offline forbids asking there"):
            await place.read()


# --- preconnections -----------------------------------------------------------------------------


class Preconnected:
    """Stands for a preconnection to an origin."""

    def __init__(self, url: str) -> None:
        self.url = urls.parse(url)
        self.contexts: dict[object, object] = {}
        self.closed = False

    def close(self) -> None:
        self.closed = True


class Adopting:
    """Stands for a client, and keeps what it adopts."""

    def __init__(self) -> None:
        self.adopted: list[Preconnected] = []

    def adopt(self, preconnection: Preconnected) -> None:
        self.adopted.append(preconnection)

    def close(self) -> None:
        for each in self.adopted:
            each.close()


@pytest.mark.parametrize(
    ("url", "is_adopted"),
    [
        ("https://registry-1.docker.io/v2/x", True),
        ("https://docker.io/v2/x", False),
        ("https://registry-1.docker.io:444/", False),
        ("http://registry-1.docker.io/", False),
    ],
)
def test_a_preconnection_is_for_the_client_of_its_origin(
    url: str,
    is_adopted: bool,  # noqa: FBT001  (a parameter)
) -> None:
    preconnection, clients = Preconnected(url), list[Adopting]()

    class Opened(Network):
        def _new_client(self, *_: object, **__: object) -> Any:  # noqa: ANN401
            clients.append(Adopting())
            return clients[-1]

    configuration = Configuration(Overrides(), Notes())
    opened = Opened(NetworkOptions(), configuration, Notes(), preconnection)  # type: ignore[arg-type]
    for name in ("busybox", "quay.io/x", "alpine"):
        opened.repository(parse_reference(name))
    assert [each.adopted for each in clients] == [[preconnection] * is_adopted, []]
    assert not preconnection.closed
    opened.close()
    assert preconnection.closed
