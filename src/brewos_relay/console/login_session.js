// The login session of this browser. It is stored where the BrewOS app stores it, so both share one sign-in.

import { text } from "./texts.js";

const KEY = "brewos_session";
/** Where the machines are stored that the server sends notifications about, as long as the session lasts. */
export const PUSH_DEVICES = "brewos_relay_push_devices";
/** Where a tab keeps the pairing or share that its user has opened. */
export const PAIRING = "brewos_relay_pairing";
const SOON_MS = 5 * 60 * 1000;

/** Thrown without a login session, or when it has ended. */
export class SignedOut extends Error {}

/** Return the stored session, or null. */
export function storedSession() {
  try {
    const session = JSON.parse(localStorage.getItem(KEY));
    return typeof session?.accessToken === "string" ? session : null;
  } catch {
    return null;
  }
}

/** Store the session of a new sign-in. Notifications of the one before end with it, so the new one must ask for them. */
export function startSession(session) {
  localStorage.removeItem(PUSH_DEVICES);
  storeSession(session);
}

function storeSession({ accessToken, refreshToken, expiresAt, user }) {
  localStorage.setItem(KEY, JSON.stringify({ accessToken, refreshToken, expiresAt, user }));
}

export function clearSession() {
  localStorage.removeItem(KEY);
  localStorage.removeItem(PUSH_DEVICES);
}

/** Return an access token that is valid for a while. Throws SignedOut, or an error of `fetch`. */
export async function accessToken() {
  const session = storedSession();
  if (!session) throw new SignedOut();
  if (session.expiresAt > Date.now() + SOON_MS) return session.accessToken;
  try {
    return await renewSession(session.accessToken);
  } catch (problem) {
    if (problem instanceof SignedOut || session.expiresAt <= Date.now()) throw problem;
    return session.accessToken; // the token is still valid, and the next call tries again
  }
}

/** Renew the session, unless another tab has done so since `used` was its access token. */
export function renewSession(used) {
  const work = () => renewNow(used);
  // Tabs take turns if the browser supports locks. Otherwise the server accepts both for a while.
  return navigator.locks ? navigator.locks.request(KEY, work) : work();
}

async function renewNow(used) {
  const session = storedSession();
  if (!session) throw new SignedOut();
  if (session.accessToken !== used) return session.accessToken;
  const answer = await fetch("/api/auth/refresh", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ refreshToken: session.refreshToken ?? "" }),
    signal: AbortSignal.timeout(8000),
  });
  if (answer.status === 401 || answer.status === 403) {
    if (storedSession()?.accessToken === used) clearSession();
    throw new SignedOut();
  }
  if (!answer.ok) throw new Error(text("problem.status", { status: answer.status }));
  const renewed = await answer.json();
  storeSession(renewed);
  return renewed.accessToken;
}
