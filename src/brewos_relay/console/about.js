// The facts about the machine, renaming it, and leaving it.

import { sendSignedIn } from "./api.js";
import { askToConfirm, byId, createElement, onAction, setText } from "./dom.js";
import { homePage } from "./header.js";

/** Show a machine from the list of the server. */
export function showDevice({ id, name, role, until, machineType, firmwareVersion, keyPending }) {
  document.title = `${name} · brewos-relay`;
  setText(byId("name"), name);
  if (document.activeElement !== byId("new-name")) byId("new-name").value = name;
  byId("rename").hidden = role !== "owner";
  const rows = [
    ["Id", id],
    ["Type", machineType?.replaceAll("_", " ")],
    ["Firmware", firmwareVersion],
    ["Your role", until ? `${role} until ${new Date(until).toLocaleString()}` : role],
    ["Key", keyPending && "The machine has a new key. Pair it again to accept the key."],
  ];
  byId("about").replaceChildren(...rows.filter(([, value]) => value).flatMap(([title, value]) => [createElement("dt", "", title), createElement("dd", "", value)]));
}

/** Set up renaming and leaving. `show` shows the renamed machine. */
export function startMachineSettings(deviceId, problem, show) {
  const path = `/api/devices/${deviceId}`;
  onAction(byId("rename"), problem, async () => {
    const { device } = await sendSignedIn("PATCH", path, { name: byId("new-name").value.trim() });
    show(device);
  });
  onAction(byId("leave"), problem, async () => {
    const text = "The machine leaves your list. If you are its last owner, all of its users lose access, and it can be paired again.";
    if (!(await askToConfirm({ title: "Leave this machine?", text, act: "Leave" }))) return;
    await sendSignedIn("DELETE", path);
    location.replace(homePage);
  });
}
