// The controls of the machine, and the outcome of each command.

import { askToConfirm, byId, setText } from "./dom.js";

const ANSWER_MS = 12000; // longer than a command may wait
const OUTCOMES = {
  delivered: ["good", "delivered to the machine"],
  queued: ["", "waiting for the machine"],
  expired: ["bad", "expired before the machine got it"],
  device_offline: ["bad", "not delivered, the machine is offline"],
  forbidden: ["bad", "not allowed; ask an owner of the machine"],
};
const FIELDS = [["set-brew", "brew-target"], ["set-steam", "steam-target"], ["set-eco", "eco-target"]];

export class Commands {
  #send;
  #number = 0;
  #asked = new Map(); // name and timer of pending commands, by request id

  /** `send` sends a message, and returns whether it was sent. */
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

  /** Show the controls that a role may use. */
  allow(role) {
    byId("controls").hidden = role === "viewer";
    byId("restart").hidden = role !== "owner";
  }

  /** Show the settings of the machine, except in a field that the user is editing. */
  show({ mode, brewTarget, steamTarget, ecoTarget, hasScale }) {
    for (const one of ["on", "eco", "standby"]) byId(`mode-${one}`).setAttribute("aria-pressed", String(mode === one));
    const set = { "brew-target": brewTarget, "steam-target": steamTarget, "eco-target": ecoTarget };
    for (const [, id] of FIELDS) {
      const field = byId(id);
      const value = set[id];
      if (value === null || value === undefined || field.dataset.set === String(value)) continue;
      // Keep input that is not sent yet.
      if (document.activeElement !== field || field.value === (field.dataset.set ?? "")) field.value = value;
      field.dataset.set = value;
    }
    byId("tare").hidden = !hasScale;
  }

  /** Show the outcome of a command. */
  take({ requestId, status }) {
    const asked = this.#asked.get(requestId);
    if (!asked) return;
    if (status !== "queued") this.#forget(requestId);
    const [kind, words] = OUTCOMES[status] ?? ["", status];
    this.#tell(`${asked.name}: ${words}.`, kind);
  }

  /** Handle a lost connection: pending commands get no answer. */
  interrupt() {
    if (!this.#asked.size) return;
    for (const id of [...this.#asked.keys()]) this.#forget(id);
    this.#tell("The connection was lost. The machine may or may not have got the command.", "bad");
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
      return this.#tell(`${name}: not sent, no connection.`, "bad");
    }
    this.#tell(`${name}…`, "");
    const timer = setTimeout(() => {
      this.#asked.delete(requestId);
      this.#tell(`${name}: no answer yet.`, "bad");
    }, ANSWER_MS);
    this.#asked.set(requestId, { name, timer });
  }

  #forget(requestId) {
    clearTimeout(this.#asked.get(requestId).timer);
    this.#asked.delete(requestId);
  }

  async #restart() {
    const text = "The machine stops what it is doing, and is back in about half a minute.";
    if (await askToConfirm({ title: "Restart the machine?", text, act: "Restart" })) this.#ask("Restart", { cmd: "restart" });
  }

  #tell(text, kind) {
    byId("outcome").className = `outcome ${kind}`;
    setText(byId("outcome"), text);
  }
}
