// How long to wait before the next attempt: longer each time, never two browsers at the same moment.

const FIRST_MS = 1000;
const LONGEST_MS = 30000;

export class Backoff {
  #failures = 0;
  #hint = null;

  /** Note that the connection was a good one: the next pause is a short one again. */
  reset() {
    this.#failures = 0;
  }

  /** Take the other side's word for the next pause. */
  suggest(pauseMs) {
    if (Number.isFinite(pauseMs) && pauseMs >= 0) this.#hint = pauseMs;
  }

  /** Give the next pause, in ms. */
  next() {
    const hint = this.#hint;
    this.#hint = null;
    if (hint !== null) return hint;
    const longest = Math.min(LONGEST_MS, FIRST_MS * 2 ** this.#failures);
    this.#failures = Math.min(this.#failures + 1, 10);
    return longest * (0.5 + Math.random() / 2);
  }
}
