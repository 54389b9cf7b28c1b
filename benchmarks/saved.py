"""Measurements in files: written while measuring, and read and joined for the tables."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quiet import Report


@dataclass(slots=True, kw_only=True)
class Saved:
    """All measurements of one run of the script, or of several.

    `reports` are those of workloads, each with its `run`, `workload` and `server`. `parts` are those of other
    figures, each with its `run` and `part`. `rounds` describe the machine before each round.
    """

    caption: str = ""
    reports: list[Report] = field(default_factory=list)
    parts: list[Report] = field(default_factory=list)
    rounds: list[Report] = field(default_factory=list)

    def write(self, file: Path) -> None:
        """Write the file as a whole: an interruption leaves the one before."""
        content = {name: getattr(self, name) for name in ("caption", "rounds", "reports", "parts")}
        new = file.with_name(f"{file.name}.new")
        new.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
        new.replace(file)


def read_saved(files: Sequence[Path]) -> Saved:
    """Read files and join them. The rounds of each file are numbered after those of the file before.

    Raises OSError or ValueError if one cannot be read.
    """
    joined, captions, first = Saved(), [], 0
    for file in files:
        try:
            content: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            captions.append(content["caption"])
            for name in ("reports", "parts", "rounds"):
                rows: list[Report] = getattr(joined, name)
                rows += [row | {"run": first + row["run"]} for row in content[name]]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} was not written by --json: {error!r}") from error
        everything = [*joined.reports, *joined.parts, *joined.rounds]
        first = 1 + max((row["run"] for row in everything), default=-1)
    joined.caption = " ".join(dict.fromkeys(captions))
    return joined


def describe_medians(saved: Saved) -> str:
    """Say how many rounds there were of each workload and part."""
    runs: dict[str, set[int]] = {}
    for row in [*saved.reports, *saved.parts]:
        runs.setdefault(row.get("workload") or row["part"], set()).add(row["run"])
    counts = sorted({len(each) for each in runs.values()}) or [0]
    if counts == [1]:
        return "One round."
    return f"Medians of {f'{counts[0]} to ' if len(counts) > 1 else ''}{counts[-1]} rounds."


def describe_rounds(saved: Saved) -> str:
    """Say how busy the machine was, and which measurements were repeated or disturbed."""
    if not saved.rounds:
        return ""
    loads = ", ".join(f"{row['load']:.1f} ({row['others_pct']:.0f} %)" for row in saved.rounds)
    text = [f"Load of the machine before each round (CPU time of other programs): {loads}."]
    timed = [row for row in [*saved.reports, *saved.parts] if "others_pct" in row]
    again = sum(row["attempts"] > 1 for row in timed)
    disturbed = sum(bool(row.get("disturbed")) for row in timed)
    valid = [row["others_pct"] for row in timed if not row.get("disturbed")]
    if valid:
        text.append(f"During valid measurements, others used up to {max(valid):.0f} % of a processor.")
    if again:
        text.append(f"{again} of {len(timed)} measurements were repeated because others used more.")
    if disturbed:
        text.append(
            f"{disturbed} of {len(timed)} measurements were disturbed in each attempt; they count only where "
            "there are no others."
        )
    return " ".join(text)
