// Adding a machine: with the code on its screen, with a share link, or with a short code.

import { sendSignedIn } from "./api.js";
import { byId, goToLogin, onAction, setText } from "./dom.js";
import { homePage, machinePage } from "./header.js";
import { PAIRING, storedSession } from "./login_session.js";
import { text } from "./texts.js";

const problem = byId("problem");

/** Move the scanned token from the URL, which the browser history keeps, into this tab. */
function takeScanned() {
  const asked = new URLSearchParams(location.search);
  if (asked.get("id") && asked.get("token")) {
    const scanned = { id: asked.get("id"), token: asked.get("token"), share: asked.get("share") === "true" };
    sessionStorage.setItem(PAIRING, JSON.stringify(scanned));
    history.replaceState(null, "", location.pathname);
  }
  return JSON.parse(sessionStorage.getItem(PAIRING));
}

function showDone({ deviceId, name }) {
  sessionStorage.removeItem(PAIRING);
  for (const id of ["scanned", "typed"]) byId(id).hidden = true;
  setText(byId("notice"), text("pair.done"));
  byId("done").hidden = false;
  const link = byId("done").firstElementChild;
  link.href = machinePage(deviceId);
  setText(link, text("pair.go", { machine: name }));
  link.focus();
}

const scanned = takeScanned();

onAction(byId("scanned"), problem, async () => {
  const path = scanned.share ? "/api/devices/claim-share" : "/api/devices/claim";
  const name = byId("name").value.trim();
  let paired;
  try {
    paired = await sendSignedIn("POST", path, { deviceId: scanned.id, token: scanned.token, ...(name && { name }) });
  } catch (failure) {
    if (failure.status >= 400 && failure.status < 429) {
      // Trying again will not help.
      sessionStorage.removeItem(PAIRING);
      byId("scanned").hidden = true;
      byId("typed").hidden = false;
      byId("title").textContent = text("pair.title");
    }
    throw failure;
  }
  showDone(paired);
});

onAction(byId("typed"), problem, async () => {
  showDone(await sendSignedIn("POST", "/api/devices/claim", { deviceId: byId("code").value.trim(), token: "" }));
});

byId("back").href = homePage;
if (!storedSession()) {
  goToLogin();
} else if (scanned) {
  byId("about").textContent = text("pair.scanned", { machine: scanned.id });
  if (scanned.share) {
    byId("title").textContent = text("pair.invitation");
    byId("about").textContent = text("pair.invited", { machine: scanned.id });
    byId("take").textContent = text("pair.accept");
  }
  byId("naming").hidden = scanned.share;
  byId("scanned").hidden = false;
} else {
  byId("typed").hidden = false;
  byId("code").focus();
}
