// The service worker of the console. With it, browsers can install the console, and it can show notifications.

const WORKER = "/console/worker.js";
const SCOPE = "/console";
const WAITING_MS = 2000;

// The policy of the pages wants a declaration for each script that a script names.
const declared = globalThis.trustedTypes?.createPolicy("brewos-relay", { createScriptURL: () => WORKER });

/** Register the service worker. Resolves to its registration, or to null where browsers allow none, as over HTTP. */
export async function registerWorker() {
  if (!navigator.serviceWorker) return null;
  try {
    const registration = await navigator.serviceWorker.register(declared?.createScriptURL(WORKER) ?? WORKER, { scope: SCOPE, updateViaCache: "none" });
    hurry(registration.waiting);
    hurry(registration.installing);
    registration.onupdatefound = () => hurry(registration.installing);
    return registration;
  } catch {
    return null; // a certificate that the browser does not trust, or no connection
  }
}

/**
 * Ask a new worker to take over if it still waits a while after its installation. It skips waiting by itself, but
 * Chromium lets it wait for 30 s if the old worker was just being started. Only the first request counts, so it
 * must not come too early as well.
 */
function hurry(worker) {
  const ask = () => worker.state === "installed" && worker.postMessage("skipWaiting");
  const askLater = () => worker.state === "installed" && setTimeout(ask, WAITING_MS);
  worker?.addEventListener("statechange", askLater);
  if (worker) askLater();
}
