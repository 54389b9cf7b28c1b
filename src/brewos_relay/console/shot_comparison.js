// The curves and figures of one shot, or of several to compare.

import { downloadSignedIn, sendSignedIn } from "./api.js";
import { has, recordedShot } from "./curves.js";
import { askToConfirm, byId, createElement, onAction, setText } from "./dom.js";
import { degrees, fromCelsius, number, shortTime } from "./format.js";
import { QUANTITIES, withUnit } from "./quantities.js";
import { text } from "./texts.js";
import { writeTable } from "./value_table.js";

const FORMATS = [["json", "JSON"], ["csv", "CSV"], ["visualizer", text("shots.visualizer")]];
const TITLES = {
  pressure: text("value.pressure"), flow: text("value.flow"), weight: text("value.weight"), temperature: text("value.temperature"),
};
const FIGURES = [
  [text("value.time"), ({ durationMs }) => durationMs / 1000, "s"],
  [text("value.weight"), ({ summary }) => summary.weight, "g"],
  [text("shots.dose"), ({ summary }) => summary.dose, "g"],
  [text("shots.ratio"), ({ summary }) => (summary.dose > 0 && summary.weight > 0 ? summary.weight / summary.dose : undefined), "ratio"],
  [text("shots.peak-pressure"), ({ summary }) => summary.peakPressure, "bar"],
  [text("shots.average-pressure"), ({ summary }) => summary.averagePressure, "bar"],
  [text("shots.average-flow"), ({ summary }) => summary.averageFlow, "g/s"],
  [text("shots.average-temperature"), ({ summary: { averageTemp: value } }) => (typeof value === "number" ? fromCelsius(value) : value), degrees],
];

export class Comparison {
  #path;
  #problem;
  #onDeleted;
  #mayDelete = false;
  #answers = [];
  #shots = [];
  #chart = null;
  #tableTimes = null;

