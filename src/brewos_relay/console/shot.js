// The running shot or the last one, and links to the recorded ones.

import { sendSignedIn } from "./api.js";
import { greatest, has, lastRun, latest, recordedShot } from "./curves.js";
import { byId, createElement, setText } from "./dom.js";
import { number, shortTime } from "./format.js";
import { shotsPage } from "./header.js";
import { text } from "./texts.js";

const RECENT = 3;
const RECORDED_MS = 8000; // the relay records a shot some seconds after its end
const RUNNING_MS = 100;

/** Shows the shots in the samples of a history, and those that the relay has recorded. */
export class ShotCard {
  #deviceId;
  #history;
  #recorded = null; // the newest recorded shot with its curves
  #wasRunning = false;
  #timer = null;
  #draw = () => {};

  constructor(deviceId, history) {
    this.#deviceId = deviceId;
    this.#history = history;
    byId("to-shots").href = shotsPage(deviceId);
  }

  /** Draw the curves with `draw(shot)` from now on. */
  set chart(draw) {
    this.#draw = draw;
    this.show();
  }

  /** Load the newest recorded shots. */
  async refresh() {
    const path = `/api/devices/${this.#deviceId}/shots`;
    const { shots } = await sendSignedIn("GET", `${path}?limit=${RECENT}`);
    byId("recent-shots").replaceChildren(...shots.map((shot) => this.#link(shot)));
    byId("recent").hidden = shots.length === 0;
    if (shots.length && shots[0].id !== this.#recorded?.id) {
      this.#recorded = recordedShot(await sendSignedIn("GET", `${path}/${shots[0].id}`));
    }
    this.show();
  }

  /** Show the newest shot. Call it after each reading. */
  show() {
    const shot = lastRun(this.#history.samples, Date.now()) ?? this.#recorded;
    const runs = shot?.runs === true;
    if (runs && this.#timer === null) this.#timer = setInterval(() => this.show(), RUNNING_MS);
    if (!runs) {
      clearInterval(this.#timer);
      this.#timer = null;
      if (this.#wasRunning) setTimeout(() => this.refresh().catch(() => {}), RECORDED_MS);
    }
    this.#wasRunning = runs;
    byId("shot-part").hidden = shot === null;
    byId("no-shot").hidden = shot !== null;
    if (shot === null) return;
    const figure = runs ? latest : greatest;
    write("shot-time", shot.seconds);
    for (const name of ["weight", "flow", "pressure"]) write(`shot-${name}`, figure(shot, name));
    setText(byId("shot-when"), runs ? text("shot.running") : text("shot.ended", { time: shortTime(shot.startedAt) }));
    byId("shot-legend").querySelector(".weight").hidden = !has(shot, "weight");
    byId("shot-legend").querySelector(".flow").hidden = !has(shot, "flow");
    this.#draw(shot);
  }

  #link({ id, at, durationMs, summary }) {
    const link = createElement("a", "", shortTime(at));
    link.href = `${shotsPage(this.#deviceId)}?shots=${id}`;
    const more = [`${number(durationMs / 1000, 1)} s`, summary.weight && `${number(summary.weight, 1)} g`];
    return createElement("li", "", [createElement("span", "what", link), createElement("span", "more", more.filter(Boolean).join(" · "))]);
  }
}

function write(id, value) {
  setText(byId(id), value === null ? "–" : number(value, 1));
}
