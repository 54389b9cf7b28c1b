// The activity of the machine.

import { sendSignedIn } from "./api.js";
import { byId, clockTime, createElement, onAction } from "./dom.js";

const SHOWN = 30;
const WORDS = {
  claimed: () => "paired the machine",
  owner_changed: () => "became the owner when the machine connected; an earlier pairing ended",
  shared: ({ role }) => (role ? `shared it with a ${role}` : "shared it"),
  share_claimed: ({ role }) => (role ? `accepted a share as ${role}` : "accepted a share"),
  share_revoked: () => "revoked a share",
  user_removed: () => "removed a user",
  role_changed: ({ role }) => (role ? `changed a role to ${role}` : "changed a role"),
  renamed: ({ name }) => (name ? `renamed it to “\u2068${name}\u2069”` : "renamed it"),
  key_pending: () => "registered a new key, which is not accepted yet",
  key_changed: () => "now uses a new key",
  key_sent: () => "was sent a new key",
  online: () => "came online",
  offline: () => "went offline",
  throttled: () => "sends too many messages: they are merged",
  throttle_ended: ({ dropped }) => `sends at its normal rate again${dropped ? ` (${dropped} messages dropped)` : ""}`,
  client_came: () => "started watching",
  client_went: () => "stopped watching",
  token_copied: () => "was signed out, because a copy of the session was used",
  command: ({ name, outcome }) => `${(name ?? "command").replace(":", " ")}${outcome && outcome !== "delivered" ? ` (${outcome.replace("_", " ")})` : ""}`,
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
  const who = email ?? userId ?? "The machine";
  const what = (WORDS[kind] ?? (() => kind))(detail ?? {});
  return createElement("li", "", [createElement("div", "what", [createElement("strong", "", who), ` ${what}`]), createElement("time", "", clockTime(at))]);
}
