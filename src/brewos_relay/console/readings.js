// The current state of the machine: text, gauges, and the chart of the last minutes.

import { Chart } from "./chart.js";
import { byId, setText } from "./dom.js";
import { clock, clockTime, degrees, fromCelsius, number, relativeTime } from "./format.js";
import { Gauge } from "./gauge.js";
import { History } from "./history.js";
import { text, textFrom } from "./texts.js";

const MINUTES = 10;
const LENGTH_MS = MINUTES * 60 * 1000;
const DRAW_MS = 250;
const DRAW_CALMLY_MS = 2000;

const STATES = {
  init: "state.init", idle: "state.idle", heating: "state.heating", ready: "state.ready", brewing: "state.brewing",
  fault: "state.fault", safe: "state.safe", eco: "state.eco",
};

/** Convert a temperature of the machine for the page; null stays null. */
const shown = (celsius) => (celsius === null ? null : fromCelsius(celsius));
const TANKS = { low: "water.low", empty: "water.empty" };

const history = new History(LENGTH_MS);
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const gauges = {
  brew: new Gauge("gauge-brew", { low: shown(20), high: shown(120), digits: 1, unit: degrees }),
  steam: new Gauge("gauge-steam", { low: shown(20), high: shown(160), digits: 1, unit: degrees }),
  pressure: new Gauge("gauge-pressure", { high: 12, digits: 1, unit: "bar" }),
  power: new Gauge("gauge-power", { high: 3000, digits: 0, unit: "W" }),
};
const chart = new Chart(byId("trend"), [
  { share: 6, floor: shown(20), ceiling: shown(100), most: 6, unit: degrees, lines: [
    { of: "group", colour: "--group", dashed: true },
    { of: "steam", colour: "--steam" },
    { of: "brew", colour: "--brew" },
  ] },
  { share: 2, floor: 0, ceiling: 10, most: 2, unit: "bar", lines: [{ of: "pressure", colour: "--pressure", filled: true }] },
  { share: 2, floor: 0, ceiling: 3000, most: 2, unit: "W", lines: [{ of: "power", colour: "--power", filled: true }] },
]);
let pointedAt = null; // the x of the pointer on the canvas, in px

/** Show a reading of the machine from the time `at` (ms since 1970). */
export function showReading(reading, at) {
  const { pressure, power } = reading;
  const [brew, steam, group] = [shown(reading.brew), shown(reading.steam), shown(reading.group)];
  gauges.brew.show(brew, shown(reading.brewTarget));
  gauges.steam.show(steam, shown(reading.steamTarget));
  gauges.pressure.show(pressure);
  gauges.power.show(power);
  history.add({ at, brew, steam, group, pressure, power });
  showState(reading);
  showFacts(reading);
}

/** Show the last known state from before an absence, from the time `at` (ms since 1970). */
export function showLastKnown(reading, at) {
  gauges.brew.show(shown(reading.brew), shown(reading.brewTarget));
  gauges.steam.show(shown(reading.steam), shown(reading.steamTarget));
  const does = textFrom(STATES, reading.isBrewing ? "brewing" : reading.state);
  const age = relativeTime(new Date(at).toISOString());
  say(byId("last-known"), does ? text("machine.last-known-state", { time: age, state: does }) : text("machine.last-known", { time: age }));
}

/** Remove the note that the values are from before an absence. */
export function hideLastKnown() {
  say(byId("last-known"), "");
}

/** Show whether the machine is online. `lastSeen` is ISO 8601 or null; `isKnown` is true once the relay has told. */
export function showPresence({ isOnline, isKnown, lastSeen }) {
  document.querySelector("main").classList.toggle("away", !isOnline);
  if (isOnline) {
    // The next message tells its state.
    if (byId("now").textContent === text("machine.offline")) say(byId("now"), text("machine.online"));
    return;
  }
  history.interrupt(Date.now());
  if (!isKnown) return;
  byId("now").className = "now";
  say(byId("now"), text("machine.offline"));
  say(byId("facts"), lastSeen ? text("presence.last-seen", { time: relativeTime(lastSeen) }) : "");
}

function showState({ state, isBrewing }) {
  const now = isBrewing ? "brewing" : state;
  byId("now").className = `now ${Object.hasOwn(STATES, now) ? now : ""}`;
  say(byId("now"), textFrom(STATES, now));
}

function showFacts({ onSince, mode, tank, cleaningDue, brewCount }) {
  const facts = [
    tank && tank !== "ok" && textFrom(TANKS, tank),
    cleaningDue && text("machine.cleaning", { count: brewCount ?? 0 }),
    onSince && mode !== "standby" && text("machine.on-since", { time: clock(onSince) }),
  ];
  say(byId("facts"), facts.filter(Boolean).join(" · "));
}

/** Write a text only if it changed: screen readers read out every write. */
function say(element, text) {
  if (element.textContent !== text) setText(element, text);
}

function draw() {
  const to = Date.now();
  const from = to - LENGTH_MS;
  const ticks = [10, 8, 6, 4, 2, 0].map((minutes) => [to - minutes * 60000, minutes ? text("trend.minutes", { minutes }) : text("trend.now")]);
  const mark = pointedAt === null ? null : chart.xAt(pointedAt, from, to);
  chart.draw({ samples: history.samples, from, to, ticks, mark });
  say(byId("reading"), mark === null ? "" : readingAt(mark));
}

function readingAt(at) {
  const sample = history.samples.findLast((one) => one.at <= at);
  if (!sample || sample.gap) return `${clockTime(at)} · ${text("trend.no-data")}`;
  const parts = [["brew", text("trend.brew"), 1, ` ${degrees}`], ["steam", text("trend.steam"), 1, ` ${degrees}`], ["pressure", "", 1, " bar"], ["power", "", 0, " W"]];
  const values = parts.filter(([of]) => sample[of] !== null)
    .map(([of, name, digits, unit]) => `${name} ${number(sample[of], digits)}${unit}`.trim());
  return [clockTime(at), ...values].join(" · ");
}

/** Start drawing the chart, and showing values at the pointer. */
export function startDrawing() {
  const canvas = byId("trend");
  canvas.addEventListener("pointermove", (event) => {
    pointedAt = event.clientX;
    draw();
  });
  for (const name of ["pointerleave", "pointercancel"]) {
    canvas.addEventListener(name, () => {
      pointedAt = null;
      draw();
    });
  }
  new ResizeObserver(draw).observe(canvas);
  const again = () => {
    if (!document.hidden) draw();
    setTimeout(again, calm.matches ? DRAW_CALMLY_MS : DRAW_MS);
  };
  again();
}
