// Signing in: with a one-time link, a password, or an identity provider. A link has its token after #, which browsers
// never send. A provider sends the browser back to /login/callback, which is this page.

import { sendAnonymous, sendSignedIn } from "./api.js";
import { byId, createElement, nextPage, onAction, setText } from "./dom.js";
import { clearSession, PAIRING, startSession, storedSession } from "./login_session.js";
import { leavePush } from "./push.js";
import { list, text } from "./texts.js";

const NONCE = "brewos_relay_nonce";
const NEXT = "brewos_relay_next";
const CALLBACK = "/login/callback";
const problem = byId("problem");
const info = sendAnonymous("GET", "/api/info");
info.catch(() => {}); // the page works without
const sections = ["invited", "here", "sign-in", "choose"];

function show(name, title) {
  for (const section of sections) byId(section).hidden = section !== name;
  byId("title").textContent = title;
  byId(name).querySelector("input:not([readonly]), button").focus();
}

function goToNextPage() {
  location.replace(nextPage());
}

function inviteToken() {
  return new URLSearchParams(location.hash.slice(1)).get("invite");
}

/** Remove the link from the history. If it shares a machine too, that follows the sign-in. */
function leaveLink() {
  const linked = new URLSearchParams(location.hash.slice(1));
  const share = { id: linked.get("device"), token: linked.get("share"), share: true };
  const isShared = Boolean(share.id && share.token);
  if (isShared) sessionStorage.setItem(PAIRING, JSON.stringify(share));
  history.replaceState(null, "", location.pathname + (isShared ? "?next=/pair" : location.search));
}

/** Tell whether this link signs in without a click: both the server and the link belong to a demo. */
async function isDemo() {
  const linked = new URLSearchParams(location.hash.slice(1)).has("demo");
  return linked && (await info.catch(() => null))?.demo === true;
}

/** Return the nonce of this tab. With it, the tab can redeem a link again for a minute if the answer was lost. */
function nonce() {
  if (!sessionStorage.getItem(NONCE)) {
    const bytes = crypto.getRandomValues(new Uint8Array(32));
    sessionStorage.setItem(NONCE, Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join(""));
  }
  return sessionStorage.getItem(NONCE);
}

async function showInvited() {
  byId("server").textContent = location.host;
  byId("current").textContent = storedSession()?.user?.email ?? "";
  byId("replaces").hidden = !storedSession();
  show("invited", text("login.welcome"));
  const token = inviteToken();
  if ((await isDemo()) && token === inviteToken()) byId("accept").click();
}

/** Open the page of an identity provider. This tab keeps where to go afterwards. */
async function openProvider(kind) {
  const { url } = await sendAnonymous("POST", "/api/auth/code/start", { kind });
  sessionStorage.setItem(NEXT, nextPage());
  location.assign(url);
  await new Promise(() => {}); // the button stays disabled
}

/** Sign in with what the identity provider added to the URL. It leaves the URL, which the history keeps. */
async function complete() {
  const { code, state, iss } = Object.fromEntries(new URLSearchParams(location.search));
  const next = sessionStorage.getItem(NEXT);
  sessionStorage.removeItem(NEXT);
  history.replaceState(null, "", `/login${next ? `?${new URLSearchParams({ next })}` : ""}`);
  if (!code || !state) return start(text("login.cancelled"));
  setText(byId("notice"), text("login.completing"));
  try {
    startSession(await sendAnonymous("POST", "/api/auth/code/finish", { code, state, ...(iss && { iss }) }));
  } catch (failure) {
    setText(byId("notice"));
    return start(failure.message);
  }
  goToNextPage();
}

function start(why = "") {
  setText(problem, why);
  // The web app leaves its demo mode by this link, and expects its own sign-in page to end the mode.
  if (new URLSearchParams(location.search).has("exitDemo")) localStorage.removeItem("brewos-demo-mode");
  if (inviteToken()) return showInvited();
  if (new URLSearchParams(location.search).has("expired")) {
    setText(byId("notice"), text("login.expired"));
  } else if (storedSession()) {
    byId("name").textContent = storedSession().user?.email ?? "";
    return show("here", text("login.signed-in"));
  }
  show("sign-in", text("login.title"));
}

async function tellOtherWays() {
  const { webApp, signIn } = await info;
  byId("providers").replaceChildren(...signIn.byCode.map(({ kind, name }) => {
    const button = createElement("button", "quiet", text("login.with", { name }));
    button.type = "button";
    onAction(button, problem, () => openProvider(kind));
    return button;
  }));
  byId("providers").hidden = signIn.byCode.length === 0;
  // These need scripts of other sites. The web app loads them; this page loads nothing from other sites.
  const others = [signIn.google && !signIn.byCode.some(({ kind }) => kind === "google") && "Google", signIn.facebook && "Facebook"].filter(Boolean);
  if (webApp && others.length) {
    byId("others").textContent = list(others, "disjunction");
    byId("elsewhere").hidden = false;
  }
}

onAction(byId("accept"), problem, async () => {
  const inDemo = await isDemo();
  let session;
  try {
    session = await sendAnonymous("POST", "/api/auth/invite", { token: inviteToken(), nonce: nonce() });
  } catch (failure) {
    if (failure.status === 401) {
      leaveLink();
      start();
    }
    throw failure;
  }
  startSession(session);
  sessionStorage.removeItem(NONCE);
  leaveLink();
  if (inDemo) {
    const { devices } = await sendSignedIn("GET", "/api/devices");
    return location.replace(devices.length === 1 ? `/machine/${devices[0].id}` : "/");
  }
  byId("account").value = session.user.email;
  byId("elsewhere").hidden = true;
  show("choose", text("login.choose"));
});

onAction(byId("sign-in"), problem, async () => {
  startSession(await sendAnonymous("POST", "/api/auth/password", { email: byId("email").value, password: byId("password").value }));
  goToNextPage();
});

onAction(byId("choose"), problem, async () => {
  await sendSignedIn("PUT", "/api/me/password", { password: byId("chosen").value });
  goToNextPage();
});

onAction(byId("leave"), problem, async () => {
  await leavePush();
  await sendSignedIn("POST", "/api/auth/logout").catch(() => {});
  clearSession();
  start();
});

byId("go-on").addEventListener("click", goToNextPage);
byId("skip").addEventListener("click", goToNextPage);
addEventListener("hashchange", () => start());
if (location.pathname === CALLBACK) complete();
else start();
tellOtherWays().catch(() => {});
