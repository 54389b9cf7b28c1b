// The activity of the machine.

import { sendSignedIn } from "./api.js";
import { byId, createElement, onAction } from "./dom.js";
import { clockTime } from "./format.js";
import { outcomeName, roleName, text } from "./texts.js";

const SHOWN = 30;
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
    const command = name?.replace(":", " ") ?? text("did.command");
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
