// The home page: the machines and login sessions of the user, kept up to date.

import { refreshMachines } from "./machines.js";
import { refreshNotices } from "./notices.js";
import { byId, goToLogin, tell, whileSeen } from "./page.js";
import { SignedOut } from "./session.js";
import { refreshSessions } from "./sessions.js";
import { showTop, showWayToAdmin } from "./top.js";

const EVERY_MS = 10000;
const problem = byId("problem");

async function refresh() {
  try {
    await refreshMachines();
    await refreshNotices();
    await refreshSessions(problem);
    tell(problem);
  } catch (failure) {
    if (failure instanceof SignedOut) return goToLogin({ expired: true });
    tell(problem, failure.message);
  }
}

if (showTop(problem)) {
  whileSeen(refresh, EVERY_MS);
  showWayToAdmin().catch(() => {});
}
