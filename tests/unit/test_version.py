"""The version and the schema are written down once more where the images tell them."""

from __future__ import annotations

import re
from pathlib import Path

from app.db.migrate import HEADS
from app.version import VERSION, code_fingerprint

DOCKERFILE = (Path(__file__).parents[2] / "images" / "Dockerfile").read_text(encoding="utf-8")


def test_the_images_tell_the_version_and_the_schema_of_this_tree() -> None:
    assert re.findall(r"^ARG VERSION=(.*)$", DOCKERFILE, re.MULTILINE) == [VERSION]
    schema = ",".join(f"{store}={head}" for store, head in HEADS.items())
    assert re.findall(r"^ARG SCHEMA=(.*)$", DOCKERFILE, re.MULTILINE) == [schema]


def test_every_image_tells_its_version() -> None:
    stages = re.split(r"^FROM .* AS ", DOCKERFILE, flags=re.MULTILINE)[1:]
    images = {stage.split()[0] for stage in stages if re.search(r"^CMD ", stage, re.MULTILINE)}
    told = {stage.split()[0] for stage in stages if "LABEL org.opencontainers.image.version=$VERSION" in stage}
    assert images == told
    assert {"app", "allinone", "nginx", "postgres", "valkey"} <= images


def test_the_fingerprint_tells_tasks_apart() -> None:
    assert code_fingerprint(["a"]) == code_fingerprint(["a"])
    assert code_fingerprint(["a"]) != code_fingerprint(["b"])
    assert re.fullmatch(r"[0-9a-f]{12}", code_fingerprint([]))
