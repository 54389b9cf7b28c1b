// Who has the machine, and who is watching it now.

import { askSignedIn } from "./api.js";
import { byId, confirmed, day, make, tell, whenAsked } from "./page.js";

const ROLES = ["owner", "member", "viewer"];

export class People {
  #path;
  #me;
  #problem;
  #onChange;
  #role = "viewer";
  #watching = new Map(); // how many connections there are, by user
  #known = "";

  constructor(deviceId, { userId, problem, onChange }) {
    this.#path = `/api/devices/${deviceId}`;
    this.#me = userId;
    this.#problem = problem;
    this.#onChange = onChange;
  }

  allow(role) {
    this.#role = role;
  }

  /** Say how many are connected, as everybody may know. */
  showCount(count) {
    if (!Number.isInteger(count)) return;
    tell(byId("watching"), count > 1 ? `${count} apps watch this machine now, this one among them.` : "Nobody else watches this machine now.");
  }

  async refresh() {
    const { users } = await askSignedIn("GET", `${this.#path}/users`);
    if (this.#role === "owner") {
      const { watchers } = await askSignedIn("GET", `${this.#path}/watchers`);
      this.#watching = new Map(watchers.map((one) => [one.userId, one]));
    }
    const strangers = [...this.#watching.values()].filter((one) => !users.some(({ userId }) => userId === one.userId));
    const rows = [...users, ...strangers];
    // A button must not vanish under a finger: only what is new is shown anew.
    const known = JSON.stringify([rows, [...this.#watching], this.#role]);
    if (known === this.#known) return;
    this.#known = known;
    byId("users").replaceChildren(...rows.map((user) => this.#row(user)));
    byId("users").hidden = rows.length === 0;
  }

  #row({ userId, displayName, email, role, until }) {
    const name = userId === this.#me ? `${displayName} (you)` : displayName;
    const more = [email !== displayName && email, until && `until ${day(until)}`, !role && "by a token"];
    const what = make("div", "what", make("span", "", name));
    if (more.some(Boolean)) what.append(" ", make("span", "more", more.filter(Boolean).join(" · ")));
    const parts = [what];
    if (this.#watching.has(userId)) parts.push(make("span", "state online", "watching"));
    if (role && this.#role === "owner" && userId !== this.#me) parts.push(this.#choice({ userId, displayName, role }), this.#removal({ userId, displayName }));
    else if (role) parts.push(make("span", "tag", role));
    return make("li", "", parts);
  }

  #choice({ userId, displayName, role }) {
    const choice = make("select", "small", ROLES.map((one) => make("option", "", one)));
    choice.setAttribute("aria-label", `Role of ${displayName}`);
    choice.value = role;
    choice.addEventListener("change", async () => {
      tell(this.#problem);
      try {
        await askSignedIn("PATCH", `${this.#path}/users/${encodeURIComponent(userId)}`, { role: choice.value });
      } catch (failure) {
        choice.value = role;
        tell(this.#problem, failure.message);
      }
      this.#known = "";
      await this.refresh().then(this.#onChange).catch(() => {});
    });
    return choice;
  }

  #removal({ userId, displayName }) {
    const button = make("button", "quiet small", "Remove");
    button.setAttribute("aria-label", `Take the machine from ${displayName}`);
    whenAsked(button, this.#problem, async () => {
      const text = "They can come back with a new link only.";
      if (!(await confirmed({ title: `Take the machine from ${displayName}?`, text, act: "Take it" }))) return;
      await askSignedIn("DELETE", `${this.#path}/users/${encodeURIComponent(userId)}`);
      await this.refresh();
      await this.#onChange();
    });
    return button;
  }
}
