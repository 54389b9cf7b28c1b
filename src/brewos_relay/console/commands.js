// The controls of the machine, and the outcome of each command.

import { askToConfirm, byId, setText } from "./dom.js";
import { degrees, fromCelsius, number, toCelsius } from "./format.js";
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
      byId(`mode-${mode}`).addEventListener("click", () => this.#ask(text("command.mode", { mode: text(MODES[mode]) }), { cmd: "set_mode", mode }, "mode-outcome"));
    }
    this.#whenSet("set-brew", "brew-target", "command.brew", (temp) => ({ cmd: "set_temp", boiler: "brew", temp }));
    this.#whenSet("set-steam", "steam-target", "command.steam", (temp) => ({ cmd: "set_temp", boiler: "steam", temp }));
    this.#whenSet("set-eco", "eco-target", "command.eco", (temp) => ({ cmd: "set_eco", brewTemp: temp }));
    byId("tare").addEventListener("click", () => this.#ask(text("command.tare"), { cmd: "tare" }));
    byId("restart").addEventListener("click", () => this.#restart());
  }

  /** Show the controls that a role may use. */
  allow(role) {
    for (const id of ["controls", "modes"]) byId(id).hidden = role === "viewer";
    byId("restart").hidden = role !== "owner";
  }

  /** Enable the controls, or disable them while the machine cannot be reached. */
  enable(isReachable) {
    for (const control of document.querySelectorAll(":is(#modes, #controls) :is(button, input)")) control.disabled = !isReachable;
    byId("controls-offline").hidden = isReachable;
  }

  /** Show the settings of the machine, except in a field that the user is editing. */
  show({ mode, brewTarget, steamTarget, ecoTarget, hasScale }) {
    for (const one of Object.keys(MODES)) byId(`mode-${one}`).setAttribute("aria-pressed", String(mode === one));
    const set = { "brew-target": brewTarget, "steam-target": steamTarget, "eco-target": ecoTarget };
    for (const [, id] of FIELDS) {
      const field = byId(id);
      if (typeof set[id] !== "number") continue;
      const value = inField(set[id]);
      if (field.dataset.set === String(value)) continue;
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
    this.#tell(text("command.outcome", { command: asked.name, outcome: outcomeName(status) }), KINDS[status] ?? "", asked.place);
  }

  /** Handle a lost connection: pending commands get no answer. */
  interrupt() {
    if (!this.#asked.size) return;
    const places = new Set([...this.#asked.values()].map(({ place }) => place));
    for (const id of [...this.#asked.keys()]) this.#forget(id);
    for (const place of places) this.#tell(text("command.interrupted"), "bad", place);
  }

  /** Set up a form for a temperature. `key` is the name of its command; `commandFor` makes it from °C. */
  #whenSet(formId, fieldId, key, commandFor) {
    const field = byId(fieldId);
    byId(formId).querySelector(".unit").textContent = degrees;
    if (degrees === "°F") Object.assign(field, { min: Math.ceil(fromCelsius(field.min)), max: Math.floor(fromCelsius(field.max)), step: 1 });
    byId(formId).addEventListener("submit", (event) => {
      event.preventDefault();
      field.dataset.set = field.value;
      const wanted = field.valueAsNumber;
      this.#ask(text(key, { temperature: `${number(wanted, 0, 1)} ${degrees}` }), commandFor(toCelsius(wanted)));
    });
  }

  /** Send a command. Its outcome is shown in the element with the id `place`. */
  #ask(name, command, place = "outcome") {
    const requestId = `console-${++this.#number}`;
    if (!this.#send({ type: "command", ...command, requestId })) {
      return this.#tell(text("command.outcome", { command: name, outcome: text("outcome.not-sent") }), "bad", place);
    }
    this.#tell(text("command.sent", { command: name }), "", place);
    const timer = setTimeout(() => {
      this.#asked.delete(requestId);
      this.#tell(text("command.outcome", { command: name, outcome: text("outcome.no-answer") }), "bad", place);
    }, ANSWER_MS);
    this.#asked.set(requestId, { name, timer, place });
  }

  #forget(requestId) {
    clearTimeout(this.#asked.get(requestId).timer);
    this.#asked.delete(requestId);
  }

  async #restart() {
    const question = { title: text("restart.title"), text: text("restart.text"), act: text("restart.act"), isBad: false };
    if (await askToConfirm(question)) this.#ask(text("restart.act"), { cmd: "restart" });
  }

  #tell(words, kind, place) {
    byId(place).className = `outcome ${kind}`;
    setText(byId(place), words);
  }
}

/** Write a temperature of the machine for a field. Whole degrees are fine enough in °F. */
const inField = (celsius) => (degrees === "°F" ? Math.round(fromCelsius(celsius)) : celsius);
