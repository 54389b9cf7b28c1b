// What stands at the top of every page of somebody who is signed in, and where the pages are.

import { askSignedIn } from "./api.js";
import { byId, goToLogin, whenAsked } from "./page.js";
import { forget, kept } from "./session.js";

// Beside a built web app, which has / for itself, the pages are below /console.
const base = location.pathname.startsWith("/console") ? "/console" : "";

export const home = base || "/";
export const pageOf = (deviceId) => `${base}/machine/${encodeURIComponent(deviceId)}`;

/** Show who is signed in, with a way out; gives their session, or null while the browser goes to /login. */
export function showTop(problem) {
  const session = kept();
  if (!session) {
    goToLogin();
    return null;
  }
  document.querySelector("header .mark").href = home;
  byId("who").textContent = session.user?.email ?? "";
  byId("sign-out").hidden = false;
  whenAsked(byId("sign-out"), problem, async () => {
    // Whatever the server says to it: whoever leaves a kitchen's tablet must be signed out there.
    await askSignedIn("POST", "/api/auth/logout").catch(() => {});
    forget();
    location.replace("/login");
  });
  addEventListener("storage", () => kept() || goToLogin());
  return session;
}

/** Show an administrator the way to the page about the server. */
export async function showWayToAdmin() {
  const { isAdmin } = await askSignedIn("GET", "/api/auth/me");
  byId("to-admin").href = `${base}/admin`;
  byId("to-admin").hidden = !isAdmin;
}
