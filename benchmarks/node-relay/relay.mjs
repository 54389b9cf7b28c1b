// A plain Node relay on `ws`, to compare with: node relay.mjs PORT DEVICES.csv [PEM]
//
// It does what a straightforward relay does: it parses each message, looks at its type, and encodes
// it again once for all receivers. Device keys are checked against their SHA-256, client tokens as
// HS256 JWTs signed with JWT_SECRET. DEVICES.csv has the lines `id,key`. Binary messages are passed on as they
// are. With PEM, a file with certificate and key, it serves TLS.

import { createHash, createHmac, timingSafeEqual } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { createServer as createTlsServer } from "node:https";
import { WebSocketServer } from "ws";

const [port, devicesFile, pemFile] = process.argv.slice(2);
const secret = process.env.JWT_SECRET;
if (!port || !devicesFile || !secret) {
  console.error("usage: JWT_SECRET=... node relay.mjs PORT DEVICES.csv [PEM]");
  process.exit(2);
}

const sha256 = (text) => createHash("sha256").update(text).digest();

const keyHashes = new Map();
for (const line of readFileSync(devicesFile, "utf8").split("\n")) {
  const [id, key] = line.trim().split(",");
  if (key && id.startsWith("BRW-")) keyHashes.set(id, sha256(key));
}

const sessions = new Map(); // device id → { device, clients }

function sessionOf(id) {
  let session = sessions.get(id);
  if (!session) sessions.set(id, (session = { device: null, clients: new Set() }));
  return session;
}

function forgetIfEmpty(id, session) {
  if (!session.device && session.clients.size === 0) sessions.delete(id);
}

function keyMatches(id, key) {
  const expected = keyHashes.get(id);
  return expected !== undefined && timingSafeEqual(sha256(key), expected);
}

// Return the token's claims, or null when it is forged, malformed or expired.
function verifyToken(token) {
  const [header, body, signature] = token.split(".");
  if (!signature) return null;
  const expected = createHmac("sha256", secret).update(`${header}.${body}`).digest();
  const given = Buffer.from(signature, "base64url");
  if (given.length !== expected.length || !timingSafeEqual(given, expected)) return null;
  try {
    const { alg } = JSON.parse(Buffer.from(header, "base64url"));
    const claims = JSON.parse(Buffer.from(body, "base64url"));
    return alg === "HS256" && claims.exp * 1000 > Date.now() ? claims : null;
  } catch {
    return null;
  }
}

function parseMessage(data) {
  try {
    const message = JSON.parse(data.toString());
    return typeof message?.type === "string" ? message : null;
  } catch {
    return null;
  }
}

const say = (socket, message) => socket.send(JSON.stringify({ ...message, timestamp: Date.now() }));

function broadcast(session, message) {
  sendToAll(session, JSON.stringify(message));
}

function sendToAll(session, data) {
  for (const client of session.clients) {
    if (client.readyState === client.OPEN) client.send(data);
  }
}

function attachDevice(socket, id) {
  const session = sessionOf(id);
  session.device?.close(4002, "replaced");
  session.device = socket;
  say(socket, { type: "connected" });
  broadcast(session, { type: "device_online" });
  socket.on("message", (data, isBinary) => {
    if (isBinary) return sendToAll(session, data);
    const message = parseMessage(data);
    if (message) broadcast(session, message);
  });
  socket.on("close", () => {
    if (session.device !== socket) return;
    session.device = null;
    broadcast(session, { type: "device_offline" });
    forgetIfEmpty(id, session);
  });
}

function attachClient(socket, id) {
  const session = sessionOf(id);
  session.clients.add(socket);
  say(socket, { type: "connected", deviceId: id, deviceOnline: session.device !== null });
  socket.on("message", (data) => {
    const message = parseMessage(data);
    if (!message) return;
    if (session.device) session.device.send(JSON.stringify(message));
    else say(socket, { type: "error", error: "device_offline", message: "The machine is offline." });
  });
  socket.on("close", () => {
    session.clients.delete(socket);
    forgetIfEmpty(id, session);
  });
}

const sockets = new WebSocketServer({ noServer: true, perMessageDeflate: false });
const notFound = (request, response) => response.writeHead(404).end();
const pem = pemFile && readFileSync(pemFile);
const server = pem ? createTlsServer({ cert: pem, key: pem }, notFound) : createServer(notFound);

server.on("upgrade", (request, stream, head) => {
  const refuse = (status) => stream.end(`HTTP/1.1 ${status}\r\nConnection: close\r\n\r\n`);
  const url = new URL(request.url, "http://relay");
  const accept = (attach, id) =>
    sockets.handleUpgrade(request, stream, head, (socket) => {
      socket.on("error", () => socket.terminate());
      attach(socket, id);
    });

  if (url.pathname === "/ws/device") {
    const id = url.searchParams.get("id") ?? "";
    if (!keyMatches(id, url.searchParams.get("key") ?? "")) return refuse("401 Unauthorized");
    return accept(attachDevice, id);
  }
  if (url.pathname === "/ws/client") {
    const id = url.searchParams.get("device") ?? "";
    const claims = verifyToken(url.searchParams.get("token") ?? "");
    if (!claims) return refuse("401 Unauthorized");
    if (claims.devices !== "*" && !claims.devices?.includes(id)) return refuse("403 Forbidden");
    return accept(attachClient, id);
  }
  return refuse("404 Not Found");
});

server.listen({ port: Number(port), host: "127.0.0.1", backlog: 4096 }, () =>
  console.log(`node-relay: listening on 127.0.0.1:${port}`),
);
