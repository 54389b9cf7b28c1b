// Touch and trackpad on a chart: one finger moves the cursor, two fingers zoom.

import { pinched } from "./axes.js";

/** Follow the fingers on the area of a plot. `chart` has `range`, `zoom` and `point`. */
export function followGestures(area, chart) {
  const fingers = new Map(); // the share of the width where each finger is
  let held = null; // the values below the two fingers when the second one came

  const shareOf = ({ clientX }) => {
    const { left, width } = area.getBoundingClientRect();
    return (clientX - left) / width;
  };
  const valueAt = (share) => {
    const [from, to] = chart.range;
    return from + share * (to - from);
  };

  area.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "mouse") return;
    fingers.set(event.pointerId, shareOf(event));
    if (fingers.size === 2) held = [...fingers.values()].map(valueAt);
    chart.point(fingers.size === 1 ? shareOf(event) : null);
  });
  area.addEventListener("pointermove", (event) => {
    if (!fingers.has(event.pointerId)) return;
    fingers.set(event.pointerId, shareOf(event));
    if (fingers.size === 1) return chart.point(shareOf(event));
    const part = held && pinched(held, [...fingers.values()]);
    if (part) chart.zoom(part);
  });
  const lift = (event) => {
    fingers.delete(event.pointerId);
    held = null;
  };
  for (const name of ["pointerup", "pointercancel"]) area.addEventListener(name, lift);
  // A trackpad reports a zoom with two fingers as a wheel.
  area.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    const [from, to] = chart.range;
    const middle = valueAt(shareOf(event));
    const factor = Math.exp(Math.min(1, Math.max(-1, event.deltaY / 100)));
    chart.zoom([middle - (middle - from) * factor, middle + (to - middle) * factor]);
  }, { passive: false });
}
