// The list of machines.

import { askSignedIn } from "./api.js";
import { ago, byId, make } from "./page.js";
import { pageOf } from "./top.js";

/** Load and show the machines of the user. */
export async function refreshMachines() {
  const { devices } = await askSignedIn("GET", "/api/devices");
  const shown = JSON.stringify(devices.map((device) => [device, device.lastSeen && ago(device.lastSeen)]));
  // Redraw only if something changed: a link must not vanish while the user taps it.
  if (byId("machines").dataset.shown !== shown) byId("machines").replaceChildren(...devices.map(row));
  byId("machines").dataset.shown = shown;
  byId("machines").hidden = devices.length === 0;
  byId("no-machines").hidden = devices.length > 0;
  byId("loading").hidden = true;
}

function row(device) {
  const more = [device.id, device.machineType?.replaceAll("_", " "), device.firmwareVersion && `firmware ${device.firmwareVersion}`];
  const name = make("a", "name", device.name);
  name.href = pageOf(device.id);
  return make("li", "", [
    make("div", "what", [
      name,
      make("div", "more", more.filter((part) => part && part !== device.name).join(" · ")),
      ...(device.keyPending ? [make("div", "more", "The machine has a new key. Pair it again to accept the key.")] : []),
    ]),
    ...(device.role ? [make("span", "tag", role(device))] : []),
    presence(device),
  ]);
}

function role({ role: name, until }) {
  return until ? `${name} until ${new Date(until).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" })}` : name;
}

function presence({ isOnline, lastSeen }) {
  if (isOnline) return make("span", "state online", "online");
  return make("span", "state", lastSeen ? `last seen ${ago(lastSeen)}` : "never seen");
}
