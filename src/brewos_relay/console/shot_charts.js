// Charts of one shot, or of several above each other from their start.

import { Chart } from "./chart.js";
import { places, timeStep } from "./axes.js";
import { align, has, valueAt } from "./curves.js";
import { QUANTITIES } from "./quantities.js";

const AXIS_S = 30;
const STEP_S = 5;
const ROWS = 12;
const DASHES = [undefined, [7, 4], [2, 3], [12, 3, 2, 3], [4, 2], [1, 5]];
const COLOURS = { pressure: "--pressure", flow: "--flow", weight: "--weight", temperature: "--brew" };

/** How many shots can be told apart. */
export const MOST_SHOTS = DASHES.length;

/** A chart of shots in an element. `groups` lists the quantities of each panel. */
export class ShotChart {
  #place;
  #groups;
  #on;
  #chart = null;
  #shape = "";
  #shots = [];

  constructor(place, groups, { describe, onPoint, onZoom }) {
    this.#place = place;
    this.#groups = groups;
    this.#on = { describe, onPoint, onZoom };
  }

  /** Draw the shots. A running shot is drawn again with its new values. */
  show(shots) {
    const groups = this.#groups
      .map((names) => names.filter((name) => shots.some((shot) => has(shot, name))))
      .filter((names) => names.length);
    const shape = JSON.stringify([shots.length, groups]);
    if (shape !== this.#shape) this.#open(shape, groups, shots.length);
    this.#shots = shots;
    if (!this.#chart) return;
    const names = groups.flat();
    const { xs, columns } = align(shots, names);
    const seconds = Math.max(...shots.map((shot) => shot.seconds), xs.at(-1) ?? 0);
    this.#chart.show({
      xs,
      columns: names.flatMap((name) => columns[name].map((values) => values.map((value) => converted(name, value)))),
      from: 0,
      to: Math.max(shots.some(({ runs }) => runs) ? AXIS_S : STEP_S, Math.ceil(seconds / STEP_S) * STEP_S),
    });
  }

  /** Show the whole shots again. */
  showAll() {
    this.#chart?.zoom(null);
  }

  /** Return the values of a shot at a time, as `{pressure, …}` with null for unknown ones. */
  valuesAt(number, at) {
    return Object.fromEntries(QUANTITIES.map(({ name }) => [name, converted(name, valueAt(this.#shots[number], name, at))]));
  }

  #open(shape, groups, count) {
    this.#chart?.close();
    this.#shape = shape;
    this.#chart = null;
    if (!groups.length) return;
    const panels = groups.map((names) => {
      const of = names.map(quantity);
      return {
        share: 1,
        unit: of.map(({ unit }) => unit).join(", "),
        floor: Math.min(...of.map(({ floor }) => floor)),
        ceiling: Math.max(...of.map(({ ceiling }) => ceiling)),
        lines: names.flatMap((name) => Array.from({ length: count }, (_, number) => line(name, number, count))),
      };
    });
    this.#chart = new Chart(this.#place, panels, { ticks, ...this.#on });
  }
}

const quantity = (name) => QUANTITIES.find((one) => one.name === name);
const converted = (name, value) => (value === null ? null : quantity(name).convert(value));

function line(name, number, count) {
  if (count === 1) return { colour: COLOURS[name], filled: name === "weight" };
  return { colour: `--shot-${number + 1}`, dash: DASHES[number] };
}

function ticks(from, to, most) {
  const step = timeStep(to - from, most);
  const first = Math.ceil(from / step - 0.001) * step;
  return places(first, Math.floor(to / step + 0.001) * step, step).map((x) => [x, `${x} s`]);
}

/** Return the times for a table of shots, in s. */
export function tableTimes(shots) {
  const seconds = Math.max(...shots.map((shot) => shot.seconds));
  const step = timeStep(seconds, ROWS);
  return Array.from({ length: Math.floor(seconds / step) + 1 }, (_, number) => number * step);
}
