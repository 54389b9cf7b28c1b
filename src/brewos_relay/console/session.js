// The session in this browser, kept where the BrewOS app keeps it: whoever signs in to one is signed in to both.

const KEY = "brewos_session";
const SOON_MS = 5 * 60 * 1000;

/** Thrown when nobody is signed in (any more). */
export class SignedOut extends Error {}

/** Give the session that is kept here; null if there is none. */
export function kept() {
  try {
    const session = JSON.parse(localStorage.getItem(KEY));
    return typeof session?.accessToken === "string" ? session : null;
  } catch {
    return null;
  }
}

/** Keep a session as the server gave it. */
export function keep({ accessToken, refreshToken, expiresAt, user }) {
  localStorage.setItem(KEY, JSON.stringify({ accessToken, refreshToken, expiresAt, user }));
}

export function forget() {
  localStorage.removeItem(KEY);
}

/** Give an access token that is good for a while, or throw SignedOut, or what `fetch` throws. */
export async function accessToken() {
  const session = kept();
  if (!session) throw new SignedOut();
  if (session.expiresAt > Date.now() + SOON_MS) return session.accessToken;
  try {
    return await renew(session.accessToken);
  } catch (problem) {
    if (problem instanceof SignedOut || session.expiresAt <= Date.now()) throw problem;
    return session.accessToken; // it is still good, and there will be another chance
  }
}

/** Exchange the session for a new one, unless somebody has done so since `used` was its access token. */
export function renew(used) {
  const work = () => renewNow(used);
  // Two tabs take turns, where the browser has a way for that; the server bears with those that do not.
  return navigator.locks ? navigator.locks.request(KEY, work) : work();
}

async function renewNow(used) {
  const session = kept();
  if (!session) throw new SignedOut();
  if (session.accessToken !== used) return session.accessToken;
  const answer = await fetch("/api/auth/refresh", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ refreshToken: session.refreshToken ?? "" }),
    signal: AbortSignal.timeout(8000),
  });
  if (answer.status === 401 || answer.status === 403) {
    if (kept()?.accessToken === used) forget();
    throw new SignedOut();
  }
  if (!answer.ok) throw new Error(`the session could not be renewed: ${answer.status}`);
  const renewed = await answer.json();
  keep(renewed);
  return renewed.accessToken;
}
