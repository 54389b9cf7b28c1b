// The samples of the last minutes, for a chart.

const HOLD_MS = 1000;

/** Samples `{at, …}`, sorted by time (ms since 1970). `gap: true` starts a time without data. */
export class History {
  samples = [];

  constructor(lengthMs) {
    this.lengthMs = lengthMs;
  }

  add(sample) {
    const last = this.samples.at(-1);
    // After a reconnect, the relay repeats the last known state, which may be older than the last sample.
    if (last && sample.at < last.at) sample = { ...sample, at: last.at };
    // Machines send only changes, so the old value held until shortly before this one.
    if (last && !last.gap && sample.at - last.at > 2 * HOLD_MS) {
      this.samples.push({ ...last, at: sample.at - HOLD_MS });
    }
    this.samples.push(sample);
    this.#forget(sample.at);
  }

  /** Start a gap, which lasts until the next sample. */
  interrupt(at) {
    if (this.samples.length && !this.samples.at(-1).gap) this.add({ ...this.samples.at(-1), at, gap: true });
  }

  #forget(now) {
    // Keep one older sample, so that the line starts at the edge.
    let old = 0;
    while (this.samples[old + 1]?.at < now - this.lengthMs) old++;
    if (old) this.samples.splice(0, old);
  }
}
