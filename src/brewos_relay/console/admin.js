// The server page for administrators: figures, pairing, machines, accounts and tokens.

import { askSignedIn } from "./api.js";
import { Listing } from "./listing.js";
import { ago, byId, clock, confirmed, day, goToLogin, make, tell, whenAsked, whileSeen } from "./page.js";
import { SignedOut } from "./session.js";
import { showTop } from "./top.js";

const EVERY_MS = 5000;
const problem = byId("problem");
let before = null; // the previous figures

const devices = new Listing({
  path: "/api/admin/devices", name: "devices", row: deviceRow, problem,
  list: "devices", none: "no-devices", more: "more-devices", find: "find-device",
});
const accounts = new Listing({
  path: "/api/admin/users", name: "users", row: accountRow, problem,
  list: "accounts", none: "no-accounts", more: "more-accounts", find: "find-user",
});

const tokens = byId("tokens");
let shownTokens = "";

async function refreshTokens() {
  const found = [];
  let next = "";
  while (next !== null) {
    const page = await askSignedIn("GET", `/api/admin/tokens?${new URLSearchParams({ after: next })}`);
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
    showStats(await askSignedIn("GET", "/api/admin/stats"));
    showPairing(await askSignedIn("GET", "/api/admin/pairing"));
    await devices.refresh();
    await accounts.refresh();
    await refreshTokens();
    tell(problem);
  } catch (failure) {
    if (failure instanceof SignedOut) return goToLogin({ expired: true });
    tell(problem, failure.message);
  }
}

function showStats(stats) {
  const { totals } = stats;
  tell(byId("devices-online"), stats.devices);
  tell(byId("devices-all"), `of ${stats.registered.devices}`);
  tell(byId("clients"), stats.clients);
  tell(byId("users-all"), `${stats.registered.users} ${stats.registered.users === 1 ? "account" : "accounts"}`);
  tell(byId("undeliverable"), totals.undeliverable);
  // A restarted server counts from zero.
  if (before && totals.receivedFromDevices >= before.totals.receivedFromDevices) {
    const seconds = Math.max(0.1, (stats.timestamp - before.timestamp) / 1000);
    const rate = (name) => (totals[name] - before.totals[name]) / seconds;
    tell(byId("rate-devices"), rate("receivedFromDevices").toFixed(1));
    tell(byId("rate-clients"), rate("sentToClients").toFixed(1));
    tell(byId("rate-apps"), (rate("receivedFromClients") * 60).toFixed(0));
  }
  before = stats;
}

function showPairing({ mode, isOpen, openUntil }) {
  const words = {
    open: "Any machine may register.",
    closed: "New machines may not register (BREWOS_RELAY_PAIRING is closed).",
    window: isOpen ? `New machines may register until ${clock(openUntil)}.` : "New machines may not register until you open pairing.",
  };
  tell(byId("pairing-state"), words[mode]);
  byId("pairing-open").hidden = mode !== "window";
  byId("pairing-close").hidden = mode !== "window" || !isOpen;
}

whenAsked(byId("pairing-open"), problem, async () => {
  showPairing(await askSignedIn("POST", "/api/admin/pairing", { minutes: 10 }));
});

whenAsked(byId("pairing-close"), problem, async () => {
  showPairing(await askSignedIn("DELETE", "/api/admin/pairing"));
});

