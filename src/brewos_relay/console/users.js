// The users of the machine, and the users who watch it now.

import { sendSignedIn } from "./api.js";
import { askToConfirm, byId, createElement, onAction, setText } from "./dom.js";
import { day } from "./format.js";
import { roleName, text } from "./texts.js";

const ROLES = ["owner", "member", "viewer"];

export class UserList {
  #path;
  #me;
  #problem;
  #onChange;
  #role = "viewer";
  #watching = new Map(); // connected users, by id
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

  /** Show how many apps are connected. All users may see this. */
  showCount(count) {
    if (!Number.isInteger(count)) return;
    setText(byId("watching"), count > 1 ? text("people.watching", { count }) : text("people.alone"));
  }

  async refresh() {
    const { users } = await sendSignedIn("GET", `${this.#path}/users`);
    if (this.#role === "owner") {
      const { watchers } = await sendSignedIn("GET", `${this.#path}/watchers`);
      this.#watching = new Map(watchers.map((one) => [one.userId, one]));
    }
    const strangers = [...this.#watching.values()].filter((one) => !users.some(({ userId }) => userId === one.userId));
    const rows = [...users, ...strangers];
    // Redraw only if something changed: a button must not vanish while the user taps it.
    const known = JSON.stringify([rows, [...this.#watching], this.#role]);
    if (known === this.#known) return;
    this.#known = known;
    byId("users").replaceChildren(...rows.map((user) => this.#row(user)));
    byId("users").hidden = rows.length === 0;
  }

  #row({ userId, displayName, email, role, until }) {
    const name = userId === this.#me ? text("people.you", { name: displayName }) : displayName;
    const more = [email !== displayName && email, until && text("people.until", { time: day(until) }), !role && text("people.token")];
    const what = createElement("div", "what", createElement("span", "", name));
    if (more.some(Boolean)) what.append(" ", createElement("span", "more", more.filter(Boolean).join(" · ")));
    const parts = [what];
    if (this.#watching.has(userId)) parts.push(createElement("span", "state online", text("people.watches")));
    if (role && this.#role === "owner" && userId !== this.#me) parts.push(this.#choice({ userId, displayName, role }), this.#removal({ userId, displayName }));
    else if (role) parts.push(createElement("span", "tag", roleName(role)));
    return createElement("li", "", parts);
  }

  #choice({ userId, displayName, role }) {
    const choice = createElement("select", "small", ROLES.map(option));
    choice.setAttribute("aria-label", text("people.role", { name: displayName }));
    choice.value = role;
    choice.addEventListener("change", async () => {
      setText(this.#problem);
      try {
        await sendSignedIn("PATCH", `${this.#path}/users/${encodeURIComponent(userId)}`, { role: choice.value });
      } catch (failure) {
        choice.value = role;
        setText(this.#problem, failure.message);
      }
      this.#known = "";
      await this.refresh().then(this.#onChange).catch(() => {});
    });
    return choice;
  }

  #removal({ userId, displayName }) {
    const button = createElement("button", "quiet small bad", text("people.remove"));
    button.setAttribute("aria-label", text("people.remove-label", { name: displayName }));
    onAction(button, this.#problem, async () => {
      const question = { title: text("people.remove-title", { name: displayName }), text: text("people.remove-text"), act: text("people.remove") };
      if (!(await askToConfirm(question))) return;
      await sendSignedIn("DELETE", `${this.#path}/users/${encodeURIComponent(userId)}`);
      await this.refresh();
      await this.#onChange();
    });
    return button;
  }
}

function option(role) {
  const element = createElement("option", "", roleName(role));
  element.value = role;
  return element;
}
