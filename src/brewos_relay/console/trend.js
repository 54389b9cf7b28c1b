// The measurements of the last ten minutes: those that the relay has recorded, then live ones.

import { sendSignedIn } from "./api.js";
import { History, recordedSamples } from "./history.js";

export const LENGTH_MS = 10 * 60 * 1000;
const APART_MS = 2000; // at rest, to keep the answer small
const PIXELS_APART = 2; // at rest, on a chart that is narrower

export class Trend {
  history = new History(LENGTH_MS);
  /** Whether the relay may have recorded more than this page has seen. */
  isStale = true;
  #path;
  #number = 0;

  constructor(deviceId) {
    this.#path = `/api/devices/${deviceId}/history`;
  }

  /** Take a reading from the time `at` (ms since 1970). */
  add({ brew, steam, group, pressure, power, weight, flow, hasScale, isBrewing }, at) {
    const scale = hasScale ? { weight, flow } : { weight: null, flow: null };
    this.history.add({ at, brew, steam, group, pressure, power, ...scale, isBrewing });
  }

  /** Start a gap: the machine or the connection is lost. */
  interrupt() {
    this.history.interrupt(Date.now());
  }

  /**
   * Load what the relay has recorded, as after each connection: this page has missed the time before. `width` is that
   * of the chart.
   */
  async load(width) {
    const apartMs = Math.max(APART_MS, width && Math.round((PIXELS_APART * LENGTH_MS) / width));
    const number = ++this.#number;
    this.isStale = true;
    const sentAt = Date.now();
    const answer = await sendSignedIn("GET", `${this.#path}?apartMs=${apartMs}`);
    if (number !== this.#number) return;
    const { samples, until } = recordedSamples(answer, { sentAt, receivedAt: Date.now() });
    this.history.merge(samples, until, apartMs);
    this.isStale = false;
  }
}
