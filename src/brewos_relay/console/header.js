// The header of every page for signed-in users, and the URLs of the pages.

import { sendSignedIn } from "./api.js";
import { byId, goToLogin, onAction } from "./dom.js";
import { registerWorker } from "./installed.js";
import { clearSession, storedSession } from "./login_session.js";
import { leavePush } from "./push.js";

const WORKER_MS = 4000;

// Besides a built web app, which owns /, the console is below /console.
const base = location.pathname.startsWith("/console") ? "/console" : "";

export const homePage = base || "/";
export const pairPage = `${base}/pair`;
export const machinePage = (deviceId) => `${base}/machine/${encodeURIComponent(deviceId)}`;
export const shotsPage = (deviceId) => `${machinePage(deviceId)}/shots`;

/** Show the user and the sign-out button. Return the session, or null while the browser goes to /login. */
export function showHeader(problem) {
  const session = storedSession();
  if (!session) {
    goToLogin();
    return null;
  }
  document.querySelector("header .mark").href = homePage;
  const settings = byId("to-settings");
  if (settings) settings.href = `${base}/settings`;
  byId("who").textContent = session.user?.email ?? "";
  byId("sign-out").hidden = false;
  onAction(byId("sign-out"), problem, async () => {
    // Sign out here even if the server fails: the device may be a shared tablet.
    await leavePush();
    await sendSignedIn("POST", "/api/auth/logout").catch(() => {});
    clearSession();
    location.replace("/login");
  });
  // Later: its files must not delay those of the page.
  setTimeout(registerWorker, WORKER_MS);
  addEventListener("storage", () => storedSession() || goToLogin());
  return session;
}

/** Show administrators the link to the server page. Returns whether the user is one. */
export async function showAdminLink() {
  const { isAdmin } = await sendSignedIn("GET", "/api/auth/me");
  byId("to-admin").href = `${base}/admin`;
  byId("to-admin").hidden = !isAdmin;
  return isAdmin;
}
