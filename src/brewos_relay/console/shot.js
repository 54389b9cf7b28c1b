// The current shot, or the last one in this tab.

import { Chart } from "./chart.js";
import { byId, setText } from "./dom.js";
import { clockTime, number } from "./format.js";
import { text } from "./texts.js";

const AXIS_S = 30;
const STEP_S = 5;
const MOST_SAMPLES = 1000;

/** Follows the readings of one machine. The last shot is kept as long as the tab is open. */
export class Shot {
  #shot = null;
  #key;
  #timer = null;
  #chart = new Chart(byId("shot"), [
    { share: 1, floor: 0, ceiling: 40, unit: "g", most: 2, lines: [{ of: "weight", colour: "--weight", filled: true }] },
    { share: 1, floor: 0, ceiling: 10, unit: "bar, g/s", most: 2, lines: [
      { of: "pressure", colour: "--pressure" },
      { of: "flow", colour: "--flow" },
    ] },
  ]);

  constructor(deviceId) {
    this.#key = `brewos_relay_shot_${deviceId}`;
    try {
      this.#shot = JSON.parse(sessionStorage.getItem(this.#key));
    } catch {
      // no stored shot
    }
    new ResizeObserver(() => this.#show()).observe(byId("shot"));
    this.#show();
  }

  /** Take a reading of this moment. */
  take(reading) {
    const at = Date.now();
    const runs = this.#shot !== null && this.#shot.endedAt === null;
    if (reading.isBrewing && !runs) {
      this.#shot = { startedAt: at, endedAt: null, samples: [] };
      this.#timer = setInterval(() => this.#show(), 100);
    }
    if (reading.isBrewing || runs) {
      const { weight, flow, pressure, hasScale } = reading;
      if (this.#shot.samples.length < MOST_SAMPLES) {
        this.#shot.samples.push({
          at: (at - this.#shot.startedAt) / 1000,
          weight: hasScale ? weight : null,
          flow: hasScale ? flow : null,
          pressure,
        });
      }
    }
    if (!reading.isBrewing && runs) this.#end(at);
    this.#show();
  }

  /** End the shot when the machine or the connection is lost. */
  interrupt() {
    if (this.#shot?.endedAt === null) this.#end(Date.now());
  }

  #end(at) {
    clearInterval(this.#timer);
    this.#shot.endedAt = at;
    sessionStorage.setItem(this.#key, JSON.stringify(this.#shot));
    this.#show();
  }

  #show() {
    const shot = this.#shot;
    for (const id of ["shot", "shot-legend"]) byId(id).hidden = shot === null;
    byId("no-shot").hidden = shot !== null;
    if (shot === null) return;
    const seconds = ((shot.endedAt ?? Date.now()) - shot.startedAt) / 1000;
    const most = (of) => Math.max(...shot.samples.map((one) => one[of] ?? -Infinity));
    const last = (of) => shot.samples.findLast((one) => one[of] !== null)?.[of] ?? null;
    const runs = shot.endedAt === null;
    const write = (id, value, digits) => setText(byId(id), Number.isFinite(value) && value !== null ? number(value, digits) : "–");
    write("shot-time", seconds, 1);
    write("shot-weight", runs ? last("weight") : most("weight"), 1);
    write("shot-flow", runs ? last("flow") : most("flow"), 1);
    write("shot-pressure", runs ? last("pressure") : most("pressure"), 1);
    setText(byId("shot-when"), runs ? text("shot.running") : text("shot.ended", { time: clockTime(shot.startedAt) }));
    const to = Math.max(AXIS_S, Math.ceil(seconds / STEP_S) * STEP_S);
    const ticks = Array.from({ length: to / STEP_S + 1 }, (_, number) => [number * STEP_S, `${number * STEP_S} s`]);
    const samples = [...shot.samples, { ...shot.samples.at(-1), at: seconds, gap: true }];
    this.#chart.draw({ samples, from: 0, to, ticks });
  }
}
