// The log of the machine.

import { byId, createElement } from "./dom.js";
import { clockTime } from "./format.js";

const MOST_LINES = 200;
const LEVELS = { debug: "debug", warn: "warn", warning: "warn", error: "error" };

/** Add a line for a `log` or `error` message. */
export function addLogLine({ level, message, source }) {
  if (typeof message !== "string") return;
  const list = byId("log");
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 30;
  const text = typeof source === "string" && source !== "esp32" ? `${source}: ${message}` : message;
  list.append(createElement("li", LEVELS[level] ?? "", [createElement("time", "", clockTime(Date.now())), createElement("span", "", text)]));
  while (list.children.length > MOST_LINES) list.firstElementChild.remove();
  if (atEnd) list.scrollTop = list.scrollHeight;
}
