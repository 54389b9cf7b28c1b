// A dial with a value and a target.

import { byId } from "./dom.js";
import { number } from "./format.js";
import { text } from "./texts.js";

const FROM_DEG = 135;
const SWEEP_DEG = 270;
const RADIUS = 44;

const SVG = document.querySelector("svg").namespaceURI;

function shape(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function at(part, radius) {
  const turn = ((FROM_DEG + SWEEP_DEG * part) * Math.PI) / 180;
  return `${(50 + radius * Math.cos(turn)).toFixed(2)} ${(50 + radius * Math.sin(turn)).toFixed(2)}`;
}

export class Gauge {
  /** Draw into the element with this id. */
  constructor(id, { low = 0, high, digits, unit }) {
    this.element = byId(id);
    Object.assign(this, { low, high, digits, unit });
    this.element.querySelector(".unit").textContent = unit;
    const path = `M ${at(0, RADIUS)} A ${RADIUS} ${RADIUS} 0 1 1 ${at(1, RADIUS)}`;
    this.fill = shape("path", { d: path, pathLength: 100, class: "fill" });
    this.target = shape("path", { d: "", class: "target" });
    this.element.querySelector("svg").append(shape("path", { d: path, class: "track" }), this.fill, this.target);
    this.show(null);
  }

  /** Show a value and its target; null for none. */
  show(value, target = null) {
    const part = (figure) => Math.min(1, Math.max(0, (figure - this.low) / (this.high - this.low)));
    const filled = value === null ? 0 : part(value) * 100;
    this.fill.style.strokeDasharray = `${filled} 200`;
    this.fill.style.visibility = filled >= 1 ? "visible" : "hidden"; // hides the dot of its round ends
    this.target.setAttribute("d", target === null ? "" : `M ${at(part(target), 37)} L ${at(part(target), 50)}`);
    const shown = value === null ? "–" : number(value, this.digits);
    this.element.querySelector(".figure").textContent = shown;
    this.element.querySelector(".aim").textContent = target === null ? "" : text("gauge.target", { value: number(target, this.digits) });
    this.element.setAttribute("aria-valuemin", this.low);
    this.element.setAttribute("aria-valuemax", this.high);
    this.element.setAttribute("aria-valuenow", value === null ? this.low : value.toFixed(this.digits));
    this.element.setAttribute("aria-valuetext", value === null ? text("gauge.unknown") : `${shown} ${this.unit}`);
  }
}
