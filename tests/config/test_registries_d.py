"""registries.d: containers-registries.d(5)."""

from __future__ import annotations

import pytest

from imgproxy.config.policy import docker_scopes
from imgproxy.config.registries_d import File, Section, find, merge, parse
from imgproxy.errors import ConfigurationError

TEXT = """
default-docker:
  lookaside: file:///default
docker:
  quay.io:
    sigstore: https://old.example.com
    use-sigstore-attachments: true
  quay.io/acme:
    lookaside: https://new.example.com
    sigstore: https://old.example.com
    lookaside-staging: file:///staging
    sigstore-staging: file:///staging
  quay.io/acme/os:1:
    use-sigstore-attachments: false
  "*.example.com": {}
"""


def read(text: str, path: str = "/r.yaml") -> File:
    return parse(text.encode(), path)


def test_a_file_has_sections_by_scope() -> None:
    assert read(TEXT) == File(
        "/r.yaml",
        {
            "quay.io": Section("https://old.example.com", attachments=True, source="/r.yaml"),
            "quay.io/acme": Section("https://new.example.com", source="/r.yaml"),
            "quay.io/acme/os:1": Section(attachments=False),
            "*.example.com": Section(),
            "": Section("file:///default", source="/r.yaml"),
        },
        (),
    )


@pytest.mark.parametrize("text", ["", "# nothing", "docker:", "default-docker:", "docker: {}"])
def test_a_file_may_say_nothing(text: str) -> None:
    assert read(text).sections == {}


def test_what_is_not_known_is_told_and_passed_over() -> None:
    file = read("docker: {a: {lookaside: x, lookasid: y}}\nmore: 1\n")
    assert file.sections == {"a": Section("x", source="/r.yaml")}
    assert file.warnings == (
        "/r.yaml: more: unknown key",
        "/r.yaml: docker.a.lookasid: unknown key",
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("docker: [", "not YAML: "),
        ("- docker", "the document: expected an object, got an array"),
        ("docker: x", "docker: expected an object"),
        ("docker: {a: x}", "docker.a: expected an object"),
        ("docker: {a: }", "docker.a: missing (expected an object)"),
        ("docker: {a: {lookaside: 5}}", "docker.a.lookaside: expected a string, got 5"),
        ("docker: {a: {sigstore: [x]}}", "docker.a.sigstore: expected a string, got an array"),
        (
            "docker: {a: {use-sigstore-attachments: 1}}",
            "docker.a.use-sigstore-attachments: expected true or false, got 1",
        ),
        ("docker: {a: {}, b: {}, a: {}}", "line 1: the key a occurs twice"),
        ("docker: {a.io: {}, A.IO:443: {}}", "docker.A.IO:443: the same scope as docker.a.io"),
        ("docker: {}\ndocker: {}", "line 1: the key docker occurs twice"),
        ("docker: {5000: {}}", "line 1: a key is not a string"),
        ("docker: {[a]: {}}", "line 1: a key is not a string"),
        ("docker: {a: {lookaside: 2025-99-99}}", "not YAML that can be read"),
        ("docker: {a: {use-sigstore-attachments: !!bool x}}", "not YAML that can be read"),
        ('docker: {a: {lookaside: !!int ""}}', "not YAML that can be read"),
        ("docker: !!python/object/apply:os.getcwd []", "not YAML: "),
        ("[" * 5000, "not YAML"),
        ("\x00", "not YAML: "),
    ],
)
def test_a_file_with_a_mistake_is_an_error(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        read(text)
    assert raised.value.message.startswith(f"/r.yaml: {words}")
    assert raised.value.detail == {"file": "/r.yaml"}


@pytest.mark.parametrize(
    ("one", "other", "what"),
    [
        ("docker: {a: {}}", "docker: {a: {lookaside: x}}", "docker.a"),
        ("docker: {a.io/x: {}}", "docker: {A.io:443/x: {}}", "docker.a.io/x"),
        ("default-docker: {lookaside: x}", "default-docker: {}", "default-docker"),
    ],
)
def test_two_files_must_not_speak_of_the_same(one: str, other: str, what: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        merge([read(one, "/a.yaml"), read(other, "/b.yaml")])
    assert raised.value.message == f"{what} is in both /a.yaml and /b.yaml"


@pytest.mark.parametrize(
    ("registry", "repository", "found"),
    [
        ("quay.io", "acme/os", ("https://new.example.com", False)),
        ("quay.io", "acme/tool", ("https://new.example.com", True)),
        ("quay.io:443", "acme/tool", ("https://new.example.com", True)),
        ("quay.io", "other", ("https://old.example.com", True)),
        ("quay.io:8443", "acme/os", ("file:///default", False)),
        ("r.example.com", "os", ("file:///default", False)),
    ],
)
def test_each_setting_is_that_of_the_closest_scope_that_has_it(
    registry: str, repository: str, found: tuple[str, bool]
) -> None:
    sections = merge([read(TEXT)])
    section = find(sections, docker_scopes(registry, repository, ":1"), "file:///none")
    assert section == Section(*found, "/r.yaml")


@pytest.mark.parametrize("scope", ["Quay.IO", "quay.io:443/acme", "*.IO", "QUAY.io/acme/os:1"])
def test_a_scope_applies_in_any_spelling(scope: str) -> None:
    sections = merge([read(f"docker: {{'{scope}': {{lookaside: 'file:///x'}}}}")])
    section = find(sections, docker_scopes("quay.io", "acme/os", ":1"), "file:///none")
    assert section.lookaside == "file:///x"


def test_where_nothing_is_said_there_is_a_place_all_the_same() -> None:
    assert find({}, ["a"], "file:///d") == Section("file:///d", attachments=False)
    assert find(merge([read("docker: {a: {}}")]), ["a"], "file:///d").lookaside == "file:///d"
