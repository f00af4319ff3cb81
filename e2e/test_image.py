"""The images, and how the one container is run: small, without a compiler, without secrets, without rights."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Iterator

import docker
import pytest

from e2e.harness.stack import ROOT, Stack

TAG = os.environ.get("WHALEFALL_TAG", "latest")
LARGEST_MB = {"allinone": 250, "app": 235, "nginx": 90, "postgres": 165, "prometheus": 290, "valkey": 95}
IMAGES = tuple(f"whalefall/{name}:{TAG}" for name in LARGEST_MB)
COMPILERS = ("gcc", "cc", "g++", "clang", "tcc", "make", "ld", "as", "pip", "pip3", "cargo")
#: What a key or a password looks like in a layer or in a command of the history.
SECRET_SHAPES = (
    rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    rb"(?i)(?:password|secret_key|api_token|authorization)[ \t]*[=:][ \t]*['\"]?[A-Za-z0-9+/_-]{16,}",
    rb"https?://[^/\s:@'\"]+:[^/\s:@'\"]+@[A-Za-z0-9]",
)
#: Files that a build or an installation leaves behind, and those that hold this host's addresses or secrets.
LEFT_BEHIND = re.compile(
    r"^(\.secrets/|run/secrets/.|root/\.(cache|config|pip)/.|var/cache/apt/.*\.(deb|bin)$|var/lib/apt/lists/.+_"
    r"|app/(\.env|env\.example|userdata/.|e2e/|tests/|\.git)|etc/pip\.conf$|.*/pip/__init__\.py$|tmp/.)"
)


@pytest.fixture(scope="module", params=IMAGES)
def layers(request: pytest.FixtureRequest) -> Iterator[tarfile.TarFile]:
    """An image as `docker save` writes it."""
    chunks = docker.from_env().images.get(request.param).save()
    saved = io.BytesIO(b"".join(chunks))
    with tarfile.open(fileobj=saved) as archive:
        yield archive


def layer_archives(saved: tarfile.TarFile) -> Iterator[tarfile.TarFile]:
    manifest = saved.extractfile("manifest.json")
    assert manifest is not None
    for name in json.load(manifest)[0]["Layers"]:
        content = saved.extractfile(name)
        assert content is not None
        with tarfile.open(fileobj=content) as layer:
            yield layer


def host_addresses() -> set[bytes]:
    """Hosts that this machine's apt or pip is set to use: an image must not tell where it was built."""
    found: set[bytes] = set()
    for file in (ROOT / ".build").glob("*"):
        if file.name in ("apt.sources", "pip.conf", "apt.conf"):
            found |= set(re.findall(rb"://(?:[^/\s@]*@)?([^/\s:]+)", file.read_bytes()))
    return found


@pytest.mark.parametrize("name", LARGEST_MB)
def test_size(name: str) -> None:
    size_mb = docker.from_env().images.get(f"whalefall/{name}:{TAG}").attrs["Size"] / 1e6
    assert size_mb <= LARGEST_MB[name]


def test_the_app_alone_is_no_larger_than_everything() -> None:
    images = docker.from_env().images
    alone, everything = (images.get(f"whalefall/{name}:{TAG}").attrs["Size"] for name in ("app", "allinone"))
    assert alone <= everything


@pytest.mark.parametrize("image", IMAGES)
def test_no_compiler_and_no_installer(image: str) -> None:
    command = ["-c", f"for name in {' '.join(COMPILERS)}; do command -v $name; done; true"]
    assert docker.from_env().containers.run(image, command, entrypoint="sh", remove=True) == b""


@pytest.mark.parametrize("image", IMAGES)
def test_runs_as_a_fixed_user_unless_told_otherwise(image: str) -> None:
    assert docker.from_env().images.get(image).attrs["Config"]["User"] in ("10001:10001", "999:999")


def test_nothing_is_left_behind_in_a_layer(layers: tarfile.TarFile) -> None:
    found = [
        member.name
        for layer in layer_archives(layers)
        for member in layer
        if member.isfile() and LEFT_BEHIND.match(member.name)
    ]
    assert found == []


def test_no_secret_in_a_layer(layers: tarfile.TarFile) -> None:
    found = []
    hosts = host_addresses()
    for layer in layer_archives(layers):
        for member in layer:
            # What Debian's and Python's packages bring is public; what we or the build add is not.
            ours = re.match(r"(app/(?!venv/)|etc/|run/|usr/local/|root/|home/|var/(?!lib/dpkg/))", member.name)
            if not (ours and member.isfile()):
                continue
            file = layer.extractfile(member)
            assert file is not None
            content = file.read()
            if member.name.endswith((".pyc", ".mo")):
                continue
            found += [f"{member.name}: {shape!r}" for shape in SECRET_SHAPES if re.search(shape, content)]
            found += [f"{member.name} names a host of this machine" for host in hosts if host in content]
    assert found == []


@pytest.mark.parametrize("name", IMAGES)
def test_no_secret_in_the_history(name: str) -> None:
    image = docker.from_env().images.get(name)
    told = json.dumps([image.history(), image.attrs["Config"], image.attrs["ContainerConfig"]]).encode()
    assert [shape for shape in SECRET_SHAPES if re.search(shape, told)] == []
    assert [host for host in host_addresses() if host in told] == []
    assert not re.search(rb"(SECRET_KEY|ADMIN_PASSWORD|API_TOKEN|POSTGRES_PASSWORD|BROKER_PASSWORD)=", told)


def test_secrets_of_the_running_container_are_files_only(stack: Stack) -> None:
    inspected = json.dumps(stack.container().attrs)
    processes = stack.execute("sh", "-c", "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline | tr '\\0' '\\n'")
    log = stack.container().logs().decode(errors="replace")
    for name, value in stack.secrets.items():
        assert value not in inspected, name
        assert value not in processes, name
        assert value not in log, name
        assert stack.execute("cat", f"/run/secrets/{name}") == value


def test_runs_as_a_fixed_user_without_rights(stack: Stack) -> None:
    status = stack.execute("sh", "-c", "cat /proc/[0-9]*/status")
    uids = set(re.findall(r"^Uid:\t(.+)$", status, re.MULTILINE))
    assert uids == {"10001\t10001\t10001\t10001"}
    for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb"):
        assert set(re.findall(rf"^Cap{kind}:\t(\S+)$", status, re.MULTILINE)) == {"0" * 16}, kind
    assert set(re.findall(r"^NoNewPrivs:\t(\d)$", status, re.MULTILINE)) == {"1"}


def test_limits_of_the_container(stack: Stack) -> None:
    host = stack.container().attrs["HostConfig"]
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert host["CapAdd"] is None
    assert "no-new-privileges:true" in host["SecurityOpt"]
    assert host["Privileged"] is False
    assert host["Init"] is True
    assert 0 < host["Memory"] <= 2 * 1024**3
    assert 0 < host["PidsLimit"] <= 1024
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert host["LogConfig"]["Config"]["max-size"]
    assert stack.container().attrs["Config"]["StopTimeout"] >= 30 + 15 + 35  # the drain, nginx and web before it


@pytest.mark.parametrize("folder", ["/", "/app", "/app/app", "/etc", "/usr/local/bin", "/etc/nginx", "/etc/supervisor"])
def test_root_is_read_only(stack: Stack, folder: str) -> None:
    code, output = stack.container().exec_run(["touch", f"{folder}/trace"])
    assert code != 0
    assert b"Read-only file system" in output or b"Permission denied" in output
