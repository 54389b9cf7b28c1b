// The facts about the machine, renaming it, and leaving it.

import { askSignedIn } from "./api.js";
import { byId, confirmed, make, tell, whenAsked } from "./page.js";
import { home } from "./top.js";

/** Show a machine from the list of the server. */
export function showDevice({ id, name, role, until, machineType, firmwareVersion, keyPending }) {
  document.title = `${name} · brewos-relay`;
  tell(byId("name"), name);
  if (document.activeElement !== byId("new-name")) byId("new-name").value = name;
  byId("rename").hidden = role !== "owner";
  const rows = [
    ["Id", id],
    ["Type", machineType?.replaceAll("_", " ")],
    ["Firmware", firmwareVersion],
    ["Your role", until ? `${role} until ${new Date(until).toLocaleString()}` : role],
    ["Key", keyPending && "The machine has a new key. Pair it again to accept the key."],
  ];
  byId("about").replaceChildren(...rows.filter(([, value]) => value).flatMap(([title, value]) => [make("dt", "", title), make("dd", "", value)]));
}

/** Set up renaming and leaving. `show` shows the renamed machine. */
export function startOwning(deviceId, problem, show) {
  const path = `/api/devices/${deviceId}`;
  whenAsked(byId("rename"), problem, async () => {
    const { device } = await askSignedIn("PATCH", path, { name: byId("new-name").value.trim() });
    show(device);
  });
  whenAsked(byId("leave"), problem, async () => {
    const text = "The machine leaves your list. If you are its last owner, all of its users lose access, and it can be paired again.";
    if (!(await confirmed({ title: "Leave this machine?", text, act: "Leave" }))) return;
    await askSignedIn("DELETE", path);
    location.replace(home);
  });
}