function deviceRow({ id, name, isOnline, clients, lastSeen, firmwareVersion, machineType, keyPending, owners }) {
  const apps = clients && `${clients} ${clients === 1 ? "app" : "apps"}`;
  const more = [id, owners.join(", ") || "no owner", machineType?.replaceAll("_", " "), firmwareVersion && `firmware ${firmwareVersion}`, apps];
  const release = make("button", "quiet small bad", "Release");
  release.setAttribute("aria-label", `Release ${id}`);
  whenAsked(release, problem, async () => {
    const text = "All of its users lose access, and it can be paired again. Use this if a stranger has paired the machine.";
    if (!(await confirmed({ title: `Release ${id}?`, text, act: "Release" }))) return;
    await askSignedIn("POST", `/api/admin/devices/${encodeURIComponent(id)}/release`);
    await devices.refresh();
  });
  return make("li", "", [
    make("div", "what", [
      make("div", "name", name ?? id),
      make("div", "more", more.filter(Boolean).join(" · ")),
      ...(keyPending ? [make("div", "more", "The machine has a new key. Its owner must pair it again to accept the key.")] : []),
    ]),
    isOnline ? make("span", "state online", "online") : make("span", "state", lastSeen ? `last seen ${ago(lastSeen)}` : "never seen"),
    ...(owners.length ? [make("span", "acts", [release])] : []),
  ]);
}

function accountRow({ id, email, name, isAdmin, hasPassword, createdAt }) {
  const more = [name && email, hasPassword ? "has a password" : "has no password", `since ${day(createdAt)}`];
  const path = `/api/admin/users/${encodeURIComponent(id)}`;
  const change = make("button", "quiet small", isAdmin ? "Revoke administrator" : "Make administrator");
  change.setAttribute("aria-label", `${isAdmin ? "Revoke administrator" : "Make administrator"}: ${email}`);
  whenAsked(change, problem, async () => {
    await askSignedIn("PATCH", path, { isAdmin: !isAdmin });
    await accounts.refresh();
  });
  const remove = make("button", "quiet small bad", "Remove");
  remove.setAttribute("aria-label", `Remove ${email}`);
  whenAsked(remove, problem, async () => {
    const text = "Their sessions end. Machines without another owner are released, and can be paired again.";
    if (!(await confirmed({ title: `Remove ${email}?`, text, act: "Remove" }))) return;
    await askSignedIn("DELETE", path);
    await accounts.refresh();
  });
  return make("li", "", [
    make("div", "what", [make("div", "name", name ?? email), make("div", "more", more.filter(Boolean).join(" · "))]),
    ...(isAdmin ? [make("span", "tag", "administrator")] : []),
    make("span", "acts", [change, remove]),
  ]);
}

function tokenRow({ id, name, userId, role, devices, expiresAt, revokedAt }) {
  const reach = devices === "*" ? "all machines" : devices.join(", ") || "the machines of the user";
  const revoke = make("button", "quiet small bad", "Revoke");
  revoke.setAttribute("aria-label", `Revoke ${name ?? id}`);
  whenAsked(revoke, problem, async () => {
    const text = "Its connections close within a second. Other tokens of the user stay valid.";
    if (!(await confirmed({ title: `Revoke ${name ?? id}?`, text, act: "Revoke" }))) return;
    await askSignedIn("DELETE", `/api/admin/tokens/${encodeURIComponent(id)}`);
    await refreshTokens();
  });
  const more = [name && id, userId, `${role} of ${reach}`, `until ${day(expiresAt)}`];
  return make("li", "", [
    make("div", "what", [make("div", "name", name ?? id), make("div", "more", more.filter(Boolean).join(" · "))]),
    revokedAt ? make("span", "state", "revoked") : make("span", "acts", [revoke]),
  ]);
}

whenAsked(byId("invite"), problem, async () => {
  const made = await askSignedIn("POST", "/api/admin/invites", {
    email: byId("invite-email").value,
    isAdmin: byId("invite-admin").checked,
  });
  tell(byId("invited-email"), made.email);
  byId("invited-url").value = made.url;
  tell(byId("invited-copy"), "Copy link");
  byId("invited").hidden = false;
  byId("invite").reset();
});

whenAsked(byId("invited-copy"), problem, async () => {
  await navigator.clipboard.writeText(byId("invited-url").value);
  tell(byId("invited-copy"), "Copied");
});
// Browsers offer the clipboard only over TLS.
byId("invited-copy").hidden = !navigator.clipboard;

if (showTop(problem)) whileSeen(refresh, EVERY_MS);
