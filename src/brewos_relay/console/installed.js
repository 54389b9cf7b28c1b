// The service worker of the console. With it, browsers can install the console, and it can show notifications.

const WORKER = "/console/worker.js";
const SCOPE = "/console";

// The policy of the pages wants a declaration for each script that a script names.
const declared = globalThis.trustedTypes?.createPolicy("brewos-relay", { createScriptURL: () => WORKER });

/** Register the service worker. Resolves to its registration, or to null where browsers allow none, as over HTTP. */
export async function registerWorker() {
  if (!navigator.serviceWorker) return null;
  try {
    return await navigator.serviceWorker.register(declared?.createScriptURL(WORKER) ?? WORKER, { scope: SCOPE, updateViaCache: "none" });
  } catch {
    return null; // a certificate that the browser does not trust, or no connection
  }
}
