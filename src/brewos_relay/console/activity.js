// The activity of the machine.

import { sendSignedIn } from "./api.js";
import { byId, createElement, onAction } from "./dom.js";
import { clockTime } from "./format.js";
import { outcomeName, roleName, text } from "./texts.js";

const SHOWN = 30;
// The commands that households use. Others are shown by their names.
const COMMANDS = {
  set_mode: "did.set-mode", enter_eco: "did.set-mode", exit_eco: "did.set-mode", set_temp: "did.set-temp",
  set_eco: "did.set-eco", set_bbw: "did.set-bbw", set_preinfusion: "did.set-preinfusion", tare: "did.tare",
  scale_tare: "did.tare", scale_connect: "did.scale-connect", scale_disconnect: "did.scale-disconnect",
  add_schedule: "did.schedules", update_schedule: "did.schedules", delete_schedule: "did.schedules",
  toggle_schedule: "did.schedules", set_auto_off: "did.auto-off", set_preferences: "did.preferences",
  set_machine_info: "did.machine-info", set_device_info: "did.machine-info", set_log_config: "did.log-config",
  clear_logs: "did.clear-logs", restart: "did.restart", ota_start: "did.update", esp32_ota_start: "did.update",
  pico_ota_start: "did.update", record_maintenance: "did.maintenance",
};
const WORDS = {
  claimed: () => text("did.claimed"),
  owner_changed: () => text("did.owner-changed"),
  shared: ({ role }) => (role ? text("did.shared-as", { role: roleName(role) }) : text("did.shared")),
  share_claimed: ({ role }) => (role ? text("did.accepted-as", { role: roleName(role) }) : text("did.accepted")),
  share_revoked: () => text("did.revoked-share"),
  user_removed: () => text("did.removed-user"),
  role_changed: ({ role }) => (role ? text("did.changed-role-to", { role: roleName(role) }) : text("did.changed-role")),
  renamed: ({ name }) => (name ? text("did.renamed-to", { name: `\u2068${name}\u2069` }) : text("did.renamed")),
  key_pending: () => text("did.key-pending"),
  key_changed: () => text("did.key-changed"),
  key_sent: () => text("did.key-sent"),
  online: () => text("did.online"),
  offline: () => text("did.offline"),
  throttled: () => text("did.throttled"),
  throttle_ended: ({ dropped }) => (dropped ? text("did.throttle-ended-dropped", { count: dropped }) : text("did.throttle-ended")),
  client_came: () => text("did.client-came"),
  client_went: () => text("did.client-went"),
  token_copied: () => text("did.token-copied"),
  command: ({ name, outcome }) => {
    const command = Object.hasOwn(COMMANDS, name) ? text(COMMANDS[name]) : text("did.sent-command", { command: name ?? "" });
    return outcome && outcome !== "delivered" ? text("did.command-failed", { command, outcome: outcomeName(outcome) }) : command;
  },
};

export class ActivityList {
  #path;
  #before = null;

  constructor(deviceId, problem) {
    this.#path = `/api/devices/${deviceId}/activity?limit=${SHOWN}`;
    onAction(byId("activity-more"), problem, () => this.#showEarlier());
  }

  /** Show the newest entries, unless the user is reading earlier ones. */
  async refresh() {
    byId("activity-part").hidden = false;
    if (this.#before !== null && byId("activity").children.length > SHOWN) return;
    const { activity, next } = await sendSignedIn("GET", this.#path);
    byId("activity").replaceChildren(...activity.map(row));
    this.#note(next);
  }

  async #showEarlier() {
    const { activity, next } = await sendSignedIn("GET", `${this.#path}&before=${this.#before}`);
    byId("activity").append(...activity.map(row));
    this.#note(next);
  }

  #note(next) {
    this.#before = next;
    byId("activity-more").hidden = next === null;
  }
}

function row({ at, kind, userId, email, detail }) {
  const who = email ?? userId ?? text("did.machine");
  const what = (WORDS[kind] ?? (() => kind))(detail ?? {});
  return createElement("li", "", [createElement("div", "what", [createElement("strong", "", who), ` ${what}`]), createElement("time", "", clockTime(at))]);
}
