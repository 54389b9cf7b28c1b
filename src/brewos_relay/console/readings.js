// The current state of the machine: text and gauges.

import { byId, setText } from "./dom.js";
import { clock, degrees, fromCelsius, relativeTime } from "./format.js";
import { Gauge } from "./gauge.js";
import { STATES } from "./state.js";
import { text, textFrom } from "./texts.js";

/** Convert a temperature of the machine for the page; null stays null. */
const shown = (celsius) => (celsius === null ? null : fromCelsius(celsius));
const TANKS = { low: "water.low", empty: "water.empty" };

const gauges = {
  brew: new Gauge("gauge-brew", { low: shown(20), high: shown(120), digits: 1, unit: degrees }),
  steam: new Gauge("gauge-steam", { low: shown(20), high: shown(160), digits: 1, unit: degrees }),
  pressure: new Gauge("gauge-pressure", { high: 12, digits: 1, unit: "bar" }),
  power: new Gauge("gauge-power", { high: 3000, digits: 0, unit: "W" }),
};

/** Show a reading of the machine. */
export function showReading(reading) {
  gauges.brew.show(shown(reading.brew), shown(reading.brewTarget));
  gauges.steam.show(shown(reading.steam), shown(reading.steamTarget));
  gauges.pressure.show(reading.pressure);
  gauges.power.show(reading.power);
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

/** Show whether the machine is online. `lastSeen` is ISO 8601, or null for never; `isKnown` is true once the relay has told. */
export function showPresence({ isOnline, isKnown, lastSeen }) {
  document.querySelector("main").classList.toggle("away", !isOnline);
  if (isOnline) {
    // The next message tells its state.
    if (byId("now").textContent === text("machine.offline")) say(byId("now"), text("machine.online"));
    return;
  }
  if (!isKnown) return;
  byId("now").className = "now";
  say(byId("now"), text("machine.offline"));
  const never = lastSeen === null ? text("presence.never") : "";
  say(byId("facts"), lastSeen ? text("presence.last-seen", { time: relativeTime(lastSeen) }) : never);
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
