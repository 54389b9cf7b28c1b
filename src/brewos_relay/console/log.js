// The log of the machine.

import { byId, clock, make } from "./page.js";

const MOST_LINES = 200;
const LEVELS = { debug: "debug", warn: "warn", warning: "warn", error: "error" };

/** Add a line for a `log` or `error` message. */
export function addLine({ level, message, source }) {
  if (typeof message !== "string") return;
  const list = byId("log");
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 30;
  const text = typeof source === "string" && source !== "esp32" ? `${source}: ${message}` : message;
  list.append(make("li", LEVELS[level] ?? "", [make("time", "", clock(Date.now())), make("span", "", text)]));
  while (list.children.length > MOST_LINES) list.firstElementChild.remove();
  if (atEnd) list.scrollTop = list.scrollHeight;
}
