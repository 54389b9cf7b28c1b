"""The dashboard shows metrics that there are."""

import json
import re
from pathlib import Path

import pytest

from brewos_relay.core.relay import open_relay
from brewos_relay.telemetry.metrics import BusFigures, MetricSources, RelayCollector

BUS = BusFigures(connected=True, reconnects=0, unreadable=0, alone=0, problems={})
ROOT = Path(__file__).parents[2]
ENDS = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}


@pytest.mark.parametrize("path", ["deploy/grafana/dashboard.json", "docs/how-to/observe.md"])
async def test_every_metric_on_a_dashboard_exists(path: str) -> None:
    text = (ROOT / path).read_text("utf-8")
    async with open_relay() as relay:
        families = list(RelayCollector(relay, MetricSources(version="", bus=lambda: BUS)).collect())
    names = {family.name + end for family in families for end in ENDS.get(family.type, ("",))}
    shown = set(re.findall(r"\bbrewos_relay_\w+", text))
    assert shown
    assert shown <= names


async def test_every_metric_is_on_the_dashboard() -> None:
    text = (ROOT / "deploy/grafana/dashboard.json").read_text("utf-8")
    shown = set(re.findall(r"\bbrewos_relay_\w+", text))
    async with open_relay() as relay:
        for family in RelayCollector(relay, MetricSources(version="", bus=lambda: BUS)).collect():
            assert shown & {family.name + end for end in ENDS.get(family.type, ("",))}, family.name


def test_the_dashboard_s_panels_do_not_overlap() -> None:
    dashboard = json.loads((ROOT / "deploy/grafana/dashboard.json").read_text("utf-8"))
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places) > 10
