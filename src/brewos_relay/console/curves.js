// The curves of shots: pressure, flow, weight and temperature over the seconds from the start of each shot.

const SHORTEST_MS = 2000; // the relay records no shorter shots
const HOLD_S = 1;

/** Read a shot and its profile from an answer of the API. */
export function recordedShot({ shot, profile }) {
  const { pressure = [], flow = [], weight = [], brewTemp = [], groupTemp = [] } = profile.values;
  const temperature = brewTemp.some(isNumber) ? brewTemp : groupTemp;
  return {
    id: shot.id,
    startedAt: shot.beganAtMs,
    seconds: shot.durationMs / 1000,
    runs: false,
    points: withoutScale(profile.timesMs.map((at, number) => ({
      at: at / 1000,
      pressure: pressure[number] ?? null,
      flow: flow[number] ?? null,
      weight: weight[number] ?? null,
      temperature: temperature[number] ?? null,
    }))),
  };
}

/** Find the running or last shot in the samples of the last minutes. Returns null without one. */
export function lastRun(samples, now) {
  const isBrewing = (sample) => sample.isBrewing && !sample.gap;
  for (let last = samples.length - 1; last >= 0; last--) {
    if (!isBrewing(samples[last])) continue;
    let first = last;
    while (first > 0 && isBrewing(samples[first - 1])) first--;
    const end = samples[last + 1]; // the first sample after the shot
    const startedAt = samples[first].at;
    const endedAt = end ? end.at : now;
    if (end && endedAt - startedAt < SHORTEST_MS) {
      last = first;
      continue;
    }
    const part = samples.slice(first, last + 2);
    const points = part.map(({ at, pressure, flow, weight, brew, group }) => ({
      at: (at - startedAt) / 1000,
      pressure,
      flow,
      weight,
      temperature: brew ?? group,
    }));
    return { startedAt, seconds: (endedAt - startedAt) / 1000, runs: !end, points: withoutScale(points) };
  }
  return null;
}

/** A machine without a scale may send zeros for it. */
function withoutScale(points) {
  if (points.some(({ flow, weight }) => flow || weight)) return points;
  return points.map((point) => ({ ...point, flow: null, weight: null }));
}

/** Tell whether a shot has values of a quantity. */
export function has({ points }, name) {
  return points.some((point) => isNumber(point[name]));
}

/** Return the greatest value of a quantity, or null. */
export function greatest({ points }, name) {
  const values = points.map((point) => point[name]).filter(isNumber);
  return values.length ? Math.max(...values) : null;
}

/** Return the last known value of a quantity, or null. */
export function latest({ points }, name) {
  return points.findLast((point) => isNumber(point[name]))?.[name] ?? null;
}

/**
 * Put shots on one time axis, from the start of each: `xs` (s), and for each of `names` a column for each shot. A shot
 * has null before its first and after its last sample.
 */
export function align(shots, names) {
  const held = shots.map(({ points }) => withHolds(points));
  const xs = [...new Set(held.flatMap((points) => points.map(({ at }) => at)))].sort((one, other) => one - other);
  return { xs, columns: Object.fromEntries(names.map((name) => [name, held.map((points) => column(points, name, xs))])) };
}

/** Return the value of a quantity at a time, or null. */
export function valueAt({ points }, name, at) {
  return column(withHolds(points), name, [at])[0];
}

/** Machines send only changes, so an old value held until shortly before the next one. */
function withHolds(points) {
  return points.flatMap((point, number) => {
    const next = points[number + 1];
    return next && next.at - point.at > 2 * HOLD_S ? [point, { ...point, at: next.at - HOLD_S }] : [point];
  });
}

function column(points, name, xs) {
  let left = -1;
  return xs.map((x) => {
    while (left + 1 < points.length && points[left + 1].at <= x) left++;
    const [before, after] = [points[left], points[left + 1]];
    if (!before || !isNumber(before[name]) || (!after && before.at < x)) return null;
    if (!after || !isNumber(after[name]) || before.at === x) return before[name];
    return before[name] + ((after[name] - before[name]) * (x - before.at)) / (after.at - before.at);
  });
}

function isNumber(value) {
  return typeof value === "number";
}
