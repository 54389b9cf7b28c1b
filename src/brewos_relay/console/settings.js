// The settings of this device: language, unit of temperatures, clock, and notifications.

import { byId, setText } from "./dom.js";
import { homePage, showHeader } from "./header.js";
import { storedSession } from "./login_session.js";
import { startPassword } from "./password.js";
import { choices, choose, suggested } from "./preferences.js";
import { startPushSettings } from "./push_settings.js";
import { text } from "./texts.js";

const NAMES = {
  celsius: "settings.celsius", fahrenheit: "settings.fahrenheit", 24: "settings.24-hours", 12: "settings.12-hours",
};

for (const name of ["language", "temperature", "clock"]) {
  const field = byId(name);
  if (suggested[name]) field.options[0].textContent = text("settings.automatic-is", { value: text(NAMES[suggested[name]]) });
  field.value = choices()[name] ?? "";
  field.addEventListener("change", () => {
    choose(name, field.value);
    if (name === "language") location.reload();
  });
}

document.querySelector("header .mark").href = homePage;
if (storedSession()) {
  showHeader(byId("problem"));
  startPushSettings(byId("problem"));
  startPassword(byId("password-problem")).catch(({ message }) => setText(byId("problem"), message));
}
