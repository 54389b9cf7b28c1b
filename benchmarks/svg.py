"""Write a picture as SVG: rectangles, lines and text, nothing else."""

from collections.abc import Sequence
from html import escape

FONT = "system-ui, 'Helvetica Neue', Arial, sans-serif"


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


class Picture:
    """An SVG of a size in px; the later something is drawn the further in front it is."""

    def __init__(self, width: float, height: float) -> None:
        self.width = width
        self.height = height
        self._parts: list[str] = []

    def rectangle(
        self, x: float, y: float, width: float, height: float, *, fill: str, title: str = ""
    ) -> None:
        """Draw a filled rectangle; pointing at it shows its title."""
        place = f'x="{_px(x)}" y="{_px(y)}" width="{_px(width)}" height="{_px(height)}"'
        self._parts.append(f'<rect {place} fill="{fill}">{_title(title)}</rect>')

    def line(self, points: Sequence[tuple[float, float]], *, stroke: str, width: float = 1.0) -> None:
        """Draw straight lines from point to point."""
        path = " ".join(f"{_px(x)},{_px(y)}" for x, y in points)
        self._parts.append(
            f'<polyline points="{path}" fill="none" stroke="{stroke}" stroke-width="{_px(width)}"/>'
        )

    def dot(self, x: float, y: float, *, fill: str, title: str = "") -> None:
        """Draw a small disc."""
        self._parts.append(
            f'<circle cx="{_px(x)}" cy="{_px(y)}" r="3.5" fill="{fill}">{_title(title)}</circle>'
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 12,
        anchor: str = "start",
        weight: str = "normal",
        fill: str = "#222222",
    ) -> None:
        """Write a line of text; `y` is where its letters stand, `anchor` is start, middle or end."""
        look = f'font-size="{_px(size)}" font-weight="{weight}" text-anchor="{anchor}" fill="{fill}"'
        self._parts.append(f'<text x="{_px(x)}" y="{_px(y)}" {look}>{escape(text)}</text>')

    def to_svg(self) -> str:
        """Return the document."""
        size = f'width="{_px(self.width)}" height="{_px(self.height)}"'
        view = f'viewBox="0 0 {_px(self.width)} {_px(self.height)}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {view} font-family="{FONT}">'
        return "\n".join([head, *self._parts, "</svg>", ""])


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""