  /** `onDeleted(id)` is called after the user has deleted a shot. */
  constructor({ path, problem, onDeleted }) {
    this.#path = path;
    this.#problem = problem;
    this.#onDeleted = onDeleted;
    byId("curves-values").addEventListener("toggle", () => this.#showTable());
    byId("curves-all").addEventListener("click", () => {
      this.#chart?.showAll();
      byId("curves").focus();
    });
  }

  /** Show what a role may do. */
  allow(role) {
    const may = role === "owner";
    if (may === this.#mayDelete) return;
    this.#mayDelete = may;
    this.#showFigures();
  }

  /** Show shots, which are answers of the API. */
  async show(answers) {
    this.#answers = answers;
    this.#shots = answers.map(recordedShot);
    const count = answers.length;
    byId("no-curves").hidden = count > 0;
    byId("curves-part").hidden = count === 0;
    setText(byId("comparison-title"), this.#title());
    setText(byId("reading"));
    this.#showFigures();
    if (!count) return;
    await this.#openChart();
    if (answers !== this.#answers) return;
    const shown = QUANTITIES.filter(({ name }) => this.#shots.some((shot) => has(shot, name)));
    byId("curves").hidden = shown.length === 0;
    byId("curves").dataset.panels = shown.length;
    this.#chart.show(this.#shots);
    this.#showLines(null);
    this.#showTable();
  }

  #title() {
    if (this.#answers.length === 1) return text("shots.one", { time: shortTime(this.#answers[0].shot.at) });
    return this.#answers.length ? text("shots.compared", { count: this.#answers.length }) : text("shots.no-choice");
  }

  /** Load the scripts of the charts, after the figures. */
  async #openChart() {
    if (this.#chart) return;
    const { ShotChart, tableTimes } = await import("./shot_charts.js");
    this.#tableTimes = tableTimes;
    this.#chart ??= new ShotChart(byId("curves"), QUANTITIES.map(({ name }) => [name]), {
      describe: (x) => [`${number(x, 1)} s`, ...this.#shots.map((_, place) => `${this.#name(place)}: ${this.#valuesAt(place, x)}`)].join("; "),
      onPoint: (x) => {
        setText(byId("reading"), x === null ? "" : `${number(x, 1)} s`);
        this.#showLines(x);
      },
      onZoom: (isZoomed) => {
        byId("curves-all").hidden = !isZoomed;
      },
    });
  }

  #name(place) {
    return shortTime(this.#answers[place].shot.at);
  }

  #lineClass(place) {
    return this.#shots.length > 1 ? ["line", `shot-${place + 1}`].join(" ") : "";
  }

  #valuesAt(place, x) {
    const values = this.#chart.valuesAt(place, x);
    const known = QUANTITIES.filter(({ name }) => values[name] !== null);
    return known.map((one) => withUnit(one, values[one.name])).join(" · ") || "–";
  }

  /** Show the values of each shot at the cursor. */
  #showLines(x) {
    const lines = byId("lines");
    if (lines.children.length !== this.#shots.length) {
      lines.replaceChildren(...this.#shots.map(() => createElement("li", "", [createElement("span", "name"), createElement("span", "at")])));
    }
    this.#shots.forEach((_, place) => {
      const [name, at] = lines.children[place].children;
      lines.children[place].className = this.#lineClass(place);
      setText(name, this.#name(place));
      setText(at, x === null ? "" : this.#valuesAt(place, x));
    });
  }

  #showTable() {
    if (!this.#chart || !byId("curves-values").open) return;
    const shown = QUANTITIES.filter(({ name }) => this.#shots.some((shot) => has(shot, name)));
    const pairs = shown.flatMap(({ name, unit, digits }) => this.#shots.map((_, place) => ({ name, unit, digits, place })));
    const heading = ({ name, unit, place }) => `${TITLES[name]} (${unit})${this.#shots.length > 1 ? `, ${this.#name(place)}` : ""}`;
    writeTable(byId("curves-table"), text("shots.description"), [text("value.time"), ...pairs.map(heading)], this.#tableTimes(this.#shots).map((x) => {
      const values = this.#shots.map((_, place) => this.#chart.valuesAt(place, x));
      return [`${x} s`, ...pairs.map(({ name, digits, place }) => (values[place][name] === null ? "–" : number(values[place][name], digits)))];
    }));
  }

  /** Show the figures of each shot, and by how much they differ from the first one. */
  #showFigures() {
    const shots = this.#answers.map(({ shot }) => shot);
    const rows = FIGURES.map(([title, read, unit]) => [title, shots.map(read), unit])
      .filter(([, values]) => values.some((value) => typeof value === "number"));
    const head = createElement("tr", "", [
      createElement("td"),
      ...shots.map((shot, place) => headCell("col", createElement("span", this.#lineClass(place), this.#name(place)))),
    ]);
    byId("figures").replaceChildren(
      createElement("caption", "unseen", text("shots.figures")),
      createElement("thead", "", head),
      createElement("tbody", "", [
        ...rows.map(([title, values, unit]) => createElement("tr", "", [headCell("row", title), ...values.map((value) => figureCell(value, values[0], unit))])),
        createElement("tr", "", [headCell("row", text("shots.download")), ...shots.map((shot) => this.#downloads(shot))]),
        ...(this.#mayDelete && shots.length ? [createElement("tr", "", [headCell("row", text("shots.delete")), ...shots.map((shot) => this.#deletion(shot))])] : []),
      ]),
    );
  }

  #downloads({ id, at }) {
    return createElement("td", "", createElement("div", "acts", FORMATS.map(([format, name]) => {
      const button = createElement("button", "quiet small", name);
      button.ariaLabel = text("shots.download-as", { format: name, time: shortTime(at) });
      onAction(button, this.#problem, () => downloadSignedIn(`${this.#path}/${id}/${format}`));
      return button;
    })));
  }

  #deletion({ id, at }) {
    const button = createElement("button", "quiet small bad", text("shots.delete"));
    button.ariaLabel = text("shots.delete-one", { time: shortTime(at) });
    onAction(button, this.#problem, async () => {
      const asked = { title: text("shots.delete-title"), text: text("shots.delete-text", { time: shortTime(at) }), act: text("shots.delete") };
      if (!(await askToConfirm(asked))) return;
      await sendSignedIn("DELETE", `${this.#path}/${id}`);
      await this.#onDeleted(id);
    });
    return createElement("td", "", button);
  }
}

function headCell(scope, content) {
  const cell = createElement("th", "", content);
  cell.scope = scope;
  return cell;
}

function figureCell(value, first, unit) {
  if (typeof value !== "number") return createElement("td", "", "–");
  const shown = unit === "ratio" ? `1 : ${number(value, 1)}` : `${number(value, 1)} ${unit}`;
  const difference = typeof first === "number" ? Math.round(value * 10) / 10 - Math.round(first * 10) / 10 : 0;
  if (Math.abs(difference) < 0.05) return createElement("td", "", shown);
  const sign = difference > 0 ? "+" : "−";
  return createElement("td", "", [shown, " ", createElement("span", "difference", `${sign}${number(Math.abs(difference), 1)}`)]);
}
