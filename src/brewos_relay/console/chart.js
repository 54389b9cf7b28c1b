// Line charts below each other with a common x axis, drawn by uPlot. They can be zoomed, and have a cursor.

import { places, roundRange, within } from "./axes.js";
import { number } from "./format.js";
import { followGestures } from "./gestures.js";
import uPlot from "./vendor/uplot/uPlot.min.js";

const LEFT = 46;
const RIGHT = 14;
const TOP = 8;
const BOTTOM = 26;
const BETWEEN = 18;
const LABEL_PX = 64;
const LINE_PX = 26;
const LEAST_PX = 40;
const POINT_PX = 30; // how far from the cursor a point is marked
const LEAST_S = 2; // the narrowest zoom

const dark = matchMedia("(prefers-color-scheme: dark)");
const forced = matchMedia("(forced-colors: active)");
let count = 0;

await addStyle(new URL("./vendor/uplot/uPlot.min.css", import.meta.url).href);

function addStyle(path) {
  const link = Object.assign(document.createElement("link"), { rel: "stylesheet", href: path });
  // A chart without its style is better than none.
  return new Promise((done) => {
    link.onload = link.onerror = done;
    document.head.append(link);
  });
}

/**
 * A chart in an element, which gets the keyboard focus. A panel is `{share, unit, floor, ceiling, lines}`: its share
 * of the height, its unit, the least range of its axis, and its lines. A line is `{colour, dash, filled}`: the CSS
 * custom property of its colour, and the lengths of its dashes.
 *
 * Calls `ticks(from, to, most)` for the labels of the x axis as `[x, text]`, `onPoint(x)` when the cursor moves (null
 * without one), `onZoom(isZoomed)`, and `describe(x)` for the text of a point that the keyboard has chosen.
 */
export class Chart {
  #place;
  #panels;
  #on;
  #plots = [];
  #colours = new Map();
  #shown = { xs: [0], columns: [], from: 0, to: 1 };
  #view = null; // the part of the x axis that is zoomed to
  #point = null; // the x of the cursor
  #selection = null; // the part that a pointer has selected, until it is shown
  #resizing;

