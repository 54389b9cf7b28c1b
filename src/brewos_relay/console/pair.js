// Adding a machine: by what its screen or a shared link has led here with, or by a typed short code.

import { askSignedIn } from "./api.js";
import { byId, goToLogin, tell, whenAsked } from "./page.js";
import { kept } from "./session.js";

const KEY = "brewos_relay_pairing";
const problem = byId("problem");

/** Take what was scanned out of the address, where it would be kept; it stays in this tab until it is used. */
function takeScanned() {
  const asked = new URLSearchParams(location.search);
  if (asked.get("id") && asked.get("token")) {
    const scanned = { id: asked.get("id"), token: asked.get("token"), share: asked.get("share") === "true" };
    sessionStorage.setItem(KEY, JSON.stringify(scanned));
    history.replaceState(null, "", location.pathname);
  }
  return JSON.parse(sessionStorage.getItem(KEY));
}

function showDone() {
  sessionStorage.removeItem(KEY);
  for (const id of ["scanned", "typed"]) byId(id).hidden = true;
  tell(byId("notice"), "Done: the machine is one of yours now.");
  byId("back").hidden = true;
  byId("done").hidden = false;
  byId("done").firstElementChild.focus();
}

const scanned = takeScanned();

whenAsked(byId("scanned"), problem, async () => {
  const path = scanned.share ? "/api/devices/claim-share" : "/api/devices/claim";
  const name = byId("name").value.trim();
  try {
    await askSignedIn("POST", path, { deviceId: scanned.id, token: scanned.token, ...(name && { name }) });
  } catch (failure) {
    if (failure.status >= 400 && failure.status < 429) {
      // It will not get better by trying it again.
      sessionStorage.removeItem(KEY);
      byId("scanned").hidden = true;
      byId("typed").hidden = false;
    }
    throw failure;
  }
  showDone();
});

whenAsked(byId("typed"), problem, async () => {
  await askSignedIn("POST", "/api/devices/claim", { deviceId: byId("code").value.trim(), token: "" });
  showDone();
});

if (!kept()) {
  goToLogin();
} else if (scanned) {
  byId("about").textContent = scanned.share
    ? `Somebody shares the machine ${scanned.id} with you.`
    : `This is the machine ${scanned.id}.`;
  byId("naming").hidden = scanned.share;
  byId("scanned").hidden = false;
} else {
  byId("typed").hidden = false;
  byId("code").focus();
}
