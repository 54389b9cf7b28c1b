// The controls of the machine, and the outcome of each command.

import { askToConfirm, byId, setText } from "./dom.js";
import { number } from "./format.js";
import { outcomeName, text } from "./texts.js";

const ANSWER_MS = 12000; // longer than a command may wait
const KINDS = { delivered: "good", expired: "bad", device_offline: "bad", forbidden: "bad" };
const MODES = { on: "mode.on", eco: "mode.eco", standby: "mode.standby" };
const FIELDS = [["set-brew", "brew-target"], ["set-steam", "steam-target"], ["set-eco", "eco-target"]];

export class Commands {
  #send;
  #number = 0;
  #asked = new Map(); // name and timer of pending commands, by request id

  /** `send` sends a message, and returns whether it was sent. */
  constructor(send) {
    this.#send = send;
    for (const mode of Object.keys(MODES)) {
      byId(`mode-${mode}`).addEventListener("click", () => this.#ask(text("command.mode", { mode: text(MODES[mode]) }), { cmd: "set_mode", mode }));
    }
    this.#whenSet("set-brew", "brew-target", (temp) => this.#ask(text("command.brew", { temperature: `${number(temp, 0, 1)} °C` }), { cmd: "set_temp", boiler: "brew", temp }));
    this.#whenSet("set-steam", "steam-target", (temp) => this.#ask(text("command.steam", { temperature: `${number(temp, 0, 1)} °C` }), { cmd: "set_temp", boiler: "steam", temp }));
    this.#whenSet("set-eco", "eco-target", (temp) => this.#ask(text("command.eco", { temperature: `${number(temp, 0, 1)} °C` }), { cmd: "set_eco", brewTemp: temp }));
    byId("tare").addEventListener("click", () => this.#ask(text("command.tare"), { cmd: "tare" }));
    byId("restart").addEventListener("click", () => this.#restart());
  }

  /** Show the controls that a role may use. */
  allow(role) {
    byId("controls").hidden = role === "viewer";
    byId("restart").hidden = role !== "owner";
  }

  /** Show the settings of the machine, except in a field that the user is editing. */
  show({ mode, brewTarget, steamTarget, ecoTarget, hasScale }) {
    for (const one of Object.keys(MODES)) byId(`mode-${one}`).setAttribute("aria-pressed", String(mode === one));
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
    this.#tell(text("command.outcome", { command: asked.name, outcome: outcomeName(status) }), KINDS[status] ?? "");
  }

  /** Handle a lost connection: pending commands get no answer. */
  interrupt() {
    if (!this.#asked.size) return;
    for (const id of [...this.#asked.keys()]) this.#forget(id);
    this.#tell(text("command.interrupted"), "bad");
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
      return this.#tell(text("command.outcome", { command: name, outcome: text("outcome.not-sent") }), "bad");
    }
    this.#tell(text("command.sent", { command: name }), "");
    const timer = setTimeout(() => {
      this.#asked.delete(requestId);
      this.#tell(text("command.outcome", { command: name, outcome: text("outcome.no-answer") }), "bad");
    }, ANSWER_MS);
    this.#asked.set(requestId, { name, timer });
  }

  #forget(requestId) {
    clearTimeout(this.#asked.get(requestId).timer);
    this.#asked.delete(requestId);
  }

  async #restart() {
    const question = { title: text("restart.title"), text: text("restart.text"), act: text("restart.act") };
    if (await askToConfirm(question)) this.#ask(text("restart.act"), { cmd: "restart" });
  }

  #tell(words, kind) {
    byId("outcome").className = `outcome ${kind}`;
    setText(byId("outcome"), words);
  }
}
