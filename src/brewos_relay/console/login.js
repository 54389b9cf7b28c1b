// Signing in: with a one-time link, or with a password. The link has its token after #, which browsers never send.

import { ask, askSignedIn } from "./api.js";
import { byId, nextPage, tell, whenAsked } from "./page.js";
import { forget, keep, kept } from "./session.js";

const NONCE = "brewos_relay_nonce";
const problem = byId("problem");
const info = ask("GET", "/api/info");
info.catch(() => {}); // the page works without
const sections = ["invited", "here", "sign-in", "choose"];

function show(name, title) {
  for (const section of sections) byId(section).hidden = section !== name;
  byId("title").textContent = title;
  byId(name).querySelector("input:not([readonly]), button").focus();
}

function goOn() {
  location.replace(nextPage());
}

function inviteToken() {
  return new URLSearchParams(location.hash.slice(1)).get("invite");
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
  byId("current").textContent = kept()?.user?.email ?? "";
  byId("replaces").hidden = !kept();
  show("invited", "Welcome");
  const token = inviteToken();
  if ((await isDemo()) && token === inviteToken()) byId("accept").click();
}

function start() {
  tell(problem);
  if (inviteToken()) return showInvited();
  if (new URLSearchParams(location.search).has("expired")) {
    tell(byId("notice"), "Your session has ended. Sign in again.");
  } else if (kept()) {
    byId("name").textContent = kept().user?.email ?? "";
    return show("here", "Signed in");
  }
  show("sign-in", "Sign in");
}

async function tellOtherWays() {
  const { webApp, signIn } = await info;
  // These need scripts of other sites. The web app loads them; this page loads nothing from other sites.
  const others = [signIn.google && "Google", signIn.facebook && "Facebook"].filter(Boolean);
  if (webApp && others.length) {
    byId("others").textContent = others.join(" or ");
    byId("elsewhere").hidden = false;
  }
}

whenAsked(byId("accept"), problem, async () => {
  const inDemo = await isDemo();
  let session;
  try {
    session = await ask("POST", "/api/auth/invite", { token: inviteToken(), nonce: nonce() });
  } catch (failure) {
    if (failure.status === 401) {
      history.replaceState(null, "", location.pathname + location.search);
      start();
    }
    throw failure;
  }
  keep(session);
  sessionStorage.removeItem(NONCE);
  history.replaceState(null, "", location.pathname + location.search);
  if (inDemo) return goOn();
  byId("account").value = session.user.email;
  byId("elsewhere").hidden = true;
  show("choose", "Set a password");
});

whenAsked(byId("sign-in"), problem, async () => {
  keep(await ask("POST", "/api/auth/password", { email: byId("email").value, password: byId("password").value }));
  goOn();
});

whenAsked(byId("choose"), problem, async () => {
  await askSignedIn("PUT", "/api/me/password", { password: byId("chosen").value });
  goOn();
});

whenAsked(byId("leave"), problem, async () => {
  await askSignedIn("POST", "/api/auth/logout").catch(() => {});
  forget();
  start();
});

byId("go-on").addEventListener("click", goOn);
byId("skip").addEventListener("click", goOn);
addEventListener("hashchange", start);
start();
tellOtherWays().catch(() => {});
