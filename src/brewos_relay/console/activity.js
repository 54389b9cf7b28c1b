// Who did what with the machine.

import { askSignedIn } from "./api.js";
import { byId, clock, make, whenAsked } from "./page.js";

const SHOWN = 30;
const WORDS = {
  claimed: () => "paired the machine",
  owner_changed: () => "has the machine now: it connected, and the one paired before never did, or came later",
  shared: ({ role }) => (role ? `shared it with a ${role}` : "shared it"),
  share_claimed: ({ role }) => (role ? `took up a share as ${role}` : "took up a share"),
  share_revoked: () => "revoked a share",
  user_removed: () => "took it from somebody",
  role_changed: ({ role }) => (role ? `made somebody a ${role}` : "changed a role"),
  renamed: ({ name }) => (name ? `called it “\u2068${name}\u2069”` : "renamed it"),
  key_pending: () => "registered another key, which is not in use",
  key_changed: () => "has a new key in use",
  key_sent: () => "was sent a new key",
  online: () => "came online",
  offline: () => "went offline",
  throttled: () => "sends more than its rate: its messages are merged",
  throttle_ended: ({ dropped }) => `keeps to its rate again${dropped && dropped !== "0" ? ` (${dropped} messages dropped)` : ""}`,
  client_came: () => "began to watch",
  client_went: () => "stopped watching",
  token_copied: () => "was signed out: a copy of their session was used",
  command: ({ name, outcome }) => `${(name ?? "command").replace(":", " ")}${outcome && outcome !== "delivered" ? ` (${outcome.replace("_", " ")})` : ""}`,
};

export class ActivityList {
  #path;
  #before = null;

  constructor(deviceId, problem) {
    this.#path = `/api/devices/${deviceId}/activity?limit=${SHOWN}`;
    whenAsked(byId("activity-more"), problem, () => this.#showEarlier());
  }

  /** Show the newest, unless somebody has gone back to earlier ones. */
  async refresh() {
    byId("activity-part").hidden = false;
    if (this.#before !== null && byId("activity").children.length > SHOWN) return;
    const { activity, next } = await askSignedIn("GET", this.#path);
    byId("activity").replaceChildren(...activity.map(row));
    this.#note(next);
  }

  async #showEarlier() {
    const { activity, next } = await askSignedIn("GET", `${this.#path}&before=${this.#before}`);
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
  return make("li", "", [make("div", "what", [make("strong", "", who), ` ${what}`]), make("time", "", clock(at))]);
}
