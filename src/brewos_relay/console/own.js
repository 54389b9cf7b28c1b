// What the machine is, what it is called, and leaving it.

import { askSignedIn } from "./api.js";
import { byId, confirmed, make, tell, whenAsked } from "./page.js";
import { home } from "./top.js";

/** Show a machine as the server lists it. */
export function showDevice({ id, name, role, until, machineType, firmwareVersion, keyPending }) {
  document.title = `${name} · brewos-relay`;
  tell(byId("name"), name);
  if (document.activeElement !== byId("new-name")) byId("new-name").value = name;
  byId("rename").hidden = role !== "owner";
  const rows = [
    ["Id", id],
    ["Kind", machineType?.replaceAll("_", " ")],
    ["Firmware", firmwareVersion],
    ["Your role", until ? `${role} until ${new Date(until).toLocaleString()}` : role],
    ["Key", keyPending && "Another one waits: pair the machine again"],
  ];
  byId("about").replaceChildren(...rows.filter(([, value]) => value).flatMap(([title, value]) => [make("dt", "", title), make("dd", "", value)]));
}

/** Let the machine be renamed and left; `show` shows it as it is after that. */
export function startOwning(deviceId, problem, show) {
  const path = `/api/devices/${deviceId}`;
  whenAsked(byId("rename"), problem, async () => {
    const { device } = await askSignedIn("PATCH", path, { name: byId("new-name").value.trim() });
    show(device);
  });
  whenAsked(byId("leave"), problem, async () => {
    const text = "It is not among your machines any more. If you are its last owner, everybody loses it, and it can be paired anew.";
    if (!(await confirmed({ title: "Leave this machine?", text, act: "Leave it" }))) return;
    await askSignedIn("DELETE", path);
    location.replace(home);
  });
}
