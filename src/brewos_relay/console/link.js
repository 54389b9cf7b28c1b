// The WebSocket to a machine, which reconnects by itself.

import { sendSignedIn } from "./api.js";
import { Backoff } from "./backoff.js";
import { accessToken, renewSession, SignedOut } from "./login_session.js";
import { decode } from "./msgpack.js";

const STALE_MS = 10000; // the relay sends something every 7 s
const LOOK_MS = 1000;
const OPEN_MS = 10000;
const TOKEN_REJECTED = 4002;
const ACCESS_ENDED = 4003;
const NO_ACCESS = "no access to this device";
const STALE = 4000;

/**
 * Calls `onMessage` with each message, `onState` with each change of state, `onSignedOut` when the session has ended.
 *
 * States: "connecting", "live", "waiting" (until `retryAt`, ms since 1970), "ended" (no access, until
 * `readmit`), "stopped".
 */
export class Link {
  state = "stopped";
  retryAt = null;
  restarting = false;
  #deviceId;
  #on;
  #socket = null;
  #attempt = 0;
  #heardAt = 0; // on the monotonic clock
  #timer = null;
  #looking = null;
  #backoff = new Backoff();
  #rejected = null; // the token that the relay rejected

  constructor(deviceId, { onMessage, onState, onSignedOut }) {
    this.#deviceId = deviceId;
    this.#on = { message: onMessage, state: onState, signedOut: onSignedOut };
  }

  start() {
    addEventListener("online", () => this.kick());
    addEventListener("offline", () => this.#lose());
    // Browsers keep a page for its way back, with its connections: the user would still be watching.
    addEventListener("pagehide", () => this.#lose(1000));
    addEventListener("pageshow", ({ persisted }) => persisted && this.kick());
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) return;
      this.#look();
      this.kick(); // the user is waiting
    });
    this.#looking = setInterval(() => this.#look(), LOOK_MS);
    this.#connect();
  }

  /** Retry now instead of waiting. */
  kick() {
    if (this.state === "waiting") this.#connect();
  }

  /** Connect again after an end of access, once the API shows the machine again. */
  readmit() {
    if (this.state === "ended") this.#connect();
  }

  /** Send a message. Returns false without a connection. */
  send(message) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return false;
    this.#socket.send(JSON.stringify(message));
    return true;
  }

  stop() {
    this.#end("stopped");
  }

  async #connect() {
    clearTimeout(this.#timer);
    const attempt = ++this.#attempt;
    this.#set("connecting");
    let token;
    try {
      token = await this.#token();
    } catch (problem) {
      if (attempt !== this.#attempt) return;
      if (problem instanceof SignedOut) return this.#signOut();
      return this.#wait();
    }
    if (attempt !== this.#attempt) return;
    const asked = new URLSearchParams({ token, device: this.#deviceId });
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(`${scheme}//${location.host}/ws/client?${asked}`);
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    this.#heardAt = performance.now() + OPEN_MS - STALE_MS;
    socket.onmessage = (event) => socket === this.#socket && this.#take(event.data);
    socket.onclose = (event) => socket === this.#socket && this.#closed(event, token);
  }

  #token() {
    const rejected = this.#rejected;
    this.#rejected = null;
    return rejected === null ? accessToken() : renewSession(rejected);
  }

  #take(data) {
    this.#heardAt = performance.now();
    let message;
    try {
      message = typeof data === "string" ? JSON.parse(data) : decode(data);
    } catch {
      return; // not readable
    }
    if (message === null || typeof message !== "object") return;
    if (message.type === "connected") {
      this.#backoff.reset();
      this.restarting = false;
      this.#set("live");
    } else if (message.type === "restarting") {
      this.#backoff.suggest(message.reconnectInMs);
      this.restarting = true;
    } else if (message.type === "token_expiring") {
      this.#refresh();
    }
    this.#on.message(message);
  }

  /** Replace the expiring token without reconnecting. */
  async #refresh() {
    const socket = this.#socket;
    try {
      const token = await renewSession(await accessToken());
      if (socket === this.#socket) this.send({ type: "refresh_auth", token });
    } catch (problem) {
      if (problem instanceof SignedOut) this.#signOut();
    }
  }

  async #closed({ code, reason }, token) {
    const wasLive = this.state === "live";
    this.#socket = null;
    if (code === ACCESS_ENDED || (code === TOKEN_REJECTED && reason === NO_ACCESS)) return this.#end("ended");
    if (code === TOKEN_REJECTED) this.#rejected = token;
    this.#wait();
    if (wasLive || this.restarting || code === TOKEN_REJECTED) return;
    // Browsers hide why a WebSocket was refused. Ask the HTTP API for the reason.
    const attempt = this.#attempt;
    try {
      await sendSignedIn("GET", `/api/devices/${this.#deviceId}`);
    } catch (problem) {
      if (attempt !== this.#attempt) return;
      if (problem instanceof SignedOut) return this.#signOut();
      if (problem.status === 404) this.#end("ended");
    }
  }

  #wait() {
    const pauseMs = this.#backoff.next();
    this.retryAt = Date.now() + pauseMs;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#connect(), pauseMs);
    this.#set("waiting");
  }

  #look() {
    if (this.#socket && performance.now() - this.#heardAt > STALE_MS) this.#lose();
    // Timers of a suspended browser are late.
    if (this.state === "waiting" && Date.now() > this.retryAt + LOOK_MS) this.#connect();
  }

  /** Drop a connection that seems dead, or is not needed for now. */
  #lose(code = STALE) {
    if (this.#socket === null) return;
    this.#drop(code);
    this.#wait();
  }

  #drop(code) {
    const socket = this.#socket;
    this.#socket = null;
    socket?.close(code);
  }

  #signOut() {
    this.#end("stopped");
    this.#on.signedOut();
  }

  #end(state) {
    this.#attempt++;
    clearTimeout(this.#timer);
    if (state === "stopped") clearInterval(this.#looking);
    this.#drop(1000);
    this.#set(state);
  }

  #set(state) {
    this.state = state;
    if (state !== "waiting") this.retryAt = null;
    this.#on.state(this);
  }
}
