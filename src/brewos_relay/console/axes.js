// The axes of charts: round numbers around the values, and the places of labels.

const STEPS = [1, 2, 5, 10];
const STEPS_S = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800];

/** Return `[low, high, step]` of an axis: round numbers around the values, with at most `most` steps or one more. */
export function roundRange(low, high, most) {
  const rough = Math.max((high - low) / most, 1e-9);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = STEPS.map((part) => part * power).find((part) => part >= rough * 0.999);
  return [Math.floor(low / step + 0.001) * step, Math.ceil(high / step - 0.001) * step, step];
}

/** Return the places of the labels of an axis from `roundRange`. */
export function places(low, high, step) {
  return Array.from({ length: Math.round((high - low) / step) + 1 }, (_, number) => Number((low + number * step).toFixed(6)));
}

/** Return the step between labels of a time axis, in s, so that at most `most` labels are on it. */
export function timeStep(seconds, most) {
  return STEPS_S.find((step) => seconds / step <= most) ?? Math.ceil(seconds / most / 3600) * 3600;
}

/** Return a part of the axis `[from, to]` that is `span` long or less, near `[low, high]`. */
export function within([low, high], [from, to], least) {
  const span = Math.min(Math.max(high - low, least), to - from);
  const start = Math.min(Math.max((low + high - span) / 2, from), to - span);
  return [start, start + span];
}

/** Return the part of an axis where two values lie at these shares of its width: a zoom with two fingers. */
export function pinched([one, other], [oneAt, otherAt]) {
  const span = Math.abs(otherAt - oneAt) < 0.02 ? Infinity : (other - one) / (otherAt - oneAt);
  if (!(span > 0) || span === Infinity) return null;
  return [one - oneAt * span, one + (1 - oneAt) * span];
}
