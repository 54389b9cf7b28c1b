// Exponential backoff with jitter.

const FIRST_MS = 1000;
const LONGEST_MS = 30000;

export class Backoff {
  #failures = 0;
  #hint = null;

  /** Reset after a successful connection: the next pause is short. */
  reset() {
    this.#failures = 0;
  }

  /** Use a pause suggested by the relay for the next attempt. */
  suggest(pauseMs) {
    if (Number.isFinite(pauseMs) && pauseMs >= 0) this.#hint = pauseMs;
  }

  /** Return the next pause, in ms. */
  next() {
    const hint = this.#hint;
    this.#hint = null;
    if (hint !== null) return hint;
    const longest = Math.min(LONGEST_MS, FIRST_MS * 2 ** this.#failures);
    this.#failures = Math.min(this.#failures + 1, 10);
    return longest * (0.5 + Math.random() / 2);
  }
}
