// The home page: the machines and login sessions of the user, kept up to date.

import { byId, goToLogin, pollWhileVisible, setText } from "./dom.js";
import { pairPage, showAdminLink, showHeader } from "./header.js";
import { SignedOut } from "./login_session.js";
import { refreshMachines } from "./machine_list.js";
import { refreshNotices } from "./notices.js";
import { refreshSessions } from "./session_list.js";

const EVERY_MS = 10000;
const problem = byId("problem");

async function refresh() {
  try {
    await refreshMachines();
    await refreshNotices();
    await refreshSessions(problem);
    setText(problem);
  } catch (failure) {
    if (failure instanceof SignedOut) return goToLogin({ expired: true });
    setText(problem, failure.message);
  }
}

byId("add").href = pairPage;
if (showHeader(problem)) {
  pollWhileVisible(refresh, EVERY_MS);
  showAdminLink().catch(() => {});
}
