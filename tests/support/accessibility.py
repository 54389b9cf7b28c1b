"""Checks of pages for people with disabilities, and for small screens."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import pytest

from support.chromium import Page

PACKAGE: Final = "axe_playwright_python"  # only for its copy of axe-core
needs_axe = pytest.mark.skipif(
    find_spec(PACKAGE) is None and os.environ.get("BREWOS_RELAY_BROWSER_TESTS") != "required",
    reason=f"there is no {PACKAGE} here, and BREWOS_RELAY_BROWSER_TESTS is not 'required'",
)
PHONE: Final[dict[str, Any]] = {"width": 360, "height": 740}
DESKTOP: Final[dict[str, Any]] = {"width": 1280, "height": 900}
LEAST_PX: Final = 44
"""The least size of a touch target."""

_RUN: Final = """axe.run(document, OPTIONS).then(({ violations }) => violations.flatMap(
  ({ id, nodes }) => nodes.map(({ target, failureSummary }) => `${id}: ${target}: ${failureSummary}`)))"""
_ALL: Final = "{ resultTypes: ['violations'], rules: { 'target-size': { enabled: true } } }"
_COLORS: Final = "{ resultTypes: ['violations'], runOnly: { type: 'rule', values: ['color-contrast'] } }"
_WIDTH: Final = "Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)"
# Links inside a sentence are as high as its lines. The label of a checkbox belongs to its target.
_SMALL: Final = f"""[...document.querySelectorAll('a[href], button, input, select, summary')]
  .filter((one) => one.checkVisibility({{ visibilityProperty: true }}))
  .filter((one) => one.tagName !== 'A' || getComputedStyle(one).display !== 'inline'
    || ![...one.parentElement.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()))
  .map((one) => [one, (one.type === 'checkbox' ? one.labels[0] : one).getBoundingClientRect()])
  .filter(([, {{ width, height }}]) => height < {LEAST_PX} - 0.01 || width < {LEAST_PX} - 0.01)
  .map(([one, {{ width, height }}]) =>
    `too small to touch: ${{width}} x ${{height}}: ${{one.outerHTML.slice(0, 90)}}`)"""

_CROWDED: Final = """[...document.querySelectorAll('header.top > div > :is(a, button)')]
  .filter((one) => one.checkVisibility() && one.scrollWidth > one.clientWidth + 1)
  .map((one) => `overlaps others: ${one.outerHTML.slice(0, 90)}`)"""

# Browsers drop a rule with an error, and say nothing.
_DROPPED: Final = r"""Promise.all([...document.styleSheets].map(async ({ href, cssRules }) => {
  const text = (await (await fetch(href)).text()).replace(/\/\*.*?\*\//gs, "");
  const count = (rules) => [...rules].reduce((sum, one) => sum + 1 + count(one.cssRules ?? []), 0);
  return count(cssRules) === text.split("{").length - 1 ? [] : [`has rules with errors: ${href}`];
})).then((found) => found.flat())"""


async def faults_of(page: Page) -> list[str]:
    """Check the open page on a phone and a desktop, light and dark. Return what is wrong."""
    source = _axe()
    found: list[str] = []
    for screen in (DESKTOP, PHONE):
        for dark in (False, True):
            await page.be(**screen, dark=dark)
            if not await page.run("'axe' in window"):
                # Through DevTools: the content security policy of the page stays in force.
                await page.call("Runtime.evaluate", expression=source)
            options = _COLORS if dark else _ALL
            faults = await page.run(_RUN.replace("OPTIONS", options))
            assert faults is not None, "axe-core did not run"
            found += [f"{'dark' if dark else 'light'}, {screen['width']} px: {fault}" for fault in faults]
    found += await _faults_on_phone(page)
    return found


async def _faults_on_phone(page: Page) -> list[str]:
    await page.be(**PHONE)
    found: list[str] = await page.run(_SMALL) + await page.run(_CROWDED) + await page.run(_DROPPED)
    width = await page.run(_WIDTH)
    if width > PHONE["width"]:
        found.append(f"scrolls sideways: {width} px on a screen of {PHONE['width']} px")
    for width in (390, 485):
        await page.be(width=width, height=740)
        found += await page.run(_CROWDED)
    return found


def _axe() -> str:
    spec = find_spec(PACKAGE)
    assert spec is not None, f"there is no {PACKAGE} here"
    assert spec.origin is not None
    return (Path(spec.origin).parent / "axe.min.js").read_text("utf-8")
