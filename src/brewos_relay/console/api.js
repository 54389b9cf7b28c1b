// Requests to the HTTP API of this server.

import { accessToken, renewSession } from "./login_session.js";
import { refusalText, text } from "./texts.js";

const TIME_MS = 15000;

/** An error answer, with a message for the user. `status` is 0 if the server did not answer. */
export class RequestFailed extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Send a request without authentication. Returns the JSON of the answer; throws RequestFailed. */
export async function sendAnonymous(method, path, body) {
  return read(await send(method, path, body, null));
}

/** Send a request as the signed-in user. Returns the JSON of the answer; throws SignedOut or RequestFailed. */
export async function sendSignedIn(method, path, body) {
  return read(await askSignedIn(method, path, body));
}

/** Download a file as the signed-in user, under the name that the server gives it. */
export async function downloadSignedIn(path) {
  const answer = await askSignedIn("GET", path);
  if (!answer.ok) return read(answer);
  const [, name] = /filename="([^"]+)"/.exec(answer.headers.get("Content-Disposition") ?? "") ?? [];
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(await answer.blob()), download: name ?? "" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

async function askSignedIn(method, path, body) {
  const token = await tokenOr(accessToken);
  const answer = await send(method, path, body, token);
  if (answer.status !== 401) return answer;
  return send(method, path, body, await tokenOr(() => renewSession(token)));
}

async function tokenOr(get) {
  try {
    return await get();
  } catch (problem) {
    if (problem.name === "TypeError" || problem.name === "TimeoutError") throw unreachable();
    throw problem;
  }
}

async function send(method, path, body, token) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (token) headers.Authorization = `Bearer ${token}`;
  try {
    return await fetch(path, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store",
      signal: AbortSignal.timeout(TIME_MS),
    });
  } catch {
    throw unreachable();
  }
}

async function read(answer) {
  const content = await answer.json().catch(() => null);
  if (answer.ok && content !== null) return content;
  throw new RequestFailed(typeof content?.error === "string" ? refusalText(content.error) : text("problem.status", { status: answer.status }), answer.status);
}

function unreachable() {
  return new RequestFailed(text("problem.unreachable"), 0);
}
