// The figures of the last minutes, for a chart.

const HOLD_MS = 1000;

/** Samples `{at, …}` in the order of their times (ms since 1970); `gap: true` where nothing was known. */
export class History {
  samples = [];

  constructor(lengthMs) {
    this.lengthMs = lengthMs;
  }

  add(sample) {
    const last = this.samples.at(-1);
    // Whoever comes back is told the last known state again, which can be older than what is here.
    if (last && sample.at < last.at) sample = { ...sample, at: last.at };
    // Machines say what has changed: until shortly before that, it was as it had been.
    if (last && !last.gap && sample.at - last.at > 2 * HOLD_MS) {
      this.samples.push({ ...last, at: sample.at - HOLD_MS });
    }
    this.samples.push(sample);
    this.#forget(sample.at);
  }

  /** Note that from here on nothing is known, until the next sample. */
  interrupt(at) {
    if (this.samples.length && !this.samples.at(-1).gap) this.add({ ...this.samples.at(-1), at, gap: true });
  }

  #forget(now) {
    // One sample from before is kept: the line comes in from the edge.
    let old = 0;
    while (this.samples[old + 1]?.at < now - this.lengthMs) old++;
    if (old) this.samples.splice(0, old);
  }
}
