// The list of machines.

import { sendSignedIn } from "./api.js";
import { byId, createElement } from "./dom.js";
import { dateTime, relativeTime } from "./format.js";
import { machinePage } from "./header.js";
import { keepSubscribed } from "./push.js";
import { machineTypeName, roleName, text } from "./texts.js";

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
  keepSubscribed(devices.map(({ id }) => id)).catch(() => {}); // the next refresh tries again
}

function row(device) {
  const more = [device.id, machineTypeName(device.machineType), device.firmwareVersion && text("home.firmware", { version: device.firmwareVersion })];
  const name = createElement("a", "name", device.name);
  name.href = machinePage(device.id);
  return createElement("li", "", [
    createElement("div", "what", [
      name,
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
