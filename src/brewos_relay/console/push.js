// Notifications in this browser: its subscription, and what the server knows of it.

import { sendSignedIn } from "./api.js";
import { registerWorker } from "./installed.js";
import { PUSH_DEVICES, storedSession } from "./login_session.js";

const USER = "brewos_relay_push_user"; // the id of the user who has subscribed this browser
const LEAVE_MS = 3000;

/** Return what this browser can do: "insecure", "unsupported", "blocked", "off" or "on". */
export async function pushState() {
  if (!isSecureContext) return "insecure";
  if (!("PushManager" in globalThis && "Notification" in globalThis)) return "unsupported";
  const registration = await registerWorker();
  if (!registration) return "insecure"; // browsers register no worker over a certificate that they do not trust
  if (Notification.permission === "denied") return "blocked";
  return isOwn() && (await registration.pushManager.getSubscription()) ? "on" : "off";
}

/** Ask for permission, and subscribe this browser. Returns the new state. Call it from a click. */
export async function switchOn() {
  if ((await Notification.requestPermission()) !== "granted") return pushState();
  const { publicKey } = await sendSignedIn("GET", "/api/push/vapid-key");
  const { pushManager } = await activated(await registerWorker());
  const options = { userVisibleOnly: true, applicationServerKey: bytesOf(publicKey) };
  // A subscription of another user, or for another key of the server, must not go on.
  await (await pushManager.getSubscription())?.unsubscribe();
  await report(await pushManager.subscribe(options));
  localStorage.setItem(USER, me());
  return pushState();
}

/** End the subscription of this browser. Returns the new state. */
export async function switchOff() {
  const subscription = await ownSubscription();
  if (subscription) {
    await sendSignedIn("POST", "/api/push/unsubscribe", { subscription: subscription.toJSON() });
    await subscription.unsubscribe();
  }
  forget();
  return pushState();
}

/** End the subscription before signing out. The server drops it with the session. */
export async function leavePush() {
  if (localStorage.getItem(USER) === null) return;
  const work = ownSubscription().then((subscription) => subscription?.unsubscribe());
  await Promise.race([work.catch(() => {}), new Promise((settle) => setTimeout(settle, LEAVE_MS))]);
  forget();
}

/** Include new machines, and subscribe again after a new sign-in. */
export async function keepSubscribed(deviceIds) {
  if (localStorage.getItem(USER) === null) return;
  const known = JSON.stringify([...deviceIds].sort());
  if (isOwn() && localStorage.getItem(PUSH_DEVICES) === known) return;
  const subscription = await ownSubscription();
  // Another user has signed in, or the user has withdrawn the permission.
  if (!isOwn()) await subscription?.unsubscribe();
  if (!isOwn() || !subscription) return forget();
  try {
    await report(subscription);
    localStorage.setItem(PUSH_DEVICES, known);
  } catch (failure) {
    if (failure.status === 404) forget(); // notifications are switched off on the server now
    throw failure;
  }
}

/** Tell the server the subscription, for all machines of the user. */
const report = (subscription) => sendSignedIn("POST", "/api/push/subscribe", { subscription: subscription.toJSON() });

const me = () => storedSession()?.user?.id ?? "";
const isOwn = () => localStorage.getItem(USER) === me();

function forget() {
  localStorage.removeItem(USER);
  localStorage.removeItem(PUSH_DEVICES);
}

async function ownSubscription() {
  const registration = await registerWorker();
  return registration && registration.pushManager.getSubscription();
}

/** Wait until a registration has an active worker, which a subscription needs. */
async function activated(registration) {
  const worker = registration.active ?? registration.waiting ?? registration.installing;
  while (worker.state !== "activated") await new Promise((settle) => worker.addEventListener("statechange", settle, { once: true }));
  return registration;
}

function bytesOf(base64url) {
  const text = atob(base64url.replaceAll("-", "+").replaceAll("_", "/"));
  return Uint8Array.from(text, (character) => character.charCodeAt(0));
}