  constructor(place, panels, { ticks, describe, onPoint = () => {}, onZoom = () => {} }) {
    this.#place = place;
    this.#panels = panels;
    this.#on = { ticks, describe, onPoint, onZoom };
    const key = `chart-${++count}`;
    const heights = this.#heights();
    const inside = document.createElement("div");
    inside.className = "inside";
    place.replaceChildren(inside);
    panels.forEach((panel, place) => this.#plots.push(this.#open(panel, place, heights[place], key, inside)));
    this.#resizing = new ResizeObserver(() => this.#resize());
    this.#resizing.observe(place);
    for (const query of [dark, forced]) query.addEventListener("change", this.#recolour);
    for (const plot of this.#plots) followGestures(plot.over, this);
    place.addEventListener("keydown", this.#pressed);
    place.addEventListener("focus", this.#focused);
  }

  /** Remove the chart. */
  close() {
    this.#resizing.disconnect();
    for (const query of [dark, forced]) query.removeEventListener("change", this.#recolour);
    this.#place.removeEventListener("keydown", this.#pressed);
    this.#place.removeEventListener("focus", this.#focused);
    for (const plot of this.#plots) plot.destroy();
    this.#place.replaceChildren();
  }

  /** Show values: `columns` has a list for each line, in the order of the panels, with a value for each of `xs`. */
  show({ xs, columns, from, to }) {
    this.#shown = { xs, columns, from, to };
    if (this.#view && this.#view[1] <= from) this.zoom(null);
    else this.#draw();
  }

  /** The part of the x axis that is visible. */
  get range() {
    const { from, to } = this.#shown;
    return this.#view ? within(this.#view, [from, to], 0) : [from, to];
  }

  /** Zoom to a part of the x axis, or to all of it with null. */
  zoom(part) {
    const { from, to } = this.#shown;
    const view = part && within(part, [from, to], Math.min(LEAST_S, to - from));
    const isWhole = view === null || view[1] - view[0] >= (to - from) * 0.999;
    this.#view = isWhole ? null : view;
    this.#on.onZoom(!isWhole);
    this.#draw();
  }

  /** Set the cursor to a place on the plot (0 is its left edge, 1 its right edge), or remove it with null. */
  point(share) {
    for (const plot of this.#plots) {
      const left = share === null ? -10 : Math.min(1, Math.max(0, share)) * plot.over.clientWidth;
      plot.setCursor({ left, top: share === null ? -10 : plot.over.clientHeight / 2 });
    }
  }

  #draw() {
    const [min, max] = this.range;
    const { xs, columns } = this.#shown;
    let first = 0;
    this.#plots.forEach((plot, place) => {
      const { lines } = this.#panels[place];
      const values = lines.map((_, line) => columns[first + line] ?? xs.map(() => null));
      first += lines.length;
      plot.batch(() => {
        plot.setData([xs, ...values], false);
        plot.setScale("x", { min, max });
      });
    });
  }

  #open({ unit, floor, ceiling, lines }, place, height, key, inside) {
    const isFirst = place === 0;
    const isLast = place === this.#panels.length - 1;
    const soft = () => this.#colour("--soft");
    const font = `12px ${getComputedStyle(this.#place).fontFamily}`;
    let step = 1;
    const range = (plot, low, high) => {
      const most = Math.max(2, Math.floor(plot.bbox.height / devicePixelRatio / LINE_PX));
      let bottom = Math.min(floor, low ?? floor);
      let top = Math.max(ceiling, high ?? ceiling);
      if (this.#view && low !== null && low !== undefined) {
        // A zoom shows small changes, but does not make noise look like changes.
        const least = (ceiling - floor) / 20;
        const rest = Math.max(0, least - (high - low)) / 2;
        [bottom, top] = [Math.max(low - rest, Math.min(floor, low)), high + rest];
      }
      [bottom, top, step] = roundRange(bottom, top, most);
      return [bottom, top];
    };
    const options = {
      width: this.#place.clientWidth || 300,
      height,
      padding: [TOP, RIGHT, isLast ? 0 : BETWEEN, 0],
      legend: { show: false },
      scales: { x: { time: false }, y: { range } },
      series: [{}, ...lines.map((line) => this.#line(line))],
      axes: [
        {
          size: isLast ? BOTTOM : 0,
          font,
          stroke: soft,
          grid: { show: false },
          ticks: { show: false },
          gap: 8,
          splits: (plot, _axis, from, to) => this.#labels(plot, from, to).map(([x]) => x),
          values: (plot, xs) => {
            const labels = new Map(isLast ? this.#labels(plot, ...this.range) : []);
            return xs.map((x) => labels.get(x) ?? "");
          },
        },
        {
          size: LEFT,
          font,
          stroke: soft,
          grid: { stroke: () => this.#colour("--grid"), width: 1 },
          ticks: { show: false },
          gap: 8,
          splits: (_plot, _axis, low, high) => places(low, high, step),
          values: (_plot, values) => values.map((value) => number(value, 0, 3)),
        },
      ],
      cursor: {
        y: false,
        points: { size: 8, width: 2, stroke: (_plot, line) => this.#colour(lines[line - 1].colour), fill: () => this.#colour("--card") },
        drag: { x: true, y: false, setScale: false, dist: 6 },
        hover: { prox: POINT_PX },
        sync: { key, setSeries: false },
        bind: { dblclick: () => () => this.zoom(null) },
      },
      hooks: {
        drawAxes: [(plot) => writeUnit(plot, unit, font, soft())],
        setCursor: isFirst ? [(plot) => this.#pointed(plot)] : [],
        setSelect: [(plot) => this.#selected(plot)],
      },
    };
    return new uPlot(options, [[0], ...lines.map(() => [null])], inside);
  }

  #line({ colour, dash, filled }) {
    return {
      stroke: () => this.#colour(colour),
      fill: filled ? () => faint(this.#colour(colour)) : undefined,
      width: dash ? 1.5 : 2,
      dash,
      points: { show: false },
    };
  }

  #labels(plot, from, to) {
    const most = Math.max(2, Math.floor((plot.width - LEFT - RIGHT) / LABEL_PX));
    return this.#on.ticks(from, to, most);
  }

  #heights() {
    const shares = this.#panels.reduce((sum, panel) => sum + panel.share, 0);
    const around = this.#panels.length * TOP + (this.#panels.length - 1) * BETWEEN + BOTTOM;
    const free = Math.max(0, (this.#place.clientHeight || 300) - around);
    return this.#panels.map(({ share }, place) => {
      const own = Math.max(LEAST_PX, Math.floor((free * share) / shares));
      return own + TOP + (place === this.#panels.length - 1 ? BOTTOM : BETWEEN);
    });
  }

  #resize() {
    const width = this.#place.clientWidth;
    if (!width) return;
    const heights = this.#heights();
    this.#plots.forEach((plot, place) => plot.setSize({ width, height: heights[place] }));
  }

  #pointed(plot) {
    const { left } = plot.cursor;
    const x = left >= 0 ? plot.posToVal(left, "x") : null;
    if (x === null && this.#point === null) return;
    this.#point = x;
    this.#on.onPoint(x);
  }

  #selected({ select: { left, width }, posToVal }) {
    // uPlot reports the selection of each panel in turn.
    if (width < 1 || this.#selection) return;
    this.#selection = [posToVal(left, "x"), posToVal(left + width, "x")];
    queueMicrotask(() => {
      for (const plot of this.#plots) plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
      this.zoom(this.#selection);
      this.#selection = null;
    });
  }

  #focused = () => {
    if (this.#point === null) this.#tell();
  };

  #pressed = (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const [from, to] = this.range;
    const step = event.shiftKey ? 0.1 : 0.01;
    const at = ((this.#point ?? to) - from) / (to - from);
    const around = (factor) => {
      const middle = from + Math.min(1, Math.max(0, at)) * (to - from);
      this.zoom([middle - (middle - from) * factor, middle + (to - middle) * factor]);
    };
    const acts = {
      ArrowLeft: () => this.point(at - step),
      ArrowRight: () => this.point(at + step),
      Home: () => this.point(0),
      End: () => this.point(1),
      "+": () => around(0.5),
      "-": () => around(2),
      Escape: () => this.zoom(null),
    };
    const act = acts[event.key];
    if (!act) return;
    event.preventDefault();
    act();
    this.#tell();
  };

  /** Tell assistive software the point that the keyboard has chosen. */
  #tell() {
    const [from, to] = this.range;
    const x = this.#point ?? to;
    this.#place.setAttribute("aria-valuemin", from.toFixed(1));
    this.#place.setAttribute("aria-valuemax", to.toFixed(1));
    this.#place.setAttribute("aria-valuenow", x.toFixed(1));
    this.#place.setAttribute("aria-valuetext", this.#on.describe(x));
  }

  #recolour = () => {
    this.#colours.clear();
    for (const plot of this.#plots) plot.redraw(false);
  };

  #colour(name) {
    if (!this.#colours.has(name)) this.#colours.set(name, getComputedStyle(this.#place).getPropertyValue(name).trim());
    return this.#colours.get(name);
  }
}

/** Write the unit into the top left corner of a panel, below the lines. */
function writeUnit({ ctx, bbox }, unit, font, colour) {
  const scale = devicePixelRatio || 1;
  ctx.save();
  ctx.font = font.replace("12px", `${12 * scale}px`);
  ctx.fillStyle = colour;
  ctx.textAlign = "left";
  ctx.textBaseline = "middle";
  ctx.fillText(unit, bbox.left + 6 * scale, bbox.top + 9 * scale);
  ctx.restore();
}

/** Return a colour for the area below a line. A system colour has no faint form. */
function faint(colour) {
  return colour.startsWith("#") ? `${colour}29` : "transparent";
}
