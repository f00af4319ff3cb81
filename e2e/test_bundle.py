"""scripts/save_bundle.sh and load_bundle.sh: a release on a machine with Docker and no network, and the next one."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.harness.isolated_engine import IsolatedEngine, isolated_engine
from e2e.harness.releases import Clone, cloned
from e2e.harness.runbooks import Operator

NEXT = "99.0.0"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    with cloned(tmp_path_factory.mktemp("bundle-clone"), "bundle") as made:
        made.take_present_tree()
        yield made


@pytest.fixture(scope="module")
def bundle(clone: Clone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("bundle") / "present.tar"
    result = json.loads(clone.script("save_bundle.sh", "--shape", "prod", "--json", str(file)).stdout)
    assert result["file"] == str(file)
    assert file.stat().st_size == result["bytes"]
    return file


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IsolatedEngine]:
    with isolated_engine(tmp_path_factory.mktemp("engine")) as made:
        yield made


def unpacked(bundle: Path, folder: Path) -> Path:
    with tarfile.open(bundle) as archive:
        archive.extractall(folder, filter="data")
    (found,) = folder.iterdir()
    return found


def test_a_bundle_holds_no_secret_and_no_setting(clone: Clone, bundle: Path) -> None:
    (clone.folder / ".secrets").mkdir(exist_ok=True)
    with tarfile.open(bundle) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert {"RELEASE", "SHA256SUMS", "images.tar.gz", "compose.yaml", "scripts/up.sh", "runbooks"} <= set(names)
    assert [name for name in names if name.startswith((".env", ".secrets", ".git", "userdata", "app/", "e2e"))] == []


def ready(engine: IsolatedEngine) -> bool:
    path = "http://127.0.0.1/api/v1/scheduler/health/ready"
    return bool(json.loads(engine.output("curl", "--silent", "--fail", path))["success"])


@pytest.fixture(scope="module")
def installed(clone: Clone, engine: IsolatedEngine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bundle that was installed as the page says."""
    stick = {"/media/usb": str(tmp_path_factory.mktemp("stick"))}
    routes = engine.output("ip", "route").splitlines()
    assert [route for route in routes if route.startswith("default")] == []
    assert engine.output("docker", "images", "--quiet") == ""
    typist = Operator(engine, stick, {"a machine with a network": Operator(clone, stick)})
    done = typist.follow("upgrade-and-rollback", "no network")
    assert "next:   scripts/up.sh" in done.mitigation
    assert "Address:  http://" in done.mitigation
    (found,) = engine.folder.glob("whalefall-*")
    return found


@pytest.mark.timeout(600)
def test_it_installs_without_a_network(engine: IsolatedEngine, installed: Path) -> None:
    assert ready(engine)
    images = engine.output("docker", "images", "--all", "--quiet")
    assert len(images.split()) == 1, "something was pulled or built"
    engine.output("./scripts/load_bundle.sh", cwd=installed)  # again: nothing changes
    assert engine.output("docker", "images", "--all", "--quiet") == images


@pytest.mark.faults_long
@pytest.mark.timeout(600)
def test_the_next_bundle_upgrades_it_without_a_network(
    clone: Clone, engine: IsolatedEngine, installed: Path, tmp_path: Path
) -> None:
    before = engine.output("docker", "images", "--quiet").split()
    clone.tag_release(NEXT)
    further = tmp_path / "next.tar"
    clone.script("save_bundle.sh", "--shape", "prod", "--json", str(further))
    assert f"next:   scripts/upgrade.sh {NEXT}" in engine.output(
        "./scripts/load_bundle.sh", str(further), cwd=installed
    )
    assert f" to {NEXT}-" in engine.output("./scripts/upgrade.sh", NEXT, "--yes", cwd=installed)
    code = "from app.version import VERSION; print(VERSION)"
    told = engine.output("docker", "compose", "exec", "-T", "whalefall", "python", "-c", code, cwd=installed)
    assert told.strip() == NEXT
    assert f"version={NEXT}" in (installed / "RELEASE").read_text().splitlines()
    engine.output("./scripts/rollback.sh", "--yes", cwd=installed)
    assert ready(engine)
    (running,) = engine.output("docker", "compose", "ps", "--quiet", cwd=installed).split()
    assert engine.output("docker", "inspect", "--format", "{{slice .Image 7 19}}", running).split() == before


@pytest.fixture
def folder_of_bundle(bundle: Path, tmp_path: Path) -> Path:
    return unpacked(bundle, tmp_path)


def load(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["./scripts/load_bundle.sh", *arguments],
        cwd=folder,
        env={key: os.environ[key] for key in ("PATH", "HOME", "DOCKER_HOST") if key in os.environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def assert_refused(done: subprocess.CompletedProcess[str], folder: Path, *said: str) -> None:
    assert done.returncode == 1, done.stdout + done.stderr
    for words in (*said, "nothing was changed"):
        assert words in done.stderr
    assert not (folder / ".env").exists()
    assert list((folder / ".releases").glob("*")) == []


@pytest.mark.parametrize("file", ["images.tar.gz", "compose/services.yml"])
def test_one_flipped_bit_is_noticed(folder_of_bundle: Path, file: str) -> None:
    damaged = folder_of_bundle / file
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert_refused(load(folder_of_bundle), folder_of_bundle, f"{file}: FAILED", "is damaged")


def test_a_truncated_bundle_is_refused(folder_of_bundle: Path, bundle: Path, tmp_path: Path) -> None:
    truncated = tmp_path / "truncated.tar"
    content = bundle.read_bytes()
    truncated.write_bytes(content[: len(content) * 2 // 3])
    assert_refused(
        load(folder_of_bundle, str(truncated)), folder_of_bundle, "truncated.tar is no bundle, or a damaged one"
    )


def test_what_is_no_bundle_is_refused(folder_of_bundle: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.tar"
    with tarfile.open(foreign, "w") as archive:
        archive.add(folder_of_bundle / "README.md", "something/README.md")
    assert_refused(load(folder_of_bundle, str(foreign)), folder_of_bundle, "is no bundle of scripts/save_bundle.sh")


def test_a_bundle_for_another_architecture_is_refused(folder_of_bundle: Path) -> None:
    release = folder_of_bundle / "RELEASE"
    release.write_text(release.read_text().replace("architecture=", "architecture=other-"))
    sums = folder_of_bundle / "SHA256SUMS"
    kept = [line for line in sums.read_text().splitlines() if not line.endswith("  RELEASE")]
    digest = subprocess.run(["sha256sum", "RELEASE"], cwd=folder_of_bundle, capture_output=True, text=True, check=True)
    sums.write_text("\n".join([*kept, digest.stdout.strip()]) + "\n")
    assert_refused(load(folder_of_bundle), folder_of_bundle, "is for other-")


def test_up_names_the_command_that_brings_the_images(folder_of_bundle: Path) -> None:
    done = subprocess.run(
        ["./scripts/up.sh"],
        cwd=folder_of_bundle,
        env={
            **{key: os.environ[key] for key in ("PATH", "HOME", "DOCKER_HOST") if key in os.environ},
            "COMPOSE_PROJECT_NAME": "whalefall-never-started",
            "HTTP_PORT": "47999",
            "WHALEFALL_TAG": "not-loaded",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "scripts/load_bundle.sh loads those of this one" in done.stderr
