"""A reduced model of the built BrewOS app: its routes without a session, and its worker.

It follows the contract of the app in the field, with as little of its interface as the tests need.
"""

from pathlib import Path
from typing import Final

INDEX: Final = """<!doctype html>
<html lang="en" class="h-full">
  <head>
    <meta charset="UTF-8" />
    <title>App</title>
    <script type="module" crossorigin src="/assets/index-1a2b.js"></script>
    <style>body { margin: 0 }</style>
  </head>
  <body><div id="root"></div></body>
</html>
"""

SCRIPT: Final = """
const stored = () => JSON.parse(localStorage.getItem("brewos_session"));
const root = document.getElementById("root");

// As a router does it: the first entry gets a state, and links change the path within the page.
history.replaceState({ idx: 0 }, "");
function navigate(to, { replace = false } = {}) {
  history[replace ? "replaceState" : "pushState"]({ idx: 1 }, "", to);
  render();
}

function render() {
  const path = location.pathname;
  if (path === "/pair") root.textContent = "Sign in to add this device";
  else if (path === "/login") root.textContent = "Connect Locally - Cloud features are not configured";
  else if (!stored()) navigate("/login", { replace: true });
  else root.textContent = `Dashboard of ${stored().user.email} at ${path}`;
}

window.app = {
  navigate,
  async signOut() {
    const { accessToken } = stored();
    localStorage.removeItem("brewos_session");
    const headers = { Authorization: `Bearer ${accessToken}`, "Content-Type": "application/json" };
    await fetch("/api/auth/logout", { method: "POST", headers }).catch(() => {});
    navigate("/login");
  },
};
navigator.serviceWorker?.addEventListener("message", ({ data }) => (window.app.shown = data.shown));
addEventListener("popstate", render);
render();
if ("serviceWorker" in navigator) {
  navigator.serviceWorker.register("/sw.js", { scope: "/", updateViaCache: "none" }).catch(() => {});
  let reloads = false;
  navigator.serviceWorker.addEventListener("controllerchange", () => {
    if (!reloads) location.reload();
    reloads = true;
  });
}
"""

WORKER: Final = """
const SHELL = "shell", SEEN = "seen", WAIT_MS = 3000;
let offline = false;  // for tests: DevTools take a page off the network, but not its worker

self.addEventListener("message", (event) => {
  offline = event.data === "offline";
});

self.addEventListener("install", (event) => {
  const keep = async () => (await caches.open(SHELL)).addAll(["/", "/index.html"]);
  event.waitUntil(keep().catch(() => {}).then(() => self.skipWaiting()));
});
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

async function remember(request, response) {
  const cache = await caches.open(SEEN);
  cache.put(request, response.clone()).catch(() => {});  // the app does not wait for it
}

async function networkFirst(request, options) {
  try {
    if (offline) throw new TypeError("offline");
    const response = await fetch(request, { signal: AbortSignal.timeout(WAIT_MS), ...options });
    if (response.ok) await remember(request, response);
    if (response.ok || request.mode !== "navigate") return response;
  } catch {
    // offline, or slow
  }
  const known = await caches.match(request);
  if (known) return known;
  if (request.mode === "navigate") return caches.match("/index.html");
  return new Response('{"error":"offline"}', { status: 503 });
}

self.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method !== "GET") return;
  if (request.mode === "navigate") event.respondWith(networkFirst(request, { cache: "no-store" }));
  else event.respondWith(networkFirst(request));
});

self.addEventListener("push", (event) => {
  const { title, body, tag, data } = event.data.json();
  const tell = async () => {
    for (const page of await self.clients.matchAll()) page.postMessage({ shown: { title, body, data } });
  };
  event.waitUntil(self.registration.showNotification(title, { body, tag, data }).then(tell));
});
"""


def write_app(folder: Path) -> Path:
    """Write the files of the build into a folder, and return it."""
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text(INDEX)
    (folder / "assets" / "index-1a2b.js").write_text(SCRIPT)
    (folder / "sw.js").write_text(WORKER)
    return folder
