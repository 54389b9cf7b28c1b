from xml.etree import ElementTree

import pytest
from chart import COLOURS, chart, decades, round_steps
from results import Results
from svg import Picture
from workloads import SERVERS, WORKLOADS

SVG = "{http://www.w3.org/2000/svg}"


def draw(results: Results) -> ElementTree.Element:
    return ElementTree.fromstring(chart(results, caption="Medians <of> 1 & more"))


def texts(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def everything() -> Results:
    return Results(
        [
            {"workload": w.name, "server": server, "run": 0}
            | {figure.key: 10.0 * (place + 1) for figure in w.figures}
            for w in WORKLOADS
            for place, server in enumerate(w.servers)
        ]
    )


def test_a_picture_is_valid_svg_with_any_texts() -> None:
    picture = Picture(100, 50)
    picture.text(1, 2, "a < b & c")
    picture.rectangle(0, 0, 10, 20.25, fill="#123456", title='"here"')
    picture.line([(0, 0), (1.55, 2)], stroke="#000000", width=2)
    picture.dot(5, 5, fill="#ffffff")
    root = ElementTree.fromstring(picture.to_svg())
    assert root.get("viewBox") == "0 0 100 50"
    assert texts(root) == ["a < b & c"]
    (rectangle,) = root.iter(f"{SVG}rect")
    assert rectangle.get("height") == "20.2"
    assert [title.text for title in root.iter(f"{SVG}title")] == ['"here"']
    (line,) = root.iter(f"{SVG}polyline")
    assert line.get("points") == "0,0 1.6,2"


@pytest.mark.parametrize(
    ("highest", "marks"),
    [
        (3.83, [0, 1, 2, 3, 4]),
        (47.9, [0, 10, 20, 30, 40, 50]),
        (807, [0, 200, 400, 600, 800, 1000]),
        (0.2, 5),
    ],
)
def test_an_axis_has_round_marks_and_reaches_the_highest(highest: float, marks: list[float] | int) -> None:
    found = round_steps(highest)
    assert found[-1] >= highest
    assert len(found) == marks if isinstance(marks, int) else found == pytest.approx(marks)


def test_a_logarithmic_axis_has_the_powers_around_all_values() -> None:
    assert decades([3.0, 250.0]) == [1, 10, 100, 1000]
    assert decades([10.0, 1000.0]) == [10, 100, 1000]
    assert decades([10.0]) == [10, 100]
    assert decades([0.02]) == pytest.approx([0.01, 0.1])


def test_the_chart_has_a_panel_for_each_kind_of_figure_and_names_all_servers() -> None:
    root = draw(everything())
    shown = texts(root)
    assert shown[1] == "Medians <of> 1 & more"
    assert set(SERVERS) <= set(shown)
    titles = [e.text for e in root.iter(f"{SVG}text") if e.get("font-weight") == "bold"]
    assert len(titles) == 1 + 8
    assert len(list(root.iter(f"{SVG}circle"))) == sum(
        len(w.servers) for w in WORKLOADS if w.group in {"apps", "devices"}
    )
    bars = [e for e in root.iter(f"{SVG}rect") if e.get("fill") == COLOURS["relay"]]
    groups = ("delivery", "latency", "latency", "latency", "memory", "storm")
    assert len(bars) == 1 + sum(sum(w.group == group for w in WORKLOADS) for group in groups)


def test_a_bar_is_as_high_as_its_figure() -> None:
    reports = [
        {"workload": "idle-4000x1", "server": server, "run": 0, "kib_per_conn": value}
        for server, value in (("relay", 6.0), ("node", 12.0))
    ]
    root = draw(Results(reports))
    heights = {
        server: max(
            float(e.get("height", 0)) for e in root.iter(f"{SVG}rect") if e.get("fill") == COLOURS[server]
        )
        for server in ("relay", "node")
    }
    assert heights["node"] == pytest.approx(2 * heights["relay"], abs=0.2)


def test_bar_of_a_much_slower_server_is_cut_and_has_its_number() -> None:
    reports = [
        {"workload": "fanout-50x1-w1", "server": server, "run": 0, "cpu_us_per_delivery": value}
        for server, value in (("floor", 1.0), ("relay", 2.0), ("websockets-trio", 13.7))
    ]
    root = draw(Results(reports))
    heights = {
        server: max(
            float(e.get("height", 0)) for e in root.iter(f"{SVG}rect") if e.get("fill") == COLOURS[server]
        )
        for server in ("relay", "websockets-trio")
    }
    assert heights["websockets-trio"] == pytest.approx(2 * heights["relay"], abs=0.2)
    assert "13.7" in texts(root)


def test_nothing_is_drawn_beyond_the_edge() -> None:
    root = draw(everything())
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for element in root.iter(f"{SVG}rect"):
        assert 0 <= float(element.get("x", -1)) <= width
        assert 0 <= float(element.get("y", -1)) + float(element.get("height", 0)) <= height + 0.1
