// The buttons that tell the machine what to do, and what became of it.

import { byId, confirmed, tell } from "./page.js";

const ANSWER_MS = 12000; // longer than a command may wait
const OUTCOMES = {
  delivered: ["good", "delivered to the machine"],
  queued: ["", "waits for the machine"],
  expired: ["bad", "came too late; the machine did not get it"],
  device_offline: ["bad", "the machine is offline, and did not get it"],
  forbidden: ["bad", "you may not do this; ask an owner of the machine"],
};
const FIELDS = [["set-brew", "brew-target"], ["set-steam", "steam-target"], ["set-eco", "eco-target"]];

export class Commands {
  #send;
  #number = 0;
  #asked = new Map(); // what was asked for and its time limit, by request id

  /** `send` sends a message, and gives whether it could. */
  constructor(send) {
    this.#send = send;
    for (const mode of ["on", "eco", "standby"]) {
      byId(`mode-${mode}`).addEventListener("click", () => this.#ask(`Mode “${mode}”`, { cmd: "set_mode", mode }));
    }
    this.#whenSet("set-brew", "brew-target", (temp) => this.#ask(`Brew at ${temp} °C`, { cmd: "set_temp", boiler: "brew", temp }));
    this.#whenSet("set-steam", "steam-target", (temp) => this.#ask(`Steam at ${temp} °C`, { cmd: "set_temp", boiler: "steam", temp }));
    this.#whenSet("set-eco", "eco-target", (temp) => this.#ask(`Eco at ${temp} °C`, { cmd: "set_eco", brewTemp: temp }));
    byId("tare").addEventListener("click", () => this.#ask("Tare", { cmd: "tare" }));
    byId("restart").addEventListener("click", () => this.#restart());
  }

  /** Show what a role may do. */
  allow(role) {
    byId("controls").hidden = role === "viewer";
    byId("restart").hidden = role !== "owner";
  }

  /** Show what is set, where nobody is just typing. */
  show({ mode, brewTarget, steamTarget, ecoTarget, hasScale }) {
    for (const one of ["on", "eco", "standby"]) byId(`mode-${one}`).setAttribute("aria-pressed", String(mode === one));
    const set = { "brew-target": brewTarget, "steam-target": steamTarget, "eco-target": ecoTarget };
    for (const [, id] of FIELDS) {
      const field = byId(id);
      const value = set[id];
      if (value === null || value === undefined || field.dataset.set === String(value)) continue;
      // What was typed and not sent yet is not taken away.
      if (document.activeElement !== field || field.value === (field.dataset.set ?? "")) field.value = value;
      field.dataset.set = value;
    }
    byId("tare").hidden = !hasScale;
  }

  /** Take what the relay says became of a command. */
  take({ requestId, status }) {
    const asked = this.#asked.get(requestId);
    if (!asked) return;
    if (status !== "queued") this.#forget(requestId);
    const [kind, words] = OUTCOMES[status] ?? ["", status];
    this.#tell(`${asked.name}: ${words}.`, kind);
  }

  /** Note that the connection is gone: there will be no answers. */
  interrupt() {
    if (!this.#asked.size) return;
    for (const id of [...this.#asked.keys()]) this.#forget(id);
    this.#tell("The connection went away; nobody knows whether the machine got it.", "bad");
  }

  #whenSet(formId, fieldId, act) {
    byId(formId).addEventListener("submit", (event) => {
      event.preventDefault();
      const field = byId(fieldId);
      field.dataset.set = field.value;
      act(field.valueAsNumber);
    });
  }

  #ask(name, command) {
    const requestId = `console-${++this.#number}`;
    if (!this.#send({ type: "command", ...command, requestId })) {
      return this.#tell(`${name}: not sent, there is no connection.`, "bad");
    }
    this.#tell(`${name}…`, "");
    const timer = setTimeout(() => {
      this.#asked.delete(requestId);
      this.#tell(`${name}: no answer so far.`, "bad");
    }, ANSWER_MS);
    this.#asked.set(requestId, { name, timer });
  }

  #forget(requestId) {
    clearTimeout(this.#asked.get(requestId).timer);
    this.#asked.delete(requestId);
  }

  async #restart() {
    const text = "It stops what it does, and is back in about half a minute.";
    if (await confirmed({ title: "Restart the machine?", text, act: "Restart" })) this.#ask("Restart", { cmd: "restart" });
  }

  #tell(text, kind) {
    byId("outcome").className = `outcome ${kind}`;
    tell(byId("outcome"), text);
  }
}
