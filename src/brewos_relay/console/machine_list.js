// The list of machines.

import { sendSignedIn } from "./api.js";
import { byId, createElement, relativeTime } from "./dom.js";
import { machinePage } from "./header.js";

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
}

function row(device) {
  const more = [device.id, device.machineType?.replaceAll("_", " "), device.firmwareVersion && `firmware ${device.firmwareVersion}`];
  const name = createElement("a", "name", device.name);
  name.href = machinePage(device.id);
  return createElement("li", "", [
    createElement("div", "what", [
      name,
      createElement("div", "more", more.filter((part) => part && part !== device.name).join(" · ")),
      ...(device.keyPending ? [createElement("div", "more", "The machine has a new key. Pair it again to accept the key.")] : []),
    ]),
    ...(device.role ? [createElement("span", "tag", role(device))] : []),
    presence(device),
  ]);
}

function role({ role: name, until }) {
  return until ? `${name} until ${new Date(until).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" })}` : name;
}

function presence({ isOnline, lastSeen }) {
  if (isOnline) return createElement("span", "state online", "online");
  return createElement("span", "state", lastSeen ? `last seen ${relativeTime(lastSeen)}` : "never seen");
}
