// The password of the account: set, change and remove it.

import { sendSignedIn } from "./api.js";
import { byId, onAction, setText } from "./dom.js";
import { text } from "./texts.js";

/** Show the part of the page about the password. */
export async function startPassword(problem) {
  const { user, hasPassword, hasOtherWay } = await sendSignedIn("GET", "/api/auth/me");
  const current = () => ({ currentPassword: byId("current").value || null });

  function show(isSet) {
    byId("current-part").hidden = !isSet;
    byId("password-remove").hidden = !(isSet && hasOtherWay);
    setText(byId("password-note"), text(isSet ? "password.ends-others" : "password.none"));
    for (const id of ["current", "chosen"]) byId(id).value = "";
  }

  onAction(byId("password-form"), problem, async () => {
    setText(byId("password-done"));
    await sendSignedIn("PUT", "/api/me/password", { password: byId("chosen").value, ...current() });
    show(true);
    setText(byId("password-done"), text("password.saved"));
  });

  onAction(byId("password-remove"), problem, async () => {
    setText(byId("password-done"));
    await sendSignedIn("POST", "/api/me/password/remove", current());
    show(false);
    setText(byId("password-done"), text("password.removed"));
  });

  byId("account").value = user.email;
  show(hasPassword);
  byId("password-part").hidden = false;
}
