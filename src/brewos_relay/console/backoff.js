// Exponential backoff with jitter.

const FIRST_MS = 1000;
const LONGEST_MS = 30000;

export class Backoff {
  #failures = 0;
  #latest = null; // on the monotonic clock

  /** Reset after a successful connection: the next pause is short. */
  reset() {
    this.#failures = 0;
    this.#latest = null;
  }

  /**
   * Attempt again within a pause that the relay suggested. It is the longest that a restart takes: a small server is back
   * within a second. Pauses that double keep the attempts of thousands of browsers few.
   */
  suggest(pauseMs) {
    if (Number.isFinite(pauseMs) && pauseMs >= 0) this.#latest = performance.now() + pauseMs;
  }

  /** Return the next pause, in ms. */
  next() {
    const longest = Math.min(LONGEST_MS, FIRST_MS * 2 ** this.#failures);
    this.#failures = Math.min(this.#failures + 1, 10);
    const pauseMs = longest * (0.5 + Math.random() / 2);
    const leftMs = this.#latest === null ? 0 : this.#latest - performance.now();
    return leftMs > 0 ? Math.min(pauseMs, leftMs) : pauseMs;
  }
}
