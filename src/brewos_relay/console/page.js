// What the pages have in common: finding and making elements, messages, forms, and the way to signing in.

import { SignedOut } from "./session.js";

export const byId = (id) => document.getElementById(id);

/** Make an element; `content` is text, an element, or a list of those. */
export function make(name, className, content = []) {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.append(...[content].flat());
  return element;
}

/** Show a message for people, or take it away. */
export function tell(element, text = "") {
  element.textContent = text;
}

/** Do something when a button is pressed or a form is sent: once at a time, with its problem told. */
export function whenAsked(element, problem, act) {
  const isForm = element instanceof HTMLFormElement;
  const buttons = isForm ? element.querySelectorAll("button") : [element];
  element.addEventListener(isForm ? "submit" : "click", async (event) => {
    event.preventDefault();
    if (buttons[0].disabled) return;
    tell(problem);
    for (const button of buttons) button.disabled = true;
    try {
      await act();
    } catch (failure) {
      if (failure instanceof SignedOut) return goToLogin({ expired: true });
      tell(problem, failure.message);
    } finally {
      for (const button of buttons) button.disabled = false;
    }
  });
}

/** Go to the page for signing in, and back here afterwards. */
export function goToLogin({ expired = false } = {}) {
  // The path alone: what stands behind it can be secret, and addresses are written down.
  const asked = new URLSearchParams({ next: location.pathname });
  if (expired) asked.set("expired", "true");
  location.replace(`/login?${asked}`);
}

/** Give the URL of the page to go on to after signing in: one of this server, whatever the address asks for. */
export function nextPage() {
  try {
    const url = new URL(new URLSearchParams(location.search).get("next") ?? "/", location.origin);
    // The parsed URL alone says where a browser goes: "/..//evil" is a path here, and its path read again a host.
    const isHere = url.protocol === location.protocol && url.host === location.host && !url.username && !url.password;
    if (isHere && url.pathname !== "/login") return url.href;
  } catch {
    // no address at all
  }
  return new URL("/", location.origin).href;
}

/** Write a time (ISO 8601) as people say it: "3 minutes ago". */
export function ago(iso) {
  const seconds = (Date.parse(iso) - Date.now()) / 1000;
  const words = new Intl.RelativeTimeFormat(undefined, { numeric: "auto" });
  for (const [unit, length] of [["day", 86400], ["hour", 3600], ["minute", 60]]) {
    if (Math.abs(seconds) >= length) return words.format(Math.round(seconds / length), unit);
  }
  return words.format(Math.round(seconds), "second");
}

/** Do something now and then, one at a time, and not while nobody looks at the page. */
export async function whileSeen(act, everyMs) {
  await act();
  setTimeout(() => {
    if (!document.hidden) return whileSeen(act, everyMs);
    document.addEventListener("visibilitychange", () => whileSeen(act, everyMs), { once: true });
  }, everyMs);
}

/** Ask before something that cannot be taken back, in a dialog; gives whether it is to be done. */
export function confirmed({ title, text, act }) {
  const dialog = byId("confirm");
  tell(byId("confirm-title"), title);
  tell(byId("confirm-text"), text);
  tell(byId("confirm-do"), act);
  return new Promise((settle) => {
    let answer = false;
    byId("confirm-do").onclick = () => {
      answer = true;
      dialog.close();
    };
    byId("confirm-not").onclick = () => dialog.close();
    dialog.onclose = () => settle(answer);
    dialog.showModal();
    byId("confirm-not").focus();
  });
}

/** Write a day (ISO 8601) as people write it here. */
export const day = (iso) => new Date(iso).toLocaleDateString(undefined, { dateStyle: "medium" });

/** Write a time (ISO 8601, or ms since 1970) as a clock shows it, with the day if that is not today. */
export function clock(at) {
  const time = new Date(at);
  const day = time.toDateString() === new Date().toDateString() ? {} : { day: "numeric", month: "short" };
  return time.toLocaleString(undefined, { ...day, hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
}
