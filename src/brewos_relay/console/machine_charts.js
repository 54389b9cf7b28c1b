// The charts of the machine page: the last ten minutes, and the shot. Loaded once the page shows current values.

import { timeStep } from "./axes.js";
import { Chart } from "./chart.js";
import { byId, setText } from "./dom.js";
import { clock, clockTime, degrees, fromCelsius, number } from "./format.js";
import { QUANTITIES, withUnit } from "./quantities.js";
import { ShotChart, tableTimes } from "./shot_charts.js";
import { text } from "./texts.js";
import { LENGTH_MS } from "./trend.js";
import { writeTable } from "./value_table.js";

const DRAW_MS = 250;
const DRAW_CALMLY_MS = 2000;
const MINUTE_MS = 60000;

const LINES = [
  { name: "brew", title: text("value.brew"), unit: degrees, digits: 1, convert: fromCelsius, colour: "--brew" },
  { name: "group", title: text("value.group"), unit: degrees, digits: 1, convert: fromCelsius, colour: "--group", dash: [4, 4] },
  { name: "steam", title: text("value.steam"), unit: degrees, digits: 1, convert: fromCelsius, colour: "--steam" },
  { name: "pressure", title: text("value.pressure"), unit: "bar", digits: 1, convert: (value) => value, colour: "--pressure", filled: true },
  { name: "power", title: text("value.power"), unit: "W", digits: 0, convert: (value) => value, colour: "--power", filled: true },
];
const NAMES = LINES.map(({ name }) => name);
const calm = matchMedia("(prefers-reduced-motion: reduce)");

/** Draw the samples of a history until the user leaves the page. */
export function startTrend(history) {
  const chart = new Chart(byId("trend"), [
    { share: 6, unit: degrees, floor: fromCelsius(20), ceiling: fromCelsius(100), lines: LINES.slice(0, 3) },
    { share: 2, unit: "bar", floor: 0, ceiling: 10, lines: [LINES[3]] },
    { share: 2, unit: "W", floor: 0, ceiling: 3000, lines: [LINES[4]] },
  ], {
    ticks,
    describe: (x) => [clockTime(x * 1000), ...LINES.map((line) => `${line.title} ${valueAt(line, x)}`)].join(", "),
    onPoint: showValues,
    onZoom: (isZoomed) => {
      byId("trend-all").hidden = !isZoomed;
    },
  });
  byId("trend-all").addEventListener("click", () => {
    chart.zoom(null);
    byId("trend").focus();
  });

  function ticks(from, to, most) {
    const step = timeStep(to - from, most);
    const isWhole = to - from > LENGTH_MS / 1000 - 1;
    // The whole chart moves below fixed labels. A part of it has clock times.
    const first = isWhole ? to - Math.floor((to - from) / step) * step : Math.ceil(from / step) * step;
    const found = [];
    for (let x = first; x <= to + 0.001; x += step) {
      const minutes = Math.round((to - x) / 60);
      const label = minutes ? text("trend.minutes", { minutes }) : text("trend.now");
      found.push([x, isWhole ? label : clockTime(x * 1000)]);
    }
    return found;
  }

  function valueAt(line, x) {
    const sample = history.at(x * 1000);
    const value = sample && !sample.gap ? sample[line.name] : null;
    return typeof value === "number" ? withUnit(line, line.convert(value)) : "–";
  }

  function showValues(x) {
    setText(byId("reading"), x === null ? "" : clockTime(x * 1000));
    for (const line of LINES) setText(byId(`trend-${line.name}`), x === null ? "" : valueAt(line, x));
  }

  function showTable() {
    if (!byId("trend-values").open) return;
    const last = Math.floor(Date.now() / MINUTE_MS) * 60;
    const times = Array.from({ length: LENGTH_MS / MINUTE_MS }, (_, minutes) => last - minutes * 60);
    writeTable(byId("trend-table"), text("trend.description"), [text("value.time"), ...LINES.map(({ title }) => title)],
      times.map((x) => [clock(x * 1000), ...LINES.map((line) => valueAt(line, x))]));
  }

  function draw() {
    const to = Date.now();
    const { xs, columns } = history.columns(NAMES, to);
    const converted = columns.map((values, line) => values.map((value) => (value === null ? null : LINES[line].convert(value))));
    chart.show({ xs, columns: converted, from: (to - LENGTH_MS) / 1000, to: to / 1000 });
    showTable();
  }
  const again = () => {
    if (!document.hidden) draw();
    setTimeout(again, calm.matches ? DRAW_CALMLY_MS : DRAW_MS);
  };
  again();
  byId("trend-values").addEventListener("toggle", showTable);
}

/** Return a function that draws a shot. */
export function shotDrawer() {
  const titles = { pressure: text("value.pressure"), flow: text("value.flow"), weight: text("value.weight") };
  const shown = QUANTITIES.filter(({ name }) => name in titles);
  let shot = null;
  const valuesAt = (x) => {
    const values = chart.valuesAt(0, x);
    return shown.filter(({ name }) => values[name] !== null)
      .map((one) => [one.name, withUnit(one, values[one.name])]);
  };
  const chart = new ShotChart(byId("shot"), [["weight"], ["pressure", "flow"]], {
    describe: (x) => [`${number(x, 1)} s`, ...valuesAt(x).map(([name, value]) => `${titles[name]} ${value}`)].join(", "),
    onPoint: (x) => {
      setText(byId("shot-reading"), x === null ? "" : [`${number(x, 1)} s`, ...valuesAt(x).map(([, value]) => value)].join(" · "));
    },
    onZoom: () => {},
  });
  const showTable = () => {
    if (!shot || !byId("shot-values").open) return;
    writeTable(byId("shot-table"), text("shot.description"), [text("value.time"), ...shown.map(({ name }) => titles[name])],
      tableTimes([shot]).map((x) => {
        const values = Object.fromEntries(valuesAt(x));
        return [`${x} s`, ...shown.map(({ name }) => values[name] ?? "–")];
      }));
  };
  byId("shot-values").addEventListener("toggle", showTable);
  return (current) => {
    shot = current;
    chart.show([shot]);
    showTable();
  };
}
