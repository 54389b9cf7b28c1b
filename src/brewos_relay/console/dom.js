// Shared by all pages: elements, messages, forms, and the way to the sign-in page.

import { SignedOut } from "./login_session.js";
import { text } from "./texts.js";

export const byId = (id) => document.getElementById(id);

/** Make an element. `content` is text, an element, or a list of these. */
export function createElement(name, className, content = []) {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.append(...[content].flat());
  return element;
}

/** Show a message, or remove it. */
export function setText(element, text = "") {
  element.textContent = text;
}

/** Run `act` when a button is pressed or a form is sent: one run at a time. Errors are shown in `problem`. */
export function onAction(element, problem, act) {
  const isForm = element instanceof HTMLFormElement;
  const buttons = isForm ? element.querySelectorAll("button") : [element];
  element.addEventListener(isForm ? "submit" : "click", async (event) => {
    event.preventDefault();
    if (buttons[0].disabled) return;
    setText(problem);
    for (const button of buttons) button.disabled = true;
    try {
      await act();
    } catch (failure) {
      if (failure instanceof SignedOut) return goToLogin({ expired: true });
      setText(problem, failure.message);
    } finally {
      for (const button of buttons) button.disabled = false;
    }
  });
}

/** Go to the sign-in page, which leads back here. */
export function goToLogin({ expired = false } = {}) {
  // Pass only the path: the query may hold a secret, and browsers and servers log URLs. Ids of shots are none.
  const shots = new URLSearchParams(location.search).get("shots");
  const kept = shots && /^[\d,]+$/.test(shots) ? `?shots=${shots}` : "";
  const asked = new URLSearchParams({ next: location.pathname + kept });
  if (expired) asked.set("expired", "true");
  location.replace(`/login?${asked}`);
}

/** Return the URL of the next page after signing in. It is always a page of this server. */
export function nextPage() {
  try {
    const url = new URL(new URLSearchParams(location.search).get("next") ?? "/", location.origin);
    // Check the parsed URL, as a browser does: the path "/..//evil" parsed again would be a host.
    const isHere = url.protocol === location.protocol && url.host === location.host && !url.username && !url.password;
    if (isHere && url.pathname !== "/login" && !url.pathname.startsWith("/login/")) return url.href;
  } catch {
    // not a URL
  }
  return new URL("/", location.origin).href;
}

/** Run `act` repeatedly, one run at a time, and only while the page is visible. */
export async function pollWhileVisible(act, everyMs) {
  await act();
  setTimeout(() => {
    if (!document.hidden) return pollWhileVisible(act, everyMs);
    document.addEventListener("visibilitychange", () => pollWhileVisible(act, everyMs), { once: true });
  }, everyMs);
}

/** Copy the text of a field. Browsers offer the clipboard only over TLS; without it, they copy what is selected. */
export async function copyField(field, button) {
  field.focus();
  field.select();
  const isCopied = navigator.clipboard && (await navigator.clipboard.writeText(field.value).then(() => true, () => false));
  setText(button, text(isCopied || document.execCommand("copy") ? "share.copied" : "share.selected"));
}

/** Ask for confirmation in a dialog. Resolves to true or false. `isBad` marks what takes something away. */
export function askToConfirm({ title, text, act, isBad = true }) {
  const dialog = byId("confirm");
  setText(byId("confirm-title"), title);
  setText(byId("confirm-text"), text);
  setText(byId("confirm-do"), act);
  byId("confirm-do").classList.toggle("bad", isBad);
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
