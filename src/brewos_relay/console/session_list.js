// The list of login sessions, each with a button to end it.

import { sendSignedIn } from "./api.js";
import { byId, createElement, onAction } from "./dom.js";
import { day, relativeTime } from "./format.js";
import { text } from "./texts.js";

/** Load and show the login sessions of the user. Errors are shown in `problem`. */
export async function refreshSessions(problem) {
  const { sessions } = await sendSignedIn("GET", "/api/auth/sessions");
  const list = byId("sessions");
  // Keep the row of a session: a button must not vanish while the user taps it.
  const rows = new Map([...list.children].map((row) => [row.dataset.id, row]));
  list.replaceChildren(...sessions.map((session) => update(rows.get(session.id) ?? row(session, problem), session)));
  list.hidden = sessions.length === 0;
}

function row(session, problem) {
  const name = browserOf(session.userAgent);
  const element = createElement("li", "", createElement("div", "what", [createElement("div", "name", name), createElement("div", "more")]));
  element.dataset.id = session.id;
  if (session.current) {
    element.append(createElement("span", "tag", text("sessions.this")));
    return element;
  }
  const end = createElement("button", "quiet small bad", text("header.sign-out"));
  end.setAttribute("aria-label", text("sessions.sign-out", { name }));
  onAction(end, problem, async () => {
    await sendSignedIn("DELETE", `/api/auth/sessions/${encodeURIComponent(session.id)}`);
    await refreshSessions(problem);
  });
  element.append(end);
  return element;
}

function update(element, { address, lastUsedAt, createdAt }) {
  const more = [address, text("sessions.used", { time: relativeTime(lastUsedAt) }), text("sessions.since", { day: day(createdAt) })];
  element.querySelector(".more").textContent = more.filter(Boolean).join(" · ");
  return element;
}

function browserOf(userAgent) {
  const first = (names) => names.find(([mark]) => userAgent?.includes(mark))?.[1];
  const browser = first([["Edg", "Edge"], ["OPR", "Opera"], ["Firefox", "Firefox"], ["FxiOS", "Firefox"],
    ["CriOS", "Chrome"], ["Chrome", "Chrome"], ["Safari", "Safari"]]);
  const system = first([["Android", "Android"], ["iPhone", "iPhone"], ["iPad", "iPad"], ["Windows", "Windows"],
    ["CrOS", "ChromeOS"], ["Mac OS", "Mac"], ["Linux", "Linux"]]);
  return (browser && system ? text("sessions.browser", { browser, system }) : browser ?? system) || userAgent?.slice(0, 60) || text("sessions.unknown");
}
