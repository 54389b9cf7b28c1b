// The header of every page for signed-in users, and the URLs of the pages.

import { askSignedIn } from "./api.js";
import { byId, goToLogin, whenAsked } from "./page.js";
import { forget, kept } from "./session.js";

// Besides a built web app, which owns /, the console is below /console.
const base = location.pathname.startsWith("/console") ? "/console" : "";

export const home = base || "/";
export const pageOf = (deviceId) => `${base}/machine/${encodeURIComponent(deviceId)}`;

/** Show the user and the sign-out button. Return the session, or null while the browser goes to /login. */
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
    // Sign out here even if the server fails: the device may be a shared tablet.
    await askSignedIn("POST", "/api/auth/logout").catch(() => {});
    forget();
    location.replace("/login");
  });
  addEventListener("storage", () => kept() || goToLogin());
  return session;
}

/** Show administrators the link to the server page. */
export async function showWayToAdmin() {
  const { isAdmin } = await askSignedIn("GET", "/api/auth/me");
  byId("to-admin").href = `${base}/admin`;
  byId("to-admin").hidden = !isAdmin;
}
