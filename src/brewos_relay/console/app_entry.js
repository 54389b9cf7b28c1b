// Runs in the built web app, before the app. Two of the app's own routes become pages of the relay: the app may be
// built without a way to sign in, and its /pair offers a signed-out user none.
"use strict";

{
  const ours = new Set(["/login", "/pair"]);
  // The relay's sign-in page links here for the ways to sign in that only the app offers.
  const stays = new URLSearchParams(location.search).has("app-sign-in");

  for (const name of ["pushState", "replaceState"]) {
    const change = history[name];
    history[name] = function (...given) {
      const from = location.pathname;
      change.apply(this, given);
      // Only a change of the path counts: offline, the app itself is shown at these paths, and must not load in a loop.
      if (stays || location.pathname === from || !ours.has(location.pathname)) return;
      const to = new URL(location.href);
      if (to.pathname === "/login" && !to.searchParams.has("next")) to.searchParams.set("next", from);
      location.replace(to);
    };
  }
}
