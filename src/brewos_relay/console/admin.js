// The server page for administrators: figures, pairing, machines, accounts and tokens.

import { sendSignedIn } from "./api.js";
import { askToConfirm, byId, clockTime, createElement, day, goToLogin, onAction, pollWhileVisible, relativeTime, setText } from "./dom.js";
import { showHeader } from "./header.js";
import { SignedOut } from "./login_session.js";
import { PagedList } from "./paged_list.js";

const EVERY_MS = 5000;
const problem = byId("problem");
let before = null; // the previous figures

const devices = new PagedList({
  path: "/api/admin/devices", name: "devices", row: deviceRow, problem,
  list: "devices", none: "no-devices", more: "more-devices", find: "find-device",
});
const accounts = new PagedList({
  path: "/api/admin/users", name: "users", row: accountRow, problem,
  list: "accounts", none: "no-accounts", more: "more-accounts", find: "find-user",
});

const tokens = byId("tokens");
let shownTokens = "";

async function refreshTokens() {
  const found = [];
  let next = "";
  while (next !== null) {
    const page = await sendSignedIn("GET", `/api/admin/tokens?${new URLSearchParams({ after: next })}`);
    found.push(...page.tokens);
    next = page.next;
  }
  const shown = JSON.stringify(found);
  // Redraw only if something changed: a button must not vanish while the user taps it.
  if (shown !== shownTokens) tokens.replaceChildren(...found.map(tokenRow));
  shownTokens = shown;
  tokens.hidden = found.length === 0;
  byId("no-tokens").hidden = found.length > 0;
}

async function refresh() {
  try {
    const cluster = await sendSignedIn("GET", "/api/admin/instances");
    showStats(await sendSignedIn("GET", "/api/admin/stats"), cluster);
    showInstances(cluster);
    showPairing(await sendSignedIn("GET", "/api/admin/pairing"));
    await devices.refresh();
    await accounts.refresh();
    await refreshTokens();
    setText(problem);
  } catch (failure) {
    if (failure instanceof SignedOut) return goToLogin({ expired: true });
    setText(problem, failure.message);
  }
}

function showStats(stats, { bus, instances }) {
  const { totals } = stats;
  setText(byId("devices-online"), stats.devices);
  setText(byId("devices-all"), `of ${stats.registered.devices}`);
  setText(byId("clients"), stats.clients);
  setText(byId("users-all"), `${stats.registered.users} ${stats.registered.users === 1 ? "account" : "accounts"}`);
  if (bus) {
    // The totals are those of one instance, and each request may reach another one.
    const rate = (name) => instances.reduce((sum, { perSecond }) => sum + perSecond[name], 0);
    setText(byId("rate-devices"), rate("fromDevices").toFixed(1));
    setText(byId("rate-clients"), rate("toClients").toFixed(1));
    setText(byId("rate-apps"), (rate("fromClients") * 60).toFixed(0));
    setText(byId("undeliverable"), instances.reduce((sum, { undeliverable }) => sum + undeliverable, 0));
    return;
  }
  setText(byId("undeliverable"), totals.undeliverable);
  // A restarted server counts from zero.
  if (before && totals.receivedFromDevices >= before.totals.receivedFromDevices) {
    const seconds = Math.max(0.1, (stats.timestamp - before.timestamp) / 1000);
    const rate = (name) => (totals[name] - before.totals[name]) / seconds;
    setText(byId("rate-devices"), rate("receivedFromDevices").toFixed(1));
    setText(byId("rate-clients"), rate("sentToClients").toFixed(1));
    setText(byId("rate-apps"), (rate("receivedFromClients") * 60).toFixed(0));
  }
  before = stats;
}

function showInstances({ instances, problems }) {
  byId("instances-section").hidden = instances.length < 2 && problems.length === 0;
  byId("instances").replaceChildren(...instances.map(instanceRow));
  // A status is read out when it changes.
  const shown = problems.map(({ text, advice }) => `${text}. What to do: ${advice}.`);
  const list = byId("instance-problems");
  const before = [...list.children].map(({ textContent }) => textContent);
  if (JSON.stringify(before) !== JSON.stringify(shown)) {
    list.replaceChildren(...shown.map((text) => createElement("p", "problem", text)));
  }
}

function instanceRow({ name, state, processes, version, host, startedAt, devices: machines, clients, perSecond, answerMs }) {
  const more = [
    host !== name && host,
    version && `version ${version}`,
    startedAt && `started ${relativeTime(startedAt)}`,
    processes > 1 && `${processes} processes`,
    `${machines} ${machines === 1 ? "machine" : "machines"}`,
    `${clients} ${clients === 1 ? "app" : "apps"}`,
    `${perSecond.fromDevices.toFixed(1)} messages/s in, ${perSecond.toClients.toFixed(1)} out`,
    answerMs !== null && `answers in ${answerMs.toFixed(1)} ms`,
  ];
  return createElement("li", "", [
    createElement("div", "what", [
      createElement("div", "name", name),
      createElement("div", "more", more.filter(Boolean).join(" · ")),
    ]),
    createElement("span", state === "running" ? "state online" : "state", state === "silent" ? "no answer" : state),
  ]);
}

