"""Colours that people with weak eyes can read: the contrasts of WCAG 2.2, level AA."""

from __future__ import annotations

import re

import pytest

from app.pages.assets import STATIC_FOLDER

TEXT = 4.5
CONTROL = 3.0
SURFACES = ("page", "surface", "surface-sunken")
PAIRS = [
    *(("text", surface, TEXT) for surface in SURFACES),
    *(("text-soft", surface, TEXT) for surface in SURFACES),
    *(("accent", surface, TEXT) for surface in SURFACES),
    *((tone, f"{tone}-tint", TEXT) for tone in ("good", "bad", "warn", "busy", "idle")),
    ("bad", "surface", TEXT),
    ("accent-text", "accent", TEXT),
    ("line-field", "surface-raised", CONTROL),
]


def colours(scheme: str) -> dict[str, str]:
    sheet = (STATIC_FOLDER / "app.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", sheet, re.DOTALL)
    found = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", light))
    return found if scheme == "light" else found | dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", dark))


def luminance(colour: str) -> float:
    shares = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("front", "back", "least"), PAIRS)
def test_contrast(scheme: str, front: str, back: str, least: float) -> None:
    known = colours(scheme)
    darker, lighter = sorted((luminance(known[front]), luminance(known[back])))
    contrast = (lighter + 0.05) / (darker + 0.05)
    assert contrast >= least, f"{front} on {back}: {contrast:.2f}"


def test_dark_replaces_every_colour_of_a_tone() -> None:
    light, dark = colours("light"), colours("dark")
    assert [name for name in light if light[name] == dark[name]] == []
