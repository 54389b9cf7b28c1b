// The facts about the machine, renaming it, and leaving it.

import { sendSignedIn } from "./api.js";
import { askToConfirm, byId, createElement, onAction, setText } from "./dom.js";
import { dateTime } from "./format.js";
import { homePage } from "./header.js";
import { machineTypeName, roleName, text } from "./texts.js";

/** Show a machine from the list of the server. */
export function showDevice({ id, name, role, until, machineType, firmwareVersion, keyPending }) {
  document.title = `${name} · brewos-relay`;
  setText(byId("name"), name);
  if (document.activeElement !== byId("new-name")) byId("new-name").value = name;
  byId("rename").hidden = role !== "owner";
  const rows = [
    [text("about.id"), id],
    [text("about.type"), machineTypeName(machineType)],
    [text("about.firmware"), firmwareVersion],
    [text("about.role"), roleName(role, until && dateTime(until))],
    [text("about.key"), keyPending && text("home.new-key")],
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
    if (!(await askToConfirm({ title: text("leave.title"), text: text("leave.text"), act: text("leave.act") }))) return;
    await sendSignedIn("DELETE", path);
    location.replace(homePage);
  });
}
