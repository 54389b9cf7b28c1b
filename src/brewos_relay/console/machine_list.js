// The list of machines.

import { sendSignedIn } from "./api.js";
import { byId, createElement, setText } from "./dom.js";
import { dateTime, degrees, fromCelsius, number, relativeTime } from "./format.js";
import { machinePage } from "./header.js";
import { keepSubscribed } from "./push.js";
import { mergeOldStatus, readStatus, STATES } from "./state.js";
import { machineTypeName, roleName, text, textFrom } from "./texts.js";

const STATES_AT_MOST = 20; // a request for each

/** Load and show the machines of the user. */
export async function refreshMachines() {
  const { devices } = await sendSignedIn("GET", "/api/devices");
  const shown = JSON.stringify(devices.map((device) => [device, device.lastSeen && relativeTime(device.lastSeen)]));
  // Redraw only if something changed: a link must not vanish while the user taps it.
  if (byId("machines").dataset.shown !== shown) byId("machines").replaceChildren(...devices.map(row));
  byId("machines").dataset.shown = shown;
  byId("machines").hidden = devices.length === 0;
  byId("no-machines").hidden = devices.length > 0;
  byId("loading").hidden = true;
  await showStates(devices);
  keepSubscribed(devices.map(({ id }) => id)).catch(() => {}); // the next refresh tries again
}

/** Show what machines that are online do, and their temperatures. */
async function showStates(devices) {
  await Promise.all(devices.filter(({ isOnline }) => isOnline).slice(0, STATES_AT_MOST).map(async ({ id }) => {
    const { messages } = await sendSignedIn("GET", `/api/devices/${encodeURIComponent(id)}/state`).catch((failure) => {
      if (failure.status) return { messages: {} }; // it went, or the server is busy
      throw failure;
    });
    const old = messages.pico_status;
    const reading = readStatus(messages.status ?? (old && mergeOldStatus(null, old)));
    const place = document.getElementById(`doing-${id}`);
    if (place) setText(place, doing(reading));
  }));
}

function doing({ state, isBrewing, brew, steam }) {
  const temperature = (value) => `${number(fromCelsius(value), 0)} ${degrees}`;
  const parts = [
    textFrom(STATES, isBrewing ? "brewing" : state),
    brew !== null && text("home.brew", { temperature: temperature(brew) }),
    steam !== null && text("home.steam", { temperature: temperature(steam) }),
  ];
  return parts.filter(Boolean).join(" · ");
}

function row(device) {
  const more = [device.id, machineTypeName(device.machineType), device.firmwareVersion && text("home.firmware", { version: device.firmwareVersion })];
  const name = createElement("a", "name", device.name);
  name.href = machinePage(device.id);
  const now = createElement("div", "doing");
  now.id = `doing-${device.id}`;
  return createElement("li", "", [
    createElement("div", "what", [
      name,
      now,
      createElement("div", "more", more.filter((part) => part && part !== device.name).join(" · ")),
      ...(device.keyPending ? [createElement("div", "more", text("home.new-key"))] : []),
    ]),
    ...(device.role ? [createElement("span", "tag", roleName(device.role, device.until && dateTime(device.until)))] : []),
    presence(device),
  ]);
}

function presence({ isOnline, lastSeen }) {
  if (isOnline) return createElement("span", "state online", text("presence.online"));
  return createElement("span", "state", lastSeen ? text("presence.last-seen", { time: relativeTime(lastSeen) }) : text("presence.never"));
}
