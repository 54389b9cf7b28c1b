// The switch for notifications in this browser, and the kinds of notifications that the user wants.

import { sendSignedIn } from "./api.js";
import { byId, createElement, setText } from "./dom.js";
import { pushState, switchOff, switchOn } from "./push.js";
import { text } from "./texts.js";

const KINDS = {
  machineReady: "notification.machineReady", brewComplete: "notification.brewComplete",
  waterEmpty: "notification.waterEmpty", machineError: "notification.machineError",
  picoOffline: "notification.picoOffline", machineOffline: "notification.machineOffline",
  backflushDue: "notification.backflushDue", descaleDue: "notification.descaleDue",
  serviceDue: "notification.serviceDue", scheduleTriggered: "notification.scheduleTriggered",
};
const NOTES = { insecure: "push.insecure", unsupported: "push.unsupported", blocked: "push.blocked" };

/** Set up the section. Errors are shown in `problem`. */
export async function startPushSettings(problem) {
  const field = byId("push-on");
  byId("push").hidden = false;

  async function show(state) {
    field.checked = state === "on";
    field.disabled = state in NOTES;
    setText(byId("push-note"), state in NOTES ? text(NOTES[state]) : "");
    if (state === "on") await showKinds(problem);
    byId("push-kinds").hidden = state !== "on";
  }

  field.addEventListener("change", async () => {
    setText(problem);
    field.disabled = true;
    try {
      await show(await (field.checked ? switchOn() : switchOff()));
    } catch (failure) {
      setText(problem, failure.status === undefined ? text("push.failed", { problem: failure.message }) : failure.message);
      await show(await pushState());
    }
  });
  await show(await pushState()).catch((failure) => setText(problem, failure.message));
}

async function showKinds(problem) {
  const wanted = await sendSignedIn("GET", "/api/push/preferences");
  const kinds = Object.keys(KINDS).filter((kind) => kind in wanted);
  byId("push-kinds").replaceChildren(byId("push-kinds").firstElementChild, ...kinds.map((kind) => row(kind, wanted[kind], problem)));
}

function row(kind, isWanted, problem) {
  const field = createElement("input", "");
  Object.assign(field, { id: `push-${kind}`, type: "checkbox", checked: isWanted });
  const label = createElement("label", "", text(KINDS[kind]));
  label.htmlFor = field.id;
  field.addEventListener("change", async () => {
    setText(problem);
    try {
      await sendSignedIn("POST", "/api/push/preferences", { [kind]: field.checked });
    } catch (failure) {
      field.checked = !field.checked;
      setText(problem, failure.message);
    }
  });
  return createElement("p", "check", [field, label]);
}
