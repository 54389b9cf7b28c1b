// The list of the shots of a machine, which loads page by page.

import { sendSignedIn } from "./api.js";
import { byId, createElement } from "./dom.js";
import { number, shortTime } from "./format.js";
import { text } from "./texts.js";

const PAGE = 30;

/** Calls `onChoose(ids)` when the user ticks a shot or unticks one, and `onOpen(id)` for a shot alone. */
export class ShotList {
  #path;
  #most;
  #on;
  #rows = new Map(); // the rows by the id of the shot, newest first
  #next = null;
  #chosen = [];

  constructor(path, { most, onChoose, onOpen }) {
    this.#path = path;
    this.#most = most;
    this.#on = { choose: onChoose, open: onOpen };
  }

  get isEmpty() {
    return this.#rows.size === 0;
  }

  /** The id of the newest shot, in a list. */
  newest() {
    return [...this.#rows.keys()].slice(0, 1);
  }

  /** Load the newest shots. The rows of known ones stay: a box must not vanish while the user taps it. */
  async refresh() {
    const { shots, next } = await sendSignedIn("GET", `${this.#path}?limit=${PAGE}`);
    const isFirst = this.isEmpty;
    const ids = new Set(shots.map(({ id }) => id));
    const last = shots.at(-1)?.id ?? 0;
    for (const id of [...this.#rows.keys()]) {
      if ((id >= last || next === null) && !ids.has(id)) this.remove(id);
    }
    const added = shots.filter(({ id }) => !this.#rows.has(id));
    const rows = added.map((shot) => [shot.id, this.#row(shot)]);
    byId("shots").prepend(...rows.map(([, row]) => row));
    this.#rows = new Map([...rows, ...this.#rows]);
    if (isFirst) this.#note(next);
    this.mark(this.#chosen);
  }

  async showEarlier() {
    const { shots, next } = await sendSignedIn("GET", `${this.#path}?limit=${PAGE}&before=${this.#next}`);
    for (const shot of shots.filter(({ id }) => !this.#rows.has(id))) {
      const row = this.#row(shot);
      this.#rows.set(shot.id, row);
      byId("shots").append(row);
    }
    this.#note(next);
    this.mark(this.#chosen);
  }

  remove(id) {
    this.#rows.get(id)?.remove();
    this.#rows.delete(id);
  }

  /** Tick these shots. */
  mark(ids) {
    this.#chosen = ids;
    for (const [id, row] of this.#rows) {
      const box = row.querySelector("input");
      box.checked = ids.includes(id);
      box.disabled = !box.checked && ids.length >= this.#most;
      row.classList.toggle("chosen", box.checked);
    }
  }

  #note(next) {
    this.#next = next;
    byId("more").hidden = next === null;
  }

  #row({ id, at, durationMs, complete, summary }) {
    const when = shortTime(at);
    const box = createElement("input");
    box.type = "checkbox";
    box.ariaLabel = text("shots.compare", { time: when });
    box.addEventListener("change", () => {
      this.#on.choose(box.checked ? [...this.#chosen, id] : this.#chosen.filter((one) => one !== id));
    });
    const link = createElement("a", "", when);
    link.href = `?shots=${id}`;
    link.addEventListener("click", (event) => {
      if (event.metaKey || event.ctrlKey || event.shiftKey) return;
      event.preventDefault();
      this.#on.open(id);
    });
    const figure = (value, unit) => createElement("td", "", typeof value === "number" ? `${number(value, 1)} ${unit}` : "–");
    const began = createElement("th", "", [link, ...(complete ? [] : [" ", createElement("span", "tag", text("shots.incomplete"))])]);
    began.scope = "row";
    return createElement("tr", "", [
      createElement("td", "", createElement("label", "", box)),
      began,
      figure(durationMs / 1000, "s"),
      figure(summary.weight, "g"),
      figure(summary.peakPressure, "bar"),
    ]);
  }
}