function showPairing({ mode, isOpen, openUntil }) {
  const words = {
    open: "Any machine may register.",
    closed: "New machines may not register (BREWOS_RELAY_PAIRING is closed).",
    window: isOpen ? `New machines may register until ${clockTime(openUntil)}.` : "New machines may not register until you open pairing.",
  };
  setText(byId("pairing-state"), words[mode]);
  byId("pairing-open").hidden = mode !== "window";
  byId("pairing-close").hidden = mode !== "window" || !isOpen;
}

onAction(byId("pairing-open"), problem, async () => {
  showPairing(await sendSignedIn("POST", "/api/admin/pairing", { minutes: 10 }));
});

onAction(byId("pairing-close"), problem, async () => {
  showPairing(await sendSignedIn("DELETE", "/api/admin/pairing"));
});

function deviceRow({ id, name, isOnline, clients, lastSeen, firmwareVersion, machineType, keyPending, owners }) {
  const apps = clients && `${clients} ${clients === 1 ? "app" : "apps"}`;
  const more = [id, owners.join(", ") || "no owner", machineType?.replaceAll("_", " "), firmwareVersion && `firmware ${firmwareVersion}`, apps];
  const release = createElement("button", "quiet small bad", "Release");
  release.setAttribute("aria-label", `Release ${id}`);
  onAction(release, problem, async () => {
    const text = "All of its users lose access, and it can be paired again. Use this if a stranger has paired the machine.";
    if (!(await askToConfirm({ title: `Release ${id}?`, text, act: "Release" }))) return;
    await sendSignedIn("POST", `/api/admin/devices/${encodeURIComponent(id)}/release`);
    await devices.refresh();
  });
  return createElement("li", "", [
    createElement("div", "what", [
      createElement("div", "name", name ?? id),
      createElement("div", "more", more.filter(Boolean).join(" · ")),
      ...(keyPending ? [createElement("div", "more", "The machine has a new key. Its owner must pair it again to accept the key.")] : []),
    ]),
    isOnline ? createElement("span", "state online", "online") : createElement("span", "state", lastSeen ? `last seen ${relativeTime(lastSeen)}` : "never seen"),
    ...(owners.length ? [createElement("span", "acts", [release])] : []),
  ]);
}

function accountRow({ id, email, name, isAdmin, hasPassword, createdAt }) {
  const more = [name && email, hasPassword ? "has a password" : "has no password", `since ${day(createdAt)}`];
  const path = `/api/admin/users/${encodeURIComponent(id)}`;
  const change = createElement("button", "quiet small", isAdmin ? "Revoke administrator" : "Make administrator");
  change.setAttribute("aria-label", `${isAdmin ? "Revoke administrator" : "Make administrator"}: ${email}`);
  onAction(change, problem, async () => {
    await sendSignedIn("PATCH", path, { isAdmin: !isAdmin });
    await accounts.refresh();
  });
  const remove = createElement("button", "quiet small bad", "Remove");
  remove.setAttribute("aria-label", `Remove ${email}`);
  onAction(remove, problem, async () => {
    const text = "Their sessions end. Machines without another owner are released, and can be paired again.";
    if (!(await askToConfirm({ title: `Remove ${email}?`, text, act: "Remove" }))) return;
    await sendSignedIn("DELETE", path);
    await accounts.refresh();
  });
  return createElement("li", "", [
    createElement("div", "what", [createElement("div", "name", name ?? email), createElement("div", "more", more.filter(Boolean).join(" · "))]),
    ...(isAdmin ? [createElement("span", "tag", "administrator")] : []),
    createElement("span", "acts", [change, remove]),
  ]);
}

function tokenRow({ id, name, userId, role, devices, expiresAt, revokedAt }) {
  const reach = devices === "*" ? "all machines" : devices.join(", ") || "the machines of the user";
  const revoke = createElement("button", "quiet small bad", "Revoke");
  revoke.setAttribute("aria-label", `Revoke ${name ?? id}`);
  onAction(revoke, problem, async () => {
    const text = "Its connections close within a second. Other tokens of the user stay valid.";
    if (!(await askToConfirm({ title: `Revoke ${name ?? id}?`, text, act: "Revoke" }))) return;
    await sendSignedIn("DELETE", `/api/admin/tokens/${encodeURIComponent(id)}`);
    await refreshTokens();
  });
  const more = [name && id, userId, `${role} of ${reach}`, `until ${day(expiresAt)}`];
  return createElement("li", "", [
    createElement("div", "what", [createElement("div", "name", name ?? id), createElement("div", "more", more.filter(Boolean).join(" · "))]),
    revokedAt ? createElement("span", "state", "revoked") : createElement("span", "acts", [revoke]),
  ]);
}

onAction(byId("invite"), problem, async () => {
  const made = await sendSignedIn("POST", "/api/admin/invites", {
    email: byId("invite-email").value,
    isAdmin: byId("invite-admin").checked,
  });
  setText(byId("invited-email"), made.email);
  byId("invited-url").value = made.url;
  setText(byId("invited-copy"), "Copy link");
  byId("invited").hidden = false;
  byId("invite").reset();
});

onAction(byId("invited-copy"), problem, async () => {
  await navigator.clipboard.writeText(byId("invited-url").value);
  setText(byId("invited-copy"), "Copied");
});
// Browsers offer the clipboard only over TLS.
byId("invited-copy").hidden = !navigator.clipboard;

if (showHeader(problem)) pollWhileVisible(refresh, EVERY_MS);
