// A line chart on a canvas: panels below each other, with a common x axis.

import { number } from "./format.js";

const LEFT = 44;
const RIGHT = 10;
const TOP = 6;
const BOTTOM = 24;
const BETWEEN = 24;

/**
 * Draws samples. A panel is `{share, floor, ceiling, unit, lines}`: its share of the height, the smallest range of
 * its axis, its unit and its lines. A line is `{of, colour, dashed, filled}`: a field of the samples, and the CSS
 * custom property of its colour.
 */
export class Chart {
  #colours = new Map();

  constructor(canvas, panels) {
    this.canvas = canvas;
    this.panels = panels;
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#colours.clear());
  }

  /** Draw the samples between two x values. `ticks` are `[x, text]`; `mark` is an x to highlight. */
  draw({ samples, from, to, ticks, mark = null, xOf = (sample) => sample.at }) {
    const { canvas } = this;
    const scale = Math.min(devicePixelRatio || 1, 3);
    const { clientWidth: width, clientHeight: height } = canvas;
    if (!width || !height) return;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = `12px ${getComputedStyle(canvas).fontFamily}`;
    const toX = (x) => LEFT + ((x - from) / (to - from)) * (width - LEFT - RIGHT);
    const area = { pen, width, toX, xOf, to };
    const shares = this.panels.reduce((sum, panel) => sum + panel.share, 0);
    const usable = height - TOP - BOTTOM - BETWEEN * (this.panels.length - 1);
    let top = TOP;
    for (const panel of this.panels) {
      const tall = (usable * panel.share) / shares;
      this.#drawPanel(area, panel, samples, top, tall);
      top += tall + BETWEEN;
    }
    this.#drawTicks(area, ticks, height);
    if (mark !== null) {
      pen.strokeStyle = this.#colour("--soft");
      pen.lineWidth = 1;
      line(pen, [[toX(mark), TOP], [toX(mark), height - BOTTOM]]);
    }
  }

  /** Convert a place on the canvas to the x value that was drawn there. */
  xAt(clientX, from, to) {
    const box = this.canvas.getBoundingClientRect();
    const part = (clientX - box.left - LEFT) / (box.width - LEFT - RIGHT);
    return from + Math.min(1, Math.max(0, part)) * (to - from);
  }

  #drawPanel({ pen, width, toX, xOf, to }, panel, samples, top, tall) {
    const [low, high, step] = axis(panel, samples);
    const toY = (y) => top + tall - ((y - low) / (high - low)) * tall;
    pen.lineWidth = 1;
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (let y = low; y <= high + step / 1000; y += step) {
      const at = Math.round(toY(y)) + 0.5;
      pen.strokeStyle = this.#colour("--grid");
      line(pen, [[LEFT, at], [width - RIGHT, at]]);
      pen.fillStyle = this.#colour("--soft");
      pen.fillText(number(y, 0, 2), LEFT - 8, at);
    }
    pen.save();
    pen.beginPath();
    pen.rect(LEFT, top - 3, width - LEFT - RIGHT, tall + 6);
    pen.clip();
    for (const one of panel.lines) {
      pen.strokeStyle = pen.fillStyle = this.#colour(one.colour);
      pen.lineWidth = one.dashed ? 1.5 : 2;
      pen.lineJoin = "round";
      pen.setLineDash(one.dashed ? [4, 4] : []);
      for (const points of pieces(samples, one.of, xOf, to)) {
        const placed = points.map(([x, y]) => [toX(x), toY(y)]);
        if (one.filled) {
          pen.globalAlpha = 0.16;
          pen.beginPath();
          pen.moveTo(placed[0][0], toY(low));
          for (const [x, y] of placed) pen.lineTo(x, y);
          pen.lineTo(placed.at(-1)[0], toY(low));
          pen.fill();
          pen.globalAlpha = 1;
        }
        line(pen, placed);
      }
      pen.setLineDash([]);
    }
    pen.restore();
    pen.textAlign = "left";
    pen.fillStyle = this.#colour("--soft");
    pen.fillText(panel.unit, LEFT + 6, top + 9);
  }

  #drawTicks({ pen, width, toX }, ticks, height) {
    pen.fillStyle = this.#colour("--soft");
    pen.textBaseline = "alphabetic";
    pen.textAlign = "center";
    let free = width;
    for (const [x, words] of [...ticks].reverse()) {
      const half = pen.measureText(words).width / 2;
      const at = Math.min(width - RIGHT - half, Math.max(LEFT + half, toX(x)));
      if (at + half > free) continue; // phones have no room for all of them
      pen.fillText(words, at, height - 6);
      free = at - half - 4;
    }
  }

  #colour(name) {
    if (!this.#colours.has(name)) {
      this.#colours.set(name, getComputedStyle(this.canvas).getPropertyValue(name).trim());
    }
    return this.#colours.get(name);
  }
}

/** Cut a line at its gaps. Each piece is a list of `[x, y]`. The last value holds until `to`. */
function pieces(samples, of, xOf, to) {
  const found = [];
  let piece = [];
  for (const sample of samples) {
    if (sample[of] !== null && sample[of] !== undefined) piece.push([xOf(sample), sample[of]]);
    if ((sample.gap || sample[of] === null) && piece.length) {
      found.push(piece);
      piece = [];
    }
  }
  if (piece.length) {
    piece.push([to, piece.at(-1)[1]]);
    found.push(piece);
  }
  return found;
}

/** Return the ends of an axis and the step of its grid: round numbers around all samples. */
function axis({ floor, ceiling, lines, most = 4 }, samples) {
  let low = floor;
  let high = ceiling;
  for (const sample of samples) {
    for (const { of } of lines) {
      if (typeof sample[of] === "number") {
        low = Math.min(low, sample[of]);
        high = Math.max(high, sample[of]);
      }
    }
  }
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((part) => part * power).find((part) => part >= rough * 0.999);
  return [Math.floor(low / step + 0.001) * step, Math.ceil(high / step - 0.001) * step, step];
}

function line(pen, points) {
  pen.beginPath();
  points.forEach(([x, y], number) => (number ? pen.lineTo(x, y) : pen.moveTo(x, y)));
  pen.stroke();
}
