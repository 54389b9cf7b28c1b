// The server page for administrators: figures, pairing, machines, accounts and tokens.

import { sendSignedIn } from "./api.js";
import { askToConfirm, byId, copyField, createElement, goToLogin, onAction, pollWhileVisible, setText } from "./dom.js";
import { clockTime, day, number, relativeTime } from "./format.js";
import { machinePage, showHeader } from "./header.js";
import { SignedOut, storedSession } from "./login_session.js";
import { PagedList } from "./paged_list.js";
import { machineTypeName, roleName, text, textFrom } from "./texts.js";

const EVERY_MS = 5000;
const PROBLEMS = {
  bus: "cluster.bus", versions: "cluster.versions", keys: "cluster.keys", registries: "cluster.registries",
  hosts: "cluster.hosts", silent: "cluster.silent",
};
const STATES = { running: "instance.running", draining: "instance.draining", silent: "instance.silent" };
const problem = byId("problem");
let before = null; // the previous figures

const devices = new PagedList({
  path: "/api/admin/devices", name: "devices", row: deviceRow, problem, none: "no-devices", more: "more-devices",
  sort: "id", fields: { find: byId("find-device"), owner: byId("owner"), only: byId("only-devices") },
});
const accounts = new PagedList({
  path: "/api/admin/users", name: "users", row: accountRow, problem, none: "no-accounts", more: "more-accounts",
  sort: "email", fields: { find: byId("find-user"), only: byId("only-users") },
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
  setText(byId("devices-online"), number(stats.devices));
  setText(byId("devices-all"), text("admin.of", { count: stats.registered.devices }));
  setText(byId("clients"), number(stats.clients));
  setText(byId("users-all"), text("admin.accounts", { count: stats.registered.users }));
  if (bus) {
    // The totals are those of one instance, and each request may reach another one.
    const rate = (name) => instances.reduce((sum, { perSecond }) => sum + perSecond[name], 0);
    setText(byId("rate-devices"), number(rate("fromDevices"), 1));
    setText(byId("rate-clients"), number(rate("toClients"), 1));
    setText(byId("rate-apps"), number(rate("fromClients") * 60));
    setText(byId("undeliverable"), number(instances.reduce((sum, { undeliverable }) => sum + undeliverable, 0)));
    return;
  }
  setText(byId("undeliverable"), number(totals.undeliverable));
  // A restarted server counts from zero.
  if (before && totals.receivedFromDevices >= before.totals.receivedFromDevices) {
    const seconds = Math.max(0.1, (stats.timestamp - before.timestamp) / 1000);
    const rate = (name) => (totals[name] - before.totals[name]) / seconds;
    setText(byId("rate-devices"), number(rate("receivedFromDevices"), 1));
    setText(byId("rate-clients"), number(rate("sentToClients"), 1));
    setText(byId("rate-apps"), number(rate("receivedFromClients") * 60));
  }
  before = stats;
}

function showInstances({ instances, problems }) {
  byId("instances-section").hidden = instances.length < 2 && problems.length === 0;
  byId("instances").replaceChildren(...instances.map(instanceRow));
  // A status is read out when it changes.
  const shown = problems.map(problemText);
  const list = byId("instance-problems");
  const before = [...list.children].map(({ textContent }) => textContent);
  if (JSON.stringify(before) !== JSON.stringify(shown)) {
    list.replaceChildren(...shown.map((words) => createElement("p", "problem", words)));
  }
}

function problemText({ kind, text: what, advice }) {
  // The text of the server ends with the names of the instances, as `(a, b)` or `from a, b`.
  const instances = what.match(/\((.*)\)$/)?.[1] ?? what.match(/ from (.*)$/)?.[1] ?? "";
  return Object.hasOwn(PROBLEMS, kind) ? text(PROBLEMS[kind], { instances }) : `${what}: ${advice}.`;
}

function instanceRow({ name, state, processes, version, host, startedAt, devices: machines, clients, perSecond, answerMs }) {
  const more = [
    host !== name && host,
    version && text("instance.version", { version }),
    startedAt && text("instance.started", { time: relativeTime(startedAt) }),
    processes > 1 && text("instance.processes", { count: processes }),
    text("instance.machines", { count: machines }),
    text("instance.apps", { count: clients }),
    text("instance.rates", { from: number(perSecond.fromDevices, 1), to: number(perSecond.toClients, 1) }),
    answerMs !== null && text("instance.answers", { time: number(answerMs, 1) }),
  ];
  return createElement("li", "", [
    createElement("div", "what", [
      createElement("div", "name", name),
      createElement("div", "more", more.filter(Boolean).join(" · ")),
    ]),
    createElement("span", state === "running" ? "state online" : "state", textFrom(STATES, state)),
  ]);
}

function showPairing({ mode, isOpen, openUntil }) {
  const words = {
    open: text("pairing.open"),
    closed: text("pairing.closed"),
    window: isOpen ? text("pairing.window-open", { time: clockTime(openUntil) }) : text("pairing.window-closed"),
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
  const apps = clients && text("instance.apps", { count: clients });
  const more = [machineTypeName(machineType), firmwareVersion && text("home.firmware", { version: firmwareVersion }), apps];
  const release = createElement("button", "quiet small bad", text("release.act"));
  release.setAttribute("aria-label", text("release.label", { name: id }));
  onAction(release, problem, async () => {
    if (!(await askToConfirm({ title: text("release.title", { name: id }), text: text("release.text"), act: text("release.act") }))) return;
    await sendSignedIn("POST", `/api/admin/devices/${encodeURIComponent(id)}/release`);
    await devices.refresh();
  });
  const isOwn = owners.includes(storedSession()?.user?.email);
  const label = name ?? id;
  const presence = isOnline ? createElement("span", "state online", text("presence.online")) : createElement("span", "state", lastSeen ? text("presence.last-seen", { time: relativeTime(lastSeen) }) : text("presence.never"));
  return tableRow([
    [
      createElement("div", "name", isOwn ? linkTo(machinePage(id), label) : label),
      createElement("div", "more", more.filter(Boolean).join(" · ")),
      ...(keyPending ? [createElement("div", "more", text("admin.new-key"))] : []),
    ],
    id,
    owners.length ? owners.map((owner) => createElement("div", "", linkTo(PagedList.url("users", { find: owner }), owner))) : text("admin.no-owner"),
    presence,
    owners.length ? release : "",
  ]);
}

function accountRow({ id, email, name, isAdmin, hasPassword, createdAt }) {
  const path = `/api/admin/users/${encodeURIComponent(id)}`;
  const change = createElement("button", "quiet small", isAdmin ? text("account.demote") : text("account.promote"));
  change.setAttribute("aria-label", text(isAdmin ? "account.demote-label" : "account.promote-label", { name: email }));
  onAction(change, problem, async () => {
    await sendSignedIn("PATCH", path, { isAdmin: !isAdmin });
    await accounts.refresh();
  });
  const remove = createElement("button", "quiet small bad", text("people.remove"));
  remove.setAttribute("aria-label", text("people.remove-label", { name: email }));
  onAction(remove, problem, async () => {
    if (!(await askToConfirm({ title: text("people.remove-title", { name: email }), text: text("account.remove-text"), act: text("people.remove") }))) return;
    await sendSignedIn("DELETE", path);
    await accounts.refresh();
  });
  return tableRow([
    [
      createElement("div", "name", name ?? email),
      createElement("div", "more", hasPassword ? text("account.password") : text("account.no-password")),
      ...(isAdmin ? [createElement("span", "tag", text("account.administrator"))] : []),
    ],
    [createElement("div", "", email), linkTo(PagedList.url("devices", { owner: email }), text("admin.their-machines"))],
    day(createdAt),
    createElement("span", "acts", [change, remove]),
  ]);
}

/** Make a row. The roles stay when the rows are shown as blocks, on phones. */
function tableRow(cells) {
  const row = createElement("tr", "", cells.map((content) => {
    const cell = createElement("td", "", content);
    cell.setAttribute("role", "cell");
    return cell;
  }));
  row.setAttribute("role", "row");
  return row;
}

function linkTo(url, label) {
  const link = createElement("a", "", label);
  link.href = url;
  return link;
}

function tokenRow({ id, name, userId, role, devices, expiresAt, revokedAt }) {
  const reach = devices === "*" ? text("token.all-machines") : devices.join(", ") || text("token.own-machines");
  const revoke = createElement("button", "quiet small bad", text("token.revoke"));
  revoke.setAttribute("aria-label", text("token.revoke-label", { name: name ?? id }));
  onAction(revoke, problem, async () => {
    if (!(await askToConfirm({ title: text("token.revoke-title", { name: name ?? id }), text: text("token.revoke-text"), act: text("token.revoke") }))) return;
    await sendSignedIn("DELETE", `/api/admin/tokens/${encodeURIComponent(id)}`);
    await refreshTokens();
  });
  const more = [name && id, userId, text("token.reach", { role: roleName(role), machines: reach }), text("people.until", { time: day(expiresAt) })];
  return createElement("li", "", [
    createElement("div", "what", [createElement("div", "name", name ?? id), createElement("div", "more", more.filter(Boolean).join(" · "))]),
    revokedAt ? createElement("span", "state", text("token.revoked")) : createElement("span", "acts", [revoke]),
  ]);
}

onAction(byId("invite"), problem, async () => {
  const made = await sendSignedIn("POST", "/api/admin/invites", {
    email: byId("invite-email").value,
    isAdmin: byId("invite-admin").checked,
  });
  setText(byId("invited-email"), made.email);
  byId("invited-url").value = made.url;
  setText(byId("invited-copy"), text("share.copy"));
  byId("invited").hidden = false;
  byId("invite").reset();
});

onAction(byId("invited-copy"), problem, async () => {
  await copyField(byId("invited-url"), byId("invited-copy"));
});

if (showHeader(problem)) pollWhileVisible(refresh, EVERY_MS);
