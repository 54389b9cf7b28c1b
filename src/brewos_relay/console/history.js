// The samples of the last minutes, for a chart.

const HOLD_MS = 1000;
const RARE_MS = 3000; // changes of a machine come more often

/** Samples `{at, …}`, sorted by time (ms since 1970). `gap: true` starts a time without data. */
export class History {
  samples = [];

  constructor(lengthMs) {
    this.lengthMs = lengthMs;
  }

  add(sample, rareMs = RARE_MS) {
    const last = this.samples.at(-1);
    // After a reconnect, the relay repeats the last known state, which may be older than the last sample.
    if (last && sample.at < last.at) sample = { ...sample, at: last.at };
    // Machines send only changes, so the old value held until shortly before this one.
    if (last && !last.gap && sample.at - last.at > rareMs) {
      this.samples.push({ ...last, at: sample.at - HOLD_MS });
    }
    this.samples.push(sample);
    this.#forget(sample.at);
  }

  /** Start a gap, which lasts until the next sample. */
  interrupt(at) {
    if (this.samples.length && !this.samples.at(-1).gap) this.add({ ...this.samples.at(-1), at, gap: true });
  }

  /**
   * Take what the relay has recorded until the time `until`. It replaces the own samples of that time: the relay knows
   * more after an absence of this page, and less after a restart. At rest, it has a sample each `apartMs` at most.
   */
  merge(recorded, until, apartMs = 0) {
    const rareMs = Math.max(RARE_MS, 1.5 * apartMs);
    if (!recorded.length) return;
    const own = this.samples;
    const first = recorded[0].at;
    this.samples = own.filter(({ at }) => at < first);
    for (const sample of recorded) sample.gap ? this.interrupt(sample.at) : this.add(sample, rareMs);
    for (const sample of own) {
      if (sample.at > until) sample.gap ? this.interrupt(sample.at) : this.add(sample);
    }
  }

  /** The last sample until a time, or undefined. */
  at(time) {
    return this.samples.findLast((sample) => sample.at <= time);
  }

  /**
   * Return the values as columns for a chart: `xs` (s since 1970), and a list for each of `names`, with null in gaps.
   * The last values hold until `to` (ms).
   */
  columns(names, to) {
    const xs = [];
    const columns = names.map(() => []);
    const put = (at, sample) => {
      xs.push(at / 1000);
      names.forEach((name, number) => columns[number].push(sample?.[name] ?? null));
    };
    let last = null;
    for (const sample of this.samples) {
      put(sample.at, sample);
      if (sample.gap) put(sample.at, null);
      last = sample;
    }
    if (last && !last.gap && last.at < to) put(to, last);
    return { xs, columns };
  }

  #forget(now) {
    // Keep one older sample, so that the line starts at the edge.
    let old = 0;
    while (this.samples[old + 1]?.at < now - this.lengthMs) old++;
    if (old) this.samples.splice(0, old);
  }
}

/**
 * Convert an answer of `/api/devices/ID/history` to samples. The clock of this device may differ from that of the
 * relay: the answer was written between `sentAt` and `receivedAt`. Returns the samples, and the time of the answer.
 */
export function recordedSamples(answer, { sentAt, receivedAt }) {
  const until = (sentAt + receivedAt) / 2;
  const ahead = until - answer.atMs;
  const { brewTemp = [], steamTemp = [], groupTemp = [], pressure = [], power = [], weight = [], flow = [] } = answer.values;
  const samples = answer.timesMs.map((at, number) => ({
    at: Math.min(at + ahead, until),
    brew: brewTemp[number] ?? null,
    steam: steamTemp[number] ?? null,
    group: groupTemp[number] ?? null,
    pressure: pressure[number] ?? null,
    power: power[number] ?? null,
    weight: weight[number] ?? null,
    flow: flow[number] ?? null,
    isBrewing: answer.brewing[number] === true,
    gap: answer.online[number] === false,
  }));
  return { samples, until };
}
